"""What makes a host wait for its GPU, seen on a machine without one: operations on fake tensors of device cuda."""

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class HostWaits(TorchDispatchMode):
    """Counts reads of device values by the host, and copies between host and device that are not asynchronous.

    Enter `FakeTensorMode` first. Reads of fake tensors, which hold no values, give True, 1 or 1.0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads = 0
        self.copies: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        if name == "aten::_local_scalar_dense":
            self.reads += tensors[0].device.type == "cuda"
            return {torch.bool: True}.get(tensors[0].dtype, 1.0 if tensors[0].is_floating_point() else 1)
        if name in ("aten::pin_memory", "aten::_pin_memory"):
            return tensors[0]
        result = func(*args, **kwargs)
        if name in ("aten::to", "aten::_to_copy") and result.device != tensors[0].device:
            given = {**dict(zip((a.name for a in func._schema.arguments), args, strict=False)), **kwargs}
            if not given.get("non_blocking"):
                self.copies[f"{tensors[0].device.type} to {result.device.type}"] += 1
        return result

"""A step on fake CUDA tensors: what is launched, what the host waits for, and what ranks exchange, without a GPU.

Fake tensors have a shape, strides, a type and a device, but no values. Whatever needs values the host would have to
wait for; an operator on tensors of several devices raises. What is not covered: speed, memory fragmentation, kernels
that a GPU lacks, and the backward pass, since autograd's engine needs a real device.
"""

import contextlib
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CUDA = torch.device("cuda", 0)
# Operators that launch nothing: they make views, or allocate.
VIEWS = {
    "_reshape_alias", "_unsafe_view", "alias", "as_strided", "as_strided_", "chunk", "detach", "diagonal", "empty",
    "empty_like", "empty_strided", "expand", "is_same_size", "lift_fresh", "narrow", "new_empty",
    "new_empty_strided", "permute", "select", "set_", "slice", "split", "split_with_sizes", "squeeze", "sym_size",
    "t", "transpose", "unbind", "unfold", "unsqueeze", "view", "view_as",
}  # fmt: skip


@dataclass
class Watched:
    """What a piece of work asked of the device.

    Attributes:
        launches: how often each operator was started on CUDA tensors.
        bytes: of all operands and results of those.
        waits: where the host waited for the device, one line for each time. A second read right after a first one,
            with nothing launched in between, finds the device idle and does not count.
        exchanged: collective operations, as "file:line: name, shape and type".
        wrong: those whose tensor is not on the device, or not contiguous.
    """

    launches: Counter[str] = field(default_factory=Counter)
    bytes: int = 0
    waits: list[str] = field(default_factory=list)
    exchanged: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    paused: bool = True

    def __str__(self) -> str:
        waits = "".join(f"\n  {wait}" for wait in self.waits)
        return (
            f"{self.launches.total()} launches, {self.bytes / 2**30:.2f} GiB read and written, "
            f"{len(self.exchanged)} exchanges, {len(self.waits)} waits{waits}"
        )


class _Watch(TorchDispatchMode):
    def __init__(self, watched: Watched):
        super().__init__()
        self.watched = watched
        self.idle = False  # nothing was launched since the last wait

    def wait(self, what: str) -> None:
        if not self.idle:
            self.watched.waits.append(f"{place()}: {what}")
        self.idle = True

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_device = any(tensor.device.type == "cuda" for tensor in given)
        if name == "_local_scalar_dense":
            if on_device:
                self.wait("reads a value")
            return True if given[0].dtype == torch.bool else 0 if not given[0].dtype.is_floating_point else 1.0
        result = func(*args, **(kwargs or {}))
        made = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
        on_device = on_device or any(tensor.device.type == "cuda" for tensor in made)
        if name in ("_to_copy", "copy_"):
            source = given[0] if name == "_to_copy" else given[1]
            blocking = not ((kwargs or {}).get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
            if source.device.type != made[0].device.type and blocking:
                self.wait(f"copies {list(source.shape)} from {source.device.type} to {made[0].device.type}")
                return result
        if on_device and name not in VIEWS and not name.startswith("prim::"):
            self.idle = False
            self.watched.launches[name] += 1
            self.watched.bytes += sum(tensor.nbytes for tensor in (*given, *made))
        return result


def place() -> str:
    """The innermost line of driftkit that is being run."""
    frames = [frame for frame in traceback.extract_stack() if "/driftkit/" in frame.filename]
    ours = [frame for frame in frames if "site-packages" not in frame.filename]
    ours = [frame for frame in ours if not frame.filename.endswith("runtime/ranks.py")] or ours  # who called it
    return f"{ours[-1].filename.rpartition('/driftkit/')[2]}:{ours[-1].lineno}" if ours else "autograd"


def _leaves(roots) -> Iterator[torch.Tensor]:
    waiting, seen = [root.grad_fn for root in roots if root.grad_fn is not None], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            yield node.variable
        waiting += [parent for parent, _ in node.next_functions]


def _backward(roots, *gradients, **options) -> None:
    """Gradients without a backward pass."""
    for leaf in _leaves([roots] if isinstance(roots, torch.Tensor) else roots):
        if leaf.grad is None:
            leaf.grad = torch.empty_like(leaf)
        for hook in (leaf._post_accumulate_grad_hooks or {}).values():
            hook(leaf)


def _memory_format(images, weight, backend):
    """As cuDNN has it: channels last where images or weights are."""
    for tensor in (images, weight):
        if tensor.ndim == 4 and tensor.stride(1) == 1 and tensor.stride(3) >= tensor.size(1):
            return torch.channels_last
    return torch.contiguous_format


def _attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Flash attention, which takes half precision with contiguous channels."""
    assert all(tensor.stride(-1) == 1 for tensor in (query, key, value))
    if query.dtype == torch.float32:
        query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, 0.0, False)[0]


class _Work:
    def wait(self) -> None:
        pass


@contextlib.contextmanager
def fake_cuda() -> Iterator[Watched]:
    """Within, tensors are fake ones, CUDA answers what it is asked, and what ranks exchange is written down."""
    watched = Watched()

    def exchange(name, tensor, async_op):
        shape = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        if watched.paused:
            return _Work() if async_op else None
        watched.exchanged.append(f"{place()}: {name} of {shape}")
        if tensor.device.type != "cuda" or not tensor.is_contiguous():
            watched.wrong.append(f"{place()}: {name} of {shape} on {tensor.device}, strides {tensor.stride()}")
        return _Work() if async_op else None

    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True):
        patch.setattr("torch.cuda.amp.common.amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda *_, **__: True)
        patch.setattr(torch.cuda, "mem_get_info", lambda *_: (0, 80 * 2**30))  # images stay on the host
        patch.setattr(torch.cuda, "set_device", lambda *_: None)
        patch.setattr(torch.Tensor, "pin_memory", lambda self: self)
        patch.setattr(torch._C, "_conv_determine_backend_memory_format", _memory_format)
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", _attention)
        patch.setattr(torch.Tensor, "backward", lambda self, *_, **__: _backward(self))
        patch.setattr(torch.autograd, "backward", _backward)
        patch.setattr(
            dist, "all_reduce", lambda tensor, op=None, group=None, async_op=False: exchange("sum", tensor, async_op)
        )
        patch.setattr(
            dist,
            "all_gather_into_tensor",
            lambda out, tensor, group=None, async_op=False: exchange("gathering", tensor, async_op),
        )
        yield watched


@contextlib.contextmanager
def watching(watched: Watched) -> Iterator[None]:
    """Write down what is asked of the device within."""
    with _Watch(watched):
        watched.paused = False
        yield
        watched.paused = True

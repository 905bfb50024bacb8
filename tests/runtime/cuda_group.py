"""The program in a process group made as for CUDA, on a machine without: what would be NCCL knows no CPU tensors.

Started by torchrun with the words of the command behind it.
"""

import torch
import torch.distributed as dist

from driftkit.cli.app import main
from driftkit.runtime.ranks import Ranks

init_process_group, start, meet = dist.init_process_group, Ranks.start, Ranks._meet


def with_gloo_for_nccl(backend, *, device_id, **options):
    """What is asked of NCCL serves CUDA tensors alone; gloo stands in for it, and says so of any other tensor."""
    backends = ",".join(part if ":" in part else f"cuda:{part}" for part in backend.split(","))
    init_process_group(backends.replace("nccl", "gloo"), **options)


dist.init_process_group = with_gloo_for_nccl
torch.cuda.set_device = lambda device: None
Ranks.start = classmethod(lambda cls, *, device_type, **options: start(device_type="cuda", **options))
Ranks._meet = lambda self, device: meet(self, "cpu")
main()

"""A thread for work that goes on while the main thread does something else."""

from concurrent.futures import ThreadPoolExecutor

import torch


def one_worker(name: str, device: torch.device) -> ThreadPoolExecutor:
    """A pool of one thread; pinned memory that it takes belongs to `device` where that is a GPU."""

    def begin() -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)  # of this thread alone; GPU 0 otherwise

    return ThreadPoolExecutor(1, thread_name_prefix=name, initializer=begin)

"""Random draws as functions of (seed, stream, counters), so that nothing needs generator state to resume.

A draw for image i is the same whatever the batch size, the rank or the device: it is made on the CPU from a generator
that is seeded for that image alone. torch's generator keeps 32 bits of a seed: among 50,000 images two have the same
noise with a chance of a quarter.
"""

import hashlib
from collections.abc import Iterable, Sequence

import torch


def stream_seed(seed: int, stream: str, *counters: int | str) -> int:
    """A seed of 63 bits for one draw of a stream ("noise", "shuffle", ...); counters say which."""
    text = "/".join([str(seed), stream, *map(str, counters)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def generator_for(seed: int, stream: str, *counters: int | str) -> torch.Generator:
    """A CPU generator for one draw; the arguments are those of `stream_seed`."""
    return torch.Generator().manual_seed(stream_seed(seed, stream, *counters))


def image_noise(seed: int, stream: str, indices: Iterable[int], shape: Sequence[int], *, step: int = 0) -> torch.Tensor:
    """Standard normal noise, float32 [N, *shape] on the CPU, one independent draw per image.

    Args:
        indices: global image indices; image 17 gets the same noise in whatever batch it stands.
        step: training step, or the step of a sampler that draws noise as it goes.
    """
    numbers, generator = list(indices), torch.Generator()
    noise = torch.empty((len(numbers), *shape))
    for row, index in zip(noise, numbers, strict=True):  # one generator seeded again gives what a new one would
        generator.manual_seed(stream_seed(seed, stream, step, index))
        torch.randn(tuple(shape), generator=generator, out=row)
    return noise


def style_codes(
    seed: int, stream: str, indices: Iterable[int], *, tokens: int, codes: int, step: int = 0
) -> torch.Tensor:
    """Style codes, int64 [N, tokens] below `codes`, one independent draw per image; arguments as `image_noise`."""
    drawn = [
        torch.randint(codes, (tokens,), generator=generator_for(seed, f"{stream} style", step, index))
        for index in indices
    ]
    return torch.stack(drawn)


def seed_global_generators(seed: int, *counters: int) -> None:
    """Seed torch's global generators, which dropout draws from, for one step of one rank."""
    torch.manual_seed(stream_seed(seed, "global", *counters))


def shuffled_indices(seed: int, epoch: int, count: int) -> torch.Tensor:
    """The order in which an epoch visits the images, int64 [count]."""
    return torch.randperm(count, generator=generator_for(seed, "shuffle", epoch))

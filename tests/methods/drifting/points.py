"""Features to compute fields of, and how far two results are apart."""

import torch
from hypothesis import strategies as st


def draw(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def relative_error(got, want):
    return ((got.double() - want).norm() / want.norm().clamp(min=1e-300)).item()  # 0 / 0 is no error


@st.composite
def batches(draw_from):
    """Features of odd shapes and sizes: few or many, wide or narrow, spread out, in clusters or with duplicates."""
    g, n, p, c = (draw_from(st.integers(low, high)) for low, high in ((1, 3), (1, 9), (1, 9), (1, 6)))
    generator = torch.Generator().manual_seed(draw_from(st.integers(0, 2**31)))
    x, pos = (torch.randn((g, count, c), generator=generator, dtype=torch.float64) for count in (n, p))
    clusters = draw_from(st.sampled_from((0.0, 1.0, 20.0)))
    x, pos = x + clusters * (torch.arange(n) % 2)[:, None], pos + clusters * (torch.arange(p) % 3)[:, None]
    if draw_from(st.booleans()):
        x = x[:, torch.arange(n) // 2]
    scale = 10.0 ** draw_from(st.integers(-8, 8))
    taus = draw_from(st.sampled_from(((0.02, 0.05, 0.2), (0.005, 0.5), (0.1,))))
    return (x * scale).float(), (pos * scale).float(), taus, draw_from(st.sampled_from(("map", "location")))

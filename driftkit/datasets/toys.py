"""Distributions of points in the plane, for toys: no images, no packs. All fit into the square from -2 to 2."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

SIDE = 2.0
SQUARES = 4  # of a checkerboard's side
TURNS = (0.75, 2.25)  # of the roll, from its inner to its outer end
ARCS = 8
ROLL_NOISE, MODE_NOISE = 0.06, 0.3  # standard deviations
MODE_AT = 1.3
NEAR = 3.5  # standard deviations within which a point belongs to the data: all but 1 in 450 in two dimensions
OFF = -1


@dataclass(frozen=True)
class Toy:
    """One distribution.

    Attributes:
        draw: (number of points, generator) -> points, float32 [N, 2].
        mode_of: points [N, 2] -> int64 [N], the mode that each belongs to, -1 off the data.
        num_modes: of which each has about the same share of the points.
        a_point: where a collapsed generator starts: in one of the modes.
    """

    name: str
    draw: Callable[[int, torch.Generator], torch.Tensor]
    mode_of: Callable[[torch.Tensor], torch.Tensor]
    num_modes: int
    a_point: tuple[float, float]


def _draw_checkerboard(count: int, generator: torch.Generator) -> torch.Tensor:
    """Uniform on the 8 dark squares of 4 x 4."""
    row = torch.randint(SQUARES, (count,), generator=generator)
    column = 2 * torch.randint(SQUARES // 2, (count,), generator=generator) + row % 2
    within = torch.rand(count, 2, generator=generator)
    return (torch.stack([column, row], dim=1) + within) * (2 * SIDE / SQUARES) - SIDE


def _square_of(points: torch.Tensor) -> torch.Tensor:
    column, row = ((points + SIDE) * (SQUARES / (2 * SIDE))).floor().long().unbind(1)
    dark = (column % 2 == row % 2) & (
        torch.stack([column, row]).clamp(0, SQUARES - 1) == torch.stack([column, row])
    ).all(0)
    return torch.where(dark, row * (SQUARES // 2) + column.div(2, rounding_mode="floor"), OFF)


def _roll(share: torch.Tensor) -> torch.Tensor:
    """Points on the spiral r ~ angle, by the share of its length before them, nearly."""
    inner, outer = TURNS
    turns = (inner**2 + share * (outer**2 - inner**2)).sqrt()
    angle = 2 * math.pi * turns
    return torch.stack([angle.cos(), angle.sin()], dim=1) * (turns / outer * (SIDE - 2 * ROLL_NOISE))[:, None]


def _draw_swiss_roll(count: int, generator: torch.Generator) -> torch.Tensor:
    """A spiral of one and a half turns with normal noise, equally dense all along."""
    share = torch.rand(count, generator=generator)
    return _roll(share) + ROLL_NOISE * torch.randn(count, 2, generator=generator)


def _arc_of(points: torch.Tensor) -> torch.Tensor:
    share = (torch.arange(64 * ARCS, dtype=points.dtype) + 0.5) / (64 * ARCS)
    distance, nearest = torch.cdist(points, _roll(share)).min(dim=1)
    return torch.where(distance <= NEAR * ROLL_NOISE, nearest // 64, OFF)


def _draw_two_modes(count: int, generator: torch.Generator) -> torch.Tensor:
    """Two normal distributions, as likely as each other, at (-1.3, 0) and (1.3, 0)."""
    side = 2.0 * torch.randint(2, (count,), generator=generator) - 1
    points = MODE_NOISE * torch.randn(count, 2, generator=generator)
    points[:, 0] += MODE_AT * side
    return points


def _side_of(points: torch.Tensor) -> torch.Tensor:
    side = (points[:, 0] > 0).long()
    centre = torch.stack([MODE_AT * (2.0 * side - 1), torch.zeros(len(points))], dim=1)
    return torch.where((points - centre).norm(dim=1) <= NEAR * MODE_NOISE, side, OFF)


TOYS = {
    toy.name: toy
    for toy in (
        Toy("checkerboard", _draw_checkerboard, _square_of, SQUARES**2 // 2, (0.5, 0.5)),
        Toy("swiss-roll", _draw_swiss_roll, _arc_of, ARCS, (0.0, SIDE - 2 * ROLL_NOISE)),
        Toy("two-modes", _draw_two_modes, _side_of, 2, (MODE_AT, 0.0)),
    )
}

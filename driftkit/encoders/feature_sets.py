"""From feature maps to the vectors that drift: which vectors a map gives, and which of them share a field call.

A new feature set is one function and one row of FEATURE_SETS.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from driftkit.config.layers import did_you_mean
from driftkit.errors import UsageError
from driftkit.protocols import FeatureMap

INPUT = "input"  # stands for a map's name in groups of vectors of the image itself
STD_EPSILON = 1e-6  # under the root: a constant channel would otherwise have an infinite gradient


@dataclass(frozen=True)
class FeatureGroup:
    """Feature vectors of one map and kind, for example the 16 pooled locations of `block3`.

    They share scales where `scale_over` is "map", and their losses are averaged.
    """

    map: str
    kind: str
    values: torch.Tensor  # [L, N, C], L vectors per image

    @property
    def name(self) -> str:
        return f"{self.map}/{self.kind}"


@dataclass(frozen=True)
class FieldCall:
    """Groups with equal channels, whose fields are computed in one batch."""

    groups: tuple[FeatureGroup, ...]

    @property
    def channels(self) -> int:
        return int(self.groups[0].values.shape[-1])

    @property
    def vectors(self) -> int:
        return sum(g.values.shape[0] for g in self.groups)

    def values(self) -> torch.Tensor:
        """[G, N, C], the groups' vectors one after another."""
        return torch.cat([g.values for g in self.groups])

    def membership(self) -> tuple[int, ...]:
        """The number of the group that each of the G vectors belongs to."""
        return tuple(number for number, group in enumerate(self.groups) for _ in range(group.values.shape[0]))


FEATURES_VERSION = 4  # counted up when a feature set gives other numbers: caches are built again


@dataclass(frozen=True)
class FeatureSet:
    """What is made of an encoder's maps."""

    name: str  # as in configs
    # (feature maps, the images they came from) -> feature groups
    function: Callable[[list[FeatureMap], torch.Tensor], list[FeatureGroup]]
    help: str  # one sentence
    has_pixels: bool = False  # the image itself is one of the vectors
    reads_blocks: bool = False  # an encoder trained here is read at its stem and blocks, too

    def __call__(self, maps: list[FeatureMap], images: torch.Tensor) -> list[FeatureGroup]:
        return self.function(maps, images)


def locations(values: torch.Tensor) -> torch.Tensor:
    """Every position of a map as its own vector: [N, C, H, W] -> [H * W, N, C]."""
    return values.flatten(2).permute(2, 0, 1)


def mean_and_std(values: torch.Tensor, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation over each cell of a grid x grid partition, two [grid * grid, N, C].

    Variances are of centred values in float32, so that bf16 maps with a large mean keep their spread. Where the grid
    does not divide the map, cells overlap as those of adaptive pooling do.
    """
    values = values.float()
    height, width = values.shape[-2:]
    if height % grid == 0 and width % grid == 0:
        return _mean_and_std_of_cells(values, grid, grid)
    centred = values - values.mean(dim=(2, 3), keepdim=True).detach()
    square, shift = F.adaptive_avg_pool2d(centred.square(), grid), F.adaptive_avg_pool2d(centred, grid)
    variance = (square - shift.square()).clamp(min=0)
    return locations(F.adaptive_avg_pool2d(values, grid)), locations(variance.add(STD_EPSILON).sqrt())


def window_mean_and_std(values: torch.Tensor, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation over cells of side x side positions, two [(H // side) * (W // side), N, C].

    Positions at the edge that fill no cell are skipped.
    """
    rows, columns = (length // side for length in values.shape[-2:])
    return _mean_and_std_of_cells(values[..., : rows * side, : columns * side].float(), rows, columns)


def _mean_and_std_of_cells(values: torch.Tensor, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Of rows x columns equal cells: one pass gives both, and the backward pass keeps the map alone."""
    height, width = values.shape[-2:]
    cells = values.unflatten(3, (columns, width // columns)).unflatten(2, (rows, height // rows))
    variance, mean = torch.var_mean(cells, dim=(3, 5), correction=0)  # of [N, C, rows, *, columns, *]
    return locations(mean), locations(variance.add(STD_EPSILON).sqrt())


def multires(maps: list[FeatureMap], images: torch.Tensor) -> list[FeatureGroup]:
    """Per map 4x4 pooled locations, global mean and global standard deviation: 18 vectors.

    Maps of 2x2 and 3x3 positions repeat theirs; a map of a single position is one vector.
    """
    groups = []
    for m in maps:
        if m.values.shape[-1] == 1:
            groups.append(FeatureGroup(m.name, "locations", locations(m.values.float())))
            continue
        values = m.values.float()
        mean, std = mean_and_std(values, 1)
        pooled = locations(F.adaptive_avg_pool2d(values, 4))
        groups += [
            FeatureGroup(m.name, "locations", pooled),
            FeatureGroup(m.name, "mean", mean),
            FeatureGroup(m.name, "std", std),
        ]
    return groups


def last(maps: list[FeatureMap], images: torch.Tensor) -> list[FeatureGroup]:
    """The vectors of `multires`, of the last map alone."""
    return multires(maps[-1:], images)


def global_mean(maps: list[FeatureMap], images: torch.Tensor) -> list[FeatureGroup]:
    """Per map its global mean: 1 vector, which knows nothing of arrangement."""
    return [FeatureGroup(m.name, "mean", locations(F.adaptive_avg_pool2d(m.values.float(), 1))) for m in maps]


def paper(maps: list[FeatureMap], images: torch.Tensor) -> list[FeatureGroup]:
    """The paper's set for encoders at native resolution: nothing in the image escapes all of its vectors.

    Locations of maps of at most 4x4 positions; mean and standard deviation over the cells of a 4x4 and a 2x2 grid
    (patches of 2x2 and 4x4 positions on an 8x8 map, larger ones on larger maps, to bound the cost) and over the whole
    map; the input's RMS per channel; and the pixels themselves (the vanilla drifting loss).

    Source: arXiv 2602.04770, Appendix A.5 (a)-(d). Differs: patch sides grow with the map, larger maps have the means
    of the 4x4 grid for locations, and the input statistic is the root of the mean square, with the scale of the others.
    With a MAE's default taps the stem and the blocks inside the stages are missing, too; `paper_full` has them all.
    """
    groups = []
    for m in maps:
        side = m.values.shape[-1]
        if side <= 4:
            groups.append(FeatureGroup(m.name, "locations", locations(m.values.float())))
        for grid in (4, 2, 1):
            if side <= grid:
                continue  # cells of one position are the locations themselves
            mean, std = mean_and_std(m.values, grid)
            label = "global" if grid == 1 else f"{side // grid}x{side // grid}"
            groups += [FeatureGroup(m.name, f"{label}-mean", mean), FeatureGroup(m.name, f"{label}-std", std)]
    return groups + _input_groups(images)


def paper_full(maps: list[FeatureMap], images: torch.Tensor) -> list[FeatureGroup]:
    """The set of the paper and its authors' release, of any size: 1,666 vectors for a map of 32x32 positions.

    Per map every position, mean and standard deviation of the whole and of all cells of 2x2 and of 4x4 positions; the
    input's RMS per channel; and the pixels. Maps smaller than a cell do without it; a single position is one vector.

    Source: arXiv 2602.04770, Appendix A.5 (a)-(d), and the authors' release (86 terms, 6,734 vectors for latents of
    32x32 and an encoder of 3, 4, 6 and 3 blocks). Differs: the input statistic is the root of the mean square.
    """
    groups = []
    for m in maps:
        side = min(m.values.shape[-2:])
        groups.append(FeatureGroup(m.name, "locations", locations(m.values.float())))
        if side == 1:
            continue
        cells = {"global": mean_and_std(m.values, 1)}
        cells |= {f"{s}x{s}": window_mean_and_std(m.values, s) for s in (2, 4) if s <= side}
        for label, (mean, std) in cells.items():
            groups += [FeatureGroup(m.name, f"{label}-mean", mean), FeatureGroup(m.name, f"{label}-std", std)]
    return groups + _input_groups(images)


def _input_groups(images: torch.Tensor) -> list[FeatureGroup]:
    rms = images.float().square().mean(dim=(2, 3)).add(STD_EPSILON).sqrt()
    pixels = images.float().flatten(1)
    return [FeatureGroup(INPUT, "rms", rms[None]), FeatureGroup(INPUT, "pixels", pixels[None])]


def detailed(maps: list[FeatureMap], images: torch.Tensor) -> list[FeatureGroup]:
    """Per map every location, global mean and global standard deviation: `multires` with nothing pooled to 4x4.

    Meant for `vectors_per_group`: a few locations per step know edges and textures that pooled ones do not.
    """
    groups = []
    for m in maps:
        groups.append(FeatureGroup(m.name, "locations", locations(m.values.float())))
        if min(m.values.shape[-2:]) > 1:
            mean, std = mean_and_std(m.values, 1)
            groups += [FeatureGroup(m.name, "mean", mean), FeatureGroup(m.name, "std", std)]
    return groups


def every_location(maps: list[FeatureMap], images: torch.Tensor) -> list[FeatureGroup]:
    """Every position of every map, nothing pooled."""
    return [FeatureGroup(m.name, "locations", locations(m.values.float())) for m in maps]


FEATURE_SETS = {
    row.name: row
    for row in (
        FeatureSet("multires", multires, "4x4 pooled locations, global mean and standard deviation of every map."),
        FeatureSet("paper", paper, "The paper's set, pooled on large maps, with the pixels.", has_pixels=True),
        FeatureSet(
            "paper-full",
            paper_full,
            "Every location and all cells of 2x2 and 4x4 positions, with the pixels.",
            has_pixels=True,
            reads_blocks=True,
        ),
        FeatureSet("detailed", detailed, "Every location, global mean and standard deviation of every map."),
        FeatureSet("last", last, "The vectors of multires, of the last map alone."),
        FeatureSet("global", global_mean, "The global mean of every map."),
        FeatureSet("locations", every_location, "Every location of every map."),
    )
}


def feature_set(name: str) -> FeatureSet:
    """The feature set of that name. Raises UsageError: there is none."""
    if name not in FEATURE_SETS:
        raise UsageError(
            f"`feature_set` {name!r}: expected one of {', '.join(FEATURE_SETS)}{did_you_mean(name, FEATURE_SETS)}"
        )
    return FEATURE_SETS[name]


def field_calls(groups: list[FeatureGroup]) -> list[FieldCall]:
    """Batch the groups by channel count, in order of first appearance."""
    by_channels: dict[int, list[FeatureGroup]] = {}
    for group in groups:
        by_channels.setdefault(group.values.shape[-1], []).append(group)
    return [FieldCall(tuple(members)) for members in by_channels.values()]

"""From feature maps to the vectors that drift: which vectors a map gives, and which of them share a field call."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from driftkit.config.layers import did_you_mean
from driftkit.errors import UsageError
from driftkit.protocols import FeatureMap

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

    def membership(self, device: torch.device) -> torch.Tensor:
        """int64 [G]: the number of the group that a vector belongs to."""
        counts = torch.tensor([g.values.shape[0] for g in self.groups], device=device)
        return torch.repeat_interleave(torch.arange(len(self.groups), device=device), counts)


FEATURES_VERSION = 3  # counted up when a feature set gives other numbers: caches are made anew

FeatureSet = Callable[[list[FeatureMap], torch.Tensor], list[FeatureGroup]]
"""(feature maps, the images they came from) -> feature groups."""


def locations(values: torch.Tensor) -> torch.Tensor:
    """Every position of a map as its own vector: [N, C, H, W] -> [H * W, N, C]."""
    return values.flatten(2).permute(2, 0, 1)


def mean_and_std(values: torch.Tensor, grid: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation over each cell of a grid x grid partition, two [grid * grid, N, C].

    Variances are of centred values in float32, so that bf16 maps with a large mean keep their spread. Where the grid
    divides the map, one pass gives both and the backward pass keeps the map alone; other cells overlap, as those of
    adaptive pooling do.
    """
    values = values.float()
    height, width = values.shape[-2:]
    if height % grid or width % grid:
        centred = values - values.mean(dim=(2, 3), keepdim=True).detach()
        square, shift = F.adaptive_avg_pool2d(centred.square(), grid), F.adaptive_avg_pool2d(centred, grid)
        mean, variance = F.adaptive_avg_pool2d(values, grid), (square - shift.square()).clamp(min=0)
    else:
        cells = values.unflatten(3, (grid, width // grid)).unflatten(2, (grid, height // grid))
        variance, mean = torch.var_mean(cells, dim=(3, 5), correction=0)  # of [N, C, grid, rows, grid, columns]
    return locations(mean), locations(variance.add(STD_EPSILON).sqrt())


def multires(maps: list[FeatureMap], images: torch.Tensor) -> list[FeatureGroup]:
    """Per map 4x4 pooled locations, global mean and global standard deviation: 18 vectors.

    Maps of 2x2 and 3x3 positions repeat theirs; one of a single position is that one vector.
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
    rms = images.float().square().mean(dim=(2, 3)).add(STD_EPSILON).sqrt()
    groups.append(FeatureGroup("input", "rms", rms[None]))
    groups.append(FeatureGroup("input", "pixels", images.float().flatten(1)[None]))
    return groups


def every_location(maps: list[FeatureMap], images: torch.Tensor) -> list[FeatureGroup]:
    """Every position of every map, nothing pooled."""
    return [FeatureGroup(m.name, "locations", locations(m.values.float())) for m in maps]


FEATURE_SETS: dict[str, FeatureSet] = {
    "multires": multires,
    "paper": paper,
    "last": last,
    "global": global_mean,
    "locations": every_location,
}
WITH_PIXELS = ("paper",)  # feature sets in which the image itself is one of the vectors


def feature_set(name: str) -> FeatureSet:
    """The feature set of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in FEATURE_SETS:
        raise UsageError(
            f"feature set {name!r}: expected one of {', '.join(FEATURE_SETS)}{did_you_mean(name, FEATURE_SETS)}"
        )
    return FEATURE_SETS[name]


def field_calls(groups: list[FeatureGroup]) -> list[FieldCall]:
    """Batch the groups by channel count, in order of first appearance."""
    by_channels: dict[int, list[FeatureGroup]] = {}
    for group in groups:
        by_channels.setdefault(group.values.shape[-1], []).append(group)
    return [FieldCall(tuple(members)) for members in by_channels.values()]

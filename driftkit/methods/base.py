"""The `Method` value, through which the rest of driftkit sees a method. It loads no torch, since help texts read it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from driftkit.config.layers import validate
from driftkit.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from driftkit.datasets.packs import ImagePack
    from driftkit.encoders.frozen_encoder import FrozenEncoder
    from driftkit.protocols import Objective, Sampler
    from driftkit.runtime.ranks import Ranks
    from driftkit.storage.run_folder import Run

CURVE_NFES = (1, 2, 5, 10, 20, 50, 100)
"""NFEs of the curve of quality over cost of samplers of many steps."""

Forward = Callable[["torch.Tensor"], list["torch.Tensor"]]
"""Images [N, 3, H, W] -> outputs."""


class MethodConfig(BaseModel):
    """Settings of a method. `name` is that of the method; a subclass narrows it to that word."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    name: str = ""


class SamplerOptions(BaseModel):
    """Options of a sampler; a subclass adds fields. Words are not read as numbers, nor numbers as truth values."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


OptionsType = TypeVar("OptionsType", bound=SamplerOptions)


@dataclass(frozen=True)
class SamplerSpec:
    """One sampler of a method.

    Attributes:
        name: on the command line.
        make: the method's config -> the sampler.
        default_nfe: the method's config -> network evaluations per image unless others are asked for.
        predicts: what the sampler takes the network's output for.
        curve_nfes: NFEs of the curve of quality over cost; empty: the sampler has no such curve.
        speed_nfes: NFEs at which the sampler is timed even where no score was made.
        fixed_nfe: whether the default NFE is the only one.
        stochastic: whether it draws noise on the way.
        options: class of its options.
        implied_options: (config, NFE) -> options that follow from them, recorded with the samples.
    """

    name: str
    make: Callable[[Any], "Sampler"]
    default_nfe: Callable[[Any], int]
    predicts: Literal["image", "noise", "velocity"]
    curve_nfes: tuple[int, ...] = ()
    speed_nfes: tuple[int, ...] = ()
    fixed_nfe: bool = False
    stochastic: bool = False
    options: type[SamplerOptions] = SamplerOptions
    implied_options: Callable[[Any, int | None], dict[str, Any]] = lambda config, nfe: {}

    def recorded_options(self, config: Any, nfe: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options to record with samples: those that were given, and those that follow from config and NFE.

        Raises:
            UsageError: an option that the sampler does not have, or a value that does not fit.
        """
        read_options(self.name, self.options, options)
        return {**self.implied_options(config, nfe), **options}


@dataclass(frozen=True)
class BuiltObjective:
    """An objective, and what the manifest records of the frozen encoder that it uses."""

    objective: "Objective"
    encoder: dict[str, Any] | None = None


@dataclass(frozen=True)
class Setting:
    """What an objective may need to know of the run beside its own config.

    Attributes:
        pack: all images.
        training: indices of the images that are trained on.
        held_out: indices of those that are not.
        flips: whether mirrored images are trained on, too.
        dtype: number format that networks run in.
        compile: whether networks are compiled.
    """

    pack: "ImagePack"
    training: "torch.Tensor"
    held_out: "torch.Tensor"
    flips: bool
    dtype: "torch.dtype"
    compile: bool
    device: "torch.device"
    ranks: "Ranks"


class BatchCost(Protocol):
    """Cost of what a step computes over the features of the global batch, in one rank.

    Args of its methods: `rows`, images of the rank; `images`, of all ranks; `ranks`, how many; `device`, cpu or cuda.

    Attributes:
        chunk_setting: config key of the size of its workspace, in MiB.
    """

    @property
    def chunk_setting(self) -> str: ...

    def gathered_bytes(self, *, rows: int, ranks: int) -> int:
        """Bytes received from other ranks."""
        ...

    def flops(self, *, rows: int, images: int) -> int:
        """Floating-point operations."""
        ...

    def feature_bytes(self, *, images: int) -> int:
        """Bytes of gathered features that live at a time."""
        ...

    def workspace_bytes(self, *, rows: int, images: int, device: str) -> int:
        """Bytes it takes beside the features."""
        ...

    def chunk_mib(self, device: str) -> int:
        """Size of its workspace, which an error about memory names."""
        ...


@dataclass(frozen=True)
class Workload:
    """What a step of a method does with images, for the forecast of its cost.

    Attributes:
        trained: every forward of the trained network in a step.
        encoder: frozen encoder; None where there is none.
        encode: its forward, gradients of which go back to the images.
        encodes_real: whether real images go through the encoder at every step, too.
        regenerates: whether a step of several micro-batches runs every forward twice.
        batch: cost of what is computed over the global batch; None where nothing is.
    """

    trained: Forward
    encoder: "FrozenEncoder | None" = None
    encode: Forward | None = None
    encodes_real: bool = False
    regenerates: bool = False
    batch: BatchCost | None = None


@dataclass(frozen=True)
class Graph:
    """What `export` writes: a module whose arguments and result are tensors.

    Attributes:
        kind: file name, for example generator.
        module: called with `inputs`; the condition is no input.
        inputs: names of the arguments.
        output: name of the result, [N, 3, H, W].
        example: number of images -> arguments to trace the module with.
        title: sentence of the model card.
        start_time: value of the argument `t` at pure noise; None where there is no such argument.
        network_time: the same for the plain network.
        notes: section of the model card about how the graph is used, Markdown.
    """

    kind: str
    module: "nn.Module"
    inputs: tuple[str, ...]
    output: str
    example: Callable[[int], "tuple[torch.Tensor, ...]"]
    title: str
    start_time: float | None = None
    network_time: float = 0
    notes: str = ""


@dataclass(frozen=True)
class Curve:
    """A signal of training that reports draw over the steps.

    Attributes:
        key: "loss", or a key of `health` in metrics.jsonl.
        label: name in tables and on the axis.
        caption: what its values mean.
        from_zero: draw a linear axis from 0, which shows that a signal is flat.
    """

    key: str
    label: str
    caption: str
    from_zero: bool = False


@dataclass(frozen=True)
class Method:
    """One method. Functions import what needs torch when they are called.

    Attributes:
        name: on the command line and in records.
        label: in reports.
        config: class of its config.
        network: kind of network that it trains by default.
        build: makes the objective.
        workload: (config, network) and the image size in pixels -> what a step does, for `train --dry-run`.
        samplers: by name; the first is the default. Empty where the method generates no images.
        network_role: `Model.role` of the networks that it can train.
        graph: (config, network, image size) -> what `export` writes; None where nothing is exported.
        min_batch: least images of the global batch.
        reports_spread: whether its steps generate images, so that their collapse shows while it trains.
        holdout: share of the images kept out of training for measurements, unless `data.holdout` gives a number.
        complete: fills in what the network's config leaves to the images.
        network_for_budget: the network's config with what `complete` would take from images, before they are known.
        finish: writes what a finished run is used for elsewhere.
        curves: signals of training that reports draw, the one that shows progress first.
        curves_note: what a reader of the curves should know.
    """

    name: str
    label: str
    config: type[MethodConfig]
    network: str
    build: Callable[[Any, Setting], BuiltObjective]
    workload: Callable[[Any, "nn.Module", int], Workload]
    samplers: Mapping[str, SamplerSpec] = field(default_factory=dict)
    network_role: Literal["generator", "encoder"] = "generator"
    graph: "Callable[[Any, nn.Module, int], Graph] | None" = None
    min_batch: int = 1
    reports_spread: bool = False
    holdout: float = 0.0
    complete: "Callable[[Any, Any, ImagePack], Any]" = lambda config, network, pack: network
    network_for_budget: Callable[[Any, Any], Any] = lambda config, network: network
    finish: "Callable[[Run], Path] | None" = None
    curves: tuple[Curve, ...] = (Curve("loss", "loss", "Loss."),)
    curves_note: str = ""

    @property
    def generates(self) -> bool:
        """Whether its runs can be sampled."""
        return bool(self.samplers)

    @property
    def default_sampler(self) -> SamplerSpec:
        return next(iter(self.samplers.values()))


METHODS: dict[str, Method] = {}
"""Methods by name. `methods.registry` imports the folders that fill it."""


def register(method: Method) -> Method:
    """Add a method, or replace the one of that name."""
    METHODS[method.name] = method
    return method


def sampler_table(*specs: SamplerSpec) -> dict[str, SamplerSpec]:
    """Samplers by name, in that order."""
    return {spec.name: spec for spec in specs}


def read_options(sampler: str, kind: type[OptionsType], values: Mapping[str, Any]) -> OptionsType:
    """The options of a sampler, with their defaults.

    Raises:
        UsageError: an option that the sampler does not have, or a value that does not fit.
    """
    try:
        return validate(kind, values, origins={})
    except UsageError as error:
        known = ", ".join(kind.model_fields) or "none"
        raise UsageError(f"options of sampler {sampler} ({known}): {error}") from None


def generators() -> list[str]:
    """Names of the methods whose runs can be sampled."""
    return [name for name, method in METHODS.items() if method.generates]

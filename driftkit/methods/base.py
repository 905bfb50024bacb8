"""The `Method` value, through which the rest of driftkit sees a method. It loads no torch, since help texts read it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, model_validator

from driftkit.config.layers import validate
from driftkit.config.settings import Option
from driftkit.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from driftkit.datasets.packs import ImagePack
    from driftkit.encoders.frozen_encoder import FrozenEncoder
    from driftkit.models.contract import NetworkConfig
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


CONDITIONS = "Conditions"


class GenerativeConfig(MethodConfig):
    """Settings of a method whose runs can be sampled."""

    class_conditional: Annotated[bool, Option(CONDITIONS)] = Field(
        False, description="train on the labels of the images, so that samples of a class can be asked for"
    )

    @property
    def trains_guidance(self) -> bool:
        """Whether the network is trained with the guidance scale as an input, rather than guided by its sampler."""
        return False

    @property
    def max_guidance(self) -> float | None:
        """The largest guidance scale that the network is trained with; None where it is trained with none."""
        return None

    @property
    def trains_without_class(self) -> bool:
        """Whether a class-conditional network is trained without class, too, as guidance by its sampler needs."""
        return False


LABEL_DROPOUT = 0.1


class RegressionConfig(GenerativeConfig):
    """Settings of a method whose network predicts a target from noised images, and whose sampler can be guided."""

    label_dropout: float = Field(
        LABEL_DROPOUT, ge=0, lt=1, description="share of the images trained without their class, which guidance needs"
    )

    @model_validator(mode="after")
    def _check_label_dropout(self) -> Self:
        if self.label_dropout != LABEL_DROPOUT and not self.class_conditional:
            raise ValueError("label_dropout: there are no labels to drop without class_conditional")
        return self

    @property
    def label_dropout_in_training(self) -> float | None:
        """`label_dropout` of a class-conditional objective; None for one that reads no labels."""
        return self.label_dropout if self.class_conditional else None

    @property
    def trains_without_class(self) -> bool:
        return self.class_conditional and self.label_dropout > 0


class SamplerOptions(BaseModel):
    """Options of a sampler; a subclass adds fields. Words are not read as numbers, nor numbers as truth values."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


OptionsType = TypeVar("OptionsType", bound=SamplerOptions)


@dataclass(frozen=True)
class SamplerSpec:
    """One sampler of a method."""

    name: str  # on the command line
    make: Callable[[Any], "Sampler"]  # the method's config -> the sampler
    # the method's config -> network evaluations per image unless others are asked for
    default_nfe: Callable[[Any], int]
    curve_nfes: tuple[int, ...] = ()  # NFEs of the curve of quality over cost; empty: the sampler has no such curve
    speed_nfes: tuple[int, ...] = ()  # NFEs at which the sampler is timed even where no score was made
    fixed_nfe: bool = False  # whether the default NFE is the only one
    options: type[SamplerOptions] = SamplerOptions  # class of its options
    # (config, NFE) -> options that follow from them, recorded with the samples
    implied_options: Callable[[Any, int | None], dict[str, Any]] = lambda config, nfe: {}
    # options whose default is another one where latents are generated, which are not bounded
    latent_options: Mapping[str, Any] = field(default_factory=dict)

    def recorded_options(self, config: Any, nfe: int | None, options: Mapping[str, Any]) -> dict[str, Any]:
        """Options to record with samples: those that were given, and those that follow from config and NFE.

        Raises UsageError as `read_options`.
        """
        read_options(self.name, self.options, options)
        return {**self.implied_options(config, nfe), **options}


@dataclass(frozen=True)
class BuiltObjective:
    """An objective, and what the manifest records of the frozen encoder that it uses."""

    objective: "Objective"
    encoder: dict[str, Any] | None = None
    advice: tuple[str, ...] = ()  # sentences to show before the training begins


@dataclass(frozen=True)
class Setting:
    """What an objective may need to know of the run besides its own config."""

    pack: "ImagePack"  # all images
    network: "NetworkConfig"  # of the trained network, complete
    training: "torch.Tensor"  # indices of the images that are trained on
    held_out: "torch.Tensor"  # indices of those that are not
    flips: bool  # whether mirrored images are trained on, too
    dtype: "torch.dtype"  # number format that networks run in
    compile: bool  # whether networks are compiled
    device: "torch.device"
    ranks: "Ranks"
    global_batch: int  # slots of a step of all ranks
    latents: bool = False  # whether the network generates latents instead of images


class BatchCost(Protocol):
    """Cost of what a step computes over the features of the global batch, and of its real images, in one rank.

    `rows` are the images of the rank, `images` those of all `ranks`, `device` is cpu or cuda.
    """

    @property
    def chunk_setting(self) -> str: ...  # config key of the size of the workspace, in MiB

    def step_images(self, *, images: int) -> dict[str, int]: ...  # counts by name, for a table

    def advice(self, *, images: int) -> list[str]: ...  # sentences on these counts

    def is_shared_by(self, ranks: int, *, images: int) -> bool: ...  # whether ranks can share the step evenly

    def encoded_images(self, *, rows: int, images: int) -> int: ...  # real images that the encoder sees

    def gathered_bytes(self, *, rows: int, ranks: int) -> int: ...  # received from other ranks

    def flops(self, *, rows: int, images: int) -> int: ...

    def feature_bytes(self, *, rows: int, images: int) -> int: ...  # of gathered features that live at a time

    def workspace_bytes(self, *, rows: int, images: int, device: str) -> int: ...  # besides the features

    def chunk_mib(self, device: str) -> int: ...  # size of the workspace, which an error about memory names


@dataclass(frozen=True)
class Workload:
    """What a step of a method does with images, for the forecast of its cost."""

    trained: Forward  # every forward of the trained network in a step
    encoders: "Sequence[FrozenEncoder]" = ()  # frozen encoders
    encode: Forward | None = None  # the forward of them all, gradients of which go back to the images
    regenerates: bool = False  # whether a step of several micro-batches runs every forward twice
    batch: BatchCost | None = None  # cost of what is computed over the global batch; None where nothing is


def one_forward_workload(config: Any, network: "nn.Module", image_size: int) -> Workload:
    """That of a method whose step evaluates the network once per image."""
    from driftkit.methods.regression import one_forward

    return Workload(one_forward(network))


@dataclass(frozen=True)
class Graph:
    """What `export` writes: a module whose arguments and result are tensors."""

    kind: str  # file name, for example generator
    module: "nn.Module"  # called with `inputs`
    inputs: tuple[str, ...]  # names of the arguments
    output: str  # name of the result, [N, 3, H, W]
    example: Callable[[int], "tuple[torch.Tensor, ...]"]  # number of images -> arguments to trace the module with
    title: str  # sentence of the model card
    start_time: float | None = None  # value of the argument `t` at pure noise; None where there is no such argument
    network_time: float = 0  # the same for the plain network
    notes: str = ""  # section of the model card about how the graph is used, Markdown


@dataclass(frozen=True)
class Curve:
    """A signal of training that reports draw over the steps."""

    key: str  # "loss", or a key of `health` in metrics.jsonl
    label: str  # name in tables and on the axis
    caption: str  # what its values mean
    from_zero: bool = False  # draw a linear axis from 0, which shows that a signal is flat


@dataclass(frozen=True)
class Method:
    """One method. Functions import what needs torch when they are called."""

    name: str  # on the command line and in records
    label: str  # in reports
    config: type[MethodConfig]  # class of its config
    network: str  # kind of network that it trains by default
    build: Callable[[Any, Setting], BuiltObjective]  # makes the objective
    # (config, network) and the image size in pixels -> what a step does, for `train --dry-run`
    workload: Callable[[Any, "nn.Module", int], Workload] = one_forward_workload
    # by name; the first is the default. Empty where the method generates no images.
    samplers: Mapping[str, SamplerSpec] = field(default_factory=dict)
    network_role: Literal["generator", "encoder"] = "generator"  # `Model.role` of the networks that it can train
    # (config, network, [C, H, W] of a sample) -> what `export` writes; None where nothing is exported
    graph: "Callable[[Any, nn.Module, Sequence[int]], Graph] | None" = None
    min_batch: int = 1  # least images of the global batch
    # whether its objective compares generated images with real ones, so that a generator of latents is decoded for it
    sees_pixels: bool = False
    reports_spread: bool = False  # whether its steps generate images, so that their collapse shows while it trains
    # share of the images kept out of training for measurements, unless `data.holdout` gives a number
    holdout: float = 0.0
    # fills in what the network's config leaves to the images; None: they are not known yet (`train --dry-run`)
    complete: "Callable[[Any, Any, ImagePack | None], Any]" = lambda config, network, pack: network
    finish: "Callable[[Run], Path] | None" = None  # writes what a finished run is used for elsewhere
    # signals of training that reports draw, the one that shows progress first
    curves: tuple[Curve, ...] = (Curve("loss", "loss", "Loss."),)
    curves_note: str = ""  # what a reader of the curves should know

    @property
    def generates(self) -> bool:
        """Whether its runs can be sampled."""
        return bool(self.samplers)

    @property
    def default_sampler(self) -> SamplerSpec:
        return next(iter(self.samplers.values()))


def export_trained_encoder(run: "Run") -> Path:
    """`Method.finish` of methods that train encoders: write the encoder as one file."""
    from driftkit.encoders.trained_encoder import export_encoder

    return export_encoder(run)


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

    Raises UsageError for an option that the sampler does not have, or a value that does not fit.
    """
    try:
        return validate(kind, values, origins={})
    except UsageError as error:
        known = ", ".join(kind.model_fields) or "none"
        raise UsageError(f"options of sampler {sampler} ({known}): {error}") from None


def generators() -> list[str]:
    """Names of the methods whose runs can be sampled."""
    return [name for name, method in METHODS.items() if method.generates]

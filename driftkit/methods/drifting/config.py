"""Settings of drifting."""

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from driftkit.config.settings import Option
from driftkit.encoders.encoder_config import ENCODER, EncodersConfig
from driftkit.methods.base import CONDITIONS, GenerativeConfig

GROUPS = "Groups of a step"


class DriftingConfig(EncodersConfig, GenerativeConfig):
    """The drifting objective."""

    name: Literal["drift"] = "drift"
    cache_features: Annotated[bool, Option(ENCODER)] = Field(
        False, description="compute the features of real images once and map them from disk, in bfloat16"
    )
    groups: Annotated[int | None, Option(GROUPS, default="1, or one per class")] = Field(
        None,
        ge=1,
        description="groups per step, each with a field of its own; with class_conditional of one class each",
    )
    positives: Annotated[
        str | None,
        BeforeValidator(lambda value: str(value) if isinstance(value, int) else value),
        Option(GROUPS, default="as many as generated"),
    ] = Field(
        None,
        pattern=r"^(([1-9][0-9]{0,6})|((([1-9][0-9]{0,6}),)?queue:[1-9][0-9]{0,6}))$",
        description="real images per group: a number; queue:N draws them from the last N of a class; or 64,queue:128",
    )
    unconditional: Annotated[int, Option(GROUPS)] = Field(
        0, ge=0, le=2**20, description="real images of any class per group, which push for guidance"
    )
    guidance_max: Annotated[float, Option(CONDITIONS)] = Field(
        1.0, ge=1, le=100, description="largest guidance scale alpha that the network is trained with; 1: none"
    )
    guidance_power: float = Field(
        3.0, ge=0, le=20, description="k in the density of alpha, alpha^-k from 1 to the largest"
    )
    guidance_at_one: float = Field(0.0, ge=0, lt=1, description="share of groups with alpha 1")
    clip: bool = Field(
        True, description="clip generated images to [-1, 1] before they are encoded, as they are when they are saved"
    )
    vectors_per_group: int | None = Field(
        None,
        ge=1,
        description="at most so many vectors of each map and kind, others in every step: large feature sets at the "
        "cost of small ones; None: all",
    )
    taus: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.02, 0.05, 0.2), min_length=1, description="temperatures over the mean distance"
    )
    later_taus: tuple[Annotated[float, Field(gt=0)], ...] | None = Field(
        None, min_length=1, description="temperatures after later_from steps; None: taus to the end"
    )
    later_from: int = Field(0, ge=0, description="steps after which later_taus hold")
    scale_over: Literal["map", "location"] = Field(
        "location", description="what feature and drift scales are means over: each location alone, or its map"
    )
    affinity_floor: float = Field(
        0.0, ge=0, lt=1, description="lower bound of the affinities; the authors' release: 1e-3"
    )
    kernel: Literal["laplace", "gaussian"] = Field("laplace", description="kernel of the affinities")
    normalisation: str = Field(
        "both",
        pattern=r"^(both|rows|none|sinkhorn\([1-9][0-9]{0,3}\))$",
        description="how affinities are normalised: both, rows, none or sinkhorn(N)",
    )
    field_chunk_mib: int | None = Field(
        None, ge=1, description="size in MiB of the workspace of the field; None: 16 on a CPU, 2048 on a GPU"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.guidance_max > 1 and not (self.class_conditional and self.unconditional):
            raise ValueError("guidance_max: needs class_conditional, and unconditional images per group")
        if self.guidance_max == 1 and (self.guidance_power, self.guidance_at_one) != (3.0, 0.0):
            raise ValueError(
                "guidance_power and guidance_at_one: need guidance_max above 1; without it leave them at 3 and 0"
            )
        if self.unconditional and self.guidance_max == 1:
            raise ValueError(
                "unconditional: these images have weight 0 without guidance; set guidance_max, or 0 images"
            )
        if (self.later_taus is None) != (self.later_from == 0):
            raise ValueError("later_taus and later_from: are given together: temperatures, and the steps before them")
        return self

    def taus_at(self, step: int) -> tuple[float, ...]:
        """The temperatures of a step, which counts from 0."""
        return self.taus if self.later_taus is None or step < self.later_from else self.later_taus

    @property
    def trains_guidance(self) -> bool:
        return self.guidance_max > 1

    @property
    def max_guidance(self) -> float | None:
        return self.guidance_max if self.trains_guidance else None

"""Settings of the trainer. Nothing here loads torch, since help texts are made from them."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from driftkit.config.settings import OnResume, Option, Settings

TRAINING, FILES = "Training", "Files"


def _from_flag(value: Any) -> Any:
    """`--compile`, `--no-compile`, and true and false in a file, as the settings they stand for."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


CompileSetting = Annotated[Literal["auto", "on", "off"], BeforeValidator(_from_flag)]
TrackerName = Literal["none", "tensorboard", "wandb"]


class TrainerConfig(Settings):
    """How a network is trained, whatever is minimised."""

    steps: Annotated[int, OnResume.FREE, Option(TRAINING)] = Field(
        50_000, ge=0, description="optimizer steps of the whole run; 0 saves the untrained network"
    )
    batch_size: Annotated[int, Option(TRAINING, ("--batch-size", "-b"))] = Field(
        128, ge=1, le=2**20, description="images per rank and step"
    )
    learning_rate: Annotated[float, Option(TRAINING)] = Field(2e-4, gt=0, description="AdamW learning rate")
    warmup_steps: int = Field(0, ge=0, description="steps over which the learning rate rises linearly from 0")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW moment decays")
    weight_decay: float = Field(0.01, ge=0, description="AdamW weight decay")
    gradient_clip: float = Field(2.0, gt=0, description="largest gradient norm")
    ema_decay: float = Field(0.9999, ge=0, lt=1, description="decay of the averaged weights per step, after warm-up")
    ema_warmup: float = Field(
        9.0, ge=0, description="EMA warm-up W: the decay of step n is at most (n - 1) / (n - 1 + W); 0: none"
    )
    precision: Annotated[Literal["auto", "float32", "bfloat16"], Option(TRAINING)] = Field(
        "auto", description="number format of the networks; auto: bfloat16 on GPUs that have it"
    )
    compile: Annotated[
        CompileSetting, OnResume.FREE, Option(TRAINING, default="on a GPU with 2,000 steps left", switch=True)
    ] = Field("auto", description="compile the trained network and the frozen encoder")
    micro_batch: Annotated[int | None, OnResume.FREE, Option(TRAINING, default="the whole batch")] = Field(
        None,
        ge=1,
        description="images per forward pass: less memory, and still the gradient of the whole batch (dropout "
        "draws other masks)",
    )
    log_every: Annotated[int, OnResume.FREE] = Field(
        10, ge=1, description="steps between metric records; doubles after 100,000 records"
    )
    sample_every: Annotated[int, OnResume.FREE, Option(FILES)] = Field(
        500, ge=0, description="steps between sample grids; doubles after 1,000 grids; 0: none"
    )
    checkpoint_every: Annotated[int, OnResume.FREE, Option(FILES)] = Field(
        1000, ge=0, description="steps between checkpoints; 0: only the last"
    )
    measure_every: Annotated[int, OnResume.FREE] = Field(
        0, ge=0, description="steps between measurements on held-out images; 0: with the sample grids"
    )
    tracker: Annotated[TrackerName, OnResume.FREE] = Field(
        "none", description="copy metrics and grids to: none, tensorboard or wandb"
    )
    keep_every: Annotated[int, OnResume.FREE] = Field(
        0, ge=0, description="keep the checkpoints of every so many steps; 0: only the last"
    )
    rank_timeout: Annotated[float, OnResume.FREE] = Field(120, gt=0, description="minutes a rank waits for the others")
    collapse_spread: Annotated[float, OnResume.FREE] = Field(
        0.1,
        ge=0,
        lt=1,
        description="relative spread of generated features below which they are collapsed; 0: never",
    )
    collapse_patience: Annotated[int, OnResume.FREE] = Field(
        500, ge=0, description="steps below collapse_spread before collapse is reported"
    )
    fail_on_collapse: Annotated[bool, OnResume.FREE, Option(TRAINING)] = Field(
        False,
        description="save and end with exit code 5 on collapse (see trainer.collapse_spread, .collapse_patience); "
        "else it is a warning",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"betas: expected two numbers in [0, 1), got {self.betas}")
        return self

"""Probing an encoder: its shapes, and on real images what drifting would make of it."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field, field_validator

from driftkit.config.places import EXPANDED
from driftkit.config.settings import COMMAS, DEVICE_HELP, Device, Option
from driftkit.encoders.encoder_config import EncoderConfig, EncodersConfig, EncoderTexts
from driftkit.runtime.progress import Report, no_report, phase

if TYPE_CHECKING:  # torch is loaded when an encoder is probed, not for --help
    import torch

    from driftkit.datasets.packs import ImagePack
    from driftkit.encoders.encoder_union import EncoderUnion, UnionMember
    from driftkit.encoders.frozen_encoder import FrozenEncoder
    from driftkit.probing.probe_record import EncoderList, ProbeRecord

SHAPES, DATA, FILES = "Shapes", "Measuring on images", "Where it goes"
DEFAULT_IMAGE_SIZE = 32


class ProbeEncoderConfig(EncodersConfig):
    """Settings of `driftkit probe-encoder`."""

    encoder: EncoderTexts = Field("", description="which encoders are probed")
    image_size: Annotated[int | None, Option(SHAPES, default="that of the data, the run's, or 32")] = Field(
        None, ge=8, le=4096, description="side in pixels of the images"
    )
    batch_size: Annotated[int | None, Option(SHAPES, ("--batch-size", "-b"), default="128, or as many as fit")] = Field(
        None, ge=8, description="generated images per step, on all ranks"
    )
    data: Annotated[str | None, EXPANDED, Option(DATA, ("--data", "-d"), default="none: shapes only")] = Field(
        None, description="real images to measure on: shapes, cifar10, or what else driftkit data --help lists"
    )
    num_images: Annotated[int, Option(DATA, ("--num-images", "-n"))] = Field(
        2000, ge=32, le=20_000, description="number of real images, in equal shares of the classes"
    )
    taus: Annotated[tuple[Annotated[float, Field(gt=0)], ...], COMMAS, Option(DATA)] = Field(
        (0.02, 0.05, 0.1, 0.2, 0.5),
        min_length=1,
        description="temperatures to try, as shares of the mean distance of features",
    )
    speed: Annotated[bool | None, Option(DATA, default="with data")] = Field(
        None, description="time the encoder at 32, 64, 112 and 224 px"
    )
    speed_seconds: Annotated[float, Option(DATA)] = Field(
        10.0, gt=0, description="most seconds that a batch of 8 may take; larger sizes are skipped"
    )
    seed: Annotated[int, Option(DATA)] = Field(0, description="seed of all random draws")
    device: Annotated[Device, Option(DATA)] = Field("auto", description=DEVICE_HELP)
    output: Annotated[Path | None, EXPANDED, Option(FILES, ("--output", "-o"), default="none")] = Field(
        None, description="folder of probe.json and probe.png"
    )

    @field_validator("taus")
    @classmethod
    def _ascending(cls, taus: tuple[float, ...]) -> tuple[float, ...]:
        return tuple(sorted(set(taus)))


def probe_encoder(config: ProbeEncoderConfig, *, report: Report = no_report) -> "ProbeRecord":
    """Load encoders, report their shapes and, with data, what drifting would make of them.

    Of several, each is reported by itself in `parts`, and the record is of all together.

    Returns the record, which is also written where `output` names a folder.

    Raises:
        UsageError: settings that do not fit, or too few images.
        ArtifactError: weights or data that are absent or damaged.
        DriftkitError: features that are not finite, or the same for all images.
    """
    import torch

    from driftkit.datasets.sources import open_dataset
    from driftkit.encoders.encoder_union import EncoderUnion
    from driftkit.encoders.registry import encoder_kind, load_encoder
    from driftkit.probing.encoder_cost import encoder_shapes, field_call_cost, field_memory, measure_encoder_speed
    from driftkit.probing.probe_images import DEFAULT_BATCH, probe_batch_size
    from driftkit.probing.probe_record import ProbeRecord
    from driftkit.runtime.device import choose_threads, resolve_device
    from driftkit.storage.writable import require_writable

    if config.output is not None:
        require_writable(config.output, "`output`", folder=True)
    device = resolve_device(config.device)
    batch_size = config.batch_size or DEFAULT_BATCH
    pack = None
    configs = config.each()
    if config.data is not None:
        pack = open_dataset(config.data, image_size=config.image_size)
        # Refuse before the encoder is loaded what would fail after it.
        batch_size = probe_batch_size(pack, config.data, num_images=config.num_images, batch_size=config.batch_size)
        side = pack.image_size
    else:
        sides = [encoder_kind(one.encoder).image_size(one.encoder) for one in configs]
        side = config.image_size or next((known for known in sides if known), DEFAULT_IMAGE_SIZE)
    # Shapes alone follow from the architecture: where all weights are random, they need not even be drawn.
    shapes_only = pack is None and not config.speed and all(one.random_weights for one in configs)
    if not shapes_only:
        choose_threads(device)

    def load(one: EncoderConfig) -> "FrozenEncoder":
        place = torch.device("meta") if shapes_only else device
        return load_encoder(one, image_size=side, device=place).to(memory_format=torch.channels_last)

    def describe(one: EncoderUnion) -> ProbeRecord:
        maps, calls = encoder_shapes(one, image_size=side)
        return ProbeRecord(
            encoder=one.name,
            parameters=one.num_parameters,
            input_size=one.input_size,
            resize="+".join(dict.fromkeys(encoder.resize_mode for encoder in one.encoders)),
            map_norm="+".join(dict.fromkeys(encoder.map_norm for encoder in one.encoders)),
            feature_set=one.feature_set,
            weights=one.weights_digest,
            maps=maps,
            field_calls=[field_call_cost(call, batch_size=batch_size) for call in calls],
            memory=field_memory(calls, batch_size=batch_size),
            **({} if pack is None else _measured(one, pack, batch_size, config, device, report)),
        )

    def describe_one(one: EncoderConfig, member: "UnionMember") -> ProbeRecord:
        card = encoder_kind(one.encoder).describe(one.encoder)
        known: dict[str, Any] = {key: getattr(card, key) for key in ("model", "trained_by", "licence")} if card else {}
        record = describe(EncoderUnion([replace(member, label="")]))
        if config.speed or (config.speed is None and pack is not None):
            known["speed"] = measure_encoder_speed(
                lambda size: load(one.model_copy(update={"input_size": size})), member.features,
                image_size=side, device=device, budget_seconds=config.speed_seconds, report=report,
            )  # fmt: skip
        return record.model_copy(update=known)

    with phase("loading encoders"):
        union = EncoderUnion.load(config, load)
    parts = [describe_one(one, member) for one, member in zip(configs, union.members, strict=True)]
    record = parts[0] if len(parts) == 1 else describe(union).model_copy(update={"parts": parts})
    return record if config.output is None else _write(config.output, record)


def encoder_list() -> "EncoderList":
    """Every encoder that has a name, with where its weights are on this machine, and every feature set."""
    from driftkit.encoders.feature_sets import FEATURE_SETS
    from driftkit.encoders.registry import encoder_cards
    from driftkit.probing.probe_record import EncoderList, FeatureSetCard

    feature_sets = [FeatureSetCard(row.name, row.help) for row in FEATURE_SETS.values()]
    return EncoderList(encoders=encoder_cards(), feature_sets=feature_sets)


def _measured(
    encoders: "EncoderUnion",
    pack: "ImagePack",
    batch_size: int,
    config: ProbeEncoderConfig,
    device: "torch.device",
    report: Report,
) -> "dict[str, Any]":
    """Fields of the record about what was measured on images."""
    import torch

    from driftkit.probing.feature_statistics import chance_purity
    from driftkit.probing.measurement import measure_encoder
    from driftkit.probing.probe_images import choose_images
    from driftkit.probing.probe_record import ProbeData, ProbeSetup
    from driftkit.probing.verdict import give_verdict
    from driftkit.runtime.device import describe_device
    from driftkit.runtime.memory import fitting_batch
    from driftkit.storage.images import to_float

    assert config.data is not None
    images, skipped = choose_images(pack, num_images=config.num_images, batch_size=batch_size, seed=config.seed)

    def attempt(count: int) -> None:
        with torch.inference_mode():
            some = to_float(images.real[:count].to(device))
            encoders.groups(some)

    with fitting_batch("probing", batch_size, attempt, device=device):
        measurement = measure_encoder(
            encoders, images, batch_size=batch_size, taus=config.taus, seed=config.seed, report=report
        )
    labels = images.labels
    chance = None if labels is None else chance_purity(labels)
    verdict = give_verdict(
        measurement, chance=chance, input_size=encoders.input_size, random_weights=encoders.random_weights
    )
    data = ProbeData(
        spec=config.data,
        label=pack.card.label,
        digest=pack.digest,
        image_size=pack.image_size,
        num_images=len(images.real),
        classes=None if labels is None else len(torch.unique(labels)),
    )
    setup = ProbeSetup(batch_size, list(config.taus), config.seed, describe_device(device), skipped)
    return {
        "data": data,
        "setup": setup,
        "measurement": measurement,
        "chance_purity": chance,
        "verdict": verdict,
    }


def _write(output: Path, record: "ProbeRecord") -> "ProbeRecord":
    from driftkit.probing.probe_figure import probe_figure
    from driftkit.storage.files import write_bytes

    files = [str(output / "probe.json")]
    if record.measurement is not None:
        files.append(str(output / "probe.png"))
        with phase("drawing the figure"):
            write_bytes(output / "probe.png", probe_figure(record))
    record = record.model_copy(update={"files": files})
    record.write(output / "probe.json")
    return record

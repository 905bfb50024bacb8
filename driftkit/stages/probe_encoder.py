"""Probing an encoder by name: its shapes, and on real images what drifting would make of it."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from driftkit.datasets.packs import ImagePack, balanced_indices
from driftkit.datasets.sources import open_dataset
from driftkit.encoders.features import feature_set
from driftkit.encoders.loading import load_encoder, native_image_size
from driftkit.encoders.networks import FrozenEncoder
from driftkit.encoders.resizing import RESIZES, Resize
from driftkit.encoders.specs import PIXEL, SPECS, MapNorm
from driftkit.encoders.weights import locate
from driftkit.errors import UsageError
from driftkit.probing.encoder_speed import measure_encoder_speed
from driftkit.probing.encoder_verdict import judge
from driftkit.probing.feature_statistics import chance_purity
from driftkit.probing.kernel_probe import NUM_CLASSES, ProbeImages, measure_encoder, one_class_count
from driftkit.probing.probe import probe_shapes
from driftkit.probing.probe_figure import probe_panel
from driftkit.runtime.device import describe_device
from driftkit.runtime.memory import fitting_batch
from driftkit.runtime.progress import Report
from driftkit.runtime.random import generator_for
from driftkit.storage.files import atomic_path, write_json
from driftkit.storage.images import to_float

LISTED = (
    "name", "model", "trained_by", "supervised", "licence", "parameters", "input_size", "interpolation",
    "normalisation", "maps", "strides", "reading", "map_norm", "feature_set", "weights",
)  # fmt: skip
SMALLEST_BATCH = 8
DEFAULT_BATCH = 128


@dataclass(frozen=True)
class Probing:
    """How an encoder is measured.

    Attributes:
        data: which images; None looks at shapes alone.
        num_images: real images, at least four batches.
        batch_size: generated images per step; None is 128, or a quarter of fewer than 512 images.
        taus: temperatures to try.
        seed: of every random draw.
        speed: whether the encoder is timed; None is where there are data.
        speed_seconds: most that one batch at one input size may take.
    """

    data: str | None = None
    num_images: int = 2000
    batch_size: int | None = None
    taus: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5)
    seed: int = 0
    speed: bool | None = None
    speed_seconds: float = 10.0


def probe_encoder(
    name: str,
    *,
    image_size: int | None = None,
    input_size: int | None = None,
    weights: Path | None = None,
    random_weights: bool = False,
    taps: Sequence[str] | None = None,
    map_norm: MapNorm | None = None,
    resize: Resize = "bicubic",
    features: str | None = None,
    probing: Probing | None = None,
    device: torch.device | str = "cpu",
    output: Path | None = None,
    report: Report = lambda what, done, total: None,
) -> dict[str, Any]:
    """Load an encoder, report its shapes and, with data, what drifting would make of it.

    `image_size` None is that of the data; without data 32, or for a MAE run the size it was trained at.

    Args: of the encoder as `load_encoder`; `output` is a folder for probe.json and probe.png.

    Returns:
        The keys of `probe_shapes`; `model`, `trained_by`, `licence` of encoders in the table. With data also

        - `data`: `spec`, `label`, `digest`, `image_size`, `num_images`, `classes` (None where unlabelled);
        - `probe`: `batch_size`, `taus`, `seed`, `repeats`, `device`, `omitted` (what was not measured, and why);
        - `groups`: one object per feature group, see `GroupMeasurement`;
        - `purity`, `chance_purity`, `restoration`: see `EncoderMeasurement`;
        - `verdict`, `score`, `reasons`, `seen`, `group_verdicts`, `taus`, `taps`, `recommended_input_size`: see
          `Verdict`;

        and `speed`, a list of `EncoderSpeed`, where it was timed; `files` where `output` was given.

    Raises:
        UsageError: options that do not fit, or too few images.
        ArtifactError: weights or data that are not there.
        DriftkitError: features that are not finite, or the same for all images.
    """
    probing = probing or Probing()
    pack = None if probing.data is None else open_dataset(probing.data, image_size=image_size)
    if pack is not None:
        _check_counts(probing, pack)
        image_size = pack.image_size
    elif image_size is None:
        image_size = native_image_size(name) or 32
    side = image_size
    # Shapes alone follow from the architecture: random weights need not even be drawn.
    place = torch.device("meta") if random_weights and pack is None and not probing.speed else torch.device(device)

    def load(size: int | None) -> FrozenEncoder:
        return load_encoder(
            name,
            image_size=side,
            input_size=size,
            weights=weights,
            random_weights=random_weights,
            taps=taps,
            map_norm=map_norm,
            resize=resize,
            feature_set=features,
            device=place,
        ).to(memory_format=torch.channels_last)  # as training has it

    encoder = load(input_size)
    spec = getattr(encoder, "spec", None)
    about = {"model": spec.model, "trained_by": spec.trained_by, "licence": spec.licence} if spec else {}
    batch_size = probing.batch_size or (DEFAULT_BATCH if pack is None else _batch_size(probing, pack))
    shapes = probe_shapes(encoder, image_size=side, features=features, batch_size=batch_size)
    document = {**shapes, **about}
    if pack is not None:
        document |= _measured(encoder, shapes["feature_set"], pack, probing, batch_size, torch.device(device), report)
    if probing.speed or (probing.speed is None and pack is not None):
        speeds = measure_encoder_speed(
            load,
            feature_set(shapes["feature_set"]),
            image_size=side,
            device=torch.device(device),
            budget_seconds=probing.speed_seconds,
            report=report,
        )
        document["speed"] = [asdict(speed) for speed in speeds]
    if output is not None:
        document["files"] = _write(output, document)
    return document


def encoder_table() -> list[dict[str, Any]]:
    """One row per encoder that has a name, as `--list` shows it; what rows cannot say is None.

    Keys: those of `EncoderSpec` that say what it is, with `strides` of its maps in pixels, `normalisation`,
    `interpolation`, and `weights`: where its published weights lie on this machine, None where they do not.
    """
    rows: list[dict[str, Any]] = [
        {**dict.fromkeys(LISTED), "name": PIXEL, "feature_set": "locations", "maps": ["pixels"], "parameters": 0,
         "trained_by": "nothing: the image itself", "supervised": False, "interpolation": RESIZES[0]}
    ]  # fmt: skip
    for spec in SPECS.values():
        path = locate(spec)
        known = {key: getattr(spec, key) for key in LISTED if hasattr(spec, key)}
        rows.append(
            {
                **dict.fromkeys(LISTED),
                **known,
                "maps": [name for name, _ in spec.taps],
                "strides": list(spec.strides),
                "interpolation": RESIZES[0],
                "weights": None if path is None else str(path),
            }
        )
    return rows


def _measured(
    encoder: FrozenEncoder,
    features: str,
    pack: ImagePack,
    probing: Probing,
    batch_size: int,
    device: torch.device,
    report: Report,
) -> dict[str, Any]:
    images, labels, omitted = _choose(pack, probing, batch_size)

    def attempt(count: int) -> None:
        with torch.inference_mode():
            some = to_float(images.real[:count].to(device))
            feature_set(features)(encoder.maps(some), some)

    with fitting_batch("probing", batch_size, attempt, device=device):
        measurement = measure_encoder(
            encoder,
            feature_set(features),
            images,
            batch_size=batch_size,
            taus=probing.taus,
            seed=probing.seed,
            report=report,
        )
    chance = None if labels is None else chance_purity(labels)
    verdict = judge(measurement, chance=chance, input_size=encoder.input_size, random_weights=encoder.random_weights)
    measured, judged = asdict(measurement), asdict(verdict)
    judged["group_verdicts"] = judged.pop("groups")
    judged["recommended_input_size"] = judged.pop("input_size")
    return {
        "data": {
            "spec": probing.data,
            "label": pack.card.label,
            "digest": pack.digest,
            "image_size": pack.image_size,
            "num_images": len(images.real),
            "classes": None if labels is None else len(torch.unique(labels)),
        },
        "probe": {
            "batch_size": batch_size,
            "taus": list(probing.taus),
            "seed": probing.seed,
            "repeats": measured.pop("repeats"),
            "device": describe_device(device),
            "omitted": omitted,
        },
        **measured,
        "chance_purity": chance,
        **judged,
    }


def _batch_size(probing: Probing, pack: ImagePack) -> int:
    return min(DEFAULT_BATCH, min(probing.num_images, len(pack)) // 4)


def _check_counts(probing: Probing, pack: ImagePack) -> None:
    """Refuse before the encoder is loaded what would fail after it."""
    count = min(probing.num_images, len(pack))
    if probing.batch_size is not None and count < 4 * probing.batch_size:
        raise UsageError(
            f"--batch-size {probing.batch_size}: got {count} images ({len(pack)} in {probing.data}), expected at least "
            f"{4 * probing.batch_size} to compare disjoint batches; raise --num-images or lower --batch-size"
        )
    if count < 4 * SMALLEST_BATCH:
        raise UsageError(f"{probing.data}: got {count} images to probe with, expected at least {4 * SMALLEST_BATCH}")


def _choose(pack: ImagePack, probing: Probing, batch_size: int) -> tuple[ProbeImages, torch.Tensor | None, list[str]]:
    """Images in equal shares of the classes, in a random order; single classes; and what cannot be measured."""
    order = torch.randperm(len(pack), generator=generator_for(probing.seed, "probe-images"))
    balanced = balanced_indices(pack.labels[order], min(probing.num_images, len(pack)))  # ascending places in `order`
    picked = order[balanced]
    labels = pack.labels[picked]
    # Unlabelled images, or a single class, leave nothing to tell apart.
    if int(labels.min()) < 0 or len(torch.unique(labels)) < 2:
        omitted = ["no labels of two or more classes: class purity and one class against all"]
        return ProbeImages(pack.images[picked], None), None, omitted
    wanted = one_class_count(batch_size)
    of_class = {c: order[pack.labels[order] == c] for c in torch.unique(labels).tolist()}
    large = [c for c, members in of_class.items() if len(members) >= wanted]
    tried = [
        large[i] for i in torch.randperm(len(large), generator=generator_for(probing.seed, "probe-classes")).tolist()
    ]
    # From the end: those that are not among the real images come first.
    pools = [pack.images[of_class[c][-wanted:]] for c in tried[:NUM_CLASSES]]
    omitted = (
        [] if pools else [f"one class against all: no class has {wanted} images; a smaller --batch-size needs fewer"]
    )
    return ProbeImages(pack.images[picked], labels, pools), labels, omitted


def _write(output: Path, document: dict[str, Any]) -> list[str]:
    files = [str(output / "probe.json")]
    if "groups" in document:
        files.append(str(output / "probe.png"))
        with atomic_path(output / "probe.png") as temporary:
            temporary.write_bytes(probe_panel(document))
    write_json(output / "probe.json", {**document, "files": files})
    return files

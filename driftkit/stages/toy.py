"""`driftkit toy`: drifting on points in the plane, in pictures and numbers; and toys side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from driftkit.errors import UsageError
from driftkit.tutorial.toy_config import ToyConfig

if TYPE_CHECKING:  # torch is loaded when a toy is trained, not for --help
    from driftkit.tutorial.toy_record import ToyPictures, ToyRecord, ToyTable

Pictured = TypeVar("Pictured", bound="ToyPictures")

RECORD, ANIMATION, STILL = "toy.json", "toy.gif", "toy.png"
TABLE = "toys.json"


def toy(config: ToyConfig) -> "ToyRecord":
    """Train a generator of points, and write its animation, a still and its record into `config.folder`.

    Raises:
        UsageError: the folder cannot be written, or holds another `toy.json`; or as `train_toy`.
        NonFiniteStepError: points have left the plane.
    """
    from driftkit.runtime.device import choose_threads, resolve_device
    from driftkit.storage.writable import require_replaceable, require_writable
    from driftkit.tutorial.toy_figure import toy_animation, toy_still
    from driftkit.tutorial.toy_record import ToyRecord
    from driftkit.tutorial.toy_training import train_toy

    folder = config.folder
    require_writable(folder, "`output`", folder=True)
    require_replaceable(folder / RECORD, "`output`", ToyRecord.kind)
    choose_threads(resolve_device("cpu"))
    trained = train_toy(config)
    pictures = {ANIMATION: toy_animation(config, trained), STILL: toy_still(config, trained)}
    record = ToyRecord(
        **config.model_dump(include=set(ToyRecord.model_fields)),
        parameters=sum(p.numel() for p in trained.generator.parameters()),
        drift_norm=trained.drift_norm,
        shown_steps=[frame.step for frame in trained.frames],
        energy_distance=[frame.energy_distance for frame in trained.frames],
        scores=trained.scores,
    )
    return _write(folder / RECORD, record, pictures)


def gather_toys(folders: Sequence[Path], config: ToyConfig) -> "ToyTable":
    """Toys side by side: toys.gif with all their animations and toys.json with their scores, in `config.output`.

    Raises:
        UsageError: a folder that is the name of points, `config.output` that is None, or cannot be written.
        ArtifactError: a folder without a toy, or whose animation is damaged.
    """
    from driftkit.datasets.toys import TOYS
    from driftkit.storage.writable import require_replaceable, require_writable
    from driftkit.tutorial.toy_figure import side_by_side
    from driftkit.tutorial.toy_record import ToyRecord, ToyRow, ToyTable

    for folder in folders:
        if str(folder) in TOYS and not folder.exists():
            raise UsageError(
                f"{folder}: no such folder of an earlier toy; to train on these points, give `points` {folder}"
            )
    if config.output is None:
        raise UsageError("toys side by side need a place of their own: give `output`")
    records = {folder: ToyRecord.read(folder / RECORD) for folder in folders}
    require_writable(config.output, "`output`", folder=True)
    require_replaceable(config.output / TABLE, "`output`", ToyTable.kind)
    animation = side_by_side([folder / ANIMATION for folder in folders], frames=config.frames)
    rows = [
        ToyRow(name=folder.resolve().name, **record.model_dump(include=set(ToyRow.model_fields)))
        for folder, record in records.items()
    ]
    return _write(config.output / TABLE, ToyTable(toys=rows), {"toys.gif": animation})


def _write(path: Path, record: "Pictured", pictures: Mapping[str, bytes]) -> "Pictured":
    """Write pictures, the animation first, then the record with their checksums; an earlier record goes first."""
    from driftkit.storage.files import sha256, write_bytes

    path.unlink(missing_ok=True)
    for name, content in pictures.items():
        write_bytes(path.parent / name, content)
    files = {name: {"sha256": sha256(content), "bytes": len(content)} for name, content in pictures.items()}
    record = record.model_copy(update={"path": str(path.parent / next(iter(pictures))), "files": files})
    record.write(path)
    return record

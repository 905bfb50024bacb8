"""Checking files that stand alone: records, samples, packs, statistics, encoders, pictures, caches and exports."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from driftkit import __version__
from driftkit.datasets import packs
from driftkit.encoders import cache
from driftkit.errors import ArtifactError, DriftkitError
from driftkit.scoring import statistics_file
from driftkit.scoring.evaluation_record import CurveRecord, EvaluationRecord, RepeatsRecord
from driftkit.stages import compare, export
from driftkit.stages.findings import Findings
from driftkit.storage import images
from driftkit.storage import run_folder as run
from driftkit.storage.files import (
    read_json,
    read_sealed,
    read_tensors,
    require_recorded,
    seal_fits,
    state_digest,
)

KNOWN_FORMATS = {
    "run": run.FORMAT,
    "samples": images.FORMAT,
    "pack": packs.FORMAT,
    cache.KIND: cache.FORMAT,
    **{
        record.kind: record.format_version
        for record in (
            statistics_file.StatisticsRecord,
            statistics_file.FiguresRecord,
            EvaluationRecord,
            RepeatsRecord,
            CurveRecord,
        )
    },
    "comparison": compare.FORMAT,
    "export": export.FORMAT,
}
BESIDE = ("pack", "samples", statistics_file.KIND, None)  # counted with the files they are records of
REMADE = {
    "evaluation": "driftkit fid makes it again",
    "comparison": "driftkit compare makes it again",
    "pipeline": "remove it: the pipeline then runs its stages again",
}


def record(path: Path, found: Findings, fix: str = "restore it from a copy") -> dict[str, Any] | None:
    """A JSON document that is as it was written; None where it is not, which is then among the findings."""
    try:
        document, seal = read_sealed(path)
    except ArtifactError as error:
        found.refused(path, error, fix)
        return None
    kind, there = document.get("kind"), document.get("format_version", document.get("format"))
    known = KNOWN_FORMATS.get(str(kind))
    if known is not None and isinstance(there, int) and there > known:
        found.problem(
            path,
            "future",
            f"has format {there} of {kind}; this driftkit {__version__} reads {known}",
            "use the driftkit that wrote it, or a newer one",
        )
        return None
    if seal is None:
        ours = isinstance(kind, str) or path.name == "state.json"
        found.note(path, "not vouched for" if ours else "unknown", "written without a digest of its content")
    elif not seal_fits(seal, document):
        found.problem(
            path,
            "damaged",
            "its content does not fit its seal",
            REMADE.get(str(kind), fix) + ', or, if the change is yours, remove the line "seal"',
        )
        return None
    elif kind not in BESIDE:
        found.good(str(kind), path.stat().st_size)
    return document


def recorded(path: Path, entry: Any, found: Findings, kind: str, fix: str) -> bool:
    """Whether a file is the one that a record names by `sha256` and `bytes`."""
    try:
        require_recorded(path, entry if isinstance(entry, dict) else {})
    except ArtifactError as error:
        found.refused(path, error, fix)
        return False
    found.good(kind, path.stat().st_size)
    return True


def tensors_file(path: Path, found: Findings) -> None:
    """A safetensors file: a pack, statistics, an encoder, samples, weights out of a checkpoint, or something else."""
    try:
        header = read_tensors(path)[1]
    except ArtifactError as error:
        found.refused(path, error, "restore it from a copy, or make it again")
        return
    kinds: dict[str, Callable[[Path, Findings], None]] = {
        "pack": _pack,
        statistics_file.KIND: _statistics,
        "encoder": _encoder,
    }
    kind = header.get("driftkit", "")
    side = path.with_suffix(".json")
    if kind in kinds:
        kinds[kind](path, found)
    elif kind == "weights":
        found.note(path, "not vouched for", "weights out of a checkpoint folder, whose state.json is not beside them")
    elif side.is_file():
        _samples(path, side, found)
    elif list(read_tensors(path)[0]) == ["images"]:
        found.note(path, "unfinished", f"samples without {side.name}: make them again")
    else:
        found.note(path, "unknown", "a safetensors file that driftkit did not write")


def document(path: Path, found: Findings) -> None:
    """A JSON document that stands alone."""
    if (content := record(path, found)) is None:
        return
    main = path.with_suffix(".safetensors")
    if content.get("kind") in ("pack", "samples"):
        found.problem(main, "missing", f"is not there, beside its record {path.name}", "copy it, or remove the record")


def picture(path: Path, found: Findings) -> None:
    """A PNG, by the checksums that it holds itself."""
    try:
        with Image.open(path) as opened:
            opened.verify()
    except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for broken files
        found.problem(path, "damaged", f"no whole picture: {error}", "remove it, or make it again")
        return
    found.good("picture", path.stat().st_size)


def feature_cache(folder: Path, found: Findings) -> None:
    """The card, the offset and every shard of a cache of features."""
    again = "remove it: the next run with --cache-features makes it anew"
    if record(folder / "card.json", found, again) is None:
        return
    try:
        layout = cache.read_card(folder)
        offset = cache.read_offset(folder, layout)
    except ArtifactError as error:
        found.refused(folder, error, again)
        return
    unmade = 0
    for number in range(layout.num_shards):
        path = cache.shard_path(folder, number)
        if not path.is_file():
            unmade += 1
            continue
        try:
            damaged = cache.read_shard(folder, number, layout, offset).damaged()
        except ArtifactError as error:
            found.refused(path, error, again)
            continue
        if damaged:
            found.problem(path, "damaged", f"features of {len(damaged)} images are not those that were written", again)
        else:
            found.good("feature cache file", path.stat().st_size)
    if unmade:
        found.note(
            folder, "unfinished", f"{unmade} of {layout.num_shards} files are not made yet; training goes on there"
        )


def exported(folder: Path, found: Findings) -> None:
    """A model that `export` wrote."""
    again = "driftkit export --force makes it again"
    content = record(folder / "model.json", found, again)
    if content is not None:
        recorded(folder / str(content.get("file")), content, found, "export", again)


def comparison(folder: Path, found: Findings) -> set[Path]:
    """What `compare` wrote; gives the paths that were looked at."""
    path, again = folder / "compare.json", REMADE["comparison"]
    content = record(path, found, again)
    files = (content or {}).get("files")
    if content is not None and not isinstance(files, dict):
        found.note(folder, "not vouched for", "a comparison written without digests of its files")
    listed: dict[str, Any] = files if isinstance(files, dict) else {}
    for name, entry in listed.items():
        recorded(folder / name, entry, found, "file of a comparison", again)
    return {path, *(folder / name for name in listed)}


def _pack(path: Path, found: Findings) -> None:
    side = packs.card_path(path)
    if not side.is_file():
        found.note(path, "unfinished", f"a pack without its card {side.name}: import it again")
        return
    if record(side, found, "import it again") is None:
        return
    try:
        packs.open_pack(path).require_content()
    except DriftkitError as error:
        found.refused(path, error, "import it again")
        return
    found.good("pack", path.stat().st_size)


def _statistics(path: Path, found: Findings) -> None:
    again = "remove it: the next score makes it anew"
    side = path.with_suffix(".json")
    if side.is_file():
        record(side, found, again)
    try:
        statistics_file.read_statistics(path)
    except ArtifactError as error:
        found.refused(path, error, again)
        return
    found.good("statistics", path.stat().st_size)


def _encoder(path: Path, found: Findings) -> None:
    tensors, header = read_tensors(path)
    if "sha256" not in header:
        found.note(path, "not vouched for", "an encoder written without a digest of its weights")
    elif state_digest(tensors) != header["sha256"]:
        found.problem(path, "damaged", "its weights are not those it was written with", "train again, or copy it")
    else:
        found.good("encoder", path.stat().st_size)


def _samples(path: Path, side: Path, found: Findings) -> None:
    again = "make the samples again"
    content = record(side, found, again)
    if content is None:
        return
    if content.get("kind") != "samples":
        found.note(path, "unknown", f"{side.name} beside it is of kind {content.get('kind')!r}")
        return
    if not recorded(path, content, found, "samples", again):
        return
    try:
        images.read_samples(path)
    except ArtifactError as error:
        found.refused(path, error, again)
    grid = path.with_suffix(".png")
    if isinstance(content.get("grid"), dict):
        recorded(grid, content["grid"], found, "picture", again)


def consumed(path: Path) -> bool:
    """Whether a file beside a safetensors file of its name is checked with that: its record, or its picture."""
    main = path.with_suffix(".safetensors")
    if path == main or not main.is_file():
        return False
    if path.suffix == ".json":
        return True
    if path.suffix != ".png" or not path.with_suffix(".json").is_file():
        return False
    try:
        return "grid" in read_json(path.with_suffix(".json"))
    except ArtifactError:
        return True  # told of with its record

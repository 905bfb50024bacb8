"""Verifying: whether runs, packs, caches, statistics, samples, exports and reports are what was written.

Everything is read, nothing is changed. Folders are searched for what driftkit knows; the rest is counted and named.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from driftkit.config.layers import flatten
from driftkit.datasets.packs import card_path, open_pack
from driftkit.encoders import feature_cache as cache
from driftkit.errors import ArtifactError, DriftkitError, shortened
from driftkit.scoring import statistics_file
from driftkit.storage.atomic import is_temporary, writer_lives
from driftkit.storage.checksums import CHECKSUM_FILE, read_checksums, require_checksum
from driftkit.storage.files import read_json, read_tensors, sha256_file, state_digest
from driftkit.storage.images import read_samples
from driftkit.storage.json_text import from_json
from driftkit.storage.lock import holder_of, is_lock
from driftkit.storage.records import (
    NoteKind,
    Problem,
    ProblemKind,
    Record,
    RunManifest,
    SampleRecord,
    Verification,
    VerificationNote,
)
from driftkit.storage.run_folder import CHECKPOINTS, METRICS_FILE, Checkpoint, Run, checkpoints_in, metric_record
from driftkit.storage.sample_forms import FORMS, LABEL_FILE
from driftkit.storage.unfinished_samples import SUFFIX as UNFINISHED

README = "README.md"  # text about a folder, as in data/ and exports: never read
NAMED = 3  # unknown files of a folder that are named
CHECKPOINT_FILES = {"ema.safetensors", "raw.safetensors", "optimizer.safetensors", "state.json"}
EXPORTED_FILES = {"ema.safetensors", "state.json"}  # of a run folder that `export` wrote
ATTEMPTS = 3  # at a run that is trained meanwhile
COPY = "restore it from a copy"
# Records that name the files next to them by checksum, and their kinds.
LISTED = {"model.json": "export", "compare.json": "comparison", "toy.json": "toy", "toys.json": "toy"}
AGAIN = {
    "toy": "driftkit toy makes it again",
    "checkpoint": f"{COPY}, or remove the folder: training goes on from the one before, or from the start",
    "feature cache": "remove it: the next run that uses it makes it again",
    "statistics": "remove it: the next score makes it again",
    "pack": "import it again",
    "samples": "make the samples again",
    "export": "driftkit export --force makes it again",
    "comparison": "driftkit compare makes it again",
    "evaluation": "driftkit fid makes it again",
}


def verify(paths: Sequence[Path]) -> Verification:
    """Read what lies at the paths, folders of anything included, and compare it with its checksums.

    Nothing is raised for a bad file; `ok` of the result says whether all may be used as they are.
    """
    verifier = _Verifier()
    for path in paths:
        if path.is_dir():
            verifier.folder(path)
        elif not path.is_file():
            verifier.problem(path, "missing", "is not there", "look for its right name")
        elif not verifier.file(path):
            verifier.note(path, "unknown", "not a file that driftkit wrote")
    return Verification(
        ok=not verifier.problems,
        checked=dict(sorted(verifier.checked.items())),
        bytes=verifier.num_bytes,
        problems=verifier.problems,
        notes=verifier.notes,
    )


class _Verifier:
    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self.notes: list[VerificationNote] = []
        self.checked: Counter[str] = Counter()
        self.num_bytes = 0

    def problem(self, path: Path, kind: ProblemKind, problem: str, fix: str) -> None:
        self.problems.append(Problem(path=str(path), kind=kind, problem=problem.removeprefix("is "), fix=fix))

    def note(self, path: Path, kind: NoteKind, note: str) -> None:
        self.notes.append(VerificationNote(path=str(path), kind=kind, note=note))

    def good(self, kind: str, num_bytes: int = 0) -> None:
        self.checked[kind] += 1
        self.num_bytes += num_bytes

    def refused(self, path: Path, error: DriftkitError, fix: str) -> None:
        """Report a reader's refusal without the path it begins with; the reader's own fix goes first."""
        problem, _, own = str(error).removeprefix(str(path)).lstrip(": ").partition("; ")
        self.problem(path, "missing" if problem.startswith("is not there") else "damaged", problem, own or fix)

    def passes(self, check: Callable[[], object], path: Path, kind: str) -> bool:
        """Whether a reader takes a file; if not, its refusal is reported."""
        try:
            check()
        except DriftkitError as error:
            self.refused(path, error, AGAIN.get(kind, COPY))
            return False
        return True

    def folder(self, folder: Path, listed: Set[Path] = frozenset(), above: Set[Path] = frozenset()) -> None:
        """A folder of any kind, and all folders below it, less the files that a record above it lists.

        `above` are the real folders on the way to it: links may lead back.
        """
        if (real := folder.resolve()) in above:
            self.note(folder, "unknown", "a link to a folder that it lies in")
            return
        holds = {path.name for path in folder.iterdir()}
        done = set(listed)
        if "manifest.json" in holds:
            self.run(folder)
            done |= {folder / CHECKPOINTS, folder / METRICS_FILE}
        elif "card.json" in holds:
            self.feature_cache(folder)
            return
        elif "state.json" in holds and folder.resolve().parent.name == CHECKPOINTS:
            self.checkpoint_alone(folder)
            return
        for name, kind in LISTED.items():
            if name in holds:
                done |= self.listed_files(folder / name, kind)
        unknown: list[str] = []
        for path in sorted(set(folder.iterdir()) - done):
            if is_temporary(path):
                self.leftover(path)
            elif is_lock(path) or path.name == README:
                continue
            elif path.name.endswith(UNFINISHED) and path.is_dir():
                self.note(path, "unfinished", "images of a sampling: the same command goes on behind them")
            elif path.is_dir() and not _is_of_samples(path):
                self.folder(path, done, above | {real})
            elif not path.is_dir() and not self.file(path):
                unknown.append(path.name)
        if unknown:
            self.note(folder, "unknown", f"files that are not driftkit's: {shortened(unknown, NAMED)}")

    def file(self, path: Path) -> bool:
        """One file; returns whether it is of a kind that driftkit writes."""
        main = path.with_suffix(".safetensors")
        if path.suffix == ".safetensors":
            self.tensors(path)
        elif path.suffix == ".json" and not main.is_file():
            self.json(path)
        elif path.suffix == ".png":
            self.picture(path)
        else:  # checked with the tensors or the record
            return path.suffix == ".json" or (path.suffix in (".npz", ".zip") and _is_of_samples(path))
        return True

    def leftover(self, path: Path) -> None:
        if lives := writer_lives(path):
            self.note(path, "in use", "being written now")
        else:
            writer = "a process that ended" if lives is False else "another machine"
            self.note(path, "leftover", f"half-written by {writer}: remove it once nothing is writing here")

    def json(self, path: Path) -> dict[str, Any] | None:
        """A JSON document; None where it cannot be used."""
        try:
            document = read_json(path)
        except ArtifactError as error:
            self.refused(path, error, COPY)
            return None
        kind, version = document.get("kind"), document.get("format_version")
        record = _records().get(str(kind))
        fix = AGAIN.get(str(kind).partition(" ")[0], COPY)
        if record and isinstance(version, int) and version > record.format_version:
            reads = f"this driftkit reads {record.format_version}"
            self.problem(path, "future", f"has format version {version} of {kind}; {reads}", "use a newer driftkit")
            return None
        if record and not self.passes(lambda: record.of(document, path), path, str(kind)):
            return None
        if kind is None and path.name == LABEL_FILE and isinstance(document.get("labels"), list):
            self.good("labels", path.stat().st_size)
        elif not isinstance(kind, str):
            self.note(path, "unknown", "a JSON document that driftkit did not write")
        elif kind == "samples" and document.get("format", "safetensors") != "safetensors":
            samples = SampleRecord.of(document, path)
            content = path.with_suffix(FORMS[samples.format].suffix)
            if self.passes(lambda: require_checksum(content, samples.sha256, num_bytes=samples.bytes), content, kind):
                self.good(kind, samples.bytes)
        elif kind in ("pack", "samples"):
            self.problem(path.with_suffix(".safetensors"), "missing", f"is not there, next to {path.name}", fix)
        else:
            self.good(kind, path.stat().st_size)
        return document

    def picture(self, path: Path) -> None:
        """A PNG, by the checksums that it holds itself."""
        try:
            if not path.is_file():
                raise OSError("no plain file")
            with Image.open(path) as opened:
                opened.verify()
        except (OSError, ValueError, SyntaxError) as error:  # what Pillow raises for broken files
            self.problem(path, "damaged", f"no whole picture: {error}", "remove it, or make it again")
        else:
            self.good("picture", path.stat().st_size)

    def tensors(self, path: Path) -> None:
        """A safetensors file: a pack, statistics, an encoder, samples, or something else."""
        side = path.with_suffix(".json")
        try:
            tensors, header = read_tensors(path)
        except ArtifactError as error:
            self.refused(path, error, f"{COPY}, or make it again")
            return
        kind = header.get("driftkit", "samples" if side.is_file() else "")
        checks: dict[str, Callable[[], object]] = {
            "pack": lambda: open_pack(path).require_content(),
            "samples": lambda: read_samples(path),
            "encoder": lambda: _require_encoder(path),
            statistics_file.KIND: lambda: statistics_file.read_statistics(path),
        }
        if (kind == "pack" and not card_path(path).is_file()) or (not kind and list(tensors) == ["images"]):
            self.note(path, "unfinished", f"{kind or 'samples'} without {side.name}: make them again")
        elif kind not in checks:
            self.note(path, "unknown", "a safetensors file that does not stand alone, or not driftkit's")
        elif self.passes(checks[kind], path, kind):
            self.good(kind, path.stat().st_size)

    def feature_cache(self, folder: Path) -> None:
        """The card, the offset and every shard of a cache of features."""
        for path in filter(is_temporary, sorted(folder.iterdir())):
            self.leftover(path)
        try:
            layout = cache.read_card(folder)
            offset = cache.read_offset(folder, layout)
        except ArtifactError as error:
            self.refused(folder, error, AGAIN["feature cache"])
            return
        unmade = 0
        for number in range(layout.num_shards):
            path = cache.shard_path(folder, number)
            if not path.is_file():
                unmade += 1
            elif self.passes(lambda n=number: _require_shard(folder, n, layout, offset), path, "feature cache"):  # type: ignore[misc]
                self.good("feature cache file", path.stat().st_size)
        if unmade:
            self.note(folder, "unfinished", f"{unmade} of {layout.num_shards} files are not made yet")
        else:
            self.good("feature cache")

    def listed_files(self, record: Path, kind: str) -> set[Path]:
        """A JSON record that names files of its folder by sha256 and bytes; returns the paths that were looked at."""
        document = self.json(record) or {}
        single = {str(document.get("file")): document} if "file" in document else {}
        listed = document.get("files", single)
        entries = listed.items() if isinstance(listed, dict) else ()
        files = {record.parent / name: entry for name, entry in entries if isinstance(entry, dict)}
        for path, entry in files.items():
            expected, size = str(entry.get("sha256")), entry.get("bytes")
            if self.passes(lambda p=path, e=expected, s=size: require_checksum(p, e, num_bytes=s), path, kind):  # type: ignore[misc]
                self.good(kind if single else f"file of a {kind}", path.stat().st_size)
        return {record, *files}

    def run(self, folder: Path) -> None:
        """What training wrote into a run folder. A run that is trained meanwhile is read again where it changed."""
        for _ in range(ATTEMPTS):
            before, trial = _snapshot(folder), _Verifier()
            with contextlib.suppress(FileNotFoundError):  # a checkpoint that was removed meanwhile
                trial.run_once(folder)
            if not trial.problems or _snapshot(folder) == before:
                break
        self.problems += trial.problems
        self.notes += trial.notes
        self.checked += trial.checked
        self.num_bytes += trial.num_bytes
        if holder := holder_of(folder):
            self.note(folder, "in use", f"being written by {holder}")

    def run_once(self, folder: Path) -> None:
        manifest, saved = _saved(folder)
        if manifest and max((c.step for c in saved), default=0) < manifest.step:
            path = folder / CHECKPOINTS / f"step-{manifest.step:08d}"
            fix = f"{COPY}; the same train command resumes from the last that is there"
            self.problem(path, "missing", "the checkpoint is not there", fix)
        before = len(self.problems)
        for checkpoint in saved:
            self.checkpoint(checkpoint, saved)
        if manifest and saved and len(self.problems) == before and (keys := _other_settings(manifest, saved[-1])):
            problem = f"its config has another {', '.join(keys)} than the last checkpoint was trained with"
            self.problem(folder / "manifest.json", "damaged", problem, COPY)
        if (folder / CHECKPOINTS).is_dir():
            for path in filter(is_temporary, sorted((folder / CHECKPOINTS).iterdir())):
                self.leftover(path)
        trained = manifest is not None and manifest.state == "done" and manifest.step > 0
        self.metrics(folder / METRICS_FILE, expected=trained and not _is_export(folder))

    def checkpoint_alone(self, folder: Path) -> None:
        for saved in _saved(folder.resolve().parent.parent)[1]:
            if saved.path.name == folder.resolve().name:
                self.checkpoint(replace(saved, path=folder), [])

    def checkpoint(self, checkpoint: Checkpoint, others: Sequence[Checkpoint]) -> None:
        """All files of a checkpoint by its checksum file; `others` are those whose files may have been swapped in."""
        folder, fix = checkpoint.path, AGAIN["checkpoint"]
        try:
            listed = read_checksums(folder)
        except ArtifactError as error:
            self.refused(folder / CHECKSUM_FILE, error, fix)
            return
        before = len(self.problems)
        expected_files = EXPORTED_FILES if _is_export(folder.resolve().parent.parent) else CHECKPOINT_FILES
        if missing := sorted(expected_files - listed.keys()):
            self.problem(folder / CHECKSUM_FILE, "damaged", f"does not list {', '.join(missing)}", fix)
        for name, expected in listed.items():
            path = folder / name
            try:
                require_checksum(path, expected)
                self.num_bytes += path.stat().st_size
            except ArtifactError as error:
                if owner := _owner(path, others):
                    self.problem(path, "swapped", f"holds what was written as {owner}", fix)
                else:
                    self.refused(path, error, fix)
        if len(self.problems) > before:
            return
        try:
            checkpoint.state()
            self.good("checkpoint")
        except ArtifactError as error:  # it is of another step or run
            self.problem(folder, "swapped", str(error).removeprefix(f"{folder} "), fix)
        for path in sorted(folder.iterdir()):
            if path.name not in (*listed, CHECKSUM_FILE):
                self.note(path, "unknown", "no file of a checkpoint")

    def metrics(self, path: Path, *, expected: bool) -> None:
        """The metric records; `expected` of a training that is done."""
        fix = f"{COPY}, or remove it: training goes on without the records of before"
        if not path.is_file():
            if expected:
                self.problem(path, "missing", "is not there", fix)
            return
        *lines, last = path.read_bytes().split(b"\n")
        broken = next((number for number, line in enumerate(lines, start=1) if metric_record(line) is None), None)
        if broken is not None:
            self.problem(path, "damaged", f"line {broken} is no metric record", fix)
            return
        if last:
            self.note(path, "unfinished", "ends in half a line, which readers skip and training writes again")
        self.good("metrics", path.stat().st_size)


def _saved(run: Path) -> tuple[RunManifest | None, list[Checkpoint]]:
    """Manifest and checkpoints; no manifest where it cannot be read, which is reported as a file of the folder."""
    try:
        manifest = Run(run).manifest()
    except ArtifactError:
        return None, checkpoints_in(run, None)
    return manifest, checkpoints_in(run, manifest.id)


def _is_of_samples(path: Path) -> bool:
    """Whether a record next to it says that a folder or file is of samples."""
    for form in FORMS.values():
        record = form.next_to(path, ".json")
        if form.suffix == ("" if path.is_dir() else path.suffix) and record.is_file():
            with contextlib.suppress(ArtifactError):  # reported as a file
                return SampleRecord.read(record).format == form.name
    return False


def _is_export(folder: Path) -> bool:
    """Whether `export` wrote the run folder: with one kind of weights alone, and without metrics."""
    return (folder / "model.json").is_file()


def _other_settings(manifest: RunManifest, checkpoint: Checkpoint) -> list[str]:
    """Settings of network and objective, which never change, that differ from those in the header of the weights."""
    header = read_tensors(checkpoint.path / "ema.safetensors")[1]
    trained, recorded = (
        {k: v for k, v in flatten(config).items() if k == "seed" or k.startswith(("model.", "objective."))}
        for config in (from_json(header.get("config", "{}")), manifest.config)
    )
    moved = ("objective.encoder", "objective.encoder_weights")  # where things lie may change
    return [key for key in trained if key not in moved and recorded.get(key) != trained[key]]


def _records() -> dict[str, type[Record]]:
    """Kind -> class of all records that are imported."""
    classes: list[type[Record]] = [Record]
    found: dict[str, type[Record]] = {}
    while classes:
        subclasses = classes.pop().__subclasses__()
        classes += subclasses
        found |= {c.kind: c for c in subclasses if hasattr(c, "kind")}
    return found


def _require_encoder(path: Path) -> None:
    tensors, header = read_tensors(path)
    if state_digest(tensors) != header.get("sha256"):
        raise ArtifactError(f"{path}: its weights are not those it was written with; train again, or copy it")


def _require_shard(folder: Path, number: int, layout: cache.FeatureCacheCard, offset: Any) -> None:
    if damaged := cache.read_shard(folder, number, layout, offset).damaged():
        path = cache.shard_path(folder, number)
        raise ArtifactError(f"{path}: features of {len(damaged)} images are not those that were written")


def _owner(path: Path, others: Sequence[Checkpoint]) -> str | None:
    """The file of a checkpoint that was written with the content which another file holds now."""
    for checkpoint in others if path.is_file() else ():
        with contextlib.suppress(ArtifactError):  # reported with its checkpoint
            for name, sha256 in read_checksums(checkpoint.path).items():
                if sha256 == sha256_file(path):
                    return f"{checkpoint.path.name}/{name}"
    return None


def _snapshot(run: Path) -> tuple[bytes, set[str]]:
    """What changes when a run is trained on: its manifest and the names of its checkpoints."""
    path, checkpoints = run / "manifest.json", run / CHECKPOINTS
    names = {p.name for p in checkpoints.iterdir()} if checkpoints.is_dir() else set()
    return path.read_bytes() if path.is_file() else b"", names

"""Verifying: whether runs, packs, caches, statistics, samples and scores are what was written.

Everything is read, nothing is changed. Folders are searched for what driftkit knows; the rest is counted and named.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from driftkit.stages import verify_files
from driftkit.stages.findings import Findings
from driftkit.stages.verify_run import handled, verify_checkpoint, verify_run
from driftkit.storage.atomic import is_temporary, writer_lives
from driftkit.storage.lock import is_lock

NAMED = 3  # unknown files of a folder that are named


def verify(paths: Sequence[Path], *, report: Callable[[str], None] = lambda path: None) -> Findings:
    """Read what lies at the paths and compare it with the digests it was written with.

    Args:
        paths: runs, packs, caches, statistics, samples, evaluations, or folders of any of these.
        report: told of each folder or file that is looked at.

    Returns:
        The findings; `ok` says whether all may be used as they are. Nothing is raised for what is wrong with a file.
    """
    found = Findings()
    for path in paths:
        if path.is_dir():
            _folder(path, found, report)
        elif path.is_file():
            report(str(path))
            if not _file(path, found):
                found.note(path, "unknown", "not a file that driftkit wrote")
        else:
            found.problem(path, "missing", "is not there", "look for its right name")
    return found


def _folder(
    folder: Path,
    found: Findings,
    report: Callable[[str], None],
    run: Path | None = None,
    seen: frozenset[Path] = frozenset(),
) -> None:
    report(str(folder))
    if (folder / "manifest.json").is_file():
        run = folder
        _merge(found, verify_run(folder))
    elif (folder / "card.json").is_file():
        verify_files.feature_cache(folder, found)
        _leftovers(folder, found)
        return
    elif (folder / "model.json").is_file():
        verify_files.exported(folder, found)
        return
    elif (folder / "state.json").is_file() and (folder.resolve().parent.parent / "manifest.json").is_file():
        _merge(found, verify_checkpoint(folder))
        _leftovers(folder, found)
        return
    elif (folder / "compare.json").is_file():
        seen = seen | verify_files.comparison(folder, found)
    unknown: list[str] = []
    for path in sorted(folder.iterdir()):
        if is_temporary(path):
            _leftover(path, found)
        elif is_lock(path) or path in seen:
            continue
        elif run is not None and handled(run, path):
            if path.is_dir():
                _leftovers(path, found)
        elif path.is_dir():
            _folder(path, found, report, run, seen)
        elif not _file(path, found):
            unknown.append(path.name)
    if unknown:
        more = f" and {len(unknown) - NAMED} more" if len(unknown) > NAMED else ""
        found.note(folder, "unknown", f"files that are not driftkit's: {', '.join(unknown[:NAMED])}{more}")


def _file(path: Path, found: Findings) -> bool:
    """Look at one file; gives whether it is of a kind that is known here."""
    looks = {
        ".safetensors": verify_files.tensors_file,
        ".json": verify_files.document,
        ".png": verify_files.picture,
    }
    look = looks.get(path.suffix)
    if look is not None and not verify_files.consumed(path):
        look(path, found)
    return look is not None


def _leftovers(folder: Path, found: Findings) -> None:
    for path in sorted(folder.iterdir()):
        if is_temporary(path):
            _leftover(path, found)


def _leftover(path: Path, found: Findings) -> None:
    lives = writer_lives(path)
    if lives:
        found.note(path, "in use", "being written now")
        return
    whose = "of a process that ended" if lives is False else "of another machine, or of before this one was restarted"
    found.note(path, "leftover", f"half-written, {whose}: remove it once nothing is writing here")


def _merge(found: Findings, more: Findings) -> None:
    found.problems += more.problems
    found.notes += more.notes
    found.checked += more.checked
    found.num_bytes += more.num_bytes

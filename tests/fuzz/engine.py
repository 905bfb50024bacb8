"""One target under libFuzzer, in a process that it ends."""

import errno
import hashlib
import json
import os
import resource
import sys
import tempfile
import time
import traceback
from pathlib import Path

MEMORY_BYTES = 6 * 2**30
SLOW_S = 10


def fuzz_target(name: str, seconds: int, findings: str, corpus: str) -> None:
    """Fuzz one target in this process, which libFuzzer ends."""
    import atheris

    with atheris.instrument_imports(include=["driftkit"]):
        from driftkit.errors import DriftkitError
        from tests.fuzz.edits import nearly
        from tests.fuzz.targets import TARGETS

    folder = Path(tempfile.mkdtemp(prefix=f"fuzz-{name}-"))
    os.chdir(folder)
    os.environ["DRIFTKIT_DATA_DIR"], os.environ["DRIFTKIT_CACHE"] = str(folder / "data"), str(folder / "cache")
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    target = TARGETS[name](folder)
    seen: set[str] = set()
    tally = {"target": name, "inputs": 0, "accepted": 0, "refused": 0, "found": 0}
    place = Path(findings) / name

    def keep(content: bytes, title: str, detail: str) -> None:
        if title in seen:
            return
        seen.add(title)
        tally["found"] += 1
        place.mkdir(parents=True, exist_ok=True)
        stem = hashlib.sha256(content).hexdigest()[:12]
        (place / stem).write_bytes(content)
        (place / f"{stem}.txt").write_text(f"{title}\n\n{detail}", errors="backslashreplace")

    def note(content: bytes, error: BaseException) -> None:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "/driftkit/" in f.filename]
        where = f"{Path(frames[-1].filename).name}:{frames[-1].name}" if frames else "no frame of driftkit"
        keep(content, f"{type(error).__name__} in {where}", "".join(traceback.format_exception(error)))

    def one(data: bytes) -> None:
        tally["inputs"] += 1
        if tally["inputs"] % 500 == 0:
            (Path(findings) / f"{name}.json").write_text(json.dumps(tally))
        seed = target.seeds[data[0] % len(target.seeds)] if data else target.seeds[0]
        content = data[2:] if len(data) > 1 and data[1] % 4 == 0 else nearly(seed, target.form, data[2:])
        started = time.monotonic()
        try:
            target.read(content)
            tally["accepted"] += 1
        except DriftkitError:
            tally["refused"] += 1
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:  # which the command line says in a line of its own
                note(content, error)
            tally["refused"] += 1
        except BaseException as error:
            note(content, error)
        if time.monotonic() - started > SLOW_S:
            keep(content, f"took more than {SLOW_S} s", "")

    Path(corpus, name).mkdir(parents=True, exist_ok=True)
    atheris.Setup(
        [sys.argv[0], f"-max_total_time={seconds}", "-max_len=4096", "-verbosity=0", "-timeout=60", "-rss_limit_mb=0",
         f"-artifact_prefix={findings}/{name}-", str(Path(corpus, name))],
        one,
    )  # fmt: skip
    atheris.Fuzz()

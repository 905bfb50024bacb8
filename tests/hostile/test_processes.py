"""What a run leaves and opens: files that others cannot write, and no socket that listens."""

import os
import stat
from pathlib import Path

import pytest

from driftkit.training.trainer import Trainer
from tests.conftest import driftkit, train_tiny


def listening() -> set[str]:
    """Addresses at which this process listens, from its own descriptors."""
    own = {os.readlink(p) for p in Path("/proc/self/fd").iterdir() if os.path.lexists(p)}
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/self/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
                found.add(fields[1])
    return found


@pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="no /proc to see sockets in")
def test_nothing_listens_while_it_trains(tmp_path, monkeypatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)):
        assert listening()  # it would be seen
    seen = []
    step = Trainer.train_step

    def watched(self):
        seen.append(listening())
        return step(self)

    monkeypatch.setattr(Trainer, "train_step", watched)
    train_tiny(tmp_path / "run", "ddpm")
    assert seen == [set(), set()]


@pytest.mark.parametrize("mask", [0o077, 0o027, 0o022])
def test_files_follow_the_umask_and_no_temporary_is_wider(tmp_path, monkeypatch, mask):
    loose, replace = [], os.replace

    def look(source, target, **options):  # temporaries are there until they are renamed
        for path in (Path(source), *Path(source).rglob("*")):
            if stat.S_IMODE(path.stat().st_mode) & mask:
                loose.append(str(path))
        return replace(source, target, **options)

    monkeypatch.setattr(os, "replace", look)
    before = os.umask(mask)
    try:
        train_tiny(tmp_path / "run", "ddpm")
        assert driftkit("sample", tmp_path / "run", "-n", 4).exit_code == 0
        assert (
            driftkit("data", "shapes?image_size=8&count=20", "--output", tmp_path / "p", "--grid", "g.png").exit_code
            == 0
        )
    finally:
        os.umask(before)
    written = [p for p in tmp_path.rglob("*") if not p.is_symlink()]
    assert len(written) > 15
    assert loose == []
    assert [str(p) for p in written if stat.S_IMODE(p.stat().st_mode) & mask] == []
    assert [str(p) for p in written if p.is_file() and stat.S_IMODE(p.stat().st_mode) & 0o111] == []

"""One process writes a folder at a time; the others wait or are refused, and a dead one holds nothing."""

import errno
import fcntl
import os
import signal
import threading
from pathlib import Path

import pytest

from driftkit.errors import BusyError, StorageError
from driftkit.storage import lock
from driftkit.storage.lock import holder_of, is_lock, locked_file, locked_folder
from tests.locks import another_process


def test_a_folder_that_another_process_holds_is_refused_with_its_name(tmp_path):
    run = tmp_path / "run"
    with another_process("folder", run) as child:
        with pytest.raises(BusyError) as caught, locked_folder(run):
            pytest.fail("two hold it")
        assert f"process {child.pid} on " in str(caught.value)
        assert f"driftkit folder {run}" in str(caught.value)
        assert caught.value.exit_code == 4
        assert f"process {child.pid}" in holder_of(run)
    assert holder_of(run) is None


def test_a_killed_holder_holds_nothing(tmp_path):
    run = tmp_path / "run"
    with another_process("folder", run) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert (run / ".lock.json").exists()
        assert holder_of(run) is None
        with locked_folder(run):
            assert f"process {os.getpid()}" in holder_of(run)
    assert not list(run.glob(".lock*"))


def test_whoever_waits_gets_it_when_the_other_is_done(tmp_path, capfd, monkeypatch):
    target = tmp_path / "pack.safetensors"
    monkeypatch.setattr(lock, "REPORT_AFTER_S", 0.0)
    with another_process("file", target) as child:
        threading.Timer(0.3, child.stdin.close).start()
        with locked_file(target):
            pass
        child.wait()
        child.stdin = None
    assert f"waiting for process {child.pid}" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_process_may_take_its_own_lock_again(tmp_path):
    with locked_folder(tmp_path / "run"):
        with locked_folder(tmp_path / "run"):
            pass
        assert (tmp_path / "run" / ".lock").exists()
    assert not (tmp_path / "run").exists()


def test_a_folder_made_for_the_lock_goes_unless_it_was_used(tmp_path):
    with locked_folder(tmp_path / "a" / "b"):
        pass
    assert not (tmp_path / "a").exists()
    with locked_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "b" / "manifest.json").write_text("{}")
    assert [p.name for p in (tmp_path / "a" / "b").iterdir()] == ["manifest.json"]


def test_a_file_system_without_locks_is_refused_unless_one_says_that_nobody_else_writes(tmp_path, monkeypatch):
    def no_flock(descriptor, operation):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr(fcntl, "flock", no_flock)
    with pytest.raises(StorageError, match=r"knows no locks.*DRIFTKIT_LOCKS=off"), locked_folder(tmp_path / "run"):
        pytest.fail("held without a lock")
    monkeypatch.setenv("DRIFTKIT_LOCKS", "off")
    with locked_folder(tmp_path / "run"):
        pass


def test_a_link_in_the_place_of_the_holder_is_replaced_not_followed(tmp_path):
    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    (run / ".lock.json").symlink_to(precious)
    with locked_folder(run):
        assert precious.read_text() == "mine"
        assert not (run / ".lock.json").is_symlink()
    assert precious.read_text() == "mine"


def test_locks_are_told_by_their_names():
    assert is_lock(Path("run/.lock"))
    assert is_lock(Path("data/.p.safetensors.lock"))
    assert is_lock(Path("data/.p.safetensors.lock.json"))
    assert not is_lock(Path("uv.lock"))

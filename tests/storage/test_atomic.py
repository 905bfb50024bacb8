"""Names of what is being written, what dead writers left, and disks that take no more."""

import errno
import multiprocessing
import os
import resource
import socket

import pytest
import torch
from safetensors import SafetensorError

from driftkit.errors import StorageError
from driftkit.storage import atomic
from driftkit.storage.atomic import (
    LONGEST_NAME,
    atomic_folder,
    atomic_path,
    make_folder,
    remove_abandoned,
    remove_all_temporaries,
    remove_folder,
    require_free,
    storage_errors,
    temporary_path,
    writer_lives,
)
from driftkit.storage.files import read_json, write_json, write_tensors


def dead_process():
    """The number of a process that has ended."""
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join()
    return child.pid


def left_by(path, pid, host=None):
    """A temporary as another process would have named it."""
    name = path.name.replace(f"-{os.getpid()}-", f"-{pid}-")
    return path.with_name(name.replace(f".{atomic._host()}-", f".{host}-") if host else name)


def test_two_names_for_one_target_differ_and_say_who_writes(tmp_path):
    first, second = temporary_path(tmp_path / "a.json"), temporary_path(tmp_path / "a.json")
    assert first != second
    assert first.suffix == ".json"
    assert writer_lives(first) is True
    assert writer_lives(left_by(first, dead_process())) is False
    assert writer_lives(left_by(first, 1, host="elsewhere")) is None


@pytest.mark.parametrize("name", ["x" * (LONGEST_NAME - 5) + ".json", "ü" * 125 + ".json", "a b\n'.json", ".hidden"])
def test_names_as_long_and_odd_as_may_be_are_written(tmp_path, name):
    write_json(tmp_path / name, {"x": 1})
    assert read_json(tmp_path / name) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_what_a_dead_writer_left_goes_and_what_a_living_one_writes_stays(tmp_path):
    target = tmp_path / "a.json"
    dead = left_by(temporary_path(target), dead_process())
    living = left_by(temporary_path(target), os.getppid())
    elsewhere = left_by(temporary_path(target), 1, host="elsewhere")
    of_another = left_by(temporary_path(tmp_path / "b.json"), dead_process())
    for path in (dead, living, elsewhere, of_another):
        path.write_text("half")
    write_json(target, {})
    assert {p.name for p in tmp_path.iterdir()} == {p.name for p in (target, living, elsewhere, of_another)}


def test_folders_of_dead_writers_go_too(tmp_path):
    target = tmp_path / "step-00000002"
    dead = left_by(temporary_path(target), dead_process())
    dead.mkdir()
    (dead / "half").write_text("")
    remove_abandoned(target)
    assert not list(tmp_path.iterdir())


def test_a_folder_is_replaced_whole(tmp_path):
    for content in ("old", "new"):
        with atomic_folder(tmp_path / "step") as folder:
            (folder / content).write_text("")
    assert [p.name for p in (tmp_path / "step").iterdir()] == ["new"]
    assert [p.name for p in tmp_path.iterdir()] == ["step"]


@pytest.mark.parametrize("name", [".a.host-7-abcdef.partial", ".a.b.host-7-abcdef.partial.json.0123.partial"])
def test_all_temporaries_go_where_nobody_else_writes(tmp_path, name):
    for path in (name, "a.json", ".hidden", "x.partial"):
        (tmp_path / path).write_text("")
    remove_all_temporaries(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", ".hidden", "x.partial"}


def test_a_second_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    target = tmp_path / "step"
    with atomic_folder(target) as folder:
        (folder / "old").write_text("")
    real, calls = os.replace, []

    def second_fails(first, second):
        calls.append(second)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        real(first, second)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(StorageError), atomic_folder(target) as folder:
        (folder / "new").write_text("")
    assert [p.name for p in tmp_path.iterdir()] == ["step"]
    assert [p.name for p in target.iterdir()] == ["old"]


def test_a_folder_is_removed_under_another_name(tmp_path, monkeypatch):
    (tmp_path / "step").mkdir()
    seen = []
    monkeypatch.setattr(
        atomic.shutil, "rmtree", lambda path, **_: seen.append((path.name, (tmp_path / "step").exists()))
    )
    remove_folder(tmp_path / "step")
    assert [exists for _, exists in seen] == [False]
    assert seen[0][0].startswith(".step.")


def test_every_folder_that_is_made_is_flushed_into_its_parent(tmp_path, monkeypatch):
    flushed = []
    monkeypatch.setattr(atomic, "flush", flushed.append)
    make_folder(tmp_path / "a" / "b")
    assert flushed == [tmp_path, tmp_path / "a"]


@pytest.mark.parametrize("number", sorted(atomic.REMEDIES))
def test_errors_of_disks_are_one_line_with_a_fix_and_code_4(tmp_path, number):
    with pytest.raises(StorageError) as caught, storage_errors(tmp_path / "a", 3_000_000):
        raise OSError(number, os.strerror(number))
    assert caught.value.exit_code == 4
    assert os.strerror(number) in str(caught.value)
    assert "what was there before is kept" in str(caught.value)
    assert ("3.0 MB needed" in str(caught.value)) == (number in (errno.ENOSPC, errno.EDQUOT))


def test_errors_that_safetensors_tells_as_text_are_understood(tmp_path):
    with pytest.raises(StorageError, match="no space"), storage_errors(tmp_path / "a"):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(SafetensorError), storage_errors(tmp_path / "a"):
        raise SafetensorError("invalid header")
    with pytest.raises(ConnectionRefusedError), storage_errors(tmp_path / "a"):
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")


@pytest.mark.parametrize("before", [True, False])
def test_a_file_that_the_system_does_not_let_grow_leaves_nothing(tmp_path, before):
    target = tmp_path / "a.safetensors"
    if before:
        write_tensors(target, {"a": torch.zeros(3)})
    content = target.read_bytes() if before else None
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match="ulimit"):
            write_tensors(target, {"a": torch.zeros(100_000)})
        with pytest.raises(StorageError, match="ulimit"):
            write_json(target.with_suffix(".json"), {"a": "x" * 200_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [p.name for p in tmp_path.iterdir()] == ([target.name] if before else [])
    assert not before or target.read_bytes() == content


def test_room_is_asked_for_where_the_folder_will_be(tmp_path):
    require_free(tmp_path / "not" / "yet", 1, "a file")
    with pytest.raises(StorageError, match=r"a file needs .* MB are free"):
        require_free(tmp_path / "not" / "yet", 2**60, "a file")
    assert not list(tmp_path.iterdir())


def test_the_host_stands_in_the_name(tmp_path):
    host = "".join(c for c in socket.gethostname() if c.isascii() and c.isalnum())[:16]
    assert f".{host}" in temporary_path(tmp_path / "a").name


def test_a_failed_rename_leaves_no_temporary(tmp_path, monkeypatch):
    def full(first, second):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError), atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
    assert not list(tmp_path.iterdir())

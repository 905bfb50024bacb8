"""Files appear whole or not at all."""

import codecs
import os

import pytest
import torch

from driftkit.errors import ArtifactError
from driftkit.storage.files import atomic_folder, atomic_path, read_json, read_tensors, write_json, write_tensors
from driftkit.storage.json_text import from_json


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "a.json"
    write_json(target, {"x": 1})
    with pytest.raises(RuntimeError), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert read_json(target) == {"x": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_failed_folder_leaves_the_old_one(tmp_path):
    target = tmp_path / "step"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(RuntimeError), atomic_folder(target) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError
    assert (target / "a").read_text() == "old"
    with atomic_folder(target) as folder:
        (folder / "a").write_text("new")
    assert (target / "a").read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["step"]


def test_nan_is_refused_in_json(tmp_path):
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_tensors_and_header_come_back(tmp_path):
    tensors = {"w": torch.randn(3, 4), "i": torch.arange(3)}
    write_tensors(tmp_path / "a.safetensors", tensors, header={"config": {"a": 1}, "weights": "ema"})
    back, header = read_tensors(tmp_path / "a.safetensors")
    assert all(torch.equal(back[k], v) for k, v in tensors.items())
    assert header == {"config": '{"a": 1}', "weights": "ema"}


@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64, b"\x10\x00\x00\x00\x00\x00\x00\x00{}"])
def test_broken_tensor_files_are_named(tmp_path, content):
    path = tmp_path / "a.safetensors"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"a\.safetensors"):
        read_tensors(path)


@pytest.mark.parametrize("umask", [0o022, 0o007])
def test_tensors_may_be_read_by_those_who_may_read_other_files(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "plain").touch()
        write_tensors(tmp_path / "a.safetensors", {"a": torch.zeros(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "a.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_byte_order_mark_before_json_is_no_part_of_it(tmp_path):
    (tmp_path / "a.json").write_bytes(codecs.BOM_UTF8 + b'{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
    assert from_json((tmp_path / "a.json").read_bytes()) == {"a": 1}
    (tmp_path / "a.json").write_bytes(2 * codecs.BOM_UTF8 + b'{"a": 1}')
    with pytest.raises(ArtifactError, match="not readable JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"a": ' * 5000])
def test_broken_json_is_named(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=r"a\.json"):
        read_json(path)

"""A folder's checksum file finds what is damaged, absent or not listed, and is never trusted itself."""

import pytest

from driftkit.errors import ArtifactError, NotFoundError
from driftkit.storage.checksums import (
    CHECKSUM_FILE,
    read_checksums,
    require_checksum,
    require_listed,
    write_checksums,
)
from driftkit.storage.files import sha256


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a b.bin").write_bytes(b"a")
    (tmp_path / "c.json").write_text("{}")
    write_checksums(tmp_path)
    return tmp_path


def test_every_file_is_listed_but_the_list_and_what_is_half_written(folder):
    (folder / ".c.host-7-abcdef.partial.json").write_text("")
    write_checksums(folder)
    assert read_checksums(folder) == {"a b.bin": sha256(b"a"), "c.json": sha256(b"{}")}


def test_files_are_compared_with_the_list(folder):
    require_listed(folder / "a b.bin")
    (folder / "a b.bin").write_bytes(b"b")
    with pytest.raises(ArtifactError, match="is damaged"):
        require_listed(folder / "a b.bin")
    (folder / "a b.bin").unlink()
    with pytest.raises(NotFoundError):
        require_listed(folder / "a b.bin")
    (folder / "new").write_text("")
    with pytest.raises(ArtifactError, match="not listed"):
        require_listed(folder / "new")


def test_a_file_of_another_size_is_told_before_it_is_read(folder):
    with pytest.raises(ArtifactError, match="cut off"):
        require_checksum(folder / "a b.bin", sha256(b"a"), num_bytes=2)
    with pytest.raises(ArtifactError, match="changed"):
        require_checksum(folder / "a b.bin", sha256(b"a"), num_bytes=0)


@pytest.mark.parametrize("text", ["", "x\n", f"{'0' * 64}  ../a\n", f"{'0' * 64}  a/b\n", f"{'0' * 63}  a\n", "\xff"])
def test_a_broken_list_is_refused(folder, text):
    (folder / CHECKSUM_FILE).write_bytes(text.encode("latin-1"))
    with pytest.raises(ArtifactError):
        read_checksums(folder)


def test_an_absent_list_is_named(folder):
    (folder / CHECKSUM_FILE).unlink()
    with pytest.raises(NotFoundError, match=CHECKSUM_FILE):
        read_checksums(folder)

"""`driftkit data` as typed: its document, its text, its files, its errors."""

import pytest
from PIL import Image

from driftkit.datasets.packs import open_pack
from tests.conftest import document, driftkit

SMALL = "shapes?count=40&image_size=8"


def refused(code, *words):
    result = driftkit("data", *words)
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    return result.stderr


def test_json_is_the_card_with_counts_and_path():
    card = document("data", SMALL)
    assert (card["count"], card["height"], card["width"]) == (40, 8, 8)
    assert card["classes"]["heart"] == 4
    assert open_pack(card["path"]).digest == card["sha256"]
    assert card["source"]["options"]["count"] == 40


def test_table_shows_count_classes_and_source():
    text = driftkit("data", SMALL).stdout
    for word in ("40 of 8x8 px", "crescent", "sha256", "shapes train", "palette=full"):
        assert word in text


def test_output_writes_a_pack_where_asked_and_nowhere_else(tmp_path):
    card = document("data", SMALL, "--output", "packs/mine", "--limit", "10")
    assert card["path"] == "packs/mine.safetensors"
    pack = open_pack(tmp_path / "packs" / "mine")
    pack.verify()
    assert pack.labels.tolist() == list(range(10))
    assert not (tmp_path / "data").exists()


def test_same_output_again_is_left_as_it_is(tmp_path):
    document("data", SMALL, "--output", "mine")
    before = (tmp_path / "mine.safetensors").stat()
    document("data", SMALL, "--output", "mine")
    assert (tmp_path / "mine.safetensors").stat().st_mtime_ns == before.st_mtime_ns


def test_other_output_is_replaced_only_by_force(tmp_path):
    document("data", SMALL, "--output", "mine")
    assert "--force" in refused(2, SMALL, "--output", "mine", "--limit", "10")
    assert document("data", SMALL, "--output", "mine", "--limit", "10", "--force")["count"] == 10
    (tmp_path / "notes.json").write_text("{}")
    assert "--force" in refused(2, SMALL, "--output", "notes")
    assert (tmp_path / "notes.json").read_text() == "{}"


def test_pack_is_resized_only_into_an_output():
    document("data", SMALL, "--output", "mine")
    assert "--output" in refused(3, "mine", "--image-size", "16")
    card = document("data", "mine", "--image-size", "16", "--output", "larger")
    assert (card["height"], card["label"], card["source"]["kind"]) == (16, "shapes train", "pack")


def test_grid_is_a_picture(tmp_path):
    assert document("data", SMALL, "--grid", "grid.png")["grid"] == "grid.png"
    with Image.open(tmp_path / "grid.png") as image:
        assert image.format == "PNG"
    refused(2, SMALL, "--grid", "grid.jpg")


def test_failed_import_is_one_line_and_code_3(tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "photos" / "1.png")
    (tmp_path / "photos" / "2.png").write_bytes(b"junk")
    said = refused(3, "photos")
    assert "1 of 2 images are broken: 2.png (not an image)" in said
    assert "--skip-broken" in said
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["shapes?sise=3"], 2),
        (["nothing-here"], 3),
        ([SMALL, "--limit", "0"], 2),
        (["shapes", "--image-size", "4"], 2),
        (["cifar10", "--cifar10-url", "file:///nowhere/cifar.tar.gz"], 3),
    ],
)
def test_errors_have_their_codes(words, code):
    refused(code, *words)

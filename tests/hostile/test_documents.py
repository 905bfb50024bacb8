"""Documents that mean ill: headers, nesting, numbers, pipes. Each is one line that names the file."""

import json
import os
import struct

import pytest

from driftkit.config.layers import parse_assignments, read_toml
from driftkit.errors import ArtifactError, DriftkitError, UsageError
from driftkit.storage import files
from driftkit.storage.files import read_json, read_tensors, write_json
from tests.conftest import driftkit
from tests.scoring.fakes import make_pack, make_run, random_images


def tensors(path, header: bytes, body: bytes = b"", length: int | None = None):
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + body)
    return path


ENTRY = '{"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}'
BROKEN = {
    "no header": (b"", 2**60),
    "longer than the file": (b"{}", 2**20),
    "negative": (b"{}", 2**64 - 1),
    "nested": (b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None),
    "offsets beyond": (b'{"a": {"dtype": "U8", "shape": [9], "data_offsets": [0, 9]}}', None),
    "offsets overlap": (f'{{"a": {ENTRY}, "b": {ENTRY}}}'.encode(), None),
    "shape of another size": (
        b'{"a": {"dtype": "U8", "shape": [4611686018427387904, 4], "data_offsets": [0, 4]}}',
        None,
    ),
    "unknown dtype": (b'{"a": {"dtype": "pickle", "shape": [4], "data_offsets": [0, 4]}}', None),
    "huge number": (b'{"a": {"dtype": "U8", "shape": [' + b"9" * 5000 + b'], "data_offsets": [0, 4]}}', None),
    "not a number": (b'{"a": {"dtype": "U8", "shape": [NaN], "data_offsets": [0, 4]}}', None),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_broken_headers_of_tensors_are_named(tmp_path, kind):
    header, length = BROKEN[kind]
    path = tensors(tmp_path / "t.safetensors", header, bytes(4), length)
    with pytest.raises(ArtifactError, match=r"t\.safetensors"):
        read_tensors(path)


def test_of_a_name_that_stands_twice_one_tensor_is_read(tmp_path):
    header = f'{{"images": {ENTRY}, "images": {ENTRY}}}'.encode()
    found, _ = read_tensors(tensors(tmp_path / "t.safetensors", header, bytes([1, 2, 3, 4])))
    assert {name: tensor.tolist() for name, tensor in found.items()} == {"images": [1, 2, 3, 4]}


@pytest.mark.parametrize(
    "content",
    [
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a": ' + "9" * 10_000 + "}",
        "[1]",
        '"text"',
        "null",
        "\x00",
        "{'a': 1}",
        '{"a": 1}}',
    ],
)
def test_broken_json_is_named(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(ArtifactError, match=r"a\.json"):
        read_json(tmp_path / "a.json")


def test_json_that_is_too_large_is_not_read(tmp_path, monkeypatch):
    with open(tmp_path / "a.json", "wb") as file:
        file.truncate(2**40)  # a file with a hole: no disk is filled
    with pytest.raises(ArtifactError, match="1,099,511,627,776 bytes of JSON"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
def test_numbers_that_are_not_finite_are_neither_read_nor_written(number, tmp_path):
    (tmp_path / "a.json").write_text(f'{{"a": [1.0, {number}]}}')
    with pytest.raises(ArtifactError, match=f"{number} is not a finite number"):
        read_json(tmp_path / "a.json")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "b.json", {"a": float("nan")})
    assert not (tmp_path / "b.json").exists()


def test_pipes_are_not_waited_for(tmp_path):
    for read, name in ((read_json, "a.json"), (read_tensors, "a.safetensors")):
        os.mkfifo(tmp_path / name)
        with pytest.raises(ArtifactError, match="no plain file"):
            read(tmp_path / name)
    run = make_run(tmp_path / "run")
    (run.path / "evaluations").mkdir()
    os.mkfifo(run.path / "evaluations" / "1.json")
    os.mkfifo(tmp_path / "w.pth")
    result = driftkit("probe-encoder", "resnet18", "--encoder-weights", tmp_path / "w.pth")
    assert (result.exit_code, "no plain file" in result.output) == (3, True)
    for path in run.evaluation_paths():
        with pytest.raises(ArtifactError, match="no plain file"):
            read_json(path)


@pytest.mark.parametrize("text", ["[" * 50_000, "9" * 10_000, "{a=" * 20_000, "1979-13-45", "\x1b[2J"])
def test_toml_that_cannot_be_read_is_a_usage_error(tmp_path, text):
    (tmp_path / "a.toml").write_text(f"a = {text}")
    with pytest.raises(UsageError, match=r"a\.toml is not valid TOML"):
        read_toml(tmp_path / "a.toml")
    assert parse_assignments([f"a={text}"]) == {"a": text}  # on the command line it is a string


def test_a_config_that_asks_for_a_huge_network_costs_nothing(tmp_path):
    run = make_run(tmp_path / "run", "ddpm")
    (run.path / "checkpoints" / "step-00000030").mkdir(parents=True)
    files.write_tensors(run.path / "checkpoints" / "step-00000030" / "ema.safetensors", {})
    config = run.manifest().config
    for model in (
        {"base_channels": 4096, "channel_multipliers": [64] * 4, "num_res_blocks": 64},
        {"num_res_blocks": 10**9},
        {"channel_multipliers": [10**9]},
        {"base_channels": 10**400},
    ):
        text = json.dumps({**run.manifest().document(), "config": {**config, "model": {"kind": "unet", **model}}})
        run.manifest_path.write_text(text)
        result = driftkit("sample", run.path)
        assert result.exit_code == 3, result.output
        assert result.output.count("error: ") == 1
        assert "a bug" not in result.output


def test_a_card_is_not_believed(tmp_path):
    pack = make_pack(tmp_path / "p.safetensors", random_images(4))
    card = json.loads((tmp_path / "p.json").read_text())
    for change in (
        {"count": 10**12},
        {"height": 10**9},
        {"sha256": "../" * 20},
        {"format_version": 2},
        {"classes": 1},
    ):
        (tmp_path / "p.json").write_text(json.dumps({**card, **change}))
        result = driftkit("data", pack.path)
        assert result.exit_code == 3, result.output
        assert result.output.count("error: ") == 1


def test_names_in_records_lead_to_no_file_outside(tmp_path):
    """An earlier comparison names its figures, which the next one removes: none of them lies elsewhere."""
    from driftkit.stages.compare import _remove_stale

    outside = tmp_path / "precious.png"
    outside.write_bytes(b"")
    write_json(
        tmp_path / "out" / "compare.json", {"figures": {"a": "../precious.png", "b": str(outside), "c": "..", "d": "/"}}
    )
    _remove_stale(tmp_path / "out", set())
    assert outside.exists()


def test_names_of_runs_and_samplers_make_no_path(tmp_path):
    from driftkit.scoring.evaluation_record import default_path
    from driftkit.scoring.image_set import Share, Target

    run = make_run(tmp_path / "run", "ddpm")
    found = Target(random_images(1), Share(0, 1, 1), {}, run, run.path)
    document = {"extractor": {"name": "../../x", "weights_digest": "/etc/pas"}, "sampler": "..", "nfe": "a/b",
                "weights": "\x00", "step": "\n", "seed": "$(id)", "num_images": 1, "sampler_options": {"../eta": "/"},
                "sampler_precision": "../p",
                "reference": {"digest": "../../.."}}  # fmt: skip
    path = default_path(found, document)
    assert path.parent == run.path / "evaluations"
    assert path.name.replace("-", "").replace("_", "").replace(".", "").isalnum()
    with pytest.raises(DriftkitError):
        run.checkpoint(10**30)

"""Weights as training programs leave them: in other modules, next to other parts, in containers, next to options."""

import argparse

import numpy as np
import pytest
import timm
import torch

from driftkit.encoders.checkpoint_parts import encoder_parts, left_out
from driftkit.encoders.weights import read_weights
from driftkit.errors import ArtifactError
from driftkit.storage.files import state_digest, write_tensors
from tests.encoders.loading import load

MODEL = "timm:test_resnet"


@pytest.fixture
def network():
    return timm.create_model("test_resnet", num_classes=0)


def under(prefix, state):
    return {f"{prefix}{key}": tensor for key, tensor in state.items()}


def halved(state):
    """Other weights of the same network."""
    return {key: tensor / 2 if tensor.is_floating_point() else tensor for key, tensor in state.items()}


def digest_of(document, tmp_path):
    """Digest of the weights that an encoder takes from a file; it is that of the tensors under the network's keys."""
    torch.save(document, tmp_path / "w.pth")
    return load(MODEL, encoder_weights=tmp_path / "w.pth", input_size=32).weights_digest


@pytest.mark.parametrize(
    "prefix",
    ["", "module.", "_orig_mod.", "backbone.", "encoder.", "encoder_q.", "base_encoder.", "momentum_encoder.",
     "teacher.", "student.", "model.", "module.encoder_q.", "_orig_mod.module.", "module.teacher.backbone."],
)  # fmt: skip
def test_prefixes_of_modules_around_the_encoder_are_stripped(prefix, network, tmp_path, capsys):
    state = network.state_dict()
    assert digest_of({"state_dict": under(prefix, state)}, tmp_path) == state_digest(state)
    assert capsys.readouterr().err == ""


def test_prefixes_are_stripped_from_safetensors(network, tmp_path):
    write_tensors(tmp_path / "w.safetensors", under("module.", network.state_dict()))
    encoder = load(MODEL, encoder_weights=tmp_path / "w.safetensors", input_size=32)
    assert encoder.weights_digest == state_digest(network.state_dict())


@pytest.mark.parametrize(
    ("first", "second", "taken"),
    [
        ("student.backbone.", "teacher.backbone.", "teacher.backbone."),
        ("module.encoder_k.", "module.encoder_q.", "module.encoder_q."),
        ("momentum_encoder.", "base_encoder.", "base_encoder."),
        ("", "ema.", "ema."),
    ],
)
def test_of_two_copies_the_teacher_or_else_the_query_encoder_is_taken(first, second, taken, network, tmp_path, capsys):
    ours = network.state_dict()
    document = {**under(first, halved(ours)), **under(second, ours)}
    assert digest_of(document, tmp_path) == state_digest(ours)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert f"takes {taken}, where {first or 'keys without prefix'} would fit as well" in line


def test_heads_and_other_parts_are_left_out_and_named(network, tmp_path, capsys):
    state = network.state_dict()
    document = {
        **under("module.", {**state, "projector.0.weight": torch.zeros(2, 2), "head.bias": torch.zeros(2)}),
        "module.queue": torch.zeros(4),
        "predictor.weight": torch.zeros(2),
    }
    assert digest_of(document, tmp_path) == state_digest(state)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert line.endswith("takes module.; left out: module.projector, module.head, module.queue, predictor\n")


@pytest.mark.parametrize("key", ["layer1.0.extra.weight", "extra"])
def test_unknown_tensors_that_are_no_head_are_refused(key, network, tmp_path):
    with pytest.raises(ArtifactError, match=f"has the unknown {key}"):
        digest_of(under("module.", {**network.state_dict(), key: torch.zeros(1)}), tmp_path)


def test_weights_that_do_not_fit_show_keys_of_both_sides_and_shapes(network, tmp_path):
    state = under("backbone.", network.state_dict())
    del state["backbone.bn1.weight"]
    state["backbone.conv1.0.weight"] = torch.zeros(1, 2)
    with pytest.raises(ArtifactError) as caught:
        digest_of(state, tmp_path)
    message = str(caught.value)
    assert "conv1.0.weight is [1, 2], not [" in message
    assert "lacks bn1.weight" in message
    assert f"first keys are {', '.join(list(state)[:3])};" in message
    assert f"expected {', '.join(list(network.state_dict())[:3])}" in message


def test_a_larger_network_of_the_same_kind_is_refused():
    """Blocks that the encoder has not are no parts next to it."""
    state = {"blocks.0.w": torch.zeros(1), "blocks.1.w": torch.zeros(1)}
    (only,) = encoder_parts(state, lambda tensors: sum(key != "blocks.0.w" for key in tensors))
    assert only.num_problems == 1
    assert left_out(state, only) == ""


@pytest.mark.parametrize("average", ["state_dict_ema", "model_ema", "ema", "teacher"])
@pytest.mark.parametrize("plain", ["state_dict", "model", "student"])
def test_containers_of_averages_go_before_others(average, plain, tmp_path, capsys):
    torch.save({plain: {"w": torch.zeros(1)}, average: {"w": torch.ones(1)}, "epoch": 3}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth")["w"] == 1
    read_weights(tmp_path / "w.pth")
    assert capsys.readouterr().err == f"{tmp_path}/w.pth: the weights are those of {average}; it also has {plain}\n"


def test_a_container_that_does_not_fit_is_passed_over(tmp_path):
    torch.save({"state_dict": {"w": torch.zeros(2)}, "ema": {"decay": torch.ones(1)}}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth", lambda state: "w" in state).keys() == {"w"}


def test_containers_in_containers_are_found_and_a_container_in_itself_ends(tmp_path):
    torch.save({"model": {"state_dict": {"w": torch.ones(1)}, "args": 1}}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth") == {"w": torch.ones(1)}
    document = {"epoch": 1}
    document["model"] = document
    torch.save(document, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match="expected a state dict"):
        read_weights(tmp_path / "w.pth")


def test_options_and_numbers_of_numpy_beside_the_weights_are_passed_over(tmp_path):
    document = {
        "state_dict": {"w": torch.ones(1)},
        "args": argparse.Namespace(lr=0.1, arch="resnet", best=np.float64(1.5)),
        "best": np.float32(0.5),
        "dtype": np.dtype("int64"),
    }
    torch.save(document, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth") == {"w": torch.ones(1)}
    torch.save(document, tmp_path / "w.pth", _use_new_zipfile_serialization=False)
    content = (tmp_path / "w.pth").read_bytes()
    assert b"numpy._core.multiarray" in content
    (tmp_path / "w.pth").write_bytes(content.replace(b"numpy._core.", b"numpy.core."))  # as numpy 1 names it
    assert read_weights(tmp_path / "w.pth") == {"w": torch.ones(1)}
    assert not any(isinstance(each, tuple) for each in torch.serialization.get_safe_globals())  # as before


def test_what_stands_for_options_makes_and_calls_nothing(tmp_path):
    """A dtype with a state of its own could make numpy read memory as objects; nothing of numpy sees it."""

    class Dtype:
        def __reduce__(self):
            return np.dtype, ("O", False, True), ("not", "a", "state")

    torch.save({"state_dict": {"w": torch.ones(1)}, "x": Dtype()}, tmp_path / "w.pth")
    assert read_weights(tmp_path / "w.pth") == {"w": torch.ones(1)}


def test_other_classes_are_refused_by_name(tmp_path):
    torch.save({"state_dict": {"w": torch.ones(1)}, "path": tmp_path}, tmp_path / "w.pth")
    with pytest.raises(ArtifactError, match=r"needs pathlib\S*Path; .*torch\.save\(network\.state_dict") as caught:
        read_weights(tmp_path / "w.pth")
    assert "nothing in it was run" in str(caught.value)

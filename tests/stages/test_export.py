"""Exports: the same numbers as the network, a card that runs, and nothing half-written."""

import json
import re

import pytest
import torch

from driftkit.config.export_config import ExportConfig
from driftkit.config.sampling_config import SamplingConfig
from driftkit.encoders.registry import encoder_licence
from driftkit.errors import ArtifactError, NotFoundError, RefusedError, UsageError
from driftkit.methods.drifting.samplers import generate_one_step
from driftkit.stages import export as stage
from driftkit.stages.export import export
from driftkit.stages.model_card import code
from driftkit.stages.verify import verify
from driftkit.storage.files import read_json, read_tensors, write_json
from driftkit.storage.run_folder import Run
from driftkit.training.sampling import generate, load_network
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, driftkit, first_is_fast, replace_weights, train_tiny
from tests.scoring.fakes import KIN, evaluation


@pytest.fixture
def runs(tmp_path):
    """A drifting run and a DDPM run whose weights are far from the zeros that an output layer starts with."""
    made = {}
    for objective in ("drift", "ddpm"):
        train_tiny(tmp_path / objective, objective)
        made[objective] = run = Run.open(tmp_path / objective)
        path = run.checkpoint().path / "ema.safetensors"
        generator = torch.Generator().manual_seed(1)
        weights, _ = read_tensors(path)
        noisy = {
            name: tensor + 0.1 * torch.randn(tensor.shape, generator=generator) for name, tensor in weights.items()
        }
        replace_weights(run.path, "ema", noisy)
    return made


def call(made, *inputs):
    """The output of an exported graph."""
    if made.model.suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(made.model), providers=["CPUExecutionProvider"])
        names = [given.name for given in session.get_inputs()]
        return torch.from_numpy(session.run(None, dict(zip(names, [i.numpy() for i in inputs], strict=True)))[0])
    return torch.jit.load(str(made.model))(*inputs).detach()


@pytest.mark.parametrize("format", first_is_fast("torchscript", "onnx"))
def test_a_generator_gives_the_images_of_the_run_at_any_batch_size(runs, format):
    made = export(runs["drift"], ExportConfig(format=format))
    network, _, _ = load_network(runs["drift"])
    for count in (1, 2, 7):
        noise = torch.randn(count, 3, 8, 8)
        expected = generate_one_step(network, noise)
        assert float(expected.abs().max()) > 0.1
        assert float((call(made, noise) - expected).abs().max()) < 1e-4
    assert made.document["difference"]["largest"] < 1e-4
    assert made.model.parent == runs["drift"].path / "exports" / format


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "torchscript"])
def test_a_denoiser_takes_times_of_its_own_for_every_image(runs, format):
    made = export(runs["ddpm"], ExportConfig(format=format))
    network, _, _ = load_network(runs["ddpm"])
    x, t = torch.randn(3, 3, 8, 8), torch.tensor([0, 500, 999])
    expected = network(x, t)
    assert float(expected.abs().max()) > 0.1
    assert float((call(made, x, t) - expected).abs().max()) < 1e-4


def test_safetensors_hold_the_averaged_weights_and_the_config(runs):
    made = export(runs["drift"], ExportConfig(format="safetensors"))
    weights, header = read_tensors(made.model)
    expected = runs["drift"].checkpoint().weights("ema")
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert json.loads(header["model"]) == runs["drift"].manifest().config["model"]
    raw = export(runs["drift"], ExportConfig(format="safetensors", weights="raw", force=True))
    assert not torch.equal(read_tensors(raw.model)[0]["input.weight"], weights["input.weight"])
    assert raw.document["weights"] == "raw"


def test_the_card_says_over_what_weights_are_averaged(tmp_path):
    keeps = ("--checkpoint-every", 2, "--set", "trainer.keep_every=2")
    train_tiny(tmp_path / "run", "drift", *keeps, steps=4)
    averaging = {"ema": "averaged over training", "raw": "the last ones", "average:2": "mean of the last 2 kept"}
    for weights, words in averaging.items():
        made = export(Run.open(tmp_path / "run"), ExportConfig(format="safetensors", weights=weights, force=True))
        assert f"| weights | {weights} ({words}" in (made.folder / "README.md").read_text()


@pytest.mark.parametrize("objective", first_is_fast("ddpm", "drift"))
@pytest.mark.parametrize("format", first_is_fast("torchscript", "safetensors", "onnx"))
def test_the_code_on_the_card_runs(runs, objective, format, monkeypatch):
    made = export(runs[objective], ExportConfig(format=format))
    monkeypatch.chdir(made.folder)
    (block,) = re.findall(r"```python\n(.*?)```", (made.folder / "README.md").read_text(), re.S)
    names: dict = {}
    exec(block, names)
    out = torch.as_tensor(names["images" if objective == "drift" else "noise"])
    assert out.shape == (16, 3, 8, 8)
    assert bool(torch.isfinite(out).all())


def test_the_card_says_what_it_is_and_who_judged_it(runs):
    run = runs["drift"]
    step = run.checkpoint().step
    for name, changes in {
        "a": {"step": step, "kinship": KIN},
        "b": {"step": step, "weights": "raw"},
        "c": {"step": step + 1},
    }.items():
        write_json(run.path / "evaluations" / f"{name}.json", evaluation(7.0, **changes))
    made = export(run, ExportConfig(format="safetensors"))
    (score,) = made.document["scores"]
    assert (score["score"], score["evaluator"], score["floor"]) == ("fid@100", "encoder:tiny", 1.5)
    text = (made.folder / "README.md").read_text()
    assert all(words in text for words in ("`encoder:tiny`", "fid@100", "7.00", "kin evaluator"))
    assert all(words in text for words in ("pixels have no weights", "shapes?image_size=8&count=64", "(NFE) | 1"))
    assert read_json(made.folder / "model.json") == made.document


@pytest.mark.parametrize(
    ("objective", "more", "shown"),
    [("ddpm", [], True), ("ddpm", ["--set", "objective.label_dropout=0"], False), ("drift", [], False)],
)
def test_the_card_offers_no_class_only_where_it_was_trained(objective, more, shown, tmp_path):
    data = ["--data", "shapes?image_size=8&count=64&classes=2"]
    train_tiny(tmp_path / "run", objective, "--class-conditional", *data, *more, steps=1)
    made = export(Run.open(tmp_path / "run"), ExportConfig(format="safetensors"))
    text = (made.folder / "README.md").read_text()
    assert "| classes, in the order of labels" in text
    assert ("-1 is none" in text) == shown


def test_the_card_of_a_run_that_was_trained_with_guidance_says_up_to_which_scale(tmp_path):
    data = ["--data", "shapes?image_size=8&count=64&classes=2", "--set", "objective.positives=2"]
    scales = ["--set", "objective.unconditional=2", "--set", "objective.guidance_max=4"]
    train_tiny(tmp_path / "run", "drift", "--class-conditional", *data, *scales, steps=1)
    text = (export(Run.open(tmp_path / "run"), ExportConfig(format="run")).folder / "README.md").read_text()
    assert "| guidance scales of the training | 1 to 4 |" in text
    assert "--guidance 1.5" in text


def test_licences_are_those_of_the_table_and_of_timm():
    assert encoder_licence("mocov2") == "CC-BY-NC-4.0"
    assert encoder_licence("timm:resnet18.a1_in1k") == "apache-2.0"
    assert "trained with driftkit" in encoder_licence("outputs/mae")


def test_names_on_the_card_are_no_markup():
    assert code("a`b") == "`` a`b ``"
    assert code("<script>\n|x") == "`<script> \\|x`"


def test_an_encoder_is_pointed_to_its_own_file(tmp_path):
    train_tiny(tmp_path / "mae", "mae")
    with pytest.raises(UsageError, match=r"mae run generates no images.*encoder\.safetensors"):
        export(Run.open(tmp_path / "mae"), ExportConfig(format="onnx"))


def test_nothing_but_an_earlier_export_is_replaced_and_that_only_when_asked(runs, tmp_path):
    folder = tmp_path / "out"
    export(runs["drift"], ExportConfig(output=folder, format="safetensors"))
    with pytest.raises(UsageError, match="`force` replaces it"):
        export(runs["drift"], ExportConfig(output=folder, format="safetensors"))
    assert (
        export(runs["ddpm"], ExportConfig(output=folder, format="safetensors", force=True)).model.name
        == "denoiser.safetensors"
    )
    assert not (folder / "generator.safetensors").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("")
    with pytest.raises(UsageError, match="got something else"):
        export(runs["drift"], ExportConfig(output=tmp_path / "mine", format="safetensors", force=True))
    assert (tmp_path / "mine" / "thesis.txt").is_file()


def test_a_graph_that_computes_something_else_is_refused_and_leaves_nothing(runs, tmp_path, monkeypatch):
    def wrong(path, graph):
        path.write_bytes(b"x")
        return lambda inputs: graph.module(*inputs) + 2e-3

    monkeypatch.setattr(stage, "_trace", wrong)
    with pytest.raises(RefusedError, match="differs from the network"):
        export(runs["drift"], ExportConfig(output=tmp_path / "out", format="torchscript"))
    assert not list(tmp_path.glob("*out*"))


def test_absent_packages_are_named_with_the_extra_before_anything_is_read(runs, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *a: None if n == "onnxscript" else found(n, *a))
    with pytest.raises(ArtifactError, match=r"needs onnxscript; .*--extra onnx"):
        export(runs["drift"], ExportConfig(format="onnx"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_small_run_folder_samples_and_is_scored_like_the_run(runs, tmp_path, dtype):
    run = runs["drift"]
    made = export(run, ExportConfig(output=tmp_path / "small", format="run", dtype=dtype))
    images, info = generate(run, SamplingConfig(), num_images=8)
    small, small_info = generate(Run.open(tmp_path / "small"), SamplingConfig(), num_images=8)
    assert {**info, "run": None} == {**small_info, "run": None}
    largest = int((images.int() - small.int()).abs().max())
    assert largest == 0 if dtype == "float32" else 0 < largest < 8
    kept = {name for name in made.folder.rglob("*") if name.is_file()}
    assert {path.name for path in kept} == {
        "manifest.json", "ema.safetensors", "state.json", "SHA256SUMS", "README.md", "model.json",
    }  # fmt: skip
    assert {t.dtype for t in read_tensors(made.model)[0].values()} == {getattr(torch, dtype)}
    assert "driftkit sample FOLDER" in (made.folder / "README.md").read_text()
    verification = verify([tmp_path / "small"])
    assert verification.ok, verification.problems


def test_graphs_have_the_type_of_their_inputs(runs):
    with pytest.raises(UsageError, match="`dtype` bfloat16: expected float32, the type of onnx graphs"):
        export(runs["drift"], ExportConfig(format="onnx", dtype="bfloat16"))


def test_a_small_run_folder_does_not_resume(runs, tmp_path):
    export(runs["drift"], ExportConfig(output=tmp_path / "small", format="run"))
    before = (tmp_path / "small/manifest.json").read_bytes()
    more = ["--steps", 100, *TINY_DATA, "--encoder", "pixel", *TINY_UNET, *TINY_LOOP]
    result = driftkit("train", "--output", tmp_path / "small", *more)
    assert result.exit_code == 2, result.output
    assert "does not resume; start from it by --init-from" in " ".join(result.stderr.split())
    assert (tmp_path / "small/manifest.json").read_bytes() == before


def test_a_small_run_folder_knows_its_average_by_name(tmp_path):
    train_tiny(tmp_path / "run", "drift", "--set", "trainer.ema_decay=[0.5,0.25]", steps=3)
    run = Run.open(tmp_path / "run")
    export(run, ExportConfig(output=tmp_path / "small", format="run", weights="ema-0.25"))
    small = Run.open(tmp_path / "small")
    for name in ("ema", "ema-0.25"):
        weights, _ = small.weights(name)
        assert all(torch.equal(weights[key], tensor) for key, tensor in run.weights("ema-0.25")[0].items())
    with pytest.raises(NotFoundError, match=r"no weights ema-0.5; it has ema \(ema is ema-0.25\)"):
        small.weights("ema-0.5")
    with pytest.raises(UsageError, match="`weights` raw: expected an average for format run"):
        export(run, ExportConfig(output=tmp_path / "other", format="run", weights="raw"))


@pytest.mark.parametrize("format", ["safetensors", "run"])
def test_training_starts_from_an_export_in_bfloat16(runs, tmp_path, format):
    made = export(runs["drift"], ExportConfig(output=tmp_path / "small", format=format, dtype="bfloat16"))
    source = made.model if format == "safetensors" else made.folder
    train_tiny(tmp_path / "next", "drift", "--init-from", source, steps=0)
    weights, _ = Run.open(tmp_path / "next").weights("raw")
    assert all(torch.equal(weights[key], tensor.float()) for key, tensor in read_tensors(made.model)[0].items())


def test_results_of_an_exported_run_are_not_replaced(runs, tmp_path):
    export(runs["drift"], ExportConfig(output=tmp_path / "small", format="run"))
    export(runs["drift"], ExportConfig(output=tmp_path / "small", format="run", force=True))
    (tmp_path / "small/samples").mkdir()
    with pytest.raises(UsageError, match="holds samples besides an export"):
        export(runs["drift"], ExportConfig(output=tmp_path / "small", format="run", force=True))

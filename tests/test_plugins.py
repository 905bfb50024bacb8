"""The house stays open: a method, network, sampler, encoder and metric from outside run through every command."""

import json
from typing import Literal

import pytest
import torch
from pydantic import Field
from torch import nn

from driftkit.encoders.encoder_config import EncoderCard
from driftkit.encoders.frozen_encoder import EncoderKind, FrozenEncoder
from driftkit.encoders.lineage import Lineage
from driftkit.encoders.registry import ENCODERS
from driftkit.methods.base import (
    METHODS,
    BuiltObjective,
    Graph,
    Method,
    MethodConfig,
    SamplerOptions,
    SamplerSpec,
    Workload,
    read_options,
    register,
    sampler_table,
)
from driftkit.methods.regression import NoiseRegression, TimedGraph, one_forward
from driftkit.metrics.base import Metric, MetricResult, Quantity
from driftkit.metrics.registry import METRICS
from driftkit.models.contract import MODELS, Model, NetworkConfig
from driftkit.models.contract import register as register_network
from driftkit.protocols import UNCONDITIONAL, FeatureMap, SampleRequest
from driftkit.storage.files import read_json
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, driftkit, train_tiny


class ToyNetworkConfig(NetworkConfig):
    """A convolution."""

    kind: Literal["toy-network"] = "toy-network"
    channels: int = Field(4, ge=1, description="hidden channels")


class ToyNetwork(nn.Module):
    """Two convolutions that know the time."""

    def __init__(self, config: ToyNetworkConfig):
        super().__init__()
        self.input = nn.Conv2d(4, config.channels, 3, padding=1)
        self.output = nn.Conv2d(config.channels, 3, 3, padding=1)

    def forward(self, x, t, condition=UNCONDITIONAL):
        time = (t / 1000).to(x.dtype).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])
        return self.output(torch.tanh(self.input(torch.cat([x, time], dim=1)))).float()


class ToyConfig(MethodConfig):
    """A method that predicts the image from a mixture of image and noise."""

    name: Literal["toy"] = "toy"
    strength: float = Field(1.0, gt=0, description="share of noise at time 1")


class ToyObjective(NoiseRegression):
    """Mean squared error of the predicted image."""

    term = "image_mse"

    def __init__(self, config: ToyConfig):
        self.config = config

    def time(self, number):
        return number / 2**63

    def noised(self, images, noise, time):
        share = self.config.strength * time.view(-1, 1, 1, 1)
        return (1 - share) * images + share * noise, 1000 * time, images

    def preview(self, model, noise, images, condition=UNCONDITIONAL):
        return sample_toy(model, noise, SampleRequest(1, lambda _: noise, condition=condition))[0]


class ToyOptions(SamplerOptions):
    """Options of the toy sampler."""

    gain: float = Field(1.0, description="factor of the result")


def sample_toy(network, noise, request):
    """The image predicted from noise, predicted again from itself."""
    gain = read_options("toy-sampler", ToyOptions, request.options).gain
    images, nfe = noise, request.nfe or 2
    for step in range(nfe):
        time = torch.full((len(noise),), 1000 * (1 - step / nfe), device=noise.device)
        images = network(images, time, request.condition).float()
    return gain * images, nfe


class ToyEncoder(FrozenEncoder):
    """Means of 2x2 pixels."""

    def __init__(self, image_size):
        super().__init__("toy-encoder", input_size=image_size, feature_set="locations")
        self.lineage = Lineage("none", "toys", "toy", ())
        self.freeze()

    def maps(self, images):
        return [FeatureMap("means", nn.functional.avg_pool2d(images, 2))]


TOY_ENCODER = EncoderKind(
    accepts=lambda name: name == "toy-encoder",
    load=lambda config, image_size, device: ToyEncoder(image_size).to(device),
    names=lambda: ("toy-encoder",),
    describe=lambda name: EncoderCard(name=name, trained_by="nothing", maps=("means",), feature_set="locations"),
)

TOY_METRIC = Metric(
    name="toy-metric",
    label="the toy distance",
    help="Distance of the means.",
    quantities=(Quantity("toy_distance", "Toy", "lower", "distance", "Distance of the means."),),
    needs="rows",
    min_images=2,
    compute=lambda inputs: MetricResult(
        {"toy_distance": float((inputs.generated.rows.mean(0) - inputs.reference.rows.mean(0)).norm())}
    ),
)


def toy_graph(config, network, image_size):
    return Graph(
        "predictor", TimedGraph(network), ("x_t", "t"), "image", title="A toy.", start_time=1000.0, network_time=1000.0,
        example=lambda count: (torch.zeros(count, 3, image_size, image_size), torch.rand(count)),
    )  # fmt: skip


@pytest.fixture
def plug_ins(monkeypatch):
    """The registries with a toy of every kind, all of which are gone after the test."""
    for registry, name in ((METHODS, "toy"), (MODELS, "toy-network")):
        monkeypatch.setitem(registry, name, None)  # so that the entry is removed in the end
    monkeypatch.setitem(ENCODERS, "toy", TOY_ENCODER)
    monkeypatch.setitem(METRICS, "toy-metric", TOY_METRIC)
    register_network(Model("toy-network", ToyNetworkConfig, lambda config, image_size: ToyNetwork(config)))
    register(
        Method(
            name="toy", label="Toy method", config=ToyConfig, network="toy-network", graph=toy_graph,
            build=lambda config, setting: BuiltObjective(ToyObjective(config)),
            workload=lambda config, network, image_size: Workload(one_forward(network)),
            samplers=sampler_table(
                SamplerSpec(
                    "toy-sampler", lambda config: sample_toy, lambda config: 2, "image", curve_nfes=(1, 2),
                    options=ToyOptions,
                )
            ),
        )
    )  # fmt: skip


def done(*words):
    result = driftkit(*words)
    assert result.exit_code == 0, result.output
    return result


def test_a_method_a_network_and_a_sampler_run_through_every_command(plug_ins, tmp_path):
    toy, flow = tmp_path / "toy", tmp_path / "flow"
    train = ["train", "--objective", "toy", *TINY_DATA, *TINY_LOOP, "--set", "model.channels=3", "--output", toy]
    plan = json.loads(done(*train, "--dry-run", "--json").stdout)
    assert plan["config"]["model"] == {"kind": "toy-network", "channels": 3}
    assert plan["config"]["objective"] == {"name": "toy", "strength": 1.0}
    assert plan["budget"]["shapes"]["network_flops"] > 0
    done(*train, "--steps", 2)
    assert "resumed from step 2" in done(*train, "--steps", 3).stderr
    assert (toy / "samples" / "step-00000003.png").is_file()

    samples = tmp_path / "samples.safetensors"
    done("sample", toy, "-n", 12, "--nfe", 1, "--set", "gain=0.5", "--output", samples)
    record = read_json(samples.with_suffix(".json"))
    assert (record["method"], record["sampler"], record["nfe"]) == ("toy", "toy-sampler", 1)
    assert record["sampler_options"] == {"gain": 0.5}
    assert driftkit("sample", toy, "--set", "gian=0.5").exit_code == 2

    line = ["-r", "shapes?image_size=8&count=64", "--extractor", "pixels", "-n", 48, "--device", "cpu"]
    score = json.loads(done("fid", toy, *line, "--allow-collapsed", "--json").stdout)
    assert score["metrics"]["toy_distance"] > 0
    assert score["sampling"]["sampler"] == "toy-sampler"

    train_tiny(flow, "flow")
    report = tmp_path / "report"
    done("compare", toy, flow, "--output", report)
    page = (report / "report.html").read_text()
    assert "Toy method" in page
    assert "Rectified flow" in page
    assert "toy_distance" in (report / "compare.csv").read_text() or "Toy" in page

    made = json.loads(done("export", toy, "--format", "torchscript", "--output", tmp_path / "out", "--json").stdout)
    assert made["graph"] == "predictor"
    assert "A toy." in (tmp_path / "out" / "README.md").read_text()


def test_a_network_serves_any_method_that_trains_generators(plug_ins, tmp_path):
    line = ["train", "--objective", "flow", "--preset", "demo", *TINY_DATA, *TINY_LOOP, "--steps", 1]
    done(*line, "--set", "model.kind=toy-network", "--output", tmp_path / "run")
    config = read_json(tmp_path / "run" / "manifest.json")["config"]
    assert config["model"] == {"kind": "toy-network", "channels": 4}
    done("sample", tmp_path / "run", "-n", 2, "--nfe", 1)
    wrong = driftkit(*line, "--set", "model.kind=mae_resnet", "--output", tmp_path / "other")
    assert (wrong.exit_code, "toy-network" in wrong.stderr) == (2, True)


def test_keys_of_other_methods_are_named(plug_ins):
    result = driftkit("train", "--objective", "ddpm", "--set", "objective.strength=2", *TINY_UNET, "--dry-run")
    assert result.exit_code == 2
    assert "a setting of toy" in result.stderr


def test_an_encoder_teaches_a_generator(plug_ins, tmp_path):
    train_tiny(tmp_path / "run", "drift", "--encoder", "toy-encoder")
    record = read_json(tmp_path / "run" / "manifest.json")["encoder"]
    assert (record["name"], record["feature_set"]) == ("toy-encoder", "locations")
    assert "toy-encoder" in done("probe-encoder", "--list").stdout

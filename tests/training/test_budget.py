"""The budget on paper against what a real small run counts."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from driftkit.datasets.packs import PackSource, write_pack
from driftkit.errors import UsageError
from driftkit.methods.drifting import aggregated_drift
from driftkit.methods.drifting.cost import FieldCost
from driftkit.methods.drifting.workspace import field_flops
from driftkit.methods.registry import METHODS
from driftkit.models.registry import build_network
from driftkit.protocols import Execution
from driftkit.runtime.device import autocast
from driftkit.runtime.ranks import Ranks
from driftkit.training.budget import budget, training_budget, training_shapes
from driftkit.training.feed import Feed
from driftkit.training.optimizer import adamw, averaged
from driftkit.training.train_config import TrainConfig, resolve_config
from tests.benchmarks.harness import peak_bytes
from tests.conftest import driftkit, setting, train_tiny

BATCH, SIZE = 6, 16
SETS = ["model.base_channels=8", "model.channel_multipliers=[1,2]", "model.num_heads=2", "model.num_res_blocks=1",
        "model.attention_resolutions=[]", f"data.image_size={SIZE}", f"trainer.batch_size={BATCH}"]  # fmt: skip
MAE_SETS = ["model.base_channels=8", f"data.image_size={SIZE}", f"trainer.batch_size={BATCH}"]


@pytest.mark.parametrize("scale_over", ["map", "location"])
def test_field_flops_are_those_that_torch_counts(scale_over):
    x, pos = torch.randn(5, 12, 7), torch.randn(5, 12, 7)
    with FlopCounterMode(display=False) as counter:
        aggregated_drift(x, pos, taus=(0.05, 0.2), scale_over=scale_over)
    combining = 2 * 5 * 12 * 7 * 2  # V of the temperatures added up
    want = 5 * field_flops(num_rows=12, num_columns=24, channels=7, num_taus=2) + combining
    assert counter.get_total_flops() == want


def real_step(config: TrainConfig, *, batch: int = BATCH) -> Callable[[], object]:
    """One step of what the config describes, without its optimizer."""
    images = torch.randint(0, 256, (3 * batch, 3, SIZE, SIZE), dtype=torch.uint8)
    objective = METHODS[config.objective.name].build(config.objective, setting(images)).objective
    network = build_network(config.model, image_size=SIZE).to(memory_format=torch.channels_last)
    feed = Feed(
        images, torch.arange(3 * batch) % 3, batch_size=batch, horizontal_flip=False, seed=0, ranks=Ranks(),
        device=torch.device("cpu"),
    )  # fmt: skip
    loaded = feed.batch(0)
    dtype = torch.float32 if config.trainer.precision == "float32" else torch.bfloat16
    how = Execution(micro_batch=config.trainer.micro_batch, autocast=lambda: autocast(torch.device("cpu"), dtype))
    return lambda: objective.accumulate(network, loaded, how)


def drifting(folder: Path, *more: str) -> TrainConfig:
    train_tiny(folder, "mae", steps=0)  # an encoder without published weights
    own = [f"objective.encoder={folder}", f"objective.input_size={SIZE}"]
    return resolve_config(objective="drift", assignments=[*SETS, *own, *more])[0]


@pytest.mark.parametrize("micro_batch", [None, 3, 100])
def test_flops_of_a_step_are_those_of_a_real_one(micro_batch, tmp_path):
    config = drifting(tmp_path / "mae", *([f"trainer.micro_batch={micro_batch}"] if micro_batch else []))
    shapes, assumed = training_shapes(config, device="cpu")
    assert assumed == []
    paper = budget(shapes, images=BATCH, ranks=1)
    with FlopCounterMode(display=False) as counter:
        real_step(config)()
    total = paper.field_flops + paper.encoder_flops + paper.network_flops
    # First layers need no gradient of their input, and adding V up over temperatures is not counted on paper.
    assert counter.get_total_flops() == pytest.approx(total, rel=0.05)


def test_a_classifier_is_counted_without_the_decoder():
    config, _ = resolve_config(
        objective="mae", assignments=[*MAE_SETS, "objective.finetune_from=0", "model.num_classes=3"]
    )
    paper = budget(training_shapes(config, device="cpu")[0], images=BATCH, ranks=1)
    with FlopCounterMode(display=False) as counter:
        real_step(config)()
    assert counter.get_total_flops() == pytest.approx(paper.network_flops, rel=0.05)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("micro_batch", [None, 6])
def test_memory_of_a_step_is_that_of_a_real_one(precision, micro_batch, tmp_path):
    config = drifting(
        tmp_path / "mae",
        f"trainer.precision={precision}",
        "trainer.batch_size=24",
        *([f"trainer.micro_batch={micro_batch}"] if micro_batch else []),
    )
    shapes, _ = training_shapes(config, device="cpu")
    paper = budget(shapes, images=24, ranks=1)
    assert paper.saved_bytes == (micro_batch or 24) * shapes.saved_bytes
    peak = peak_bytes(real_step(config, batch=24)) - 4 * shapes.parameters  # their gradients are of the state
    on_paper = paper.memory_bytes - paper.state_bytes
    # On paper field and networks take their memory together, which matters where micro-batches leave the networks
    # little; in bfloat16 a real step also keeps the weights in that type, which is much for so small a batch.
    assert (0.75 if micro_batch else 0.95) * on_paper <= peak <= 1.25 * on_paper


@pytest.mark.parametrize(
    ("scale_over", "chunk_bytes", "taus", "least"),
    [
        ("location", 2**20, (0.05, 0.2), 0.5),
        ("map", 2**20, (0.05, 0.2), 0.5),
        ("map", 2**17, (0.05, 0.2), 0.5),  # V of one temperature at a time
        ("map", 2**26, (0.05, 0.2), 0.5),  # all fields fit
        ("location", 2**21, (0.001,), 0.9),  # in logarithms, which take the most
    ],
)
def test_memory_of_the_field_stays_within_the_stated_bound(scale_over, chunk_bytes, taus, least):
    x, pos = torch.randn(24, 60, 40), torch.randn(24, 60, 40)
    peak = peak_bytes(lambda: aggregated_drift(x, pos, taus=taus, scale_over=scale_over, chunk_bytes=chunk_bytes))
    cost = FieldCost(
        ((24, 40),), num_taus=len(taus), shared=scale_over == "map", wide=min(taus) < 1 / 64, chunk_bytes=chunk_bytes
    )
    bound = cost.workspace_bytes(rows=60, images=60, device="cpu")
    assert least * bound <= peak <= 1.01 * bound  # a few numbers per field are not counted


def test_state_is_that_of_a_trained_network():
    config, _ = resolve_config(objective="ddpm", assignments=SETS)
    network = build_network(config.model, image_size=SIZE)
    optimizer = adamw(network, learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    ema = averaged(network, decay=0.9)
    network(torch.randn(1, 3, SIZE, SIZE), torch.zeros(1, dtype=torch.long)).sum().backward()
    optimizer.step()
    held = [*network.parameters(), *(p.grad for p in network.parameters()), *ema.module.parameters()]
    held += [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    paper = budget(training_shapes(config, device="cuda")[0], images=BATCH, ranks=1)
    assert paper.state_bytes == sum(tensor.nbytes for tensor in held)
    gradients = sum(p.nbytes for p in network.parameters())
    on_host = budget(training_shapes(config, device="cpu")[0], images=BATCH, ranks=1)
    assert on_host.state_bytes == 2 * paper.state_bytes - gradients, "checkpoints are written from a copy"


def test_every_further_average_takes_the_memory_of_the_weights():
    one, three = (
        budget(training_shapes(resolve_config(objective="ddpm", assignments=[*SETS, *more])[0], device="cuda")[0],
               images=BATCH, ranks=1).state_bytes
        for more in ([], ["trainer.ema_decay=[0.9,0.99,0.999]"])
    )  # fmt: skip
    network = build_network(resolve_config(objective="ddpm", assignments=SETS)[0].model, image_size=SIZE)
    assert three - one == 2 * sum(p.nbytes for p in network.parameters())


SMALL_UNET = ["data.image_size=32", "model.base_channels=32", "model.dropout=0"]


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_keeps_what_its_autocast_and_attention_keep(precision):
    """Of a GPU that is not here: norms in float32 next to bfloat16 products, and no matrix of attention weights."""
    counts = {}
    for sides in ("[16]", "[]"):
        more = [f"model.attention_resolutions={sides}", f"trainer.precision={precision}"]
        config, _ = resolve_config(objective="ddpm", assignments=[*SMALL_UNET, *more])
        counts[sides] = {d: training_shapes(config, device=d)[0].saved_bytes for d in ("cpu", "cuda")}
    bare = counts["[]"]
    # In float32 nothing is cast, so both keep the same; in bfloat16 a GPU's group norms keep float32 inputs.
    ratio = bare["cuda"] / bare["cpu"]
    assert ratio == pytest.approx(1, rel=1e-3) if precision == "float32" else 1.6 < ratio < 2
    attention = counts["[16]"]["cuda"] - bare["cuda"]
    blocks, tokens, channels, width = 5, 16 * 16, 64, 4 if precision == "float32" else 2
    # Input, its norm, queries, keys, values and result of every block; a matrix of weights would be four times as much.
    assert attention < blocks * tokens * (4 * channels * width + 3 * channels * 4)


def test_the_default_unet_keeps_what_was_counted_under_cudas_autocast():
    config, _ = resolve_config(objective="ddpm", assignments=["data.image_size=32"])
    shapes, _ = training_shapes(config, device="cuda")
    assert shapes.saved_bytes / 2**20 == pytest.approx(42.7, abs=0.1)
    assert not torch.is_autocast_enabled("cuda")


def test_frozen_weights_count_in_the_type_they_are_kept_in(tmp_path):
    config = drifting(tmp_path / "mae")
    cpu, gpu = (training_shapes(config, device=d)[0] for d in ("cpu", "cuda"))
    assert (cpu.dtype, gpu.dtype) == ("float32", "bfloat16")  # what "auto" stands for
    assert 0.5 * cpu.encoder_bytes < gpu.encoder_bytes < 0.55 * cpu.encoder_bytes


@pytest.mark.slow
def test_steps_too_large_for_common_gpus_come_with_a_micro_batch():
    config, _ = resolve_config(objective="drift", assignments=["objective.encoder=convnextv2", "data.image_size=32"])
    small_groups = training_budget(config, ranks=1, device="cpu")["advice"]
    advice = training_budget(config, ranks=1, device="cuda")["advice"]
    assert advice[1:] == small_groups
    assert advice[0].startswith("20")
    assert "leave too little room on a GPU of 24 GB; `trainer.micro_batch` 64 takes" in advice[0]
    assert all("per group" in sentence for sentence in small_groups)


def test_ranks_share_the_work_and_receive_the_rest():
    calls = ((18, 256), (4, 64))
    assert FieldCost(calls).gathered_bytes(rows=10, ranks=1) == 0
    assert FieldCost(calls).gathered_bytes(rows=10, ranks=4) == 3 * 2 * 10 * (18 * 256 + 4 * 64) * 4
    config, _ = resolve_config(objective="drift", assignments=["objective.encoder=pixel"])
    shapes, assumed = training_shapes(config, device="cpu")
    assert "32 pixels" in assumed[0]
    whole, shared = (budget(shapes, images=128, ranks=ranks) for ranks in (1, 8))
    assert whole.field_flops == 8 * shared.field_flops
    assert whole.network_flops == 8 * shared.network_flops
    with pytest.raises(UsageError, match="evenly"):
        budget(shapes, images=10, ranks=3)


def test_the_size_of_images_is_that_of_the_pack(tmp_path):
    images, labels = torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.full((2,), -1)
    source = PackSource(spec="photos", kind="folder", options={}, digest="0")
    pack = write_pack(tmp_path / "photos.safetensors", images, labels, (), source=source, label="photos")
    sets = ["objective.encoder=pixel", f"data.spec={pack.path}"]
    shapes, assumed = training_shapes(resolve_config(objective="drift", assignments=sets)[0], device="cpu")
    known = resolve_config(objective="drift", assignments=[*sets, "data.image_size=16"])[0]
    assert (shapes, assumed) == (training_shapes(known, device="cpu")[0], [])


@pytest.mark.parametrize(("positives", "advised"), [(None, False), (64, False), (1, True)])
def test_the_advice_on_a_single_positive_is_of_the_positives_given(positives, advised):
    cost = FieldCost(((3, 6),), by_class=True, groups=10, positives=positives)
    assert any("single positive" in sentence for sentence in cost.advice(images=160)) == advised


@pytest.mark.slow
def test_dry_run_prints_the_budget_and_says_when_it_cannot(monkeypatch):
    line = ("train", "--dry-run", "--encoder", "mocov2", "--batch-size", "64", "--device", "cuda", "--json")
    document = json.loads(driftkit(*line).stdout)["budget"]
    assert [step["ranks"] for step in document["steps"]] == [1, 8, 64]
    assert document["shapes"]["encoder_flops"] > 1e9
    assert (document["shapes"]["device"], document["shapes"]["dtype"]) == ("cuda", "bfloat16")
    assert not any("second" in key or "machine" in key for key in (*document, *document["steps"][0]))
    launcher = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}
    for name, value in launcher.items():
        monkeypatch.setenv(name, value)
    steps = json.loads(driftkit(*line).stdout)["budget"]["steps"]
    assert [(step["ranks"], step["images_per_rank"]) for step in steps] == [(2, 64), (1, 128), (8, 16), (64, 2)]
    monkeypatch.setenv("RANK", "1")
    assert driftkit(*line).stdout == ""
    for name in launcher:
        monkeypatch.delenv(name)
    shown = driftkit("train", "--dry-run", "--objective", "mae", "--preset", "mae-cpu", "--device", "cpu").stdout
    assert "cost of a step" in shown
    assert "1 process (this run)" in shown
    assert "GPU" not in shown
    assert "expected" not in shown
    assert driftkit("train", "--dry-run", "--encoder", "pixel", "--device", "tpu").exit_code == 2
    missing = driftkit("train", "--dry-run", "--encoder", "outputs/none")
    assert missing.exit_code == 0
    assert "cost of a step unknown" in missing.stdout


def test_a_dry_run_names_the_weights_and_images_that_are_not_here(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("DRIFTKIT_DATA_DIR", str(tmp_path / "data"))

    def missing(*words):
        document = json.loads(driftkit("train", "--dry-run", "--preset", "cpu", "--json", *words).stdout)
        return document["missing"]

    assert missing("--encoder", "efficientnet-lite0", "--data", "shapes") == []
    weights, images = sorted(missing("--encoder", "mocov2"), reverse=True)
    assert "weights of mocov2" in weights
    assert "driftkit prefetch mocov2" in weights
    assert "driftkit prefetch cifar10" in images
    assert missing("--encoder", "mocov2", "--random-weights", "--data", "shapes") == []
    named = missing("--encoder", "mocov2", "--encoder-weights", tmp_path / "no.pth", "--data", tmp_path / "no-photos")
    assert [("no.pth" in line, "no-photos" in line) for line in named] == [(False, True), (True, False)]
    shown = driftkit("train", "--dry-run", "--preset", "cpu", "--encoder", "mocov2", "--data", "shapes").stdout
    assert "missing: weights of mocov2" in shown


def test_a_batch_that_does_not_split_into_groups_is_no_advice():
    cost = FieldCost(calls=((1, 4),), by_class=True, groups=10, positives=8)
    assert [images for images in (10, 20, 25, 80) if cost.is_shared_by(1, images=images)] == [20, 80]

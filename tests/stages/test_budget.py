"""The budget on paper against what a real small run counts."""

import json

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from driftkit.drift import aggregated_drift
from driftkit.errors import UsageError
from driftkit.objectives.registry import OBJECTIVES, build_network
from driftkit.protocols import Execution
from driftkit.runtime.distributed import Ranks
from driftkit.stages.budget import budget, field_flops, gathered_bytes, training_shapes
from driftkit.stages.config import resolve_config
from driftkit.training.ema import averaged
from driftkit.training.feed import Feed
from driftkit.training.optim import adamw
from tests.conftest import driftkit, setting, train_tiny

BATCH, SIZE = 6, 16
SETS = ["model.base_channels=8", "model.channel_multipliers=[1,2]", "model.num_heads=2", "model.num_res_blocks=1",
        "data.image_size=16", f"trainer.batch_size={BATCH}"]  # fmt: skip


@pytest.mark.parametrize("scale_over", ["map", "location"])
def test_field_flops_are_those_that_torch_counts(scale_over):
    x, pos = torch.randn(5, 12, 7), torch.randn(5, 12, 7)
    with FlopCounterMode(display=False) as counter:
        aggregated_drift(x, pos, taus=(0.05, 0.2), scale_over=scale_over)
    combining = 2 * 5 * 12 * 7 * 2  # V of the temperatures added up
    want = field_flops(((5, 7),), rows=12, columns=24, num_taus=2) + combining
    assert counter.get_total_flops() == want


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_flops_of_a_step_are_those_of_a_real_one(micro_batch, tmp_path):
    mae = tmp_path / "mae"  # an encoder without published weights
    train_tiny(mae, "mae", steps=0)
    config, _ = resolve_config(
        objective="drift",
        assignments=[
            *SETS,
            f"objective.encoder={mae}",
            f"objective.input_size={SIZE}",
            "model.attention_resolutions=[]",
        ],
    )
    config = config.model_copy(update={"trainer": config.trainer.model_copy(update={"micro_batch": micro_batch})})
    shapes, assumed = training_shapes(config)
    assert assumed == []
    paper = budget(shapes, images=BATCH, ranks=1, device="cpu")
    images = torch.randint(0, 256, (20, 3, SIZE, SIZE), dtype=torch.uint8)
    objective = OBJECTIVES["drift"].build(config.objective, setting(images)).objective
    network = build_network(config.model, image_size=SIZE)
    feed = Feed(
        images, torch.zeros(20, dtype=torch.long), batch_size=BATCH, horizontal_flip=False, seed=0, ranks=Ranks(),
        device=torch.device("cpu"),
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter:
        objective.accumulate(network, feed.batch(0), Execution(micro_batch=micro_batch))
    total = paper.field_flops + paper.encoder_flops + paper.network_flops
    # First layers need no gradient of their input, and adding V up over temperatures is not counted on paper.
    assert counter.get_total_flops() == pytest.approx(total, rel=0.05)


def test_state_is_that_of_a_trained_network():
    config, _ = resolve_config(objective="ddpm", assignments=SETS)
    network = build_network(config.model, image_size=SIZE)
    optimizer = adamw(network, learning_rate=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    ema = averaged(network, decay=0.9)
    network(torch.randn(1, 3, SIZE, SIZE), torch.zeros(1, dtype=torch.long)).sum().backward()
    optimizer.step()
    held = [*network.parameters(), *(p.grad for p in network.parameters()), *ema.module.parameters()]
    held += [value for state in optimizer.state.values() for key, value in state.items() if key != "step"]
    paper = budget(training_shapes(config)[0], images=BATCH, ranks=1)
    assert paper.state_bytes == sum(tensor.nbytes for tensor in held)


def test_ranks_share_the_work_and_receive_the_rest():
    calls = ((18, 256), (4, 64))
    assert gathered_bytes(calls, rows=10, ranks=1) == 0
    assert gathered_bytes(calls, rows=10, ranks=4) == 3 * 2 * 10 * (18 * 256 + 4 * 64) * 4
    config, _ = resolve_config(objective="drift", assignments=["objective.encoder=pixel"])
    shapes, assumed = training_shapes(config)
    assert "32 pixels" in assumed[0]
    whole, shared = (budget(shapes, images=128, ranks=ranks) for ranks in (1, 8))
    assert whole.field_flops == 8 * shared.field_flops
    assert whole.network_flops == 8 * shared.network_flops
    assert shared.seconds < whole.seconds
    with pytest.raises(UsageError, match="evenly"):
        budget(shapes, images=10, ranks=3)


def test_dry_run_prints_the_budget_and_says_when_it_cannot(monkeypatch):
    line = ("train", "--dry-run", "--encoder", "mocov2", "--batch-size", "64", "--json")
    document = json.loads(driftkit(*line).stdout)["budget"]
    assert [step["ranks"] for step in document["steps"]] == [1, 8, 64]
    assert document["shapes"]["encoder_flops"] > 1e9
    monkeypatch.setenv("WORLD_SIZE", "2")
    steps = json.loads(driftkit(*line).stdout)["budget"]["steps"]
    assert [(step["ranks"], step["images_per_rank"]) for step in steps] == [(2, 64), (1, 128), (8, 16), (64, 2)]
    shown = driftkit("train", "--dry-run", "--objective", "mae", "--preset", "mae-cpu").stdout
    assert "cost of a step" in shown
    missing = driftkit("train", "--dry-run", "--encoder", "outputs/none")
    assert missing.exit_code == 0
    assert "cost of a step unknown" in missing.stdout

"""Two ranks give the gradient of one process with the whole batch."""

import os
import subprocess
import sys

import pytest
import torch
import torch.multiprocessing as mp

from driftkit.artifacts.run import Run
from driftkit.drift import aggregated_drift
from driftkit.objectives.registry import OBJECTIVES, build_network
from driftkit.protocols import Execution
from driftkit.runtime.distributed import Ranks
from driftkit.stages.config import resolve_config
from driftkit.training.feed import Feed
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, setting

BATCH = 12
MAE_SETS = ["model.base_channels=8", "model.num_classes=3", "objective.finetune_from=0", "objective.finetune_ramp=1"]
SETS = ["model.base_channels=8", "model.channel_multipliers=[1,2]", "model.num_heads=2", "model.dropout=0.0",
        "model.num_res_blocks=1", "model.attention_resolutions=[]"]  # fmt: skip


def gradients(objective: str, ranks: Ranks, micro_batch: int | None = None) -> dict[str, torch.Tensor]:
    extra = ["objective.encoder=pixel", "objective.feature_set=paper"] if objective == "drift" else []
    model = SETS if objective != "mae" else MAE_SETS
    config, _ = resolve_config(objective=objective, assignments=[*model, *extra])
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    built = OBJECTIVES[objective].build(config.objective, setting(images, ranks))
    torch.manual_seed(0)
    network = build_network(config.model, image_size=8)
    for parameter in network.parameters():  # zero-initialised outputs would hide the rest of the network
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    feed = Feed(
        images, torch.arange(40) % 4 - 1, batch_size=BATCH // ranks.world_size, horizontal_flip=True, seed=0,
        ranks=ranks, device=torch.device("cpu"),
    )  # fmt: skip
    built.objective.accumulate(network, feed.batch(3), Execution(micro_batch=micro_batch))
    ranks.average_gradients(network.parameters())
    return {name: p.grad for name, p in network.named_parameters()}


def work(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", RANK=str(rank), WORLD_SIZE=str(world), LOCAL_RANK=str(rank))
    ranks = Ranks.start(device_type="cpu")
    out = {f"{o}/{k}": v for o in ("drift", "ddpm", "mae") for k, v in gradients(o, ranks, micro_batch=4).items()}
    x = torch.randn(5, BATCH, 6, generator=torch.Generator().manual_seed(2))
    pos = torch.randn(5, BATCH, 6, generator=torch.Generator().manual_seed(3)) + 1
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for scale_over in ("map", "location"):
        field = aggregated_drift(x[:, mine], pos[:, mine], scale_over=scale_over, ranks=ranks)
        out[f"field/{scale_over}"] = field.v
        out[f"norm/{scale_over}"] = field.drift_scale
    torch.save(out, f"{folder}/{rank}.pt")
    ranks.stop()


def test_ranks_share_one_field_and_one_gradient(tmp_path, monkeypatch):
    monkeypatch.setenv("MASTER_PORT", str(29500 + os.getpid() % 1000))
    world = 2
    mp.start_processes(work, args=(world, str(tmp_path)), nprocs=world, start_method="spawn")
    parts = [torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in range(world)]
    for objective in ("drift", "ddpm", "mae"):
        for name, want in gradients(objective, Ranks()).items():
            for part in parts:
                got = part[f"{objective}/{name}"]
                assert (got - want).norm() <= 2e-4 * want.norm() + 1e-7, (objective, name)
    x = torch.randn(5, BATCH, 6, generator=torch.Generator().manual_seed(2))
    pos = torch.randn(5, BATCH, 6, generator=torch.Generator().manual_seed(3)) + 1
    for scale_over in ("map", "location"):
        whole = aggregated_drift(x, pos, scale_over=scale_over)
        joined = torch.cat([p[f"field/{scale_over}"] for p in parts], dim=1)
        assert (joined - whole.v).norm() <= 1e-5 * whole.v.norm()
        assert torch.allclose(parts[1][f"norm/{scale_over}"], whole.drift_scale, rtol=1e-5)


@pytest.mark.slow
def test_torchrun_trains_and_writes_one_run(tmp_path):
    port = f"--master-port={30500 + os.getpid() % 1000}"
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", port,
            "-m", "driftkit", "train", "--encoder", "pixel", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--steps", "2",
            "--json", "--output", str(tmp_path / "run")]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"state": "done"') == 1
    manifest = Run(tmp_path / "run").manifest()
    assert manifest["world_size"] == 2
    assert manifest["images_seen"] == 16

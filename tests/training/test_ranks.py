"""Two ranks give the gradient of one process with the whole batch."""

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from driftkit.errors import ArtifactError, LostRankError, UsageError
from driftkit.methods.drifting import aggregated_drift
from driftkit.methods.registry import METHODS
from driftkit.models.registry import build_network
from driftkit.protocols import Execution
from driftkit.runtime.ranks import Peer, Ranks
from driftkit.runtime.signals import StoppedError, ending_cleanly
from driftkit.stages import train as train_stage
from driftkit.storage.run_folder import Run
from driftkit.training.conditions import conditioned_network
from driftkit.training.feed import Feed
from driftkit.training.gradients import GradientExchange
from driftkit.training.resume_plan import plan_resume
from driftkit.training.train_config import resolve_config
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_UNET, driftkit, free_port, setting, train_tiny
from tests.on_ranks import run_on_ranks, start_ranks

BATCH = 12
MAE_SETS = ["model.base_channels=8", "model.num_classes=3", "objective.finetune_from=0", "objective.finetune_ramp=1"]
SETS = ["model.base_channels=8", "model.channel_multipliers=[1,2]", "model.num_heads=2", "model.dropout=0.0",
        "model.num_res_blocks=1", "model.attention_resolutions=[]"]  # fmt: skip


CLASSES = [
    "objective.class_conditional=true", "objective.positives=4", "objective.unconditional=2", "objective.guidance_max=4"
]  # fmt: skip
DRIFTING = {
    "drift": [],
    "drift, classes": CLASSES,
    "drift, classes, location": [*CLASSES, "objective.scale_over=location"],
    "drift, one class of all ranks": [*CLASSES, "objective.groups=1"],
    "drift, groups": ["objective.groups=2", "objective.positives=3"],
}


def gradients(objective: str, ranks: Ranks, micro_batch: int | None = None) -> dict[str, torch.Tensor]:
    extra = ["objective.encoder=pixel", "objective.feature_set=paper", "objective.scale_over=map"]
    extra = [*extra, *DRIFTING[objective]] if objective in DRIFTING else []
    model = SETS if objective != "mae" else MAE_SETS
    method = objective.split(",")[0]
    config, _ = resolve_config(objective=method, assignments=[*model, *extra])
    images = torch.randint(0, 256, (40, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    where = setting(images, ranks, global_batch=BATCH)
    labelled = dataclasses.replace(where.pack, labels=torch.arange(40) % 4, classes=("a", "b", "c", "d"))
    shape = conditioned_network(config.objective, config.model, labelled)
    built = METHODS[method].build(config.objective, dataclasses.replace(where, pack=labelled, network=shape))
    torch.manual_seed(0)
    network = build_network(shape, image_size=8)
    for parameter in network.parameters():  # zero-initialised outputs would hide the rest of the network
        if parameter.abs().max() == 0:
            torch.nn.init.normal_(parameter, std=0.1)
    feed = Feed(
        images, torch.arange(40) % 4 - 1, batch_size=BATCH // ranks.world_size, horizontal_flip=True, seed=0,
        ranks=ranks, device=torch.device("cpu"), objective=built.objective if objective in DRIFTING else None,
    )  # fmt: skip
    network = network.to(memory_format=torch.channels_last)
    exchange = GradientExchange(network.parameters(), ranks, bucket_bytes=1000)
    how = Execution(micro_batch=micro_batch, last_backward=exchange.last_backward)
    built.objective.accumulate(network, feed.batch(3), how)
    exchange.finish()
    return {name: p.grad for name, p in network.named_parameters()}


def work(ranks: Ranks) -> dict:
    rank, world = ranks.rank, ranks.world_size
    out = {f"{o}/{k}": v for o in (*DRIFTING, "ddpm", "mae") for k, v in gradients(o, ranks, micro_batch=4).items()}
    before = ranks.traffic.gathered_bytes
    gradients("drift, classes", ranks)
    out["gathered by groups"] = ranks.traffic.gathered_bytes - before
    x = torch.randn(5, BATCH, 6, generator=torch.Generator().manual_seed(2))
    pos = torch.randn(5, BATCH, 6, generator=torch.Generator().manual_seed(3)) + 1
    mine = slice(rank * BATCH // world, (rank + 1) * BATCH // world)
    for scale_over in ("map", "location"):
        field = aggregated_drift(x[:, mine], pos[:, mine], scale_over=scale_over, ranks=ranks)
        out[f"field/{scale_over}"] = field.v
        out[f"norm/{scale_over}"] = field.drift_scale
    return out


@pytest.mark.slow
def test_ranks_share_one_field_and_one_gradient(tmp_path):
    parts = run_on_ranks(work, 2, tmp_path)
    for objective in (*DRIFTING, "ddpm", "mae"):
        for name, want in gradients(objective, Ranks()).items():
            for part in parts:
                got = part[f"{objective}/{name}"]
                assert (got - want).norm() <= (1e-5 if "," in objective else 2e-4) * want.norm() + 1e-7, (
                    objective,
                    name,
                )
    assert parts[0]["gathered by groups"] == 0
    x = torch.randn(5, BATCH, 6, generator=torch.Generator().manual_seed(2))
    pos = torch.randn(5, BATCH, 6, generator=torch.Generator().manual_seed(3)) + 1
    for scale_over in ("map", "location"):
        whole = aggregated_drift(x, pos, scale_over=scale_over)
        joined = torch.cat([p[f"field/{scale_over}"] for p in parts], dim=1)
        assert (joined - whole.v).norm() <= 1e-5 * whole.v.norm()
        assert torch.allclose(parts[1][f"norm/{scale_over}"], whole.drift_scale, rtol=1e-5)


LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
TRAIN = ["train", "--encoder", "pixel", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--checkpoint-every", "2"]
STEPS = 24


def launch(output, steps, *more, restarts=0):
    """Start two ranks that train into `output`."""
    line = [*LAUNCH, f"--master-port={free_port()}", f"--max-restarts={restarts}", "-m", "driftkit", *TRAIN,
            "--steps", str(steps), "--output", str(output), *more]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DRIFTKIT_DATA_DIR": str(Path(output).parent / "data")}
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(process, code=0):
    _, errors = process.communicate(timeout=120)
    assert process.returncode == code or code is None, errors
    return errors


def worker(process, rank):
    """Process number of a rank."""
    while True:
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == process.pid and f"\0RANK={rank}\0" in (folder / "environ").read_text():
                    return int(folder.name)
        time.sleep(0.05)


def wait_for_step(run, step):
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        with contextlib.suppress(ArtifactError):
            if Run(run).checkpoint().step >= step:
                return
        time.sleep(0.02)
    raise AssertionError(f"{run} did not come to step {step}")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks") / "whole"
    errors = finish(launch(folder, STEPS))
    assert "error" not in errors
    return folder


def test_a_signal_to_end_does_not_hide_which_rank_has_died():
    with subprocess.Popen([sys.executable, "-c", ""]) as gone:
        gone.wait()
    peers = tuple(Peer(socket.gethostname(), process) for process in (os.getpid(), gone.pid))
    with (
        pytest.raises(LostRankError, match=rf"rank 1 \(process {gone.pid}\) has died"),
        ending_cleanly(),
        Ranks(0, 2, peers=peers).naming_the_lost(),
    ):
        try:
            raise RuntimeError("gloo: connection closed by peer")
        finally:
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_without_a_dead_rank_stays_a_signal():
    with pytest.raises(StoppedError), ending_cleanly(), Ranks().naming_the_lost():
        os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_a_rank_that_dies_is_named_and_torchrun_starts_again(tmp_path, undisturbed):
    process = launch(tmp_path / "run", STEPS, restarts=1)
    wait_for_step(tmp_path / "run", 10)
    victim = worker(process, 1)
    os.kill(victim, signal.SIGKILL)
    errors = finish(process)
    # On a busy machine torchrun may notice first and stop the survivor, which names nobody then. Once in many times the
    # operation that waits for the dead does not notice, and torchrun ends it after 30 s.
    ends = (f"rank 1 (process {victim}) has died", "stopped by SIGTERM", "forcefully exiting via 9")
    assert any(words in errors for words in ends), errors
    assert "Traceback" not in errors
    assert_equal_runs(tmp_path / "run", undisturbed)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for processes in /proc")
def test_ranks_stop_at_one_step_and_go_on_as_other_numbers_of_them(tmp_path, undisturbed):
    process = launch(tmp_path / "run", STEPS)
    wait_for_step(tmp_path / "run", 4)
    os.kill(worker(process, 1), signal.SIGTERM)
    errors = finish(process, code=None)
    assert process.returncode != 0
    steps = set(re.findall(r"stopped at step (\d+), state saved", errors))
    assert len(steps) == 1, errors
    assert Run(tmp_path / "run").checkpoint().step == int(steps.pop())
    for name in ("one", "two"):
        shutil.copytree(tmp_path / "run", tmp_path / name)
    finish(launch(tmp_path / "two", STEPS))
    assert_equal_runs(tmp_path / "two", undisturbed)
    line = [*TRAIN, "--steps", str(STEPS), "--output", tmp_path / "one"]
    result = driftkit(*line)
    assert result.exit_code == 0, result.output
    assert "2 processes have trained it and 1 continue, with 8 images each" in result.stderr
    assert driftkit(*line).exit_code == 0
    assert [r["images"] for r in Run(tmp_path / "one").metrics()] == [8 * step for step in range(1, STEPS + 1)]


@pytest.mark.slow
def test_another_number_of_processes_keeps_the_global_batch(tmp_path):
    """Resumed alone, steps with 2 x 4 images are steps with 8: the numbers differ by rounding (no dropout here)."""
    sets = ["--precision", "float32", "--set", "model.dropout=0.0", "--set", "trainer.checkpoint_every=0"]
    train_tiny(tmp_path / "whole", "drift", *sets, "--batch-size", 8, steps=6)
    start_ranks(train_part, 2, tmp_path / "run", sets)
    assert "continue, with 8 images each" in train_tiny(tmp_path / "run", "drift", *sets, steps=6).stderr
    whole, run = (Run(tmp_path / name).checkpoint().weights("raw") for name in ("whole", "run"))
    for name, tensor in whole.items():
        assert (run[name] - tensor).norm() <= 2e-3 * tensor.norm() + 1e-5, name


def train_part(rank, output, sets):
    train_tiny(output, "drift", *sets, steps=3)


def train_unlike(rank, output):
    """Train, with other initial weights or another encoder on rank 1; what was said goes to a file of the rank."""
    build = train_stage.build_network

    def build_network(*arguments, **options):
        network = build(*arguments, **options)
        if rank == 1:
            next(network.parameters()).data[0] += 1e-6
        return network

    train_stage.build_network = build_network
    result = driftkit("train", "--encoder", "pixel", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--output", output)
    Path(f"{output}.{rank}").write_text(f"{result.exit_code} {result.stderr}")


@pytest.mark.slow
def test_ranks_with_other_initial_weights_do_not_train(tmp_path):
    start_ranks(train_unlike, 2, tmp_path / "run")
    said = [(tmp_path / f"run.{rank}").read_text() for rank in range(2)]
    assert all(text.startswith("1 ") for text in said), said
    assert "error: the network of rank 1 is not that of the other ranks" in said[0]
    assert Run(tmp_path / "run").manifest().state == "failed"
    assert not Run(tmp_path / "run").checkpoints()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--batch-size", "6"], "was begun with 4 images per step, and --batch-size 6 makes 6"),
        (["--set", "model.dropout=0.5"], "another config (`model.dropout` was 0.1 and is 0.5 now)"),
    ],
)
def test_another_global_batch_is_refused(words, says, tmp_path):
    train_tiny(tmp_path / "run", "ddpm")
    line = ["train", "--objective", "ddpm", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--output", tmp_path / "run"]
    result = driftkit(*line, "--steps", 4, *words)
    assert result.exit_code == 2
    assert says in result.stderr


def test_a_setting_that_decides_the_numbers_starts_a_new_run_from_the_weights(tmp_path):
    run = tmp_path / "run"
    train_tiny(run, "ddpm")
    line = ["train", "--objective", "ddpm", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--learning-rate", 0.5]
    refused = driftkit(*line, "--steps", 4, "--output", run)
    assert refused.exit_code == 2
    assert "(--learning-rate was 0.0002 and is 0.5 now)" in refused.stderr
    assert f"give another --output, and --init-from {run} to start from its weights" in refused.stderr
    assert driftkit(*line, "--steps", 1, "--output", tmp_path / "new", "--init-from", run).exit_code == 0


def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    run = Run(tmp_path / "run")
    train_tiny(run.path, "ddpm")
    config, _ = resolve_config(objective="ddpm", options=nested(run.manifest().config))
    with pytest.raises(UsageError, match="begun with 4 images per step, which 3 processes cannot share evenly"):
        plan_resume(run, config, "auto", Ranks(rank=0, world_size=3))


def test_a_run_begun_before_a_setting_existed_is_continued(tmp_path):
    run = Run(tmp_path / "run")
    train_tiny(run.path, "ddpm")
    config = run.manifest().config
    for section, key in (("model", "style_tokens"), ("trainer", "final_rate"), ("data", "autoencoder")):
        del config[section][key]
    run.update(config=config)
    line = ["train", "--objective", "ddpm", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--output", run.path, "--steps", 3]
    changed = driftkit(*line, "--set", "model.style_tokens=2")
    assert (changed.exit_code, "`model.style_tokens` was 0 and is 2 now" in changed.stderr) == (2, True)
    train_tiny(run.path, "ddpm", steps=3)
    assert (run.manifest().step, run.manifest().config["model"]["style_tokens"]) == (3, 0)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"trainer": {"steps": 2}}, "expected world_size, global_batch and trainer.batch_size"),
        ({"model": {"kind": "unet", "layers": 3}}, "config key model.layers"),
        ({"model": "unet"}, "manifest.json"),
    ],
)
def test_a_damaged_config_in_the_manifest_is_one_clear_error(change, says, tmp_path):
    run = Run(tmp_path / "run")
    train_tiny(run.path, "ddpm", "--set", "trainer.batch_size=128", "--sample-every", 0, steps=0)
    run.update(config={**run.manifest().config, **change})
    line = ["train", "--objective", "ddpm", *TINY_DATA, *TINY_UNET, "--device", "cpu", "--output", run.path]
    result = driftkit(*line, "--steps", 2, "--set", "trainer.log_every=1")
    assert (result.exit_code, says in result.stderr) == (3, True), result.stderr


def nested(config):
    return {key: value for key, value in config.items() if key != "seed"}


def assert_equal_runs(run, other):
    """Bit for bit, but for clock readings."""
    ours, theirs = (Run(folder).checkpoint() for folder in (run, other))
    assert ours.step == theirs.step
    for which in ("raw", "ema"):
        weights = theirs.weights(which)
        assert all(torch.equal(tensor, weights[name]) for name, tensor in ours.weights(which).items())
    records = [
        [{k: r[k] for k in ("step", "images", "loss", "health")} for r in Run(f).metrics()] for f in (run, other)
    ]
    assert records[0] == records[1]


@pytest.mark.slow
def test_torchrun_trains_and_writes_one_run(tmp_path):
    line = [*LAUNCH, f"--master-port={free_port()}", "-m", "driftkit", "train", "--encoder", "pixel", *TINY_DATA,
            *TINY_UNET, *TINY_LOOP, "--steps", "2", "--json", "--output", str(tmp_path / "run")]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"state": "done"') == 1
    manifest = Run(tmp_path / "run").manifest()
    assert manifest.world_size == 2
    assert manifest.images_seen == 16


def test_a_path_that_is_not_there_goes_before_settings_that_differ_and_typed_ones_before_others(tmp_path):
    train_tiny(tmp_path / "run", "ddpm")
    line = ["train", "--objective", "ddpm", "--output", tmp_path / "run"]
    assert "no such file or folder" in driftkit(*line, "--data", tmp_path / "photos.zip").stderr
    other = driftkit(*line, "--data", "shapes", "--set", "trainer.warmup_steps=7").stderr
    assert "`trainer.warmup_steps` was " in other  # by the alphabet it would be one of those that are not named
    assert " more)" in other

"""A step that is not finite stops the run before its update, with names; collapse is reported once per episode."""

import os
import subprocess
import sys

import pytest
import torch

from driftkit.comparison.run_summary import summarise
from driftkit.encoders.pixel import PixelEncoder
from driftkit.errors import NonFiniteStepError
from driftkit.protocols import StepLoss
from driftkit.runtime.ranks import Ranks
from driftkit.storage.files import read_json, read_tensors
from driftkit.storage.run_folder import Run
from driftkit.training.feed import Feed
from driftkit.training.monitors import CollapseWatch, FiniteWatch, NonFiniteStep
from driftkit.training.trainer import Trainer
from tests.conftest import TINY_DATA, TINY_LOOP, TINY_MAE, TINY_UNET, driftkit, free_port, replace_weights, train_tiny

GOOD, BAD, INF = torch.tensor(1.0), torch.tensor(torch.nan), torch.tensor(torch.inf)
NORMS = {"w": GOOD, "b": GOOD}


def loss(total: torch.Tensor, *, sources=None, **terms: torch.Tensor) -> StepLoss:
    return StepLoss(total, terms, sources=sources or {})


@pytest.mark.parametrize(
    ("seen", "norm", "norms", "sources", "names"),
    [
        (loss(BAD, a=GOOD, b=BAD), GOOD, NORMS, {}, ("b",)),
        (loss(BAD, a=GOOD), GOOD, NORMS, {}, ("total loss",)),
        (loss(BAD, a=BAD), BAD, {"w": BAD, "b": BAD}, {"images": BAD}, ("images", "a")),
        (loss(BAD, a=BAD, sources={"features": BAD}), BAD, NORMS, {"images": GOOD}, ("features", "a")),
        (loss(GOOD, a=GOOD), BAD, {"w": GOOD, "b": INF}, {}, ("gradient of b",)),
        (loss(GOOD, a=GOOD), INF, {"w": GOOD, "b": GOOD * 1e30}, {}, ("gradient norm (largest of b)",)),
    ],
)
def test_the_first_bad_step_is_named_however_late_it_is_looked_at(seen, norm, norms, sources, names):
    watch = FiniteWatch(Ranks(), deferred=True)
    good = loss(GOOD, sources=dict.fromkeys(seen.sources, GOOD), **dict.fromkeys(seen.terms, GOOD))
    fine = dict.fromkeys(sources, GOOD)
    watch.check()
    for step in range(2):
        watch.see(good, GOOD, NORMS, step=step, sources=fine)
        watch.check()
        assert watch.found_inf == 0
    watch.see(seen, norm, norms, step=2, sources=sources)
    watch.see(good, GOOD, NORMS, step=3, sources=fine)
    watch.see(loss(BAD, sources=good.sources, **dict.fromkeys(seen.terms, BAD)), BAD, NORMS, step=4, sources=fine)
    assert watch.found_inf == 1
    with pytest.raises(NonFiniteStepError) as error:
        watch.check()
    assert (error.value.names, error.value.step, error.value.rank) == (names, 2, None)


def test_a_source_alone_stops_nothing():
    watch = FiniteWatch(Ranks(), deferred=True)
    watch.see(loss(GOOD, a=GOOD), GOOD, NORMS, step=0, sources={"images": BAD})
    watch.check()
    assert watch.found_inf == 0


def test_terms_may_join_in():
    watch = FiniteWatch(Ranks(), deferred=True)
    watch.see(loss(GOOD, a=GOOD), GOOD, NORMS, step=0)
    watch.see(loss(BAD, a=GOOD, b=BAD), GOOD, NORMS, step=1)
    with pytest.raises(NonFiniteStepError, match="step 1: b"):
        watch.see(loss(GOOD, a=GOOD), GOOD, NORMS, step=2)


class PairedRanks(Ranks):
    """Rank 0 of two, with what the other one sends: flags of term, total and gradient, and its signal."""

    other = torch.zeros(4)
    messages = 0

    def max(self, value):
        PairedRanks.messages += 1
        return torch.maximum(value, self.other)


@pytest.fixture(autouse=True)
def no_messages_yet(monkeypatch):
    """Every test starts its own count: tests run in any order."""
    monkeypatch.setattr(PairedRanks, "messages", 0)
    monkeypatch.setattr(PairedRanks, "other", torch.zeros(4))


def test_a_request_to_stop_travels_with_the_flags_of_the_step():
    watch = FiniteWatch(PairedRanks(world_size=2), deferred=True)
    for step, (own, others, agreed) in enumerate([(0, 0, 0), (0, 15, 15), (2, 15, 15), (1, 0, 1)]):
        PairedRanks.other = torch.tensor([0.0, 0.0, 0.0, others])
        watch.see(loss(GOOD, a=GOOD), GOOD, NORMS, step=step, stop=own)
        assert watch.stop == agreed
        assert watch.found_inf == 0, "a signal is no number that is not finite"
    assert PairedRanks.messages == 4, "one message a step"
    PairedRanks.other = torch.tensor([1.0, 1.0, 0.0, 0.0])
    watch.see(loss(GOOD, a=GOOD), GOOD, NORMS, step=4)
    with pytest.raises(NonFiniteStepError, match="not finite at step 4 on rank 1: a"):
        watch.check()


def test_the_first_rank_is_named():
    watch = FiniteWatch(PairedRanks(world_size=2), deferred=True)
    PairedRanks.other = torch.tensor([1.0, 1.0, 0.0, 0.0])
    watch.see(loss(BAD, a=BAD), GOOD, NORMS, step=0)
    with pytest.raises(NonFiniteStepError) as error:
        watch.check()
    assert error.value.rank == 0


def test_a_world_of_one_sends_nothing():
    watch = FiniteWatch(Ranks(), deferred=True)
    watch.see(loss(GOOD, a=GOOD), GOOD, NORMS, step=0, stop=15)
    assert watch.stop is None


BAD_IMAGE = 5


@pytest.fixture
def broken_image(monkeypatch):
    """One image of the pack turns into NaN on its way into the batch."""
    batch = Feed.batch

    def broken(self, step):
        made = batch(self, step)
        made.images[made.indices == BAD_IMAGE] = torch.nan
        return made

    monkeypatch.setattr(Feed, "batch", broken)


def train_until_refused(output, objective, *more):
    """Train towards a step that does not come; the message."""
    words = ["--encoder", "pixel"] if objective == "drift" else []
    model = TINY_MAE if objective == "mae" else TINY_UNET
    line = ["train", "--objective", objective, *words, *TINY_DATA, *model, *TINY_LOOP, "--sample-every", "0"]
    result = driftkit(*line, "--steps", 64, "--output", output, *more)
    assert result.exit_code == 1, result.output
    assert result.stderr.count("error:") == 1
    assert "[non-finite]" in result.stderr
    return result.stderr


def recorded(run):
    """The record of the one step in RUN/inspect."""
    [path] = (run / "inspect").iterdir()
    record = NonFiniteStep.read(path)
    assert path.name == f"step-{record.step:08d}.json"
    return record


@pytest.mark.parametrize("objective", ["drift", "ddpm", "mae"])
def test_a_broken_image_is_named_and_the_batch_recorded(objective, tmp_path, broken_image):
    message = train_until_refused(tmp_path / "run", objective, "--set", "data.holdout=0")
    record = recorded(tmp_path / "run")
    assert str(tmp_path / "run" / "inspect") in message
    first = record.names[0]
    assert first.startswith("real features pixels") if objective == "drift" else first == "real images"
    assert BAD_IMAGE in record.indices
    assert len(record.indices) == len(record.flips) == record.batch_size == 4
    assert (record.seed, record.world_size, record.rank) == (0, 1, None)
    assert read_json(tmp_path / "run" / "manifest.json")["state"] == "failed"


def test_looking_late_finds_the_same_step_and_leaves_the_weights_before_it(tmp_path, broken_image, monkeypatch):
    last = {}

    def keep(build, name, **changes):
        def init(self, *arguments, **options):
            build(self, *arguments, **options)
            last[name] = self
            for key, value in changes.items():
                setattr(self.watch, key, value)

        return init

    build = Trainer.__init__
    monkeypatch.setattr(Trainer, "__init__", keep(build, "at once"))
    train_until_refused(tmp_path / "at once", "ddpm")
    monkeypatch.setattr(Trainer, "__init__", keep(build, "late", deferred=True))  # as on a GPU
    train_until_refused(tmp_path / "late", "ddpm", "--set", "trainer.log_every=7")
    assert recorded(tmp_path / "at once") == recorded(tmp_path / "late")
    one, other = (last[name].network.state_dict() for name in ("at once", "late"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_gradient_is_named_by_its_parameter(tmp_path, monkeypatch):
    from driftkit.methods.ddpm.objective import DDPM

    accumulate = DDPM.accumulate

    def spoiling(self, model, batch, *more):
        hook = model.input.weight.register_hook(lambda grad: grad * (torch.nan if batch.step == 2 else 1))
        made = accumulate(self, model, batch, *more)
        hook.remove()
        return made

    monkeypatch.setattr(DDPM, "accumulate", spoiling)
    assert "not finite at step 2: gradient of input.weight;" in train_until_refused(tmp_path / "run", "ddpm")
    assert recorded(tmp_path / "run").names == ["gradient of input.weight"]


@pytest.mark.parametrize("waits", [True, False])
def test_features_are_named_by_side(waits, tmp_path, monkeypatch):
    from driftkit.methods.drifting import objective as drifting

    maps, field = PixelEncoder.maps, drifting.aggregated_drift

    def spoiled(self, images):
        features = maps(self, images)
        if images.requires_grad:
            features[0].values[:, :, 0, 0] = torch.inf
        return features

    monkeypatch.setattr(PixelEncoder, "maps", spoiled)
    monkeypatch.setattr(drifting, "aggregated_drift", lambda *a, **k: field(*a, **{**k, "wait": waits}))
    train_until_refused(tmp_path / "run", "drift")
    names = recorded(tmp_path / "run").names
    if waits:
        assert all(name.startswith("generated features pixels/") for name in names)
    else:
        assert names[0] == "generated features"
        assert all(name.startswith("pixels/") for name in names[1:])


def test_an_update_that_spoils_the_weights_never_becomes_a_checkpoint(tmp_path, monkeypatch):
    train_tiny(tmp_path / "run", "ddpm", steps=2)
    train_step = Trainer.train_step

    def spoiling(self):
        made = train_step(self)
        if self.step == 4:
            self.network.output.weight.data[0, 0] = torch.inf
        return made

    monkeypatch.setattr(Trainer, "train_step", spoiling)
    message = train_until_refused(tmp_path / "run", "ddpm", "--checkpoint-every", 1)
    assert "not finite at step 3: weights output.weight;" in message
    assert Run(tmp_path / "run").checkpoint().step == 3
    message = train_until_refused(tmp_path / "run", "ddpm")
    assert "not finite at step 4: weights output.weight, noise_mse;" in message


def spoil(run, which, part=""):
    """One number of a saved tensor becomes infinite; its name."""
    tensors, _ = read_tensors(Run(run).checkpoint().path / f"{which}.safetensors")
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    name = next(name for name, tensor in tensors.items() if tensor.ndim > 1 and part in name)
    tensors[name].view(-1)[0] = torch.inf
    replace_weights(run, which, tensors)
    return name


@pytest.mark.parametrize("which", ["raw", "ema", "optimizer"])
def test_a_checkpoint_that_is_not_finite_is_not_resumed(which, tmp_path):
    train_tiny(tmp_path / "run", "ddpm", steps=2)
    name = spoil(tmp_path / "run", which)
    line = ["train", "--objective", "ddpm", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--steps", 3]
    result = driftkit(*line, "--output", tmp_path / "run")
    assert result.exit_code == 5, result.output
    assert f"not finite: {which}/{name} (1 of" in result.stderr
    assert Run(tmp_path / "run").checkpoint().step == 2


def test_weights_that_are_not_finite_are_neither_sampled_nor_scored_nor_an_encoder(tmp_path):
    train_tiny(tmp_path / "run", "ddpm", steps=2)
    name = spoil(tmp_path / "run", "ema")
    shapes = ["--reference", "shapes?image_size=8&count=64", "--extractor", "encoder:mae", "-n", 16]
    train_tiny(tmp_path / "mae", "mae", steps=2)
    for line in (["sample", tmp_path / "run"], ["fid", tmp_path / "run", *shapes]):
        result = driftkit(*line)
        assert result.exit_code == 5, result.output
        assert f"ema weights are not finite: {name}" in result.stderr
    broken = spoil(tmp_path / "mae", "ema", "stem")
    line = ["train", "--encoder", tmp_path / "mae", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--steps", 1]
    result = driftkit(*line, "--output", tmp_path / "x")
    assert result.exit_code == 5, result.output
    assert broken in result.stderr
    assert not (tmp_path / "x").exists()


SCRIPT = """
import os, torch
from driftkit.training import feed
real = feed.Feed.batch
def batch(self, step):
    made = real(self, step)
    if os.environ["RANK"] == "1" and step == 2:
        made.images[0] = torch.nan
    return made
feed.Feed.batch = batch
from driftkit.cli.app import main
main()
"""


@pytest.mark.slow
def test_all_ranks_stop_together_with_one_message(tmp_path):
    (tmp_path / "program.py").write_text(SCRIPT)
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2",
            f"--master-port={free_port()}", str(tmp_path / "program.py"), "train", "--objective", "ddpm",
            *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--steps", "5", "--output", str(tmp_path / "run")]  # fmt: skip
    done = subprocess.run(line, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode != 0
    message = "error: not finite at step 2 on rank 1: real images, noise_mse"
    assert done.stderr.count(message) == 1, done.stderr
    assert 'Traceback (most recent call last):\n  File "' + str(tmp_path) not in done.stderr
    record = recorded(tmp_path / "run")
    assert (record.rank, record.world_size, len(record.indices)) == (1, 2, 8)
    assert "on rank 1" in read_json(tmp_path / "run" / "manifest.json")["failure"]


# The output layer starts at zero: without learning every image is grey.
STUCK = ["--learning-rate", "1e-12"]


def line(output, *more, steps):
    words = ["train", "--encoder", "pixel", *TINY_DATA, *TINY_UNET, *TINY_LOOP, "--sample-every", 0]
    return [*words, "--set", "trainer.collapse_patience=20", "--steps", steps, "--output", output, *more]


def watched(spreads, *, patience=3):
    watch = CollapseWatch(threshold=0.1, patience=patience)
    return watch, [step for step, spread in enumerate(spreads) if watch.see(spread, step=step)]


def test_an_episode_is_told_once_after_the_patience_and_again_after_recovery():
    watch, told = watched([0.0, 0.0, 0.5, 0.05, 0.05, 0.04, 0.05, 0.02, 0.03, 0.2, 0.0, 0.0, 0.0, 0.01])
    assert told == [6, 13]
    known = watch.document()
    assert (known["first_step"], known["episodes"], known["now"], known["below_since"]) == (3, 2, True, 10)
    assert (known["worst_spread"], known["worst_step"]) == (0.01, 13)


@pytest.mark.parametrize("spreads", [[0.0, 0.01, 0.05, 0.3, 0.9], [0.5, 0.05, 0.05, 0.2, 0.05, 0.05, 0.3], [0.1] * 9])
def test_untrained_starts_and_dips_are_no_collapse(spreads):
    watch, told = watched(spreads)
    assert told == []
    assert watch.document() is None


def test_the_watch_goes_on_where_it_was_saved():
    spreads = [0.05, 0.5, 0.04, 0.03, 0.02, 0.01, 0.01, 0.5, 0.0]
    whole, _ = watched(spreads)
    for cut in range(len(spreads)):
        first, _ = watched(spreads[:cut])
        second = CollapseWatch(threshold=0.1, patience=3)
        second.restore(first.state())
        for step in range(cut, len(spreads)):
            second.see(spreads[step], step=step)
        assert second.known == whole.known


def test_a_collapsed_run_warns_once_is_recorded_and_compare_says_so(tmp_path):
    result = driftkit(*line(tmp_path / "run", *STUCK, steps=40))
    assert result.exit_code == 0, result.output
    assert result.stderr.count("warning: collapse: since step 1 ") == 1
    assert "COLLAPSED" in result.stderr
    records = Run(tmp_path / "run").metrics()
    assert [r["step"] for r in records if r["health"].get("collapsed")] == list(range(21, 41))
    known = read_json(tmp_path / "run" / "manifest.json")["collapse"]
    assert (known["first_step"], known["episodes"], known["now"]) == (1, 1, True)
    assert known["worst_spread"] < 0.01
    [warning] = summarise(Run(tmp_path / "run"), label="run").warnings
    assert "collapse in training from step 1: generated features spread" in warning


@pytest.mark.slow
def test_a_run_that_learns_does_not_warn(tmp_path):
    result = driftkit(*line(tmp_path / "run", "--batch-size", 16, "--learning-rate", "1e-3", steps=60))
    assert result.exit_code == 0, result.output
    assert "collapse" not in result.stderr
    assert read_json(tmp_path / "run" / "manifest.json")["collapse"] is None


@pytest.mark.slow
def test_a_kernel_that_tells_no_points_apart_collapses(tmp_path):
    learns = ["--batch-size", 16, "--learning-rate", "1e-3"]
    result = driftkit(*line(tmp_path / "run", *learns, "--set", "objective.taus=[50]", steps=60))
    assert result.exit_code == 0, result.output
    assert result.stderr.count("warning: collapse") == 1


@pytest.mark.slow
def test_fail_on_collapse_saves_and_ends_with_5_and_again_when_resumed(tmp_path):
    words = line(tmp_path / "run", *STUCK, steps=60)
    result = driftkit(*words, "--fail-on-collapse")
    assert result.exit_code == 5, result.output
    assert "stopped at step 21, state saved" in result.stderr
    manifest = read_json(tmp_path / "run" / "manifest.json")
    assert manifest["state"] == "failed"
    assert "collapsed" in manifest["failure"]
    assert Run(tmp_path / "run").checkpoint().step == 21
    again = driftkit(*words, "--fail-on-collapse")
    assert again.exit_code == 5
    assert Run(tmp_path / "run").checkpoint().step == 22
    without = driftkit(*words)
    assert without.exit_code == 0, without.output
    assert "warning: collapse" not in without.stderr  # it is the same episode
    assert read_json(tmp_path / "run" / "manifest.json")["collapse"]["episodes"] == 1


@pytest.mark.parametrize("objective", ["ddpm", "mae"])
def test_a_method_whose_steps_generate_nothing_refuses_the_option(objective, tmp_path):
    result = driftkit("train", "--objective", objective, *TINY_DATA, "--fail-on-collapse", "--output", tmp_path / "x")
    assert result.exit_code == 2
    assert "generates no images" in result.stderr
    assert not (tmp_path / "x").exists()

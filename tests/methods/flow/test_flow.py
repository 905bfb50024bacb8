"""Rectified flow against plain float64: the loss of a batch, the samplers' order, and exact counts of calls."""

import pytest
import torch

from driftkit.errors import UsageError
from driftkit.methods.flow.objective import Flow
from driftkit.methods.flow.samplers import sample_euler, sample_heun, straight_path
from driftkit.protocols import Batch, Execution, SampleRequest
from driftkit.storage.files import read_json
from tests.conftest import driftkit, train_tiny

SAMPLERS = {"euler": sample_euler, "heun": sample_heun}
SHAPE = (3, 3, 4, 4)


def draw(seed):
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def request(nfe, **options):
    return SampleRequest(nfe, step_noise=lambda _: torch.zeros(SHAPE), options=options)


class Toy(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(0.7))
        self.times = []

    def forward(self, x, t, condition):
        self.times.append(t)
        return self.weight * x + 0.001 * t.view(-1, 1, 1, 1)


@pytest.mark.parametrize("micro_batch", [None, 3])
def test_the_loss_of_a_batch_is_that_of_plain_float64(micro_batch):
    images = torch.rand(8, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    objective, model = Flow(), Toy()
    batch = Batch(images, None, range(8), seed=3, step=5).drawn(objective)
    outcome = objective.accumulate(model, batch, Execution(micro_batch=micro_batch))
    noise, times = batch.draws["noise"].double(), batch.draws["time"].double()
    errors = []
    for image, eps, t in zip(images.double(), noise, times, strict=True):
        x_t = (1 - t) * image + t * eps
        errors.append(((0.7 * x_t + t - (eps - image)) ** 2).mean())
    assert float(outcome.total) == pytest.approx(float(torch.stack(errors).mean()), rel=1e-5)
    assert set(outcome.terms) == {"velocity_mse"}
    assert model.weight.grad is not None
    assert torch.allclose(torch.cat(model.times), (1000 * times).float())


def test_times_are_uniform_and_follow_from_seed_step_and_slot():
    draws = Flow().draws(0, 0, range(2000), (1, 1, 1))
    times = draws["time"]
    assert times.dtype == torch.float32
    assert 0 <= float(times.min()) < 0.005
    assert 0.995 < float(times.max()) <= 1
    assert float(times.mean()) == pytest.approx(0.5, abs=4 * (1 / 12 / 2000) ** 0.5)  # four standard errors
    assert torch.equal(Flow().draws(0, 0, range(5, 8), (1, 1, 1))["time"], times[5:8])


def test_the_path_begins_at_the_image_ends_at_the_noise_and_has_a_constant_velocity():
    x0, noise = draw(0).double(), draw(1).double()
    start, velocity = straight_path(x0, noise, torch.zeros(3, dtype=torch.float64))
    end, same = straight_path(x0, noise, torch.ones(3, dtype=torch.float64))
    assert torch.equal(start, x0)
    assert torch.equal(end, noise)
    assert torch.equal(velocity, noise - x0)
    assert torch.equal(velocity, same)
    with pytest.raises(ValueError, match="floats"):
        straight_path(x0, noise, torch.zeros(3, dtype=torch.long))
    with pytest.raises(ValueError, match="noise"):
        straight_path(x0, noise[:2], torch.zeros(3))


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("nfe", [1, 2, 3, 4, 25])
def test_a_perfect_velocity_returns_its_image(name, nfe):
    image = draw(5).clamp(-1, 1)

    def perfect(x, t, condition):
        return (x - image) / (t / 1000).view(-1, 1, 1, 1)  # t > 0: the network is never called at the image

    images, _ = SAMPLERS[name](perfect, draw(0), request(nfe))
    torch.testing.assert_close(images, image, atol=1e-5, rtol=0)


def test_errors_fall_with_the_step_for_euler_and_with_its_square_for_heun():
    """dx/dt = x from t = 1 to 0 gives x(0) = x(1) / e."""
    exact = draw(0).double() / torch.e

    def error(sampler, nfe):
        return float((sampler(lambda x, t, condition: x, draw(0), request(nfe))[0].double() - exact).abs().max())

    for coarse, fine in ((10, 20), (20, 40)):
        assert error(sample_euler, coarse) / error(sample_euler, fine) == pytest.approx(2, rel=0.1)
    for coarse, fine in ((15, 31), (31, 63)):  # 8, 16 and 32 steps
        assert error(sample_heun, coarse) / error(sample_heun, fine) == pytest.approx(4, rel=0.15)
    assert error(sample_heun, 40) / error(sample_heun, 82) == pytest.approx(4, rel=0.15)  # 21 and 42 steps


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("nfe", [None, 1, 2, 3, 6, 7, 20])
def test_nfe_is_the_number_of_calls(name, nfe):
    times = []

    def counted(x, t, condition):
        times.append(float(t[0]))
        assert t.shape == (len(x),)
        return 0.1 * x

    images, reported = SAMPLERS[name](counted, draw(0), request(nfe))
    assert reported == len(times) == (50 if nfe is None else nfe)
    assert times[0] == 1000
    assert min(times) > 0
    assert (images.shape, images.dtype) == (SHAPE, torch.float32)


@pytest.mark.parametrize("name", SAMPLERS)
def test_what_does_not_fit_is_a_usage_error(name):
    for nfe in (0, -1, True):
        with pytest.raises(UsageError, match="nfe"):
            SAMPLERS[name](lambda x, t, condition: x, draw(0), request(nfe))
    with pytest.raises(UsageError, match="eta"):
        SAMPLERS[name](lambda x, t, condition: x, draw(0), request(3, eta=1.0))


def test_a_run_is_trained_sampled_and_exported(tmp_path):
    run = tmp_path / "run"
    train_tiny(run, "flow")
    assert "resumed from step 2" in train_tiny(run, "flow", steps=3).stderr
    for sampler, nfe in (("euler", 2), ("heun", 5)):
        path = tmp_path / f"{sampler}.safetensors"
        made = driftkit("sample", run, "--sampler", sampler, "--nfe", nfe, "-n", 4, "--output", path)
        assert made.exit_code == 0, made.output
        record = read_json(path.with_suffix(".json"))
        assert (record["method"], record["sampler"], record["nfe"]) == ("flow", sampler, nfe)
    made = driftkit("export", run, "--format", "torchscript", "--output", tmp_path / "model")
    assert made.exit_code == 0, made.output
    model = torch.jit.load(str(tmp_path / "model" / "velocity.pt"))
    assert model(torch.randn(2, 3, 8, 8), torch.rand(2)).shape == (2, 3, 8, 8)

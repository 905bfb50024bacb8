"""A generator of points in the plane, trained by drifting: Algorithm 1 with the points themselves as features."""

from dataclasses import dataclass

import torch

from driftkit.datasets.toys import SIDE, TOYS, Toy
from driftkit.errors import NonFiniteStepError
from driftkit.methods.drifting import aggregated_drift, drift_loss
from driftkit.metrics.energy_distance import energy_distance
from driftkit.models.mlp import PointGenerator
from driftkit.runtime.random import generator_for, stream_seed
from driftkit.tutorial.toy_config import ToyConfig
from driftkit.tutorial.toy_field import fields_by_temperature, scaled_drift
from driftkit.tutorial.toy_record import ToyScores

POINTS = 1000  # on each side of a distance
SHOWN_POINTS = 400  # of them in pictures
FLOOR_DRAWS = 8
WARM_UP = 0.1  # of the steps
COVERED = 0.5  # of the points that a mode should have
FAR = (1.8 * SIDE, 1.5 * SIDE)
SPREADS = {"middle": 0.2, "far": 0.2, "collapsed": 0.02}  # standard deviation of the untrained generator's points


@dataclass(frozen=True)
class ToyFrame:
    """What one picture shows, all [N, 2]: generated points, real ones, and V at the generated ones."""

    step: int
    generated: torch.Tensor
    real: torch.Tensor
    v: torch.Tensor  # mean over temperatures, before it is normalised, in the units of the points
    energy_distance: float


@dataclass(frozen=True)
class TrainedToy:
    """A toy that was trained, and what was seen on the way."""

    generator: PointGenerator
    drift_norm: list[float]  # before every step
    frames: list[ToyFrame]
    scores: ToyScores


def train_toy(config: ToyConfig) -> TrainedToy:
    """Train a generator of points.

    Raises:
        UsageError: the generator is so deep, or so narrow, that all noise becomes one point.
        NonFiniteStepError: the learning rate is so large that points have left the plane.
    """
    toy = TOYS[config.points]
    generator = _untrained(config, toy)
    optimizer = torch.optim.Adam(generator.parameters(), lr=config.learning_rate)
    shown_at = set(_shown_steps(config))
    noise, real = _noise(config, "shown noise", POINTS), _real(config, "shown points", POINTS)
    drift_norm, frames = [], []
    for step in range(config.steps + 1):
        if step in shown_at:
            frames.append(_frame(config, step, generator, noise, real))
        if step == config.steps:
            break
        optimizer.param_groups[0]["lr"] = _learning_rate(config, step)
        x = generator(_noise(config, "noise", config.batch_size, step))[None]  # [1, N, 2], a single field
        y_pos = _real(config, "real", config.batch_size, step)[None]  # [1, P, 2]
        if not bool(torch.isfinite(x).all()):
            raise _left_the_plane(step)
        drift = scaled_drift(x, y_pos, taus=config.taus, attraction=config.attraction, repulsion=config.repulsion)
        optimizer.zero_grad()
        drift_loss(x, drift).mean().backward()
        optimizer.step()
        drift_norm.append(float(drift.drift_scale.mean()))
    return TrainedToy(generator, drift_norm, frames, _scores(config, toy, generator, drift_norm))


def _untrained(config: ToyConfig, toy: Toy) -> PointGenerator:
    """The generator whose points lie where the config wants them to start."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stream_seed(config.seed, "initial weights"))
        generator = PointGenerator(noise_channels=config.noise_channels, width=config.width, depth=config.depth)
    place = {"middle": (0.0, 0.0), "far": FAR, "collapsed": toy.a_point}[config.start]
    generator.start_at(place, spread=SPREADS[config.start], noise=_noise(config, "start", POINTS))
    return generator


def _learning_rate(config: ToyConfig, step: int) -> float:
    """A linear rise, since Adam's first steps would throw the points far out, then a linear fall to 0."""
    rise = max(1, round(WARM_UP * config.steps))
    return config.learning_rate * min((step + 1) / rise, (config.steps - step) / (config.steps - rise + 1))


def _shown_steps(config: ToyConfig) -> list[int]:
    """Steps of the pictures, first and last included, denser where more happens."""
    last = config.frames - 1
    return sorted({round(config.steps * (number / last) ** 1.6) for number in range(config.frames)})


def _frame(
    config: ToyConfig, step: int, generator: PointGenerator, noise: torch.Tensor, real: torch.Tensor
) -> ToyFrame:
    with torch.no_grad():
        x = generator(noise)
    if not bool(torch.isfinite(x).all()):
        raise _left_the_plane(step)
    distance = energy_distance(x, real)
    x, real = x[:SHOWN_POINTS], real[:SHOWN_POINTS]
    scale = aggregated_drift(x[None], real[None], taus=config.taus).feature_scale  # [1]
    fields = fields_by_temperature(
        x[None], real[None], scale, taus=config.taus, attraction=config.attraction, repulsion=config.repulsion
    )  # [T, 1, N, 2]
    return ToyFrame(step, x, real, fields.mean(dim=0)[0] * scale, distance)


def _left_the_plane(step: int) -> NonFiniteStepError:
    return NonFiniteStepError(["generated points"], step, state="nothing was written", more="lower `learning_rate`")


def _scores(config: ToyConfig, toy: Toy, generator: PointGenerator, drift_norm: list[float]) -> ToyScores:
    with torch.no_grad():
        x = generator(_noise(config, "scored noise", POINTS))
    count = max(POINTS, config.batch_size)
    draws = [_real(config, "scored points", count, number) for number in range(FLOOR_DRAWS + 1)]
    real, *others = (draw[:POINTS] for draw in draws)
    batches = [draw[None, : config.batch_size] for draw in draws]
    norms = [_norm(config, one, batches[0]) for one in batches[1:]]
    last = drift_norm[-max(1, len(drift_norm) // 20) :]
    modes = toy.mode_of(x)
    share = torch.bincount(modes[modes >= 0], minlength=toy.num_modes) / len(x)
    return ToyScores(
        drift_norm=sum(last) / len(last),
        drift_norm_floor=sum(norms) / len(norms),
        energy_distance=energy_distance(x, real),
        energy_distance_floor=sum(energy_distance(other, real) for other in others) / len(others),
        modes_covered=int((share * toy.num_modes >= COVERED).sum()),
        num_modes=toy.num_modes,
        on_data=float((modes >= 0).double().mean()),
        on_data_floor=float((toy.mode_of(real) >= 0).double().mean()),
        spacing=_spacing(x) / _spacing(real),
    )


def _norm(config: ToyConfig, x: torch.Tensor, y_pos: torch.Tensor) -> float:
    """The drift norm at points [1, N, 2], of the field that the config trains with."""
    drift = scaled_drift(x, y_pos, taus=config.taus, attraction=config.attraction, repulsion=config.repulsion)
    return float(drift.drift_scale.mean())


def _spacing(points: torch.Tensor) -> float:
    distance = torch.cdist(points.double(), points.double())
    return float(distance.fill_diagonal_(torch.inf).amin(dim=1).median())


def _noise(config: ToyConfig, stream: str, count: int, *counters: int) -> torch.Tensor:
    return torch.randn(count, config.noise_channels, generator=generator_for(config.seed, stream, *counters))


def _real(config: ToyConfig, stream: str, count: int, *counters: int) -> torch.Tensor:
    return TOYS[config.points].draw(count, generator_for(config.seed, stream, *counters))

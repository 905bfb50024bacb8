"""From measured numbers to a judgement: a score to rank encoders by, a verdict with reasons, and what to set.

The score was compared with trained generators (pipelines/README.md); it stands in one function for that reason.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from driftkit.probing.corruptions import CORRUPTIONS, ONE_CLASS
from driftkit.probing.kernel_probe import EncoderMeasurement, GroupMeasurement

FAULTS = tuple(spec.name for spec in CORRUPTIONS if spec.fault)
SAYS = {spec.name: spec.says for spec in CORRUPTIONS} | {ONE_CLASS: "a single kind of content"}
DETAIL = ("noise", "blur", "checker")

BLIND = 0.15  # signal share that a fault nobody sees reaches by chance, as the best of five temperatures
STRONG = 0.4
NEAREST_ONLY = 2.0  # perplexity below which one neighbour decides
UNIFORM = 0.95  # share of the candidates above which distance no longer matters
SILENT = 0.05  # mean signal share below which a temperature adds only noise to the loss
MENDED = 0.2  # mean of the restoring cosines that earns full marks
UNKNOWN_CONTENT = 0.3
GOOD, USABLE = 0.16, 0.12  # scores from which an encoder is called so
MANY_BLIND = 3  # faults that no group sees
MAX_TAUS = 3


@dataclass(frozen=True)
class Seen:
    """How well one fault is seen, in shares of the drift that training can follow.

    Attributes:
        best: largest over groups, each at its best temperature.
        mean: its mean over groups, which have equal parts in the loss.
        group: where it is largest.
        strength: geometric mean of both, since one group in thirty that sees it pulls against the noise of the others.
    """

    best: float
    mean: float
    group: str
    strength: float


@dataclass(frozen=True)
class Verdict:
    """What to make of it.

    Attributes:
        verdict: good, usable or poor; at most usable where the weights were never trained.
        score: see `score`.
        reasons: one line each.
        seen: by fault.
        groups: name -> judgement in a few words.
        taus, taps, input_size: what to train with.
    """

    verdict: str
    score: float
    reasons: list[str]
    seen: dict[str, Seen]
    groups: dict[str, str]
    taus: list[float]
    taps: list[str]
    input_size: int


def score(restoration: Mapping[str, float], purity_lift: float | None) -> float:
    """Expected worth of an encoder for drifting, 0 to 1; higher is better.

    Restoration: the step that the loss asks of the pixels must repair the images. What the vectors see does not count
    here: deep maps alone see every fault, yet their gradients repair nothing, and generators trained with them are the
    worst of all. Content: a kernel that puts images of one class next to each other pulls towards the right kind of
    image. It multiplies: untrained networks repair as much as trained ones, and their generators are far worse.

    Args:
        restoration: fault -> cosine of the step in pixels with the step that mends the image.
        purity_lift: neighbour purity of the joined global vectors, 0 at chance and 1 at perfect. None where there are
            no labels: UNKNOWN_CONTENT stands in its place, and such scores rank among themselves alone.
    """
    cosines = [max(value, 0.0) for value in restoration.values()]
    content = UNKNOWN_CONTENT if purity_lift is None else max(purity_lift, 0.0)
    return min(1.0, sum(cosines) / len(cosines) / MENDED) * content


def judge(measurement: EncoderMeasurement, *, chance: float | None, input_size: int, random_weights: bool) -> Verdict:
    """Verdict on a measured encoder.

    Args:
        measurement: of real data.
        chance: neighbour purity of features that know nothing; None where unlabelled.
        input_size: side in pixels at which it was measured.
        random_weights: whether it was never trained.
    """
    seen = sight_of(measurement)
    lift = None
    if measurement.purity is not None and chance is not None:
        lift = (measurement.purity - chance) / max(1 - chance, 1e-9)
    value = score(measurement.restoration, lift)
    blind = [name for name, s in seen.items() if s.best < BLIND]
    taus = recommended_taus(measurement.groups)
    taps = recommended_taps(measurement.groups)
    reasons = _reasons(seen, blind, measurement, chance)
    word = "good" if value >= GOOD else "usable" if value >= USABLE else "poor"
    if len(blind) >= MANY_BLIND:
        word = "poor"  # whatever else it knows, nothing trains what it does not see
    elif word == "good" and (blind or random_weights):
        word = "usable"
    if random_weights:
        reasons.append("its weights were never trained: the numbers are those of the architecture, usable at most")
    reasons.append(f"temperatures {', '.join(f'{t:g}' for t in taus)}: {_why_taus(measurement.groups, taus)}")
    if taps:
        reasons.append(f"maps {', '.join(taps)}: each sees some fault best, or nearly as much as the best map")
    size, why = _input_size(input_size, [name for name in blind if name in DETAIL])
    return Verdict(
        verdict=word,
        score=value,
        reasons=[*reasons, why],
        seen=seen,
        groups={group.name: judge_group(group) for group in measurement.groups},
        taus=taus,
        taps=taps,
        input_size=size,
    )


def sight_of(measurement: EncoderMeasurement) -> dict[str, Seen]:
    """How well each fault is seen by all groups together; "one class" where it was measured."""
    seen = {}
    for fault in measurement.groups[0].separation:
        if fault not in FAULTS and fault != ONE_CLASS:
            continue
        by_group = {group.name: best_signal(group, fault) for group in measurement.groups}
        top = max(by_group, key=lambda name: by_group[name])
        best, mean = max(by_group[top], 0.0), max(sum(by_group.values()) / len(by_group), 0.0)
        seen[fault] = Seen(best, mean, top, math.sqrt(best * mean))
    return seen


def best_signal(group: GroupMeasurement, fault: str) -> float:
    """Signal share of a fault at the temperature that shows it best."""
    return max(group.separation[fault].signal)


def judge_group(group: GroupMeasurement) -> str:
    """A few words: good, partial, weak or constant, what it is blind to, and temperatures that say nothing."""
    if group.effective_rank == 0:
        return "constant: the same for all images"
    faults = [fault for fault in group.separation if fault in FAULTS or fault == ONE_CLASS]
    signals = {fault: best_signal(group, fault) for fault in faults}
    mean = sum(signals.values()) / len(signals)
    words = ["good" if mean >= STRONG else "partial" if mean >= 0.5 * STRONG else "weak"]
    blind = [fault for fault, value in signals.items() if value < BLIND]
    if blind:
        words.append("blind to " + ", ".join(blind))
    nearest = [f"{k.tau:g}" for k in group.kernel if k.perplexity < NEAREST_ONLY]
    uniform = [f"{k.tau:g}" for k in group.kernel if k.fraction > UNIFORM]
    if nearest:
        words.append("nearest neighbour only at tau " + ", ".join(nearest))
    if uniform:
        words.append("all alike at tau " + ", ".join(uniform))
    return "; ".join(words)


def tau_signal(groups: list[GroupMeasurement], t: int) -> float:
    """Mean over groups and faults of the signal share at the t-th temperature."""
    shares = [
        separation.signal[t]
        for group in groups
        for fault, separation in group.separation.items()
        if fault in FAULTS or fault == ONE_CLASS
    ]
    return sum(shares) / len(shares)


def recommended_taus(groups: list[GroupMeasurement]) -> list[float]:
    """Temperatures that carry signal and weigh neither one point nor all alike; at most three, spread over the range.

    Where none qualifies, the one with the most signal.
    """
    taus = [k.tau for k in groups[0].kernel]
    fit = []
    for t, tau in enumerate(taus):
        kernels = [group.kernel[t] for group in groups]
        perplexity, fraction = median(k.perplexity for k in kernels), median(k.fraction for k in kernels)
        if perplexity >= NEAREST_ONLY and fraction <= UNIFORM and tau_signal(groups, t) >= SILENT:
            fit.append(tau)
    if not fit:
        return [taus[max(range(len(taus)), key=lambda t: tau_signal(groups, t))]]
    return fit if len(fit) <= MAX_TAUS else [fit[0], fit[len(fit) // 2], fit[-1]]


def recommended_taps(groups: list[GroupMeasurement]) -> list[str]:
    """Maps that see some fault best of all maps, or on average at least 0.8 as much as the best map."""
    maps: dict[str, dict[str, float]] = {}
    for group in groups:
        if group.map == "input":  # comes from the feature set, whatever the taps
            continue
        by_fault = maps.setdefault(group.map, {})
        for fault in (*FAULTS, ONE_CLASS):
            if fault in group.separation:
                by_fault[fault] = max(by_fault.get(fault, -1.0), best_signal(group, fault))
    if not maps:
        return []
    mean = {name: sum(values.values()) / len(values) for name, values in maps.items()}
    faults = next(iter(maps.values()))
    kept = {max(maps, key=lambda name: maps[name][fault]) for fault in faults}
    kept |= {name for name, value in mean.items() if value >= 0.8 * max(mean.values())}
    return [name for name in maps if name in kept]


def _reasons(
    seen: dict[str, Seen], blind: list[str], measurement: EncoderMeasurement, chance: float | None
) -> list[str]:
    reasons = [
        f"blind to {fault} ({SAYS[fault]}): at most {seen[fault].best:.0%} of the drift is signal in any group"
        for fault in blind
    ]
    weakest = min(seen, key=lambda fault: seen[fault].strength)
    if not blind:
        reasons.append(
            f"sees every fault; {weakest} least: {seen[weakest].best:.0%} signal in {seen[weakest].group}, "
            f"{seen[weakest].mean:.0%} over all groups"
        )
    cosines = measurement.restoration
    worst = min(cosines, key=lambda fault: cosines[fault])
    reasons.append(
        f"its step in pixels mends {', '.join(f'{fault} {value:.2f}' for fault, value in cosines.items())} (cosine); "
        f"{worst} least"
    )
    if measurement.purity is None or chance is None:
        reasons.append("no labels: nothing is known about content (class purity, one class against all)")
    else:
        reasons.append(f"{measurement.purity:.0%} of the nearest neighbours share the class, {chance:.0%} by chance")
    return reasons


def _why_taus(groups: list[GroupMeasurement], taus: list[float]) -> str:
    parts = []
    for t, kernel in enumerate(groups[0].kernel):
        if kernel.tau in taus:
            perplexity = median(g.kernel[t].perplexity for g in groups)
            parts.append(f"{perplexity:.0f} points weigh in, {tau_signal(groups, t):.0%} signal")
    return "; ".join(parts)


def _input_size(input_size: int, blind_detail: list[str]) -> tuple[int, str]:
    if blind_detail and input_size < 224:
        larger = min(2 * input_size, 224)
        return larger, f"input {larger} px: at {input_size} px it is blind to {', '.join(blind_detail)}; probe it there"
    return input_size, f"input {input_size} px: as measured"

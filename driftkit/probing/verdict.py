"""From measured numbers to a verdict: a score to rank encoders by, reasons, and recommended settings.

The score was compared with trained generators (pipelines/README.md); it is one function for that reason.
"""

import math
from collections.abc import Mapping
from statistics import median

from driftkit.encoders.feature_sets import INPUT
from driftkit.probing.probe_images import CORRUPTIONS, ONE_CLASS
from driftkit.probing.probe_record import Detectability, EncoderMeasurement, GroupMeasurement, Verdict

ERRORS = {spec.name: spec.error for spec in CORRUPTIONS if not spec.is_control} | {
    ONE_CLASS: "a single kind of content"
}
DETAIL = ("noise", "blur", "checker")

BLIND = 0.15  # signal share that an undetected corruption reaches by chance, as the best of five temperatures
STRONG = 0.4
NEAREST_ONLY = 2.0  # perplexity below which one neighbour decides
UNIFORM = 0.95  # share of the candidates above which distance no longer matters
SILENT = 0.05  # mean signal share below which a temperature adds only noise to the loss
ALIGNED = 0.2  # mean pixel alignment that earns full marks
UNKNOWN_CONTENT = 0.3
GOOD, USABLE = 0.16, 0.12  # scores from which an encoder is called so
MANY_BLIND = 3  # corruptions that no group detects
MAX_TAUS = 3


def score(alignment: Mapping[str, float], purity_lift: float | None) -> float:
    """Expected worth of an encoder for drifting, 0 to 1; higher is better.

    Alignment: the step that the loss asks of the pixels must restore the images. Detectability does not count here:
    deep maps alone detect every corruption, yet their gradients restore nothing, and generators trained with them are
    the worst of all. Content: a kernel that puts images of one class next to each other pulls towards the right kind of
    image. It multiplies: untrained networks restore as much as trained ones, and their generators are far worse.

    Args:
        alignment: corruption -> cosine of the step in pixels with the step that undoes it.
        purity_lift: neighbour purity of the joined global vectors, 0 at chance and 1 at perfect. None where there are
            no labels: UNKNOWN_CONTENT replaces it, and such scores rank among themselves alone.
    """
    cosines = [max(value, 0.0) for value in alignment.values()]
    content = UNKNOWN_CONTENT if purity_lift is None else max(purity_lift, 0.0)
    return min(1.0, sum(cosines) / len(cosines) / ALIGNED) * content


def give_verdict(
    measurement: EncoderMeasurement, *, chance: float | None, input_size: int, random_weights: bool
) -> Verdict:
    """Verdict on an encoder measured on real data with inputs of `input_size` pixels.

    `chance` is the neighbour purity of features that know nothing; None where unlabelled.
    """
    detected = detectability(measurement)
    lift = None
    if measurement.purity is not None and chance is not None:
        lift = (measurement.purity - chance) / max(1 - chance, 1e-9)
    value = score(measurement.pixel_alignment, lift)
    blind = [name for name, d in detected.items() if d.best < BLIND]
    taus = recommended_taus(measurement.groups)
    taps = recommended_taps(measurement.groups)
    reasons = _reasons(detected, blind, measurement, chance)
    word = "good" if value >= GOOD else "usable" if value >= USABLE else "poor"
    if len(blind) >= MANY_BLIND:
        word = "poor"  # whatever else it knows, nothing trains what it does not detect
    elif word == "good" and (blind or random_weights):
        word = "usable"
    if random_weights:
        reasons.append("its weights were never trained: the numbers are those of the architecture, usable at most")
    reasons.append(f"temperatures {', '.join(f'{t:g}' for t in taus)}: {_why_taus(measurement.groups, taus)}")
    if taps:
        reasons.append(f"maps {', '.join(taps)}: each detects some corruption best, or nearly as well as the best map")
    size, why = _input_size(input_size, [name for name in blind if name in DETAIL])
    return Verdict(
        word=word,
        score=value,
        reasons=[*reasons, why],
        detectability=detected,
        groups={group.name: describe_group(group) for group in measurement.groups},
        taus=taus,
        taps=taps,
        input_size=size,
    )


def detectability(measurement: EncoderMeasurement) -> dict[str, Detectability]:
    """How well each corruption is detected by all groups together; "one class" where it was measured."""
    detected = {}
    for name in measurement.groups[0].separation:
        if name not in ERRORS:
            continue
        by_group = {group.name: best_signal(group, name) for group in measurement.groups}
        top = max(by_group, key=lambda group: by_group[group])
        best, mean = max(by_group[top], 0.0), max(sum(by_group.values()) / len(by_group), 0.0)
        detected[name] = Detectability(best, mean, top, math.sqrt(best * mean))
    return detected


def best_signal(group: GroupMeasurement, corruption: str) -> float:
    """Signal share of a corruption at the temperature that shows it best."""
    return max(group.separation[corruption].signal)


def describe_group(group: GroupMeasurement) -> str:
    """A few words: good, partial, weak or constant, what it is blind to, and temperatures that say nothing."""
    if group.effective_rank == 0:
        return "constant: the same for all images"
    signals = {name: best_signal(group, name) for name in group.separation if name in ERRORS}
    mean = sum(signals.values()) / len(signals)
    words = ["good" if mean >= STRONG else "partial" if mean >= 0.5 * STRONG else "weak"]
    blind = [name for name, value in signals.items() if value < BLIND]
    if blind:
        words.append("blind to " + ", ".join(blind))
    nearest = [f"{k.tau:g}" for k in group.kernel if k.perplexity < NEAREST_ONLY]
    uniform = [f"{k.tau:g}" for k in group.kernel if k.fraction > UNIFORM]
    if nearest:
        words.append("nearest only at " + ", ".join(nearest))
    if uniform:
        words.append("uniform at " + ", ".join(uniform))
    return "; ".join(words)


def tau_signal(groups: list[GroupMeasurement], t: int) -> float:
    """Mean over groups and corruptions of the signal share at the t-th temperature."""
    shares = [
        separation.signal[t] for group in groups for name, separation in group.separation.items() if name in ERRORS
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
    """Maps that detect some corruption best of all maps, or on average at least 0.8 as well as the best map."""
    maps: dict[str, dict[str, float]] = {}
    for group in groups:
        if group.map == INPUT:  # comes from the feature set, whatever the taps
            continue
        signals = maps.setdefault(group.map, {})
        for name in ERRORS:
            if name in group.separation:
                signals[name] = max(signals.get(name, -1.0), best_signal(group, name))
    if not maps:
        return []
    mean = {name: sum(values.values()) / len(values) for name, values in maps.items()}
    corruptions = next(iter(maps.values()))
    kept = {max(maps, key=lambda name: maps[name][corruption]) for corruption in corruptions}
    kept |= {name for name, value in mean.items() if value >= 0.8 * max(mean.values())}
    return [name for name in maps if name in kept]


def _reasons(
    detected: dict[str, Detectability], blind: list[str], measurement: EncoderMeasurement, chance: float | None
) -> list[str]:
    reasons = [
        f"blind to {name} ({ERRORS[name]}): at most {detected[name].best:.0%} of the drift is signal in any group"
        for name in blind
    ]
    weakest = min(detected, key=lambda name: detected[name].strength)
    if not blind:
        reasons.append(
            f"detects every corruption; {weakest} least: {detected[weakest].best:.0%} signal in "
            f"{detected[weakest].group}, {detected[weakest].mean:.0%} over all groups"
        )
    cosines = measurement.pixel_alignment
    lowest = min(cosines, key=lambda name: cosines[name])
    reasons.append(
        f"pixel alignment (cosine): {', '.join(f'{name} {value:.2f}' for name, value in cosines.items())}; "
        f"{lowest} is lowest"
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

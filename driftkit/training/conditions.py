"""What a generator is conditioned on: as it follows from the images it is trained with, and as samples ask for it."""

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from driftkit.config.layers import did_you_mean
from driftkit.datasets.packs import ImagePack
from driftkit.errors import ArtifactError, UsageError, shortened
from driftkit.methods.base import GenerativeConfig, MethodConfig
from driftkit.models.contract import GeneratorNetworkConfig, NetworkConfig
from driftkit.protocols import Condition
from driftkit.runtime.random import style_codes
from driftkit.storage.files import digest_json
from driftkit.storage.images import GRID_COLUMNS, GRID_IMAGES, MAX_CLASS_ROWS
from driftkit.storage.records import ClassCount

EVERY_CLASS = "all"
SHOWN_CLASSES, MAX_LABELLED = 20, 4  # names of classes in an error, and in a label
MAX_DIGITS = 9  # of a class's number
PLAIN_NAME = re.compile(r"[A-Za-z0-9.]+")  # of a class: as it is in names of files, where "-" joins several
STRIDE, PERIOD = 2_654_435_769, 2**32  # the nearest odd integer to 2^32 over the golden ratio


def conditioned_network(objective: MethodConfig, network: NetworkConfig, pack: ImagePack | None) -> NetworkConfig:
    """The network's config with what its conditions take from objective and images.

    Args:
        pack: the images; None where they are not known yet, which counts as one class.

    Raises UsageError where the network cannot be conditioned, or the images are not labelled.
    """
    class_conditional = isinstance(objective, GenerativeConfig) and objective.class_conditional
    guided = isinstance(objective, GenerativeConfig) and objective.trains_guidance
    if not isinstance(network, GeneratorNetworkConfig):
        if class_conditional:
            raise UsageError(f"`objective.class_conditional`: the network {network.kind} takes no labels; leave it out")
        return network
    num_classes = 0
    if class_conditional:
        num_classes = 1 if pack is None else len(class_counts(pack))
    known: dict[str, Any] = {"num_classes": num_classes, "guided": guided}
    for key, value in known.items():
        given = getattr(network, key)
        if given is not None and given != value and pack is not None:
            raise UsageError(f"model.{key} follows from the objective and the images, and is {value}; got {given}")
    return network.model_copy(update=known)


def class_counts(pack: ImagePack, training: torch.Tensor | None = None) -> tuple[ClassCount, ...]:
    """Name of every class, and the number of its images among those to train on, by index; None: all of the pack.

    Raises UsageError: an image of the pack has no label, or a class no image to train on.
    """
    unlabelled = int((pack.labels < 0).sum())
    if not pack.classes or unlabelled:
        what = "have no labels" if not pack.classes else f"include {unlabelled:,} without a label"
        raise UsageError(
            f"`objective.class_conditional`: the images of {pack.path} {what}; give images in class folders, or leave "
            "it out"
        )
    labels = pack.labels if training is None else pack.labels[training]
    counts = torch.bincount(labels, minlength=len(pack.classes)).tolist()
    empty = [name for name, count in zip(pack.classes, counts, strict=True) if not count]
    if empty:
        raise UsageError(f"`objective.class_conditional`: no image to train on is of the class {', '.join(empty[:3])}")
    return tuple(ClassCount(name=n, images=c) for n, c in zip(pack.classes, counts, strict=True))


@dataclass(frozen=True)
class SampleConditions:
    """What the images of a run are conditioned on: all of it is a function of the seed and an image's number.

    Attributes:
        network: None where it takes no condition.
        classes: those of the training images, in the order of labels; empty where the network takes no labels.
        asked: labels that the images get in turn; None: in the proportions of the training images.
        asked_classes: what was asked for, as it is recorded: names, or "all".
        guidance: its scale, 1 for none; None where the network takes neither labels nor a scale.
    """

    network: GeneratorNetworkConfig | None = None
    classes: Sequence[ClassCount] = ()
    asked: Sequence[int] | None = None
    asked_classes: tuple[str, ...] | None = None
    guidance: float | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(known.name for known in self.classes)

    @property
    def guides_sampler(self) -> bool:
        """Whether the sampler evaluates the network with and without class, since the network takes no scale."""
        return self.network is not None and not self.network.guided and self.guidance not in (None, 1)

    def labels(self, numbers: Iterable[int]) -> torch.Tensor | None:
        """Classes of images, int64 [N]; None where the network takes none."""
        if not self.classes:
            return None
        numbers = torch.tensor(list(numbers), dtype=torch.int64)
        if self.asked is not None:
            return torch.tensor(self.asked)[numbers % len(self.asked)]
        return proportional_labels(numbers, [known.images for known in self.classes])

    def of(self, numbers: Iterable[int], *, seed: int, stream: str, device: torch.device) -> Condition:
        """The condition of images; style codes are drawn from the stream."""
        numbers = list(numbers)
        if self.network is None:
            return Condition()
        labels, style = self.labels(numbers), None
        guidance = torch.full((len(numbers),), float(self.guidance or 1)) if self.network.guided else None
        if self.network.style_tokens:
            tokens, codes = self.network.style_tokens, self.network.style_codes
            style = style_codes(seed, stream, numbers, tokens=tokens, codes=codes)
        return Condition(*(None if values is None else values.to(device) for values in (labels, guidance, style)))


def sample_conditions(
    objective: MethodConfig,
    network: NetworkConfig,
    known: Sequence[ClassCount],
    *,
    classes: Sequence[str] | None = None,
    guidance: float | None = None,
) -> SampleConditions:
    """What is asked of a network that was trained with `objective` on images of the `known` classes.

    Args:
        classes: names or numbers of classes, or "all" alone, which the images get in turn; None: the proportions of the
            training images.
        guidance: its scale; None: 1.

    Raises:
        UsageError: an unknown class, or classes or a scale that the network does not take.
        ArtifactError: the network takes another number of classes, or a scale that it was not trained with.
    """
    generator = network if isinstance(network, GeneratorNetworkConfig) else None
    num_classes = 0 if generator is None else generator.num_classes or 0
    if classes is not None and not num_classes:
        raise UsageError(
            f"`classes` {','.join(classes)}: the run is unconditional; sample one trained with "
            "`objective.class_conditional`"
        )
    if num_classes and num_classes != len(known):
        raise ArtifactError(
            f"the network takes {num_classes} classes and the manifest names {len(known)}; it was edited or damaged"
        )
    guided = generator is not None and bool(generator.guided)
    if not num_classes and not guided:
        if guidance is not None:
            raise UsageError(
                f"`guidance` {guidance:g}: the run is unconditional; sample one trained with "
                "`objective.class_conditional`"
            )
        return SampleConditions(generator)
    scale = 1.0 if guidance is None else guidance
    _require_scale(objective, scale, guided=guided)
    names = [each.name for each in known]
    asked: Sequence[int] | None = None
    asked_classes: tuple[str, ...] | None = None
    if classes is not None and tuple(classes) == (EVERY_CLASS,):
        asked, asked_classes = range(num_classes), (EVERY_CLASS,)
    elif classes is not None:
        asked = [_label_of(word, names) for word in classes]
        asked_classes = tuple(names[label] for label in asked)
    return SampleConditions(generator, tuple(known), asked, asked_classes, scale)


def _require_scale(objective: MethodConfig, scale: float, *, guided: bool) -> None:
    """Refuse a guidance scale that the network was not trained for, or that is negative or not finite."""
    if not math.isfinite(scale) or scale < 0:
        raise UsageError(f"`guidance` {scale}: expected a finite number of at least 0; 1 is no guidance")
    trained = objective if isinstance(objective, GenerativeConfig) else GenerativeConfig()
    if guided:
        highest = trained.max_guidance
        if highest is None:
            raise ArtifactError(
                "the network takes a guidance scale and its objective trains with none; the manifest was edited or "
                "damaged"
            )
        if not 1 <= scale <= highest:
            raise UsageError(
                f"`guidance` {scale:g}: the network is trained with scales of 1 to {highest:g}; take one of them"
            )
    elif scale != 1 and not trained.trains_without_class:
        raise UsageError(
            f"`guidance` {scale:g}: the network is trained neither with scales (`objective.guidance_max`) nor without "
            "classes (`objective.label_dropout`), so that nothing can guide it; leave it out"
        )


def _label_of(word: str, names: Sequence[str]) -> int:
    """The label of a class by its name, else by its number."""
    if word in names:
        return names.index(word)
    if len(word) <= MAX_DIGITS and word.isascii() and word.isdecimal() and int(word) < len(names):
        return int(word)
    raise UsageError(
        f"`classes` {word:.80}: expected {EVERY_CLASS}, a number below {len(names)}, or some of "
        f"{shortened(names, SHOWN_CLASSES)}"
        f"{did_you_mean(word, names)}"
    )


def proportional_labels(numbers: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Labels, int64 [N], of images by their numbers, so that the first M of any M have classes nearly as `counts`.

    Image i stands at the fractional part of i times the golden ratio, in 32 bits, on a line that classes share in
    proportion to their counts. That sequence is evenly spread in every prefix.

    Source: the additive recurrence, Niederreiter 1992 (Random Number Generation and Quasi-Monte Carlo Methods),
    section 3.1. Differs: nothing.
    """
    ends, total = [], 0
    for count in counts:
        total += count
        ends.append(total * PERIOD // sum(counts))
    places = numbers % PERIOD * STRIDE % PERIOD  # the product wraps around at 2^64, which PERIOD divides
    return torch.searchsorted(torch.tensor(ends), places, right=True)


def conditions_label(classes: Sequence[str] | None, guidance: float | None) -> str:
    """What samples were asked for next to their sampler, for example " guidance=2 class=cat,dog"; or nothing."""
    words = "" if guidance is None or guidance == 1 else f" guidance={guidance:g}"
    if classes is None:
        return words
    more = [f"{len(classes) - MAX_LABELLED} more"] if len(classes) > MAX_LABELLED else []
    return f"{words} class={','.join([*classes[:MAX_LABELLED], *more])}"


def conditions_file_label(classes: Sequence[str] | None, guidance: float | None) -> str:
    """The same for names of files, of plain letters, with a digest where the label leaves classes out."""
    words = re.sub(r"[^A-Za-z0-9.-]+", "-", conditions_label(classes, guidance).replace("=", ""))
    complete = classes is None or (len(classes) <= MAX_LABELLED and all(map(PLAIN_NAME.fullmatch, classes)))
    return words if complete else f"{words}-{digest_json(list(classes or ()))[:8]}"


def grid_conditions(network: NetworkConfig, known: Sequence[ClassCount]) -> tuple[SampleConditions, int]:
    """Conditions of the images of a grid, and how many: 64, or of class-conditional networks a row of 8 per class.

    At most 10 classes are shown.
    """
    generator = network if isinstance(network, GeneratorNetworkConfig) else None
    if not known:
        return SampleConditions(generator), GRID_IMAGES
    asked = grid_labels(len(known))
    return SampleConditions(generator, tuple(known), asked, guidance=1.0), len(asked)


def grid_labels(num_classes: int) -> list[int]:
    """Labels of the images of a grid with a row per class."""
    return [label for label in range(min(num_classes, MAX_CLASS_ROWS)) for _ in range(GRID_COLUMNS)]

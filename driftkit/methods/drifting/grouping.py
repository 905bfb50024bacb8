"""Groups of a step: generated images and the real ones that they drift among, every group with a field of its own.

A group is unconditional, or of one class. Everything here is a function of (seed, step, number of the group), so that
neither the number of ranks nor a resumed run changes what a group is made of.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from driftkit.errors import UsageError
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.protocols import ChosenImages
from driftkit.runtime.random import generator_for, shuffled_indices

MIN_UNCONDITIONAL = 300  # generated images per unconditional group, below which a warning is worth its line
POSITIVES = re.compile(r"(?:(?P<count>[1-9][0-9]{0,6})(?:,|$))?(?:queue:(?P<queue>[1-9][0-9]{0,6}))?")


@dataclass(frozen=True)
class Groups:
    """Shape of a step of all ranks. Counts are per group."""

    count: int  # of groups
    generated: int
    positives: int  # real images, of the group's class
    unconditional: int  # real images of any class, which push
    queue: int | None = None  # positives are drawn from that many of the last images of a class; None: from all

    def advice(self, *, by_class: bool) -> list[str]:
        """A sentence where the groups are small for what they have to represent."""
        single = ["a single positive per group has no spread: collapse is not watched; `objective.positives` 2 will do"]
        if by_class or self.generated >= MIN_UNCONDITIONAL:
            return single if self.positives == 1 else []
        return [
            *(single if self.positives == 1 else []),
            f"{self.generated} generated images per group of no class: hours of training want groups of "
            f"{MIN_UNCONDITIONAL} and more (CIFAR-10: FID 6.7 with one group of 640, 10.2 with ten of 64), for which "
            "`trainer.micro_batch` makes room; minutes gain more from more steps",
        ]

    def share(self, world_size: int) -> "Groups":
        """The part of one rank: whole groups, or an equal part of the only one.

        Raises UsageError where ranks cannot share them so.
        """
        if self.count % world_size == 0:
            return replace(self, count=self.count // world_size)
        counts = (self.generated, self.positives, self.unconditional)
        if self.count > 1 or any(count % world_size for count in counts):
            raise UsageError(
                f"`objective.groups` {self.count}: {world_size} processes share groups as a whole, or the images of a "
                f"single one evenly; got {self.generated} generated, {self.positives} positives and "
                f"{self.unconditional} unconditional images per group; give a multiple of {world_size} groups"
            )
        generated, positives, unconditional = (count // world_size for count in counts)
        return Groups(1, generated, positives, unconditional, self.queue)


def step_groups(config: DriftingConfig, *, global_batch: int, num_classes: int) -> Groups:
    """The groups of a step.

    Args:
        global_batch: generated images of all ranks.
        num_classes: of the images; only read where the config is class-conditional.

    Raises UsageError where the batch cannot be split so.
    """
    count = config.groups or (num_classes if config.class_conditional else 1)
    if config.class_conditional and count > num_classes:
        raise UsageError(
            f"`objective.groups` {count}: a step has one group per class, and the images have {num_classes} classes"
        )
    if global_batch % count or global_batch < 2 * count:
        raise UsageError(
            f"`trainer.batch_size`: {global_batch} generated images of all processes cannot be split into {count} "
            f"groups of equal size, at least 2 each; give a multiple of {count}, or set `objective.groups`"
        )
    generated = global_batch // count
    number, queue = read_positives(config.positives)
    positives = number or generated
    if queue is not None and positives > queue:
        raise UsageError(f"`objective.positives`: a queue of {queue} images cannot give {positives}; give a longer one")
    return Groups(count, generated, positives, config.unconditional, queue)


def read_positives(text: str | None) -> tuple[int | None, int | None]:
    """`64`, `queue:128` or `64,queue:128` as the number of positives and the length of the queue."""
    match = POSITIVES.fullmatch(text or "")
    assert match is not None, "checked by the config"
    count, queue = match["count"], match["queue"]
    return count and int(count), queue and int(queue)  # type: ignore[return-value]


class GroupImages:
    """Which real images the groups of a step get.

    Args:
        groups: of all ranks.
        indices: of the images that are trained on, int64 [N].
        labels: of these images, int64 [N]; None: groups are unconditional.
        num_classes: that the images have; only read with labels.

    Raises UsageError where a class has too few images.
    """

    def __init__(self, groups: Groups, indices: torch.Tensor, labels: torch.Tensor | None, *, num_classes: int = 1):
        self.groups, self.indices, self.by_class = groups, indices, labels is not None
        self.labels = torch.zeros(len(indices), dtype=torch.long) if labels is None else labels
        self.num_classes = num_classes if self.by_class else 1
        labels = self.labels
        sizes = torch.bincount(labels, minlength=self.num_classes)
        self._offsets = torch.cat([sizes.new_zeros(1), sizes.cumsum(0)]).tolist()
        self._by_label = labels.argsort(stable=True)  # positions in `indices`, class by class
        self._orders: dict[tuple[str, int], tuple[int, torch.Tensor]] = {}  # the last epoch of every shuffled list
        self._queues: dict[int, list[torch.Tensor]] = {}
        needed = groups.queue or groups.positives
        least = int(sizes.min())
        if least < needed:
            what = f"a queue of {needed}" if groups.queue else f"{needed} positives without replacement"
            whose = "every class, and one has" if self.by_class else "them, and there are"
            raise UsageError(
                f"`objective.positives`: {what} per group need as many images of {whose} {least}; give fewer"
            )
        if groups.unconditional > len(indices):
            raise UsageError(
                f"`objective.unconditional` {groups.unconditional}: there are only {len(indices)} images; give fewer"
            )

    def classes(self, seed: int, step: int) -> torch.Tensor:
        """The classes of all groups of a step, int64 [groups], each at most once; -1 where unconditional.

        They come in shuffled epochs of whole steps: where the groups of a step do not divide the classes, the last few
        of an epoch are skipped, others each time.
        """
        count = self.groups.count
        if not self.by_class:
            return torch.full((count,), -1)
        epoch, turn = divmod(step, self.num_classes // count)
        order = torch.randperm(self.num_classes, generator=generator_for(seed, "classes", epoch))
        return order[turn * count : (turn + 1) * count]

    def choose(self, seed: int, step: int, rank: int, world_size: int) -> ChosenImages:
        """The images of a rank: the positives of its groups, group by group, then their unconditional images."""
        share = self.groups.share(world_size)
        whole = share.count * world_size == self.groups.count
        own = range(rank * share.count, (rank + 1) * share.count) if whole else range(1)
        part = 0 if whole else rank
        positives, unconditional = [], []
        classes = self.classes(seed, step).tolist()
        for group in own:
            chosen = self._positives(seed, step, group, classes[group])
            positives.append(chosen[part * share.positives : (part + 1) * share.positives])
            first = (step * self.groups.count + group) * self.groups.unconditional + part * share.unconditional
            unconditional.append(self._stream("unconditional", seed, first, share.unconditional))
        # Numbers within the step, by which they are mirrored: the positives of all groups, then the others.
        size, rest = share.count * share.positives, share.count * share.unconditional
        all_positives = self.groups.count * self.groups.positives
        numbers = [*range(rank * size, (rank + 1) * size)]
        numbers += range(all_positives + rank * rest, all_positives + (rank + 1) * rest)
        return ChosenImages(self.indices[torch.cat([*positives, *unconditional])], numbers)

    def _positives(self, seed: int, step: int, group: int, label: int) -> torch.Tensor:
        """Positions in `indices` of the positives of one group."""
        count = self.groups.positives
        if self.groups.queue is not None:
            queue = self._queue(seed, step, max(label, 0))
            return queue[torch.randperm(len(queue), generator=generator_for(seed, "queue", step, group))[:count]]
        if not self.by_class:
            return self._stream("shuffle", seed, (step * self.groups.count + group) * count, count)
        members = self._by_label[self._offsets[label] : self._offsets[label + 1]]
        visit = step // (self.num_classes // self.groups.count)  # how often the class had a group before, at most
        epoch, turn = divmod(visit, len(members) // count)
        order = self._order(f"positives {label}", seed, epoch, len(members))
        return members[order[turn * count : (turn + 1) * count]]

    def _stream(self, name: str, seed: int, first: int, count: int) -> torch.Tensor:
        """`count` positions from a place on in shuffled epochs of all images, one after another."""
        parts = [torch.empty(0, dtype=torch.long)]
        while count > 0:
            epoch, offset = divmod(first, len(self.indices))
            parts.append(self._order(name, seed, epoch, len(self.indices))[offset : offset + count])
            first, count = first + len(parts[-1]), count - len(parts[-1])
        return torch.cat(parts)

    def _order(self, name: str, seed: int, epoch: int, count: int) -> torch.Tensor:
        key = (name, epoch % 2)  # of the last two epochs: groups on both sides of a border take turns
        kept = self._orders.get(key)
        if kept is None or kept[0] != epoch:
            if name == "shuffle":
                order = shuffled_indices(seed, epoch, count)
            else:
                order = torch.randperm(count, generator=generator_for(seed, name, epoch))
            kept = self._orders[key] = epoch, order  # the feed's thread and a recorder may both be here
        return kept[1]

    def _queue(self, seed: int, step: int, label: int) -> torch.Tensor:
        """The last `queue` images of a class, after as many images as a step's positives were pushed in every step.

        Images are pushed in shuffled epochs, the first of which has gone by before the training begins. Around the end
        of an epoch an image may be in the queue twice, as in any queue.
        """
        pushed = len(self.indices) + (step + 1) * self.groups.count * self.groups.positives
        epoch, offset = divmod(pushed, len(self.indices))
        now = self._pushed(seed, epoch)[label]
        now = now[: int(torch.searchsorted(now, offset))]
        before = self._pushed(seed, epoch - 1)[label]
        places = [self._order("shuffle", seed, e, len(self.indices))[p] for e, p in ((epoch - 1, before), (epoch, now))]
        return torch.cat(places)[-int(self.groups.queue or 0) :]

    def _pushed(self, seed: int, epoch: int) -> list[torch.Tensor]:
        """Per class, the places of its images in an epoch, ascending."""
        kept = self._queues
        if epoch not in kept:
            labels = self.labels[self._order("shuffle", seed, epoch, len(self.indices))]
            sizes = torch.bincount(labels, minlength=self.num_classes).tolist()
            kept = {e: places for e, places in kept.items() if e == epoch - 1}
            kept[epoch] = list(labels.argsort(stable=True).split(sizes))
            self._queues = kept  # replaced as a whole, since the feed's thread reads it, too
        return kept[epoch]


def guidance_scales(config: DriftingConfig, seed: int, step: int, groups: Sequence[int]) -> torch.Tensor:
    """The guidance scale alpha of some groups of a step, float32 [groups], from p(alpha) ~ alpha^-k on [1, maximum].

    A share of them is 1. Source: arXiv 2602.04770, Appendix A.7. Differs: nothing.
    """
    drawn = [torch.rand(2, generator=generator_for(seed, "guidance", step, group)).tolist() for group in groups]
    return torch.tensor([1.0 if at_one < config.guidance_at_one else _scale(config, u) for at_one, u in drawn])


def _scale(config: DriftingConfig, u: float) -> float:
    """The quantile of p(alpha): the inverse of its cumulative distribution at u."""
    power, top = config.guidance_power, config.guidance_max
    if power == 1:
        return float(top**u)
    return float((1 + u * (top ** (1 - power) - 1)) ** (1 / (1 - power)))


def unconditional_weight(guidance: torch.Tensor, *, generated: int, unconditional: int) -> torch.Tensor:
    """Weight of every unconditional negative, w = (alpha - 1)(N - 1) / N_unc: [groups] -> [groups].

    Then the share of unconditional images among the negatives of a generated one is (alpha - 1) / alpha, N - 1 others
    being generated.

    Source: arXiv 2602.04770, Appendix A.7. Differs: nothing.
    """
    return (guidance - 1) * (generated - 1) / unconditional

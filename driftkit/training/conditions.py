"""What a generator is conditioned on, as it follows from the images it is trained with."""

from typing import Any

import torch

from driftkit.datasets.packs import ImagePack
from driftkit.errors import UsageError
from driftkit.methods.base import GenerativeConfig, MethodConfig
from driftkit.models.contract import GeneratorNetworkConfig, NetworkConfig
from driftkit.storage.records import ClassCount


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


def class_counts(pack: ImagePack) -> tuple[ClassCount, ...]:
    """Name and number of images of every class. Raises UsageError: an image has no label, or a class no image."""
    unlabelled = int((pack.labels < 0).sum())
    if not pack.classes or unlabelled:
        what = "have no labels" if not pack.classes else f"include {unlabelled:,} without a label"
        raise UsageError(
            f"`objective.class_conditional`: the images of {pack.path} {what}; give images in class folders, or leave "
            "it out"
        )
    counts = torch.bincount(pack.labels, minlength=len(pack.classes)).tolist()
    empty = [name for name, count in zip(pack.classes, counts, strict=True) if not count]
    if empty:
        raise UsageError(f"`objective.class_conditional`: no image is of the class {', '.join(empty[:3])}")
    return tuple(ClassCount(name=n, images=c) for n, c in zip(pack.classes, counts, strict=True))

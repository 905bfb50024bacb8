"""What a network's features come from, and whether one network may evaluate what another one trained.

Scores in the feature space of a relative of the training encoder flatter the run: what the encoder does not see, its
relatives do not see either.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from driftkit.storage.records import RunManifest

Degree = Literal["kin", "related", "independent"]
DEGREES: tuple[Degree, ...] = ("kin", "related", "independent")
PIXEL = "pixel"
UNTRAINED = ("random", "none")  # what stands for a digest where no weights were trained

IMAGENET_22K = ("ImageNet-22k", "ImageNet-1k")  # the former holds the latter
TAG_DATA = {
    "in1k": ("ImageNet-1k",),
    "fcmae": ("ImageNet-1k",),
    "in12k": IMAGENET_22K,
    "in21k": IMAGENET_22K,
    "in22k": IMAGENET_22K,
    "lvd142m": ("LVD-142M",),
    "lvd1689m": ("LVD-1689M",),
    "laion400m": ("LAION",),
    "laion2b": ("LAION",),
    "openai": ("WIT-400M",),
    "datacompxl": ("DataComp-XL",),
    "webli": ("WebLI",),
}
"""Words in the tags of timm's weights -> the images that they were trained on.

Collections from the web count as images of their own, though some (LVD-142M) hold those of ImageNet among others.
"""

FAMILIES = {"vision_transformer": "vit", "eva": "vit", "beit": "vit", "deit": "vit"}
"""Modules of timm that hold one family of networks between them."""


@dataclass(frozen=True)
class Lineage:
    """What a frozen network's features come from."""

    weights: str  # digest of the weights, or one of UNTRAINED
    architecture: str  # the network, for example "tf_efficientnet_lite0"; equal whatever the seed and the width
    family: str  # its kind of network, for example "efficientnet"
    # names of the image sets that trained it, empty where none did; None where nobody knows
    data: tuple[str, ...] | None
    labels: bool | None = None  # whether labels or captions were used; None where nobody knows

    def describe(self) -> dict[str, Any]:
        """As it is written down."""
        return {**asdict(self), "data": None if self.data is None else list(self.data)}


PIXELS = Lineage("none", PIXEL, PIXEL, ())
PIXEL_TERM = Lineage("none", "the pixels among the terms of the loss", PIXEL, ())
"""Of a feature set that has the image itself among its vectors."""


@dataclass(frozen=True)
class Kinship:
    """How near an evaluator is to a run's training encoder."""

    # kin (the same weights, or the same architecture trained on the same images), related (the same family of
    # networks, the same training images, or nobody knows) or independent
    degree: Degree
    reason: str  # in words

    @property
    def counts(self) -> bool:
        """Whether a score of this evaluator may decide anything."""
        return self.degree == "independent"


def read_lineage(document: Any) -> Lineage | None:
    """The lineage in a JSON value; None where it is none."""
    try:
        return TypeAdapter(Lineage).validate_python(document)
    except ValidationError:
        return None


def kinship(training_encoders: Sequence[Lineage | None], evaluator: Lineage | None) -> Kinship:
    """How near an evaluator is to the nearest of a run's training encoders.

    Among `training_encoders`, all that the training signal was computed with, None stands for one nobody knows; empty:
    a method without encoder. Nor is anything known of an evaluator that is None.
    """
    if not training_encoders:
        return Kinship("independent", "no training encoder")
    if evaluator is None:
        return Kinship("related", "what the evaluator was made of is not recorded")
    return min((_between(encoder, evaluator) for encoder in training_encoders), key=lambda k: DEGREES.index(k.degree))


def _between(encoder: Lineage | None, evaluator: Lineage) -> Kinship:
    if encoder is None:
        return Kinship("related", "the training encoder's origin is not recorded")
    if encoder.weights == evaluator.weights and encoder.weights not in UNTRAINED:
        return Kinship("kin", "the training encoder itself")
    untrained = {encoder.weights, evaluator.weights} <= set(UNTRAINED)
    shared = sorted(set(encoder.data or ()) & set(evaluator.data or ()))
    same = encoder.architecture == evaluator.architecture
    if same and (shared or untrained):
        of = f", trained on the same images ({', '.join(shared)})" if shared else ""
        return Kinship("kin", f"the training encoder's architecture ({evaluator.architecture}){of}")
    if encoder.family == evaluator.family:
        return Kinship("related", f"the same family ({evaluator.family}) as {encoder.architecture}")
    if shared:
        return Kinship("related", f"trained on the training encoder's images ({', '.join(shared)})")
    if encoder.data is None or evaluator.data is None:
        whose = "training encoder" if encoder.data is None else "evaluator"
        return Kinship("related", f"nobody knows which images trained the {whose}")
    return Kinship("independent", "another family of networks, trained on other images")


def training_encoders_of(manifest: RunManifest) -> list[Lineage | None]:
    """What a run's training signal was computed with, as its manifest records: nothing for a method without encoder.

    The encoder whose clusters are its classes counts, too, and so do those that taught the weights it was initialised
    from; each is named once.
    """
    before = manifest.initialised_from
    inherited = [read_lineage(entry) for entry in before.training_encoders] if before else []
    encoder = manifest.encoder
    own: list[Lineage | None]
    if encoder is None:
        own = [None] if "encoder" in _section(manifest.config, "objective") else []
    else:
        named = encoder.get("lineage")
        own = [read_lineage(entry) for entry in named] if isinstance(named, list) and named else [None]
    labelled = [] if manifest.label_encoder is None else [read_lineage(manifest.label_encoder)]
    return list(dict.fromkeys([*own, *labelled, *inherited]))  # each once, however often it taught


def lineage_of_run(manifest: RunManifest, digest: str) -> Lineage:
    """What a network trained here comes from, by the manifest of its run and the digest of its weights."""
    model = _section(manifest.config, "model")
    images: tuple[str, ...] | None = (images_of(manifest.image_digest),) if manifest.image_digest else None
    # A head or an embedding is there where labels train it.
    labels: bool | None = bool(model.get("num_classes")) and manifest.clusters is None
    earlier: list[Any] = [] if manifest.label_encoder is None else [manifest.label_encoder]
    if manifest.initialised_from is not None:
        earlier.append(manifest.initialised_from.lineage)
        before = read_lineage(manifest.initialised_from.lineage)
        labels = labels or (None if before is None else before.labels)
    for lineage in map(read_lineage, earlier):
        seen = None if lineage is None else lineage.data
        images = None if images is None or seen is None else tuple(dict.fromkeys([*images, *seen]))
    return Lineage(digest, str(model.get("kind")), str(model.get("kind")), images, labels)


def images_of(digest: str) -> str:
    """The name, in a lineage, of images that have this digest."""
    return f"images {digest[:12]}"


def _section(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = document.get(name)
    return found if isinstance(found, Mapping) else {}


def read_kinship(document: Any) -> Kinship:
    """The kinship in an evaluation; one that is not recorded decides nothing."""
    if isinstance(document, Mapping) and document.get("degree") in DEGREES:
        return Kinship(document["degree"], str(document.get("reason")))
    return Kinship("related", "how near evaluator and training encoder are is not recorded")


def data_of_tag(tag: str) -> tuple[str, ...] | None:
    """The image sets that a tag of timm's weights names, as in "augreg_in21k_ft_in1k"; None where it names none."""
    named = [name for word in tag.split("_") for name in TAG_DATA.get(word, ())]
    return tuple(dict.fromkeys(named)) or None


def family_of(network: Any) -> str:
    """The family of a timm network: the module that defines it, where several modules do not share one."""
    module = type(network).__module__.rpartition(".")[2]
    return FAMILIES.get(module, module)

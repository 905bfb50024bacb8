"""The kinds of encoders, and loading an encoder by name. A new kind is one file and one row of ENCODERS."""

import torch

from driftkit.config.layers import did_you_mean
from driftkit.encoders.encoder_config import EncoderCard, EncoderConfig
from driftkit.encoders.frozen_encoder import EncoderKind, FrozenEncoder
from driftkit.encoders.pixel import DETAILS_KIND, PIXEL_KIND, PYRAMID_KIND
from driftkit.encoders.timm_encoder import TIMM_KIND
from driftkit.encoders.trained_encoder import TRAINED_KIND
from driftkit.encoders.weights import PublishedFile
from driftkit.errors import NotFoundError, UsageError

ENCODERS: dict[str, EncoderKind] = {
    "pixel": PIXEL_KIND,
    "pixel-pyramid": PYRAMID_KIND,
    "pixel-details": DETAILS_KIND,
    "timm": TIMM_KIND,
    "trained": TRAINED_KIND,
}


def load_encoder(config: EncoderConfig, *, image_size: int = 32, device: torch.device | str = "cpu") -> FrozenEncoder:
    """The frozen encoder that a config describes.

    Args:
        image_size: side in pixels of the images to come; the input size of encoders that work at native resolution.
        device: where it runs; on the meta device random weights cost neither memory nor time.

    Raises:
        UsageError: no such encoder or layer, or an input size or map norm that does not fit it.
        ArtifactError: weights that are absent, unreadable or of another network.
        RefusedError: weights that are not finite.
    """
    return encoder_kind(config.encoder).load(config, image_size, torch.device(device))


def encoder_kind(name: str) -> EncoderKind:
    """The kind of the encoder of that name.

    Raises UsageError where there is none, NotFoundError where the name is a path and nothing is there.
    """
    kind = _accepting(name)
    if kind is not None:
        return kind
    expected = ", ".join([*encoder_names(), *(kind.pattern for kind in ENCODERS.values() if kind.pattern)])
    if "/" in name:
        raise NotFoundError(
            f"encoder {name}: no such folder; a MAE or classifier run makes one: driftkit train --objective mae"
        )
    shown = repr(name) if name.strip() else "an empty name"
    raise UsageError(f"`encoder`: got {shown}, expected {expected}{did_you_mean(name, encoder_names())}")


def encoder_names() -> tuple[str, ...]:
    """Every encoder that has a name of its own."""
    return tuple(name for kind in ENCODERS.values() for name in kind.names())


def encoder_cards() -> list[EncoderCard]:
    """What is known of every encoder that has a name of its own, with where its weights lie."""
    cards = []
    for kind in ENCODERS.values():
        for name in kind.names():
            card, file = kind.describe(name), kind.published(name)
            path = file.locate() if file else None
            if card:
                cards.append(card.model_copy(update={"weights": str(path) if path else None}))
    return cards


def names_a_place(name: str) -> bool:
    """Whether an encoder's name says where its files lie, whether or not they are there."""
    kind = _accepting(name)
    return kind is None or kind.is_place


def encoder_licence(name: str) -> str:
    """The licence of the weights of an encoder, as far as it is known, even where its files are elsewhere now."""
    return (_accepting(name) or TRAINED_KIND).licence(name)


def published_file(name: str) -> PublishedFile | None:
    """The file that the weights of an encoder are published in; None where there is none."""
    kind = _accepting(name)
    return None if kind is None else kind.published(name)


def _accepting(name: str) -> EncoderKind | None:
    """A folder may have the name of an encoder: names go first, whoever registered them."""
    kinds = sorted(ENCODERS.values(), key=lambda kind: kind.is_place)
    return next((kind for kind in kinds if kind.accepts(name)), None)

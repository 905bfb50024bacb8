"""Probing an encoder by name."""

from pathlib import Path
from typing import Any

from driftkit.encoders.loading import load_encoder
from driftkit.encoders.specs import SPECS
from driftkit.evaluation.probe import probe_shapes


def probe_encoder(
    name: str,
    *,
    image_size: int = 32,
    input_size: int | None = None,
    weights: Path | None = None,
    random_weights: bool = False,
    features: str | None = None,
) -> dict[str, Any]:
    """Load an encoder and report its shapes; arguments and errors are those of `load_encoder` and `probe_shapes`."""
    encoder = load_encoder(
        name, image_size=image_size, input_size=input_size, weights=weights, random_weights=random_weights
    )
    spec = SPECS.get(name)
    about = {"model": spec.model, "trained_by": spec.trained_by, "licence": spec.licence} if spec else {}
    return {**probe_shapes(encoder, image_size=image_size, features=features), **about}

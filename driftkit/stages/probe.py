"""Probing an encoder by name."""

from pathlib import Path
from typing import Any

from driftkit.artifacts.run import Run
from driftkit.encoders.loading import load_encoder
from driftkit.encoders.specs import SPECS
from driftkit.evaluation.probe import probe_shapes


def probe_encoder(
    name: str,
    *,
    image_size: int | None = None,
    input_size: int | None = None,
    weights: Path | None = None,
    random_weights: bool = False,
    features: str | None = None,
) -> dict[str, Any]:
    """Load an encoder and report its shapes; arguments and errors are those of `load_encoder` and `probe_shapes`.

    `image_size` None is 32, or for a MAE run the size it was trained at.
    """
    if image_size is None:
        trained_at = Run.open(Path(name)).manifest()["config"]["data"]["image_size"] if Path(name).is_dir() else None
        image_size = int(trained_at or 32)
    encoder = load_encoder(
        name, image_size=image_size, input_size=input_size, weights=weights, random_weights=random_weights
    )
    spec = SPECS.get(name)
    about = {"model": spec.model, "trained_by": spec.trained_by, "licence": spec.licence} if spec else {}
    return {**probe_shapes(encoder, image_size=image_size, features=features), **about}

"""What an encoder gives the drifting field, before GPU hours are spent on it."""

from typing import Any

import torch

from driftkit.encoders.features import feature_set, field_calls
from driftkit.encoders.networks import FrozenEncoder


def probe_shapes(encoder: FrozenEncoder, *, image_size: int, features: str | None = None) -> dict[str, Any]:
    """Maps and field calls of one image, found by running the encoder once.

    Args:
        image_size: side in pixels of the images the encoder would be given.
        features: name of the feature set; None takes the encoder's own.

    Returns:
        `encoder`, `parameters`, `input_size`, `feature_set`, `weights`; `maps`: name, channels, height, width and the
        number of feature vectors it gives; `field_calls`: channels and vectors of every batched field.
    """
    images = torch.zeros(1, 3, image_size, image_size)
    with torch.inference_mode():
        maps = encoder.maps(images)
        groups = feature_set(features or encoder.feature_set)(maps, images)
    shapes = {m.name: m.values.shape for m in maps}
    # Feature sets may add vectors of the image itself, which no map gives.
    shapes |= {g.map: images.shape for g in groups if g.map not in shapes}
    return {
        "encoder": encoder.name,
        "parameters": encoder.num_parameters,
        "input_size": encoder.input_size,
        "feature_set": features or encoder.feature_set,
        "weights": encoder.weights_digest,
        "maps": [
            {
                "name": name,
                "channels": shape[1],
                "height": shape[2],
                "width": shape[3],
                "vectors": sum(g.values.shape[0] for g in groups if g.map == name),
            }
            for name, shape in shapes.items()
        ],
        "field_calls": [{"channels": call.channels, "vectors": call.vectors} for call in field_calls(groups)],
    }

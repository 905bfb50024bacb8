"""What an encoder gives the drifting field, before GPU hours are spent on it: shapes, and the memory they take."""

from typing import Any

import torch

from driftkit.encoders.features import FieldCall, feature_set, field_calls
from driftkit.encoders.networks import FrozenEncoder
from driftkit.methods.drifting.precision import WAITS
from driftkit.methods.drifting.workspace import CHUNK_BYTES, field_flops, workspace_bytes

DEFAULT_TAUS = 3
FLOAT_BYTES = 4


def probe_shapes(
    encoder: FrozenEncoder, *, image_size: int, features: str | None = None, batch_size: int = 128
) -> dict[str, Any]:
    """Maps and field calls of one image, found by running the encoder once.

    Args:
        image_size: side in pixels of the images the encoder would be given.
        features: name of the feature set; None takes the encoder's own.
        batch_size: generated images per step, and as many real ones, of which the memory is told.

    Returns:
        `encoder`, `parameters`, `input_size`, `resize`, `map_norm`, `feature_set`, `weights`; `maps`: name, channels,
        height, width and the number of feature vectors it gives; `field_calls`: channels and vectors of every batched
        field;
        `field_gflop`: what their matrix products cost per step at three temperatures; `memory`: see
        `field_memory`.
    """
    device = next((b.device for b in [*encoder.parameters(), *encoder.buffers()]), torch.device("cpu"))
    images = torch.zeros(1, 3, image_size, image_size, device=device)
    with torch.inference_mode():
        maps = encoder.maps(images)
        groups = feature_set(features or encoder.feature_set)(maps, images)
    shapes = {m.name: m.values.shape for m in maps}
    # Feature sets may add vectors of the image itself, which no map gives.
    shapes |= {g.map: images.shape for g in groups if g.map not in shapes}
    calls = field_calls(groups)
    return {
        "encoder": encoder.name,
        "parameters": encoder.num_parameters,
        "input_size": encoder.input_size,
        "resize": encoder.resize_mode,
        "map_norm": encoder.map_norm,
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
        "field_calls": [{"channels": call.channels, "vectors": call.vectors} for call in calls],
        "field_gflop": [_field_gflop(call, batch_size) for call in calls],
        "memory": field_memory(calls, batch_size=batch_size),
    }


def _field_gflop(call: FieldCall, batch_size: int) -> float:
    """For `batch_size` generated and as many real images, with the usual number of temperatures."""
    one = field_flops(num_rows=batch_size, num_columns=2 * batch_size, channels=call.channels, num_taus=DEFAULT_TAUS)
    return call.vectors * one / 1e9


def field_memory(calls: list[FieldCall], *, batch_size: int) -> dict[str, Any]:
    """Bytes that the global batch takes beside the networks, estimated from shapes.

    Args:
        calls: the batched fields.
        batch_size: N generated and P = N real images, on all ranks together.

    Returns:
        `batch_size`; `features_bytes`: float32 features of the generated and the real images, held through the step;
        `field_chunk_bytes`: per kind of device, the workspace of the fields that are computed at a time.
    """
    features = sum(call.vectors * call.channels for call in calls) * 2 * batch_size * FLOAT_BYTES
    chunks = {}
    for device, budget in CHUNK_BYTES.items():
        chunks[device] = 0
        for call in calls:
            one = workspace_bytes(
                num_rows=batch_size,
                num_columns=2 * batch_size,
                channels=call.channels,
                num_taus=DEFAULT_TAUS,
                wait=device in WAITS,
            )
            chunks[device] = max(chunks[device], one * min(call.vectors, max(1, budget // one)))
    return {"batch_size": batch_size, "features_bytes": features, "field_chunk_bytes": chunks}

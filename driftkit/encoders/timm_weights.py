"""Putting weights into a network of timm, for training and scoring alike."""

import math
import sys
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from driftkit.encoders.lineage import Lineage, family_of
from driftkit.encoders.specs import EncoderSpec
from driftkit.errors import ArtifactError

DINOV2_OFFSET = 0.1  # positions, which the original code adds to the side of the grid of position embeddings


def own_tensors(spec: EncoderSpec, state: dict[str, torch.Tensor], network: Any, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file that belong to the encoder, under timm's names.

    Raises:
        ArtifactError: the file has none under the row's prefix.
    """
    if spec.rename is not None:
        return spec.rename(state, network)
    if not spec.weights_prefix:
        return state
    prefix = spec.weights_prefix
    inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not inner:
        raise ArtifactError(
            f"{path}: expected keys {prefix}* as in the official checkpoint, got {next(iter(state))} ..."
        )
    return {k: v for k, v in inner.items() if not k.startswith(spec.dropped_keys)}


def load_state(network: Any, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load `state` strictly, after timm's own renaming and resizing of position embeddings for that family.

    Those of DINOv2 are resized as its authors do, for training and scoring alike.

    Raises:
        ArtifactError: tensors are missing, unknown or of another shape.
    """
    if "dinov2" in network.pretrained_cfg.get("architecture", ""):
        state = _with_dinov2_positions(state, network)
    family = sys.modules[type(network).__module__]
    if hasattr(family, "checkpoint_filter_fn"):
        state = family.checkpoint_filter_fn(dict(state), network)
    expected = network.state_dict()
    classifier = network.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    state = {k: v for k, v in state.items() if not k.startswith(tuple(f"{h}." for h in heads))}
    problems = [f"lacks {k}" for k in expected if k not in state]
    problems += [f"has the unknown {k}" for k in state if k not in expected]
    problems += [
        f"{k} is {list(state[k].shape)}, not {list(tensor.shape)}"
        for k, tensor in expected.items()
        if k in state and state[k].shape != tensor.shape
    ]
    if problems:
        more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise ArtifactError(f"{path} does not fit {type(network).__name__}: {'; '.join(problems[:2])}{more}")
    network.load_state_dict(state)


def timm_lineage(spec: EncoderSpec, network: Any, digest: str) -> Lineage:
    """What the features of a timm network with weights of that digest come from."""
    architecture = spec.model.partition(".")[0]
    if digest == "random":
        return Lineage(digest, architecture, family_of(network), ())
    return Lineage(digest, architecture, family_of(network), spec.data, spec.supervised)


def _with_dinov2_positions(state: dict[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
    """The state with `pos_embed` for the grid of the network, where it is a square one of another size.

    Source: DINOv2's own code (arXiv 2304.07193): bicubic, not antialiased, by the scale (side_new + 0.1) / side. timm's
    resizing gives other features.
    """
    embedding = state.get("pos_embed")
    new_side = int(network.patch_embed.grid_size[0])
    if embedding is None or embedding.ndim != 3:
        return state
    side = math.isqrt(embedding.shape[1])
    prefix = embedding.shape[1] - side * side  # positions of the class token
    if prefix not in (0, 1) or side in (0, new_side):
        return state
    grid = embedding[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    scale = (new_side + DINOV2_OFFSET) / side
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return {**state, "pos_embed": torch.cat([embedding[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)}

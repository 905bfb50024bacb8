"""What a generator's network is conditioned on besides time: class, guidance scale and style codes."""

from dataclasses import dataclass

import torch
from torch import nn

from driftkit.models.blocks import TimeEmbedding, zero_initialised
from driftkit.models.contract import GeneratorNetworkConfig
from driftkit.protocols import Condition


class ConditionEmbedding(nn.Module):
    """The sum of the embeddings of a condition's parts, to be added to that of time.

    Args:
        config: which parts the network takes; the others have no parameters.
        channels: number of sines and cosines of the guidance scale.
        width: of the embeddings.

    Source: arXiv 2602.04770, Appendix A.2: class, guidance scale and style codes are added into the condition. Differs:
    the embedding of the guidance scale starts at zero instead of at 0.02 of its size.
    """

    def __init__(self, config: GeneratorNetworkConfig, *, channels: int, width: int):
        super().__init__()
        self.num_classes = config.num_classes or 0
        self.labels = nn.Embedding(self.num_classes + 1, width) if self.num_classes else None  # the last: no class
        self.guidance = TimeEmbedding(channels, width) if config.guided else None
        if self.guidance is not None:
            zero_initialised(self.guidance.mlp[-1])  # so that at first all scales are alike
        self.style_codes = config.style_codes
        self.style = nn.Embedding(config.style_tokens * config.style_codes, width) if config.style_tokens else None
        if self.style is not None:
            nn.init.normal_(self.style.weight, std=config.style_tokens**-0.5)  # their sum is of variance 1

    def forward(self, time: torch.Tensor, condition: Condition) -> torch.Tensor:
        """Add the condition's parts to the embedding of time: [N, width] -> [N, width].

        A part that is None stands for no class, scale 1, and the first style code. Labels are from -1 (no class) to
        num_classes - 1. Raises ValueError for a part that the network does not take.
        """
        for name, module in (("labels", self.labels), ("guidance", self.guidance), ("style", self.style)):
            if module is None and getattr(condition, name) is not None:
                raise ValueError(f"this network takes no {name}")
        n, device = time.shape[0], time.device
        if self.labels is not None:
            labels = condition.labels
            if labels is None:
                labels = torch.full((n,), -1, device=device)
            time = time + self.labels(torch.where(labels < 0, self.num_classes, labels))
        if self.guidance is not None:
            scale = condition.guidance
            time = time + self.guidance(torch.ones(n, device=device) if scale is None else scale)
        if self.style is not None:
            tokens = self.style.num_embeddings // self.style_codes
            codes = condition.style
            if codes is None:
                codes = torch.zeros((n, tokens), dtype=torch.long, device=device)
            first = self.style_codes * torch.arange(tokens, device=device)  # of each token's own codebook
            time = time + self.style(codes + first).sum(dim=1)
        return time


@dataclass(frozen=True)
class ConditionInputs:
    """The parts of a condition that a network takes, as inputs of an exported graph, with what they range over."""

    num_classes: int = 0
    guided: bool = False
    style_tokens: int = 0
    style_codes: int = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the parts, in the order of `Condition`."""
        taken = (bool(self.num_classes), self.guided, bool(self.style_tokens))
        return tuple(name for name, takes in zip(Condition._fields, taken, strict=True) if takes)

    def example(self, count: int) -> tuple[torch.Tensor, ...]:
        """Values of the parts for `count` images: no class and all classes in turn, several scales, all codes."""
        numbers = torch.arange(count)
        values = {
            "labels": numbers % (self.num_classes + 1) - 1,
            "guidance": 1.0 + numbers % 3,
            "style": (numbers[:, None] + torch.arange(self.style_tokens)) % max(1, self.style_codes),
        }
        return tuple(values[name] for name in self.names)


def condition_inputs(network: nn.Module) -> ConditionInputs:
    """What the `ConditionEmbedding` of a network takes; nothing where the network has none."""
    embedding = next((part for part in network.modules() if isinstance(part, ConditionEmbedding)), None)
    if embedding is None:
        return ConditionInputs()
    tokens = 0 if embedding.style is None else embedding.style.num_embeddings // embedding.style_codes
    return ConditionInputs(embedding.num_classes, embedding.guidance is not None, tokens, embedding.style_codes)

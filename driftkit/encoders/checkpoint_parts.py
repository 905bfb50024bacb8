"""Which tensors of a checkpoint are the encoder's: training puts it into other modules, and other parts next to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from driftkit.errors import shortened

TAKEN_FIRST = ("teacher", "ema", "model_ema", "ema_model", "encoder_q", "base_encoder")
"""Of several copies of the encoder in one file: averages are better encoders, then comes the one that was trained."""
WRAPPERS = (
    *TAKEN_FIRST, "module", "_orig_mod", "backbone", "encoder", "model", "student", "encoder_k", "momentum_encoder",
)  # fmt: skip
"""Names of modules that an encoder is put into, so that its keys begin with them, as in `module.encoder_q.`."""
OTHER_PARTS = {
    *WRAPPERS, "head", "heads", "fc", "classifier", "linear", "mlp_head", "dino_head", "ibot_head", "last_layer",
    "projector", "projection_head", "predictor", "prototypes", "queue", "queue_ptr", "n_averaged",
}  # fmt: skip
"""Names of modules and buffers next to an encoder."""

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class EncoderPart:
    """The tensors of a state dict that one prefix gives an encoder."""

    prefix: str  # of their keys in the state dict
    tensors: dict[str, torch.Tensor]  # by their keys without the prefix
    num_problems: int  # differences to the encoder's own tensors; 0: it fits

    @property
    def place(self) -> str:
        """The prefix, for messages."""
        return self.prefix or "keys without prefix"


def encoder_parts(state: Tensors, count_problems: Callable[[Tensors], int], *, usual: str = "") -> list[EncoderPart]:
    """What every prefix in a state dict gives, the best first.

    Args:
        state: tensors by key.
        count_problems: differences between tensors, under keys without prefix, and what the encoder needs.
        usual: prefix in the published file of this encoder, which is preferred where it fits.
    """

    def rank(part: EncoderPart) -> tuple[int, bool, int]:
        words = part.prefix.split(".")
        first = min((TAKEN_FIRST.index(word) for word in words if word in TAKEN_FIRST), default=len(TAKEN_FIRST))
        return part.num_problems, not (usual and part.prefix == usual), first

    found = {"": None, **{prefix: None for key in state for prefix in _prefixes(key)}}
    return sorted((_part(state, prefix, count_problems) for prefix in found), key=rank)


def left_out(state: Tensors, taken: EncoderPart) -> str:
    """Names of the parts of a state dict that are not taken, for a message; empty where there are none."""
    names: dict[str, None] = {}
    for key in state:
        if not (key.startswith(taken.prefix) and key.removeprefix(taken.prefix) in taken.tensors):
            around = _prefixes(key)[-1]
            inner = key.removeprefix(around).partition(".")[0] if taken.prefix.startswith(around) else ""
            names[(around + inner).rstrip(".")] = None
    return shortened(list(names))


def _part(state: Tensors, prefix: str, count_problems: Callable[[Tensors], int]) -> EncoderPart:
    """What is under the prefix, without those parts next to the encoder that do not fit."""
    tensors = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    num_problems = count_problems(tensors)
    for name in {key.partition(".")[0]: None for key in tensors}:
        if num_problems and name in OTHER_PARTS:
            fewer = {key: tensor for key, tensor in tensors.items() if key.partition(".")[0] != name}
            if (remaining := count_problems(fewer)) < num_problems:
                tensors, num_problems = fewer, remaining
    return EncoderPart(prefix, tensors, num_problems)


def _prefixes(key: str) -> list[str]:
    """The prefixes of a key that are of wrappers alone: "", "module.", "module.encoder_q."."""
    prefixes = [""]
    for word in key.split(".")[:-1]:
        if word not in WRAPPERS:
            break
        prefixes.append(f"{prefixes[-1]}{word}.")
    return prefixes

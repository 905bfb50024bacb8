"""Building an encoder by name and putting weights into it, from a local file, the hub cache or the hub.

Weights that are missing are an error. Random ones are used only where they are asked for.
"""

import difflib
import hashlib
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from driftkit.artifacts.run import Run
from driftkit.encoders.networks import FrozenEncoder, MAEEncoder, PixelEncoder, TimmEncoder, check_input_size
from driftkit.encoders.specs import PIXEL, SPECS, EncoderSpec, names
from driftkit.encoders.weights import fetch, read_weights
from driftkit.errors import MissingError, UsageError
from driftkit.nn.mae_resnet import MAEResNet, MAEResNetConfig


def load_encoder(
    name: str,
    *,
    image_size: int = 32,
    input_size: int | None = None,
    weights: Path | None = None,
    random_weights: bool = False,
    device: torch.device | str = "cpu",
) -> FrozenEncoder:
    """The frozen encoder of that name, or of the MAE run in that folder.

    Args:
        name: a row of the table, `pixel`, or the folder of a MAE run.
        image_size: side in pixels of the images to come; the input size of encoders that work at native resolution.
        input_size: side in pixels to which images are resized; None takes the encoder's own.
        weights: a local file of weights: safetensors, or a torch file, of which only tensors are read.
        random_weights: leave the network at its seeded initialisation, for timing and tests.

    Raises:
        UsageError: no such encoder, or an input size that does not fit it.
        MissingError: weights that are absent, unreadable or of another network.
    """
    if name not in SPECS and (weights is not None or random_weights):
        what = "has no weights" if name == PIXEL else "brings its own weights"
        raise UsageError(f"encoder {name} {what}: leave out --encoder-weights and --random-weights")
    if name == PIXEL:
        return PixelEncoder(input_size=input_size or image_size).to(device)
    if name in SPECS:
        spec = SPECS[name]
        size = input_size or spec.input_size
        check_input_size(spec, size)
        return _load_timm(spec, input_size=size, weights=weights, random_weights=random_weights).to(device)
    if Path(name).is_dir():
        return load_run_encoder(Path(name), input_size=input_size, device=device)
    if "/" in name:
        raise MissingError(f"encoder {name}: no such folder; a MAE run makes one: driftkit train --objective mae")
    close = difflib.get_close_matches(name, names(), n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise UsageError(f"encoder {name!r}: expected {', '.join(names())} or the folder of a MAE run{hint}")


def load_run_encoder(path: Path, *, input_size: int | None = None, device: torch.device | str = "cpu") -> FrozenEncoder:
    """The EMA encoder of a MAE run, at the image size it was trained at.

    Raises:
        MissingError: no run there, or one without a checkpoint.
        UsageError: a run of another objective.
    """
    run = Run.open(path)
    config = run.manifest()["config"]
    if config["objective"]["name"] != "mae":
        raise UsageError(
            f"{path} was trained with objective {config['objective']['name']}; an encoder comes from a mae run"
        )
    network = MAEResNet(MAEResNetConfig.model_validate(config["model"]))
    state = run.checkpoint().weights("ema")
    network.load_state_dict(state)
    encoder = MAEEncoder(str(path), network, input_size=input_size or int(config["data"]["image_size"]))
    encoder.weights_digest = state_digest(state)
    encoder.freeze()
    return encoder.to(device)


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Hex sha256 over names, shapes and bytes of the tensors, in order of the names."""
    digest = hashlib.sha256()
    for key in sorted(state):
        tensor = state[key].detach().cpu().contiguous()
        digest.update(f"{key} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_timm(spec: EncoderSpec, *, input_size: int, weights: Path | None, random_weights: bool) -> FrozenEncoder:
    import timm

    options: dict[str, Any] = {"img_size": input_size} if spec.model.startswith("vit_") else {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a run with random weights must find the same ones when it resumes
        network = timm.create_model(spec.model, pretrained=False, num_classes=0, **options)
    encoder = TimmEncoder(spec, network, input_size=input_size)
    if random_weights:
        if weights is not None:
            raise UsageError("--random-weights and --encoder-weights exclude each other: give one of them")
        encoder.random_weights = True
        encoder.weights_digest = "random"
    else:
        path = weights or fetch(spec)
        state = _encoder_keys(spec, read_weights(path), path)
        encoder.weights_digest = state_digest(state)
        _put_in(network, state, path)
    encoder.freeze()
    return encoder


def _encoder_keys(spec: EncoderSpec, state: dict[str, torch.Tensor], path: Path) -> dict[str, torch.Tensor]:
    if not spec.weights_prefix:
        return state
    prefix = spec.weights_prefix
    inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not inner:
        raise MissingError(
            f"{path}: expected keys {prefix}* as in the official checkpoint, got {next(iter(state))} ..."
        )
    return {k: v for k, v in inner.items() if not k.startswith(spec.dropped_keys)}


def _put_in(network: Any, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load `state` strictly, after timm's own renaming and resizing of position embeddings for that family."""
    family = sys.modules[type(network).__module__]
    if hasattr(family, "checkpoint_filter_fn"):
        state = family.checkpoint_filter_fn(dict(state), network)
    wanted = network.state_dict()
    classifier = network.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    state = {k: v for k, v in state.items() if not k.startswith(tuple(f"{h}." for h in heads))}
    problems = [f"lacks {k}" for k in wanted if k not in state]
    problems += [f"has the unknown {k}" for k in state if k not in wanted]
    problems += [
        f"{k} is {list(state[k].shape)}, not {list(wanted[k].shape)}"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    if problems:
        more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
        raise MissingError(f"{path} does not fit {type(network).__name__}: {'; '.join(problems[:2])}{more}")
    network.load_state_dict(state)

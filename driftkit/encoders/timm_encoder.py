"""Encoders that timm builds: one class for the rows of `specs` and for any other model of timm."""

import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from driftkit.config.layers import did_you_mean
from driftkit.encoders.checkpoint_parts import EncoderPart, encoder_parts, left_out
from driftkit.encoders.encoder_config import EncoderCard, EncoderConfig, Resize
from driftkit.encoders.folding import fold_norms
from driftkit.encoders.frozen_encoder import EncoderKind, FrozenEncoder, layer_normalised, require_taps
from driftkit.encoders.lineage import Lineage, data_of_tag, family_of
from driftkit.encoders.specs import NORMALISATIONS, SPECS, TIMM_PREFIX, EncoderSpec
from driftkit.encoders.weights import fetch, published, read_weights, unless_changed
from driftkit.errors import ArtifactError, UsageError, shortened
from driftkit.models.registry import tensor_differences
from driftkit.protocols import FeatureMap
from driftkit.runtime.device import ieee_float32
from driftkit.runtime.readback import require_finite
from driftkit.runtime.terminal import say_once
from driftkit.storage.files import state_digest


class TimmEncoder(FrozenEncoder):
    """A timm model with its weights and without classifier, read at its taps. Layers behind the last tap are dropped.

    Raises UsageError where the row wants the final norm, and the network has none for these taps.
    """

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, spec: EncoderSpec, network: Any, *, input_size: int, resize_mode: Resize = "bicubic"):
        super().__init__(
            spec.name,
            input_size=input_size,
            feature_set=spec.feature_set,
            map_norm=spec.map_norm,
            resize_mode=resize_mode,
        )
        if spec.map_norm == "final":
            _require_final_norm(spec, network)
        self.spec = spec
        self.network: Any = network  # a timm model: has pretrained_cfg and forward_intermediates
        cfg = network.pretrained_cfg
        mean, std = NORMALISATIONS.get(spec.normalisation, (cfg["mean"], cfg["std"]))
        self.register_buffer("mean", torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self._float32_only = False  # whatever the autocast
        self._options: dict[str, Any] = {"norm": True} if spec.map_norm == "final" else {}
        if spec.reading == "class token":
            self._options["return_prefix_tokens"] = True
        network.prune_intermediate_layers([index for _, index in spec.taps], prune_norm=spec.map_norm != "final")

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "model": self.spec.model,
            "taps": [f"{name}={index}" for name, index in self.spec.taps],
            "reading": self.spec.reading,
            "mean": self.mean.flatten().tolist(),
            "std": self.std.flatten().tolist(),
        }

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        outputs = self._read(images)
        return [FeatureMap(name, values) for (name, _), values in zip(self.spec.taps, outputs, strict=True)]

    def prepare(self, device: torch.device, dtype: torch.dtype) -> None:
        # On CPUs the backward pass of grouped convolutions in bfloat16 takes twice the time of float32 (torch 2.15).
        grouped = any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in self.network.modules())
        self._float32_only = device.type == "cpu" and grouped
        noise = torch.randn(1, 3, self.input_size, self.input_size, generator=torch.Generator().manual_seed(0))
        images = noise.to(self.mean.device)
        with ieee_float32(images.device) if not images.is_meta else contextlib.nullcontext():
            fold_norms(self.network, lambda: self._read(images))
        super().prepare(device, torch.float32 if self._float32_only else dtype)

    def _read(self, images: torch.Tensor) -> list[torch.Tensor]:
        inputs = (self._resized(images) / 2 + 0.5 - self.mean) / self.std
        with torch.autocast("cpu", enabled=False) if self._float32_only else contextlib.nullcontext():
            outputs = self.network.forward_intermediates(
                inputs.float() if self._float32_only else inputs,
                indices=[index for _, index in self.spec.taps],
                intermediates_only=True,
                output_fmt="NCHW",
                **self._options,
            )
        if self.spec.reading == "class token":  # (map, prefix tokens [N, K, C]), the first of which is the class token
            outputs = [prefix[:, 0, :, None, None] for _, prefix in outputs]
        return [layer_normalised(values) if self.map_norm == "layer" else values for values in outputs]

    def _products(self) -> tuple[type[nn.Module], ...]:
        from timm.layers import Conv2dSame, Linear

        return *super()._products(), Conv2dSame, Linear


def spec_of(name: str) -> EncoderSpec:
    """The row of that name, or the one that `timm_spec` makes; raises as that."""
    return SPECS[name] if name in SPECS else timm_spec(name)


def timm_spec(name: str) -> EncoderSpec:
    """A row for any timm model: taps at the quarter points of a plain network, at the last four stages of another.

    Raises UsageError where timm has no such model, or it gives no feature maps.
    """
    import timm

    model = name.removeprefix(TIMM_PREFIX)
    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        hint = did_you_mean(f"{TIMM_PREFIX}{architecture}", (f"{TIMM_PREFIX}{known}" for known in timm.list_models()))
        raise UsageError(f"encoder {name}: timm has no model {architecture}{hint}")
    tags = timm.list_models(f"{architecture}.*", pretrained=True)
    if "." in model and model not in tags:
        raise UsageError(f"encoder {name}: timm has no such weights; it has {', '.join(tags) or 'none of this model'}")
    cfg = timm.models.get_pretrained_cfg(model)
    with torch.device("meta"):
        network = timm.create_model(model, pretrained=False, num_classes=0)
    if not hasattr(network, "forward_intermediates"):
        raise UsageError(f"encoder {name}: this timm model gives no intermediate maps; choose another")
    layers = _layers(network)
    is_plain = len({stride for _, _, stride in layers}) == 1
    if is_plain:
        chosen = sorted({max(1, round(len(layers) * quarter / 4)) - 1 for quarter in (1, 2, 3, 4)})
    else:
        chosen = list(range(len(layers)))[-4:]
    return EncoderSpec(
        name,
        model,
        tuple(layers[i][:2] for i in chosen),
        tuple(layers[i][2] for i in chosen),
        parameters=sum(p.numel() for p in network.parameters()),
        feature_set="multires",
        trained_by=f"timm, {cfg.tag}" if cfg and cfg.tag else "timm, no published weights",
        supervised=None,
        data=data_of_tag(cfg.tag) if cfg and cfg.tag else None,
        licence=str(cfg.license or "see the model card of timm") if cfg else "none",
        input_size=int(cfg.input_size[-1]) if cfg else 224,
        normalisation="other",
        any_size=not getattr(cfg, "fixed_input_size", False) or not is_plain,
    )


def _load(config: EncoderConfig, image_size: int, device: torch.device) -> FrozenEncoder:
    if config.random_weights and config.encoder_weights is not None:
        raise UsageError("`random_weights` and `encoder_weights` exclude each other: give one of them")
    spec = spec_of(config.encoder)
    given = None if config.encoder_weights is None else Path(config.encoder_weights)
    # Before seconds go into a network without them.
    path = None if config.random_weights else given or fetch(spec)
    if config.taps:
        spec = _with_taps(spec, config.taps)
    if config.map_norm:
        spec = replace(spec, map_norm=config.map_norm)
    size = config.input_size or spec.input_size
    _check_input_size(spec, size)
    network = _create(spec.model, size, device)
    digest = "random"
    if path is not None:
        state = own_tensors(spec, read_weights(path, partial(fits, spec, network)), network, path)
        require_finite(state, f"{path}: weights", fix="remove the file to have it fetched again, or give another")
        digest = state_digest(state)
        load_state(network, state, path)
    encoder = TimmEncoder(spec, network, input_size=size, resize_mode=config.resize)
    encoder.random_weights, encoder.weights_digest = config.random_weights, digest
    encoder.lineage = timm_lineage(spec if given is None else unless_changed(spec, given), network, digest)
    encoder.freeze()
    return encoder.to(device)


def _create(model: str, input_size: int, device: torch.device) -> Any:
    """The timm model with seeded random weights; on the meta device with none, which costs no memory and no time."""
    import timm

    cfg = timm.models.get_pretrained_cfg(model)
    options: dict[str, Any] = {"img_size": input_size} if cfg is not None and cfg.fixed_input_size else {}
    place = torch.device("meta" if device.type == "meta" else "cpu")
    with place, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a run with random weights must find the same ones when it resumes
        return timm.create_model(model, pretrained=False, num_classes=0, **options)


def _layers(network: Any) -> list[tuple[str, int, int]]:
    """Layers that can be tapped: name, index in `forward_intermediates`, stride in pixels."""
    info = _feature_info(network)
    same = len({entry["reduction"] for entry in info}) == 1
    lasts = [str(entry["module"]).rpartition(".")[2] for entry in info]
    names = [
        last if not last.isdigit() else f"{'block' if same else 'stage'}{index + 1}" for index, last in enumerate(lasts)
    ]
    if len(set(names)) < len(names):  # terms of the loss go by these names
        names = [str(entry["module"]).replace("/", ".") for entry in info]
    if len(set(names)) < len(names):
        names = [f"{name}-{index}" for index, name in enumerate(names)]
    return [(name, index, int(entry["reduction"])) for index, (name, entry) in enumerate(zip(names, info, strict=True))]


def _feature_info(network: Any) -> list[dict[str, Any]]:
    return [dict(entry) for entry in getattr(network.feature_info, "info", network.feature_info)]


def _with_taps(spec: EncoderSpec, taps: Sequence[str]) -> EncoderSpec:
    layers = {layer[0]: layer for layer in _layers(_create(spec.model, spec.input_size, torch.device("meta")))}
    chosen = [layers[name] for name in require_taps(spec.name, taps, list(layers))]
    return replace(
        spec, taps=tuple((name, index) for name, index, _ in chosen), strides=tuple(stride for *_, stride in chosen)
    )


def _require_final_norm(spec: EncoderSpec, network: Any) -> None:
    norm = getattr(network, "norm", None)
    width = getattr(norm, "normalized_shape", (None,))[-1]
    if width is None:
        raise UsageError(f"`map_norm` final: {spec.name} has no final norm; expected none or layer")
    info = _feature_info(network)
    for name, index in spec.taps:
        channels = info[index]["num_chs"]
        if channels != width:
            raise UsageError(
                f"`map_norm` final: the final norm of {spec.name} takes {width} channels, {name} has {channels}; "
                "expected none or layer, or other `taps`"
            )


def _check_input_size(spec: EncoderSpec, input_size: int) -> None:
    """Raise UsageError, naming the nearest sizes that fit, unless the patch divides the input size."""
    if input_size >= spec.patch and input_size % spec.patch == 0:
        return
    below = max(spec.patch, input_size // spec.patch * spec.patch)
    above = (input_size // spec.patch + 1) * spec.patch
    nearest = " or ".join(str(s) for s in sorted({below, above}))
    raise UsageError(f"`input_size` {input_size}: {spec.name} needs a multiple of {spec.patch}, for example {nearest}")


def _describe(name: str) -> EncoderCard:
    spec = spec_of(name)  # most of its fields are those of the card
    return EncoderCard(**{**vars(spec), "maps": tuple(name for name, _ in spec.taps)})


TIMM_KIND = EncoderKind(
    pattern=f"{TIMM_PREFIX}MODEL",
    accepts=lambda name: name in SPECS or name.startswith(TIMM_PREFIX),
    load=_load,
    names=lambda: tuple(SPECS),
    describe=_describe,
    licence=lambda name: spec_of(name).licence,
    published=lambda name: published(spec_of(name)),
    fetch=lambda name: fetch(spec_of(name)),
)


SHOWN = 3  # keys, and differences, in a message about weights that do not fit
DINOV2_OFFSET = 0.1  # positions, which the original code adds to the side of the grid of position embeddings


def own_tensors(spec: EncoderSpec, state: dict[str, torch.Tensor], network: Any, path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a weights file that belong to the encoder, under timm's or the authors' names.

    Programs that train put an encoder into other modules, with which its keys then begin. Of the prefixes that occur,
    one is taken under which all its tensors are there in their shapes; a line on stderr says what is left out.

    Raises ArtifactError, with names and shapes of both sides, where there is none.
    """
    taken, *others = _parts(spec, network, state)
    tensors = _renamed(spec, network, taken.tensors)
    if taken.num_problems:
        has, expected = (", ".join(list(keys)[:SHOWN]) for keys in (state, network.state_dict()))
        raise ArtifactError(
            f"{path} does not fit {type(network).__name__}: {_shown_differences(network, tensors)}; its first keys are "
            f"{has}; expected {expected}, perhaps after {spec.weights_prefix or 'module. or another prefix'}"
        )
    others_that_fit = ", ".join(part.place for part in others if part.num_problems == 0)
    rest = left_out(state, taken)
    if rest and not (taken.prefix and taken.prefix == spec.weights_prefix):
        also = f", where {others_that_fit} would fit as well" if others_that_fit else ""
        say_once(f"{path}: takes {taken.place}{also}; left out: {rest}")
    return tensors


def fits(spec: EncoderSpec, network: Any, state: dict[str, torch.Tensor]) -> bool:
    """Whether `own_tensors` finds the encoder in a state dict."""
    return _parts(spec, network, state)[0].num_problems == 0


def _parts(spec: EncoderSpec, network: Any, state: dict[str, torch.Tensor]) -> list[EncoderPart]:
    def count(tensors: Mapping[str, torch.Tensor]) -> int:
        return len(_differences(network, _renamed(spec, network, tensors)))

    return encoder_parts(state, count, usual=spec.weights_prefix)


def _renamed(spec: EncoderSpec, network: Any, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    kept = {key: tensor for key, tensor in tensors.items() if not key.startswith(spec.dropped_keys)}
    return kept if spec.rename is None else spec.rename(kept, network)


def load_state(network: Any, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load `state` strictly, after timm's own renaming and resizing of position embeddings for that family.

    Those of DINOv2 are resized as its authors do, for training and scoring alike. Raises ArtifactError where tensors
    are missing, unknown or of another shape.
    """
    if _differences(network, state):
        raise ArtifactError(f"{path} does not fit {type(network).__name__}: {_shown_differences(network, state)}")
    network.load_state_dict(_in_names_of(network, state))


def _shown_differences(network: Any, state: Mapping[str, torch.Tensor]) -> str:
    return shortened(_differences(network, state), SHOWN, "; ")


def _differences(network: Any, state: Mapping[str, torch.Tensor]) -> list[str]:
    """In what tensors are not those of the network, once they are renamed."""
    return tensor_differences({k: v.shape for k, v in network.state_dict().items()}, _in_names_of(network, state))


def _in_names_of(network: Any, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors of timm or of the authors under the network's names, in its shapes, without the classifier."""
    tensors = dict(state)
    family = sys.modules[type(network).__module__]
    # On tensors of another network they may raise anything; these stay as they are, unlike the network's.
    with contextlib.suppress(Exception):
        if "dinov2" in network.pretrained_cfg.get("architecture", ""):
            tensors = _with_dinov2_positions(tensors, network)
        if hasattr(family, "checkpoint_filter_fn"):
            tensors = family.checkpoint_filter_fn(dict(tensors), network)
    classifier = network.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    return {k: v for k, v in tensors.items() if not k.startswith(tuple(f"{head}." for head in heads))}


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

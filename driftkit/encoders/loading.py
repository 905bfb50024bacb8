"""Building an encoder by name and putting weights into it, from a local file, the hub cache or the hub.

Weights that are missing are an error. Random ones are used only where they are asked for.
"""

import difflib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import ValidationError

from driftkit.encoders.efficientnet_lite import in_timm_names
from driftkit.encoders.lineage import Lineage, data_of_tag, family_of, lineage_of_run, read_lineage
from driftkit.encoders.networks import (
    FrozenEncoder,
    MAEEncoder,
    PixelEncoder,
    TimmEncoder,
    check_input_size,
    require_taps,
)
from driftkit.encoders.resizing import Resize
from driftkit.encoders.specs import PIXEL, SPECS, TIMM_PREFIX, EncoderSpec, MapNorm, names
from driftkit.encoders.weights import fetch, read_weights, unless_changed
from driftkit.errors import ArtifactError, NotFoundError, UsageError
from driftkit.models.mae_resnet import MAEResNet, MAEResNetConfig
from driftkit.models.registry import build_with
from driftkit.runtime.finite import require_finite
from driftkit.storage.files import read_tensors, state_digest, write_tensors
from driftkit.storage.json_text import from_json
from driftkit.storage.run_folder import Run

ENCODER_FILE = "encoder.safetensors"
ENCODER_OBJECTIVES = ("mae", "classifier")
MAE_RESNET = "mae_resnet"
MAX_SIDE = 4096
DINOV2_OFFSET = 0.1  # positions, which the original code adds to the side of the grid of position embeddings


@dataclass(frozen=True)
class EncoderSettings:
    """How an encoder is used; None where its own default holds. See `load_encoder`."""

    input_size: int | None = None
    resize: Resize = "bicubic"
    taps: Sequence[str] | None = None
    map_norm: MapNorm | None = None
    feature_set: str | None = None


DEFAULTS = EncoderSettings()


def load_encoder(
    name: str,
    *,
    image_size: int = 32,
    input_size: int | None = None,
    resize: Resize = "bicubic",
    weights: Path | None = None,
    random_weights: bool = False,
    taps: Sequence[str] | None = None,
    map_norm: MapNorm | None = None,
    feature_set: str | None = None,
    device: torch.device | str = "cpu",
) -> FrozenEncoder:
    """The frozen encoder of that name, or of the MAE or classifier run in that folder.

    Args:
        name: a row of the table, `pixel`, `timm:MODEL`, the folder of a MAE or classifier run, or the encoder file that
            it exported.
        image_size: side in pixels of the images to come; the input size of encoders that work at native resolution.
        input_size: side in pixels to which images are resized; None takes the encoder's own.
        resize: how they are resized, "bicubic" or "bilinear".
        weights: a local file of weights: safetensors, or a torch file, of which only tensors are read.
        random_weights: leave the network at its seeded initialisation, for timing and tests.
        taps: names of the layers whose maps are used instead of those of the row.
        map_norm: what is done to the maps, "none", "layer" or "final"; None takes the encoder's own.
        feature_set: what is made of the maps, which decides the default taps of a MAE or classifier run.

    Raises:
        UsageError: no such encoder or layer, or an input size or map norm that does not fit it.
        ArtifactError: weights that are absent, unreadable or of another network.
        RefusedError: weights that are not finite.
    """
    if not name.strip():
        raise UsageError(
            "--encoder: got an empty name, expected one of driftkit probe-encoder --list or a MAE or classifier run"
        )
    known = name in SPECS or name.startswith(TIMM_PREFIX)
    if (name == PIXEL or Path(name).exists()) and not known and (weights is not None or random_weights):
        what = "has no weights" if name == PIXEL else "brings its own weights"
        raise UsageError(f"encoder {name} {what}: leave out --encoder-weights and --random-weights")
    if name == PIXEL:
        if taps:
            raise UsageError("encoder pixel has no layers: leave out --taps")
        if map_norm not in (None, "none"):
            raise UsageError(f"--map-norm {map_norm}: encoder pixel has no channels to normalise over; expected none")
        return PixelEncoder(input_size=input_size or image_size, resize_mode=resize).to(device)
    settings = EncoderSettings(input_size, resize, taps, map_norm, feature_set)
    if known:
        spec = SPECS[name] if name in SPECS else timm_spec(name, input_size=input_size)
        return _load_timm(spec, settings, weights=weights, random_weights=random_weights, device=device).to(device)
    if Path(name).is_dir():
        return load_run_encoder(Path(name), settings, device=device)
    if Path(name).is_file():
        return load_encoder_file(Path(name), settings, device=device)
    if "/" in name:
        raise NotFoundError(f"encoder {name}: no such folder; a MAE run makes one: driftkit train --objective mae")
    close = difflib.get_close_matches(name, names(), n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    raise UsageError(
        f"encoder {name!r}: expected {', '.join(names())}, timm:MODEL, or the folder of a MAE or classifier run{hint}"
    )


def fetch_published(name: str) -> None:
    """Have the published weights of an encoder of the table, or of timm, in the cache; others bring their own.

    Raises:
        UsageError: timm has no such model.
        ArtifactError: they are not here and do not come.
    """
    if name in SPECS or name.startswith(TIMM_PREFIX):
        fetch(SPECS[name] if name in SPECS else timm_spec(name, input_size=None))


def load_run_encoder(
    path: Path, settings: EncoderSettings = DEFAULTS, *, device: torch.device | str = "cpu"
) -> FrozenEncoder:
    """The EMA encoder of a MAE or classifier run, at the image size it was trained at.

    Raises:
        ArtifactError: no run there, or one without a checkpoint.
        UsageError: a run of another objective.
    """
    run = Run.open(path)
    if run.objective not in ENCODER_OBJECTIVES:
        raise UsageError(
            f"{path} was trained with objective {run.objective}; an encoder comes from a run of "
            f"{' or '.join(ENCODER_OBJECTIVES)}"
        )
    settings = replace(settings, input_size=settings.input_size or run.image_size)
    encoder = _resnet_encoder(str(path), run.config_section("model"), run.checkpoint().weights("ema"), settings, device)
    encoder.lineage = lineage_of_run(run.manifest(), encoder.weights_digest)
    return encoder


def export_encoder(run: Run) -> Path:
    """Write the EMA encoder of a MAE or classifier run into `encoder.safetensors`, which `--encoder` takes, too."""
    config = run.manifest().config
    weights = encoder_part(run.checkpoint().weights("ema"))
    header = {
        "driftkit": "encoder",
        "model": config["model"],
        "image_size": config["data"]["image_size"],
        "sha256": state_digest(weights),
    }
    header["lineage"] = json.dumps(lineage_of_run(run.manifest(), header["sha256"]).describe())
    path = run.path / ENCODER_FILE
    write_tensors(path, weights, header=header)
    return path


def load_encoder_file(
    path: Path, settings: EncoderSettings = DEFAULTS, *, device: torch.device | str = "cpu"
) -> FrozenEncoder:
    """The encoder in a file that `export_encoder` wrote.

    Raises:
        ArtifactError: the file is damaged.
        UsageError: it holds something else.
    """
    if path.suffix != ".safetensors":
        raise UsageError(f"encoder {path}: expected the folder of a MAE or classifier run or its {ENCODER_FILE}")
    weights, header = read_tensors(path)
    if header.get("driftkit") != "encoder":
        raise UsageError(
            f"encoder {path}: this file was not exported by a MAE or classifier run; expected its {ENCODER_FILE}"
        )
    if header.get("sha256", state_digest(weights)) != state_digest(weights):
        raise ArtifactError(f"{path} is damaged: its weights are not those it was written with; train or copy it again")
    settings = replace(settings, input_size=settings.input_size or _size_in(header, path))
    try:
        model = from_json(header.get("model", ""))
    except (ValueError, RecursionError):
        raise ArtifactError(f"{path}: the network's config in its header is unreadable; export it again") from None
    encoder = _resnet_encoder(str(path), model, weights, settings, device)
    encoder.lineage = _lineage_in(header, encoder.weights_digest)
    return encoder


def _lineage_in(header: Mapping[str, str], digest: str) -> Lineage:
    """The lineage in the header of an encoder file; without a readable one its training images are unknown."""
    try:
        found = read_lineage(from_json(header.get("lineage", "")))
    except (ValueError, RecursionError):
        found = None
    return replace(found or Lineage(digest, MAE_RESNET, MAE_RESNET, None), weights=digest)


def _size_in(header: Mapping[str, str], path: Path) -> int:
    size = header.get("image_size", "")
    if not (size.isascii() and size.isdecimal() and len(size) <= 4 and 1 <= int(size) <= MAX_SIDE):
        raise ArtifactError(f"{path}: its header says image_size {size!r:.40}, expected 1 to {MAX_SIDE}")
    return int(size)


def _resnet_encoder(
    name: str,
    model: Mapping[str, Any],
    weights: Mapping[str, torch.Tensor],
    settings: EncoderSettings,
    device: torch.device | str,
) -> FrozenEncoder:
    try:
        config = MAEResNetConfig.model_validate(model)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, ("model", *first["loc"])))
        raise ArtifactError(f"{name}: config key {where}: {first['msg']}; it was edited or damaged") from None
    part = encoder_part(weights)
    network = build_with(lambda: MAEResNet(config), part, name=name, part=is_encoder_part)
    require_finite(part, f"encoder {name}: weights", fix="take another checkpoint or run")
    assert settings.input_size is not None
    encoder = MAEEncoder(
        name,
        network,
        input_size=settings.input_size,
        taps=settings.taps,
        map_norm=settings.map_norm or "none",
        resize_mode=settings.resize,
        feature_set=settings.feature_set,
    )
    encoder.weights_digest = state_digest(part)
    encoder.freeze()
    return encoder.to(device)


def native_image_size(name: str) -> int | None:
    """The image size that the run in a folder, or the encoder it exported, was trained at; None for others."""
    path = Path(name)
    if path.is_dir():
        return Run.open(path).image_size
    if path.is_file() and path.suffix == ".safetensors":
        header = read_tensors(path)[1]
        return _size_in(header, path) if "image_size" in header else None
    return None


def encoder_part(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a MAE that belong to its encoder: the same digest whether they come from a run or a file."""
    return {name: tensor for name, tensor in weights.items() if is_encoder_part(name)}


def is_encoder_part(name: str) -> bool:
    """Whether a tensor of a MAE belongs to its encoder."""
    return name.startswith(("stem.", "stages."))


def _load_timm(
    spec: EncoderSpec,
    settings: EncoderSettings,
    *,
    weights: Path | None,
    random_weights: bool,
    device: torch.device | str,
) -> FrozenEncoder:
    size = settings.input_size or spec.input_size
    if random_weights and weights is not None:
        raise UsageError("--random-weights and --encoder-weights exclude each other: give one of them")
    path = None if random_weights else weights or fetch(spec)  # before seconds go into a network without them
    if settings.taps:
        spec = _with_taps(spec, settings.taps)
    if settings.map_norm:
        spec = replace(spec, map_norm=settings.map_norm)
    check_input_size(spec, size)
    network = _create(spec.model, size, device)
    digest = "random"
    if path is not None:
        state = encoder_keys(spec, read_weights(path), network, path)
        require_finite(state, f"{path}: weights", fix="remove the file to have it fetched again, or give another")
        digest = state_digest(state)
        put_in(network, state, path)
    encoder = TimmEncoder(spec, network, input_size=size, resize_mode=settings.resize)
    encoder.random_weights, encoder.weights_digest = random_weights, digest
    encoder.lineage = timm_lineage(spec if weights is None else unless_changed(spec, weights), network, digest)
    encoder.freeze()
    return encoder


def _create(model: str, input_size: int, device: torch.device | str) -> Any:
    """The timm model with seeded random weights; on the meta device with none, which costs no memory and no time."""
    import timm

    cfg = timm.models.get_pretrained_cfg(model)
    options: dict[str, Any] = {"img_size": input_size} if cfg is not None and cfg.fixed_input_size else {}
    place = torch.device("meta") if torch.device(device).type == "meta" else torch.device("cpu")
    with place, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # a run with random weights must find the same ones when it resumes
        return timm.create_model(model, pretrained=False, num_classes=0, **options)


def timm_spec(name: str, *, input_size: int | None) -> EncoderSpec:
    """A row for any timm model: taps at the quarter points of a plain network, at the last four stages of another.

    Raises:
        UsageError: timm has no such model, or it gives no feature maps.
    """
    import timm

    model = name.removeprefix(TIMM_PREFIX)
    architecture = model.partition(".")[0]
    if not timm.is_model(architecture):
        close = difflib.get_close_matches(architecture, timm.list_models(), n=1)
        hint = f" (did you mean {TIMM_PREFIX}{close[0]}?)" if close else ""
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
    strides = [stride for _, _, stride in layers]
    if len(set(strides)) == 1:
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
        licence=str(cfg.license or "see the model card") if cfg else "none",
        input_size=input_size or (int(cfg.input_size[-1]) if cfg else 224),
        normalisation="other",
        any_size=not getattr(cfg, "fixed_input_size", False) or len(set(strides)) > 1,
    )


def _layers(network: Any) -> list[tuple[str, int, int]]:
    """Layers that can be tapped: name, index in `forward_intermediates`, stride in pixels."""
    info = [dict(entry) for entry in getattr(network.feature_info, "info", network.feature_info)]
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


def _with_taps(spec: EncoderSpec, taps: Sequence[str]) -> EncoderSpec:
    layers = {layer[0]: layer for layer in _layers(_create(spec.model, spec.input_size, "meta"))}
    chosen = [layers[name] for name in require_taps(spec.name, taps, list(layers))]
    return replace(
        spec, taps=tuple((name, index) for name, index, _ in chosen), strides=tuple(stride for *_, stride in chosen)
    )


def timm_lineage(spec: EncoderSpec, network: Any, digest: str) -> Lineage:
    """What the features of a timm network with weights of that digest come from."""
    architecture = spec.model.partition(".")[0]
    family = family_of(network)
    if digest == "random":
        return Lineage(digest, architecture, family, ())
    return Lineage(digest, architecture, family, spec.data, spec.supervised)


def encoder_keys(
    spec: EncoderSpec, state: dict[str, torch.Tensor], network: Any, path: Path
) -> dict[str, torch.Tensor]:
    """The tensors of a weights file that belong to the encoder, under timm's names.

    Raises:
        ArtifactError: the file has none under the row's prefix.
    """
    if spec.keys == "efficientnet-lite" and any(key.startswith("_") for key in state):
        return in_timm_names(state, network)
    if not spec.weights_prefix:
        return state
    prefix = spec.weights_prefix
    inner = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    if not inner:
        raise ArtifactError(
            f"{path}: expected keys {prefix}* as in the official checkpoint, got {next(iter(state))} ..."
        )
    return {k: v for k, v in inner.items() if not k.startswith(spec.dropped_keys)}


def put_in(network: Any, state: dict[str, torch.Tensor], path: Path) -> None:
    """Load `state` strictly, after timm's own renaming and resizing of position embeddings for that family.

    Those of DINOv2 are resized as its authors do, for training and scoring alike.
    """
    if "dinov2" in network.pretrained_cfg.get("architecture", ""):
        state = _with_dinov2_positions(state, network)
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
        raise ArtifactError(f"{path} does not fit {type(network).__name__}: {'; '.join(problems[:2])}{more}")
    network.load_state_dict(state)


def _with_dinov2_positions(state: dict[str, torch.Tensor], network: Any) -> dict[str, torch.Tensor]:
    """The state with `pos_embed` for the grid of the network, where it is a square one of another size.

    Source: DINOv2's own code (arXiv 2304.07193): bicubic, not antialiased, by the scale (wanted + 0.1) / side. timm's
    resizing gives other features.
    """
    embedding = state.get("pos_embed")
    wanted = int(network.patch_embed.grid_size[0])
    if embedding is None or embedding.ndim != 3:
        return state
    side = math.isqrt(embedding.shape[1])
    prefix = embedding.shape[1] - side * side  # positions of the class token
    if prefix not in (0, 1) or side in (0, wanted):
        return state
    grid = embedding[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    scale = (wanted + DINOV2_OFFSET) / side
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return {**state, "pos_embed": torch.cat([embedding[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)}

"""Encoders that were trained here: the encoder half of a residual MAE, from a run folder or the file it wrote."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from driftkit.config.layers import first_problem
from driftkit.encoders.encoder_config import EncoderConfig, MapNorm, Resize
from driftkit.encoders.feature_sets import FEATURE_SETS
from driftkit.encoders.frozen_encoder import (
    EncoderKind,
    FrozenEncoder,
    layer_normalised,
    require_own_weights,
    require_taps,
)
from driftkit.encoders.lineage import Lineage, lineage_of_run, read_lineage
from driftkit.errors import ArtifactError, UsageError
from driftkit.models.mae_resnet import MAEResNet, MAEResNetConfig
from driftkit.models.registry import build_with
from driftkit.protocols import FeatureMap
from driftkit.runtime.readback import require_finite
from driftkit.storage.files import read_tensors, state_digest, write_tensors
from driftkit.storage.json_text import from_json
from driftkit.storage.run_folder import Run

ENCODER_FILE = "encoder.safetensors"
MAE_RESNET = "mae_resnet"
MAX_SIDE = 4096


class MAEEncoder(FrozenEncoder):
    """Layers of a masked autoencoder's encoder, at the resolution it was trained at. Those behind the last are dropped.

    Args:
        taps: which layers: stem, stage1.block1, ..., stage1, ..., stage4; None: the four stages, or for a feature set
            that reads blocks the stem, every second block and every stage.
        map_norm: "none" or "layer".
        feature_set: for which the default taps are taken; None: "paper".

    Raises UsageError for a tap that is no layer, or map_norm "final".

    Source: arXiv 2602.04770, Appendix A.5, and the authors' release, whose 12 maps the taps of "paper-full" are for
    stages of 3, 4, 6 and 3 blocks. Differs: the release normalises each stage's output by one more trained GroupNorm.
    Without it the last block of a stage of evenly many blocks and the stage are the same map, which counts twice.
    """

    def __init__(
        self,
        name: str,
        network: MAEResNet,
        *,
        input_size: int,
        taps: Sequence[str] | None = None,
        map_norm: MapNorm = "none",
        resize_mode: Resize = "bicubic",
        feature_set: str | None = None,
    ):
        super().__init__(name, input_size=input_size, feature_set="paper", map_norm=map_norm, resize_mode=resize_mode)
        if map_norm == "final":
            raise UsageError(f"`map_norm` final: {name} has no final norm; expected none or layer")
        stages = [list(stage.children()) for stage in network.stages]
        depths = [len(stage) for stage in stages]
        layers = ["stem"]
        for stage, depth in enumerate(depths, start=1):
            layers += [*(f"stage{stage}.block{block}" for block in range(1, depth + 1)), f"stage{stage}"]
        self.taps = require_taps(name, taps or _default_taps(depths, feature_set), layers)
        used = layers[: layers.index(self.taps[-1]) + 1]
        self.stem = network.stem
        self.stages = nn.ModuleList(
            nn.ModuleList(block for number, block in enumerate(stage, start=1) if f"stage{s}.block{number}" in used)
            for s, stage in enumerate(stages, start=1)
        )

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "taps": self.taps}

    def maps(self, images: torch.Tensor) -> list[FeatureMap]:
        return [FeatureMap(name, values) for name, values in zip(self.taps, self._read(images), strict=True)]

    def _read(self, images: torch.Tensor) -> list[torch.Tensor]:
        outputs = [values for name, values in self._layers(self._resized(images)) if name in self.taps]
        return [layer_normalised(values) if self.map_norm == "layer" else values for values in outputs]

    def _layers(self, h: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        h = self.stem(h)
        yield "stem", h
        for number, stage in enumerate(self.stages, start=1):
            for index, block in enumerate(stage.children(), start=1):
                h = block(h)
                yield f"stage{number}.block{index}", h
            yield f"stage{number}", h


def _default_taps(depths: Sequence[int], feature_set: str | None) -> list[str]:
    stages = [f"stage{stage}" for stage in range(1, len(depths) + 1)]
    if feature_set not in FEATURE_SETS or not FEATURE_SETS[feature_set].reads_blocks:
        return stages
    blocks = [f"stage{s}.block{block}" for s, depth in enumerate(depths, start=1) for block in range(2, depth + 1, 2)]
    return ["stem", *blocks, *stages]


def load_trained_encoder(
    path: Path, config: EncoderConfig | None = None, *, device: torch.device | str = "cpu"
) -> MAEEncoder:
    """The encoder of a run folder, or of the file that `export_encoder` wrote, at the image size it was trained at.

    Args:
        config: how it is used; None: by its defaults.

    Raises:
        ArtifactError: no run there, one without a checkpoint, or a damaged file.
        UsageError: a run that trained no encoder, or a file that holds something else.
        RefusedError: weights that are not finite.
    """
    return (_load_file if path.is_file() else _load_run)(path, config or EncoderConfig(encoder=str(path)), device)


def export_encoder(run: Run) -> Path:
    """Write the EMA encoder of a run into `encoder.safetensors`, which is an encoder by itself."""
    config = run.manifest().config
    weights = _encoder_part(run.checkpoint().weights("ema"))
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


def _load_run(path: Path, config: EncoderConfig, device: torch.device | str) -> MAEEncoder:
    run = Run.open(path)
    model = run.config_section("model")
    if model.get("kind") != MAE_RESNET:
        raise UsageError(f"{path} trained no encoder: its network is {model.get('kind')}, expected {MAE_RESNET}")
    encoder = _build(path, model, run.image_size, run.checkpoint().weights("ema"), config)
    encoder.lineage = lineage_of_run(run.manifest(), encoder.weights_digest)
    return encoder.to(device)


def _load_file(path: Path, config: EncoderConfig, device: torch.device | str) -> MAEEncoder:
    if path.suffix != ".safetensors":
        raise UsageError(f"encoder {path}: expected the folder of a MAE or classifier run or its {ENCODER_FILE}")
    weights, header = read_tensors(path)
    if header.get("driftkit") != "encoder":
        raise UsageError(
            f"encoder {path}: this file was not exported by a MAE or classifier run; expected its {ENCODER_FILE}"
        )
    if header.get("sha256", state_digest(weights)) != state_digest(weights):
        raise ArtifactError(f"{path} is damaged: its weights are not those it was written with; train or copy it again")
    size = _size_in(header, path)
    try:
        model = from_json(header.get("model", ""))
    except (ValueError, RecursionError):
        raise ArtifactError(f"{path}: the network's config in its header is unreadable; export it again") from None
    encoder = _build(path, model, size, weights, config)
    encoder.lineage = _lineage_in(header, encoder.weights_digest)
    return encoder.to(device)


def _lineage_in(header: Mapping[str, str], digest: str) -> Lineage:
    """The lineage in the header of an encoder file; without a readable one its training images are unknown."""
    try:
        lineage = read_lineage(from_json(header.get("lineage", "")))
    except (ValueError, RecursionError):
        lineage = None
    return replace(lineage or Lineage(digest, MAE_RESNET, MAE_RESNET, None), weights=digest)


def _size_in(header: Mapping[str, str], path: Path) -> int:
    size = header.get("image_size", "")
    if not (size.isascii() and size.isdecimal() and len(size) <= 4 and 1 <= int(size) <= MAX_SIDE):
        raise ArtifactError(f"{path}: its header says image_size {size!r:.40}, expected 1 to {MAX_SIDE}")
    return int(size)


def _build(
    path: Path, model: Any, image_size: int, weights: Mapping[str, torch.Tensor], config: EncoderConfig
) -> MAEEncoder:
    try:
        network_config = MAEResNetConfig.model_validate(model)
    except ValidationError as error:
        raise ArtifactError(f"{path}: config key model.{first_problem(error)}; it was edited or damaged") from None
    part = _encoder_part(weights)
    network = build_with(lambda: MAEResNet(network_config), part, name=str(path), part=_is_encoder_part)
    require_finite(part, f"encoder {path}: weights", fix="take another checkpoint or run")
    encoder = MAEEncoder(
        str(path),
        network,
        input_size=config.input_size or image_size,
        taps=config.taps,
        map_norm=config.map_norm or "none",
        resize_mode=config.resize,
        feature_set=config.feature_set,
    )
    encoder.weights_digest = state_digest(part)
    encoder.freeze()
    return encoder


def _encoder_part(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a MAE that belong to its encoder: the same digest whether they come from a run or a file."""
    return {name: tensor for name, tensor in weights.items() if _is_encoder_part(name)}


def _is_encoder_part(name: str) -> bool:
    return name.startswith(("stem.", "stages."))


def _load(config: EncoderConfig, image_size: int, device: torch.device) -> FrozenEncoder:
    require_own_weights(config, "brings its own weights")
    return load_trained_encoder(Path(config.encoder), config, device=device)


def _trained_image_size(name: str) -> int | None:
    path = Path(name)
    if path.is_dir():
        return Run.open(path).image_size
    if path.suffix != ".safetensors":
        return None
    header = read_tensors(path)[1]
    return _size_in(header, path) if "image_size" in header else None


TRAINED_KIND = EncoderKind(
    pattern="the folder of a MAE or classifier run",
    accepts=lambda name: bool(name.strip()) and (Path(name).is_dir() or Path(name).is_file()),
    load=_load,
    licence=lambda name: "that of its run: an encoder trained with driftkit, without weights from elsewhere",
    image_size=_trained_image_size,
    is_place=True,
)

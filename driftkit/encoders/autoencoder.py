"""The frozen autoencoder whose latents a generator may be trained on: an AutoencoderKL in the format of diffusers.

It is read from a folder or the hub's cache: config.json and a safetensors file. No pickle is opened and no code of a
repository is run. The network itself is that of the package diffusers, which the extra `latents` brings.
"""

import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import nn

from driftkit.config.layers import first_problem
from driftkit.encoders.weights import HubFile
from driftkit.errors import ArtifactError, NotFoundError, UsageError
from driftkit.models.registry import build_with
from driftkit.runtime.readback import require_finite
from driftkit.storage.files import digest_json, read_json, read_tensors, state_digest

CLASS = "AutoencoderKL"
CONFIG_FILE, WEIGHTS_FILE = "config.json", "diffusion_pytorch_model.safetensors"
HUB_ID = re.compile(r"([\w.-]+/[\w.-]+)((?:/[\w-]+)*)")  # owner/name, and perhaps a folder in it
EXPECTED = f"expected the folder of a diffusers {CLASS} ({CONFIG_FILE} and {WEIGHTS_FILE}) or a hub id OWNER/NAME"
PIXELS_AT_A_TIME = 2**20  # 16 images of 256x256, whose largest activations in a Stable Diffusion VAE take 0.5 GiB each
SCALING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
# What diffusers and torch raise for configs that describe no network.
NO_NETWORK = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
# Of attention layers in files written before diffusers 0.18, which are still published.
EARLIER_NAMES = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


class AutoencoderConfig(BaseModel):
    """What is read of config.json; the whole of it goes to diffusers."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    in_channels: Literal[3] = 3
    out_channels: Literal[3] = 3
    latent_channels: int = Field(4, ge=1, le=256)
    block_out_channels: tuple[Annotated[int, Field(ge=1, le=4096)], ...] = Field((64,), min_length=1, max_length=8)
    layers_per_block: int = Field(1, ge=1, le=16)
    scaling_factor: float = Field(0.18215, gt=0)
    shift_factor: float | None = None
    latents_mean: tuple[float, ...] | None = None  # by channel
    latents_std: tuple[Annotated[float, Field(gt=0)], ...] | None = None

    @model_validator(mode="after")
    def _check(self) -> "AutoencoderConfig":
        for name in ("latents_mean", "latents_std"):
            values = getattr(self, name)
            if values is not None and len(values) != self.latent_channels:
                raise ValueError(f"{name}: expected {self.latent_channels} numbers, got {len(values)}")
        return self

    @property
    def architecture(self) -> dict[str, Any]:
        """The keys that decide what weights compute, as JSON data; shift and scale are `offset` and `scale`."""
        document = self.model_dump(mode="json", exclude={*SCALING})
        return {key: value for key, value in document.items() if not key.startswith("_")}  # these say who wrote it

    @property
    def factor(self) -> int:
        """Side of an image over that of its latents."""
        return int(2 ** (len(self.block_out_channels) - 1))

    def latent_shape(self, image_size: int) -> tuple[int, int, int]:
        """Channels, height and width of the latents of images of that side. Raises UsageError: it does not fit."""
        if image_size % self.factor or image_size < self.factor:
            raise UsageError(
                f"`data.autoencoder` makes the sides of images {self.factor} times smaller, which {image_size} pixels "
                f"cannot be made; set `data.image_size` to a multiple of {self.factor}"
            )
        return self.latent_channels, image_size // self.factor, image_size // self.factor


class Autoencoder(nn.Module):
    """A frozen autoencoder: images float [N, 3, H, W] in [-1, 1] to latents [N, C, H / f, W / f] and back.

    Latents are the mean of the posterior, shifted and scaled as the config says, so that they have a variance of about
    1: (mean - offset) * scale.

    Attributes:
        digest: hex sha256 of the weights, of shift and scale, and of what else the config says of the network.
    """

    offset: torch.Tensor  # [C, 1, 1]
    scale: torch.Tensor

    def __init__(self, place: str, config: AutoencoderConfig, network: nn.Module):
        super().__init__()
        self.place, self.config, self.network = place, config, network
        channels = config.latent_channels
        offset = torch.tensor(config.latents_mean or [config.shift_factor or 0.0] * channels)
        scale = config.scaling_factor / torch.tensor(config.latents_std or [1.0] * channels)
        self.register_buffer("offset", offset.view(-1, 1, 1), persistent=False)
        self.register_buffer("scale", scale.view(-1, 1, 1), persistent=False)
        self.requires_grad_(False)
        super().train(False)
        self.digest = ""

    def train(self, mode: bool = True) -> "Autoencoder":
        """Stay in evaluation mode whatever the model around it does."""
        return self

    def describe(self) -> dict[str, Any]:
        """For records: where it came from, and what it is."""
        return {
            "spec": self.place,
            "digest": self.digest,
            "class": CLASS,
            "latent_channels": self.config.latent_channels,
            "factor": self.config.factor,
            "offset": self.offset.flatten().tolist(),
            "scale": self.scale.flatten().tolist(),
        }

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        """Images to latents, in the number format of the context; the mean of the posterior, so nothing is drawn."""
        mean = self.network.encode(images).latent_dist.mean  # type: ignore[operator]
        latents: torch.Tensor = (mean.float() - self.offset) * self.scale
        return latents

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents to images, nominally in [-1, 1], in the number format of the context; with gradient."""
        images: torch.Tensor = self.network.decode(latents / self.scale + self.offset).sample  # type: ignore[operator]
        return images.float()

    @torch.no_grad()
    def to_latents(self, images: torch.Tensor) -> torch.Tensor:
        """As `encode`, in float32 and without gradient, some images at a time."""
        return self._in_parts(self.encode, images, images.shape[-2] * images.shape[-1])

    @torch.no_grad()
    def to_images(self, latents: torch.Tensor) -> torch.Tensor:
        """As `decode`, in float32 and without gradient, some images at a time: 8 bits are too coarse for images."""
        return self._in_parts(self.decode, latents, latents.shape[-2] * latents.shape[-1] * self.config.factor**2)

    def _in_parts(self, function: Any, values: torch.Tensor, pixels: int) -> torch.Tensor:
        with torch.autocast(values.device.type, enabled=False):
            parts = values.float().split(max(1, PIXELS_AT_A_TIME // pixels))
            return torch.cat([function(part.contiguous(memory_format=torch.channels_last)) for part in parts])


@dataclass(frozen=True)
class AutoencoderFiles:
    """Where the two files of an autoencoder lie."""

    config: Path
    weights: Path


def read_autoencoder_config(place: str) -> AutoencoderConfig:
    """The config of an autoencoder, of which a network can be built; its weights are not read.

    Raises:
        NotFoundError: nothing of that name, files that are absent and do not come, or no diffusers.
        ArtifactError: it is no AutoencoderKL of images with 3 channels, or its config is damaged.
    """
    path = _files(place).config
    config = _read_config(path)
    _without_weights(path, config)
    return config


def load_autoencoder(place: str, device: torch.device | str = "cpu") -> Autoencoder:
    """The frozen autoencoder of a folder or a hub id; on the meta device it has no weights.

    Raises:
        NotFoundError, ArtifactError: as `read_autoencoder_config`, and of the weights.
        RefusedError: weights that are not finite.
    """
    files, device = _files(place), torch.device(device)
    config = _read_config(files.config)
    if device.type == "meta":
        with device:
            return Autoencoder(place, config, _without_weights(files.config, config))
    status = files.weights.stat()
    identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return _load(place, files, config, identity, device)


@functools.lru_cache(maxsize=1)  # a run is sampled in many calls
def _load(
    place: str, files: AutoencoderFiles, config: AutoencoderConfig, identity: tuple[int, ...], device: torch.device
) -> Autoencoder:
    _without_weights(files.config, config)
    weights = {_current_name(name): tensor for name, tensor in read_tensors(files.weights)[0].items()}
    network = build_with(lambda: _network(files.config), weights, name=str(files.weights))
    require_finite(weights, f"{files.weights}: weights", fix="fetch it again")
    loaded = Autoencoder(place, config, network)
    state = {name: tensor.float() for name, tensor in weights.items()}
    weights_digest = state_digest({**state, "offset": loaded.offset, "scale": loaded.scale})
    loaded.digest = digest_json({"weights": weights_digest, "config": config.architecture})
    return loaded.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def _network(config: Path) -> nn.Module:
    """The network of a config, with random weights."""
    from diffusers import AutoencoderKL
    from diffusers.utils import logging

    logging.set_verbosity_error()  # of keys that this version of diffusers does not know
    try:
        network: nn.Module = AutoencoderKL.from_config(read_json(config))
    except NO_NETWORK as error:
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return network


@torch.no_grad()
def _without_weights(path: Path, config: AutoencoderConfig) -> nn.Module:
    """The network of a config on the meta device; an ArtifactError where it makes no latents, or others than it says.

    Blocks are listed apart from channels, so that a config may contradict itself.
    """
    side = 2 * config.factor
    images, latents = (1, 3, side, side), (1, *config.latent_shape(side))
    try:
        with torch.device("meta"):
            network = _network(path)
            encoded = network.encode(torch.zeros(images)).latent_dist.mean  # type: ignore[operator]
            decoded = network.decode(torch.zeros(latents)).sample  # type: ignore[operator]
    except NO_NETWORK as error:
        raise ArtifactError(f"{path}: describes no network: {error!s:.200}") from None
    for what, got, expected in (("latents", encoded, latents), ("images", decoded, images)):
        if got.shape != expected:
            raise ArtifactError(
                f"{path}: describes a network whose {what} are {list(got.shape[1:])}, expected {list(expected[1:])} "
                f"for images of {side} pixels, by the number of block_out_channels"
            )
    return network


def _current_name(name: str) -> str:
    if ".attentions." not in name:
        return name
    return ".".join(EARLIER_NAMES.get(part, part) for part in name.split("."))


def _read_config(path: Path) -> AutoencoderConfig:
    document = read_json(path)
    if (got := document.get("_class_name")) != CLASS:
        raise ArtifactError(f"{path} describes {got or 'no class of diffusers'!s:.80}, expected {CLASS}")
    try:
        return AutoencoderConfig.model_validate(document)
    except ValidationError as error:
        raise ArtifactError(f"{path}: {first_problem(error)}") from None


@dataclass(frozen=True)
class AutoencoderFile(HubFile):
    """Config or weights on the hub."""

    def check(self, path: Path) -> str:
        if not self.file.endswith(CONFIG_FILE):
            return super().check(path)
        _read_config(path)
        return "readable"

    def by_hand(self, option: str) -> str:
        return super().by_hand(option).replace("name the file by", "place it in a folder and name that by")


def hub_files(place: str) -> tuple[AutoencoderFile, AutoencoderFile] | None:
    """Config and weights of a hub id; None where the name is not one."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    if not (match := HUB_ID.fullmatch(place)):
        return None
    try:
        validate_repo_id(match[1])
    except HFValidationError:  # of ./vae and ../vae, for example
        return None
    repository, folder = match[1], match[2].lstrip("/")
    prefix = f"{folder}/" if folder else ""
    return AutoencoderFile(repository, prefix + CONFIG_FILE), AutoencoderFile(repository, prefix + WEIGHTS_FILE)


def _files(place: str) -> AutoencoderFiles:
    if importlib.util.find_spec("diffusers") is None:
        raise NotFoundError("`data.autoencoder` needs diffusers; install the extra: uv sync --extra latents")
    folder = Path(place)
    if folder.is_dir():
        return AutoencoderFiles(folder / CONFIG_FILE, _weights_in(folder))
    published = None if folder.exists() else hub_files(place)
    if published is None:
        what = "is a file" if folder.exists() else "no such folder"
        raise NotFoundError(f"`data.autoencoder` {place!r:.200}: {what}; {EXPECTED}")
    try:
        paths = [file.locate() or file.download() for file in published]
    except ArtifactError as error:
        raise NotFoundError(
            f"`data.autoencoder` {place}: no such folder, and as a hub id: {error}; download "
            f"{' and '.join(file.url for file in published)} into a folder and name that"
        ) from None
    return AutoencoderFiles(*paths)


def _weights_in(folder: Path) -> Path:
    path = folder / WEIGHTS_FILE
    if not (folder / CONFIG_FILE).is_file():
        raise NotFoundError(f"`data.autoencoder` {folder}: has no {CONFIG_FILE}; {EXPECTED}")
    if not path.is_file():
        pickles = sorted(p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth", ".ckpt"))
        found = f" ({pickles[0]} is a pickle, which is not read; save it as safetensors)" if pickles else ""
        raise NotFoundError(f"`data.autoencoder` {folder}: has no {WEIGHTS_FILE}{found}; {EXPECTED}")
    return path

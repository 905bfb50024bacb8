"""What turns images into the features that are scored, each with a name, a version and the digest of its weights."""

import io
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from driftkit.artifacts.files import sha256_file
from driftkit.artifacts.images import to_float
from driftkit.encoders.weights import HubFile, UrlFile, read_weights
from driftkit.errors import MissingError, RefusedError, UsageError

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_DIGEST_PREFIX = "6726825d"
INCEPTION_VARIABLE = "DRIFTKIT_INCEPTION_WEIGHTS"
DINOV2_MODEL = "vit_large_patch14_dinov2.lvd142m"
DINOV2_SIZE = 224
ENCODER_PREFIX = "encoder:"
NAMES = ("inception", "dinov2", "encoder:RUN")

Embed = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
"""uint8 images [n, 3, H, W] on the device -> features [n, D] and, from a classifier, logits [n, K]."""


@dataclass(frozen=True)
class Extractor:
    """A frozen network that judges images.

    Attributes:
        name: "inception", "dinov2" or "encoder:" and the run's folder name.
        version: which implementation made the features.
        weights_digest: sha256 of its weights; with `name` and `resize` it says which numbers may be compared.
        resize: how images get to the network's size.
        dim: length of a feature vector.
        embed: the network with its resizing.
        device: where `embed` expects its images.
    """

    name: str
    version: str
    weights_digest: str
    resize: str
    dim: int
    embed: Embed
    device: torch.device

    def describe(self) -> dict[str, Any]:
        """What an evaluation records of it."""
        keys = ("name", "version", "weights_digest", "resize", "dim")
        return {key: getattr(self, key) for key in keys}

    def features(
        self, images: torch.Tensor, *, batch_size: int = 64, advance: Callable[[int], None] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Features of uint8 images [N, 3, H, W].

        Args:
            batch_size: images at a time; changes nothing beyond float32 rounding.
            advance: called with the number of images just done.

        Returns:
            float32 [N, dim] on the CPU, and the logits [N, K] or None.

        Raises:
            RefusedError: a feature is not finite.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images: expected uint8 [N, 3, H, W], got {images.dtype} {list(images.shape)}")
        features: list[torch.Tensor] = []
        logits: list[torch.Tensor] = []
        for batch in images.split(batch_size):
            with torch.inference_mode():
                values, scores = self.embed(batch.to(self.device))
            if not bool(torch.isfinite(values).all()):
                raise RefusedError(
                    f"{self.name} gives features that are not finite for these images; nothing was scored"
                )
            features.append(values.float().cpu())
            if scores is not None:
                logits.append(scores.float().cpu())
            if advance:
                advance(len(batch))
        return torch.cat(features), torch.cat(logits) if logits else None


def load_extractor(features: str, *, weights: Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """The extractor of that name.

    Args:
        features: inception, dinov2 or encoder:RUN, with RUN the folder of a MAE run.
        weights: a local weights file for inception and dinov2; None looks where they are kept and then downloads.
        device: where it runs.

    Raises:
        UsageError: no such extractor, or weights for one that has its own.
        MissingError: weights that are absent, unreadable or not the published ones.
    """
    place = torch.device(device)
    if features == "inception":
        return _inception(_inception_weights(weights), place)
    if features == "dinov2":
        return _dinov2(_dinov2_weights(weights), place)
    if features.startswith(ENCODER_PREFIX) and features != ENCODER_PREFIX:
        if weights is not None:
            raise UsageError(f"--features-weights: {features} brings its own weights; leave the option out")
        return _run_encoder(Path(features.removeprefix(ENCODER_PREFIX)), place)
    raise UsageError(f"--features {features}: expected {', '.join(NAMES)}")


def published_weights(features: str) -> HubFile | UrlFile:
    """The file that an extractor's weights are published in; `features` is inception or dinov2."""
    if features == "inception":
        return UrlFile(INCEPTION_URL, f"sha256:{INCEPTION_DIGEST_PREFIX}")
    assert features == "dinov2", features
    return HubFile(f"timm/{DINOV2_MODEL}")


def locate_weights(features: str) -> Path | None:
    """Where the weights of inception or dinov2 lie on this machine, or None; no network is asked.

    Raises:
        MissingError: the variable that names the file names none.
    """
    named = _named_inception() if features == "inception" else None
    if named is not None:
        return _require_file(named, f"the Inception weights, as {INCEPTION_VARIABLE} says")
    return published_weights(features).locate()


def fetch_weights(features: str) -> Path:
    """The weights of inception or dinov2 from where they are kept, or downloaded to there.

    Raises:
        MissingError: they are not here and do not come, or are not the published ones.
    """
    file = published_weights(features)
    path = file.locate()
    if path is not None:
        return path
    variable = f" or {INCEPTION_VARIABLE}" if features == "inception" else ""
    try:
        return file.download()
    except MissingError as error:
        raise MissingError(f"{error}; {file.by_hand('--features-weights')}{variable}") from None


def _run_encoder(path: Path, device: torch.device) -> Extractor:
    """Global means of all feature maps of a MAE run, or of the encoder it exported, one after another."""
    from driftkit.encoders.loading import load_encoder_file, load_run_encoder

    encoder = load_encoder_file(path, device=device) if path.is_file() else load_run_encoder(path, device=device)

    def embed(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        maps = encoder.maps(to_float(images))
        return torch.cat([m.values.float().mean(dim=(2, 3)) for m in maps], dim=1), None

    size = encoder.input_size
    with torch.inference_mode():
        dim = embed(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))[0].shape[1]
    return Extractor(
        name=f"{ENCODER_PREFIX}{(path.parent if path.is_file() else path).resolve().name}",
        version="global means of all maps, 1",
        weights_digest=encoder.weights_digest,
        resize=f"{size}x{size} bicubic, antialiased when shrinking",
        dim=dim,
        embed=embed,
        device=device,
    )


def _inception(path: Path, device: torch.device) -> Extractor:
    """torch-fidelity's port of the TensorFlow network that FID is defined with.

    Its own loader would unpickle the file. We read tensors only, and hand it what we read as a file in memory.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    digest = sha256_file(path)
    if not digest.startswith(INCEPTION_DIGEST_PREFIX):
        raise MissingError(
            f"{path}: sha256 begins with {digest[:8]}, expected {INCEPTION_DIGEST_PREFIX}; place {INCEPTION_FILE} "
            f"from {INCEPTION_URL} there"
        )
    memory = io.BytesIO()
    torch.save(read_weights(path), memory)
    memory.seek(0)
    network = FeatureExtractorInceptionV3(
        "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=memory
    ).to(device)

    def embed(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features, logits = network(images)
        return features, logits

    return Extractor(
        name="inception",
        version=f"torch-fidelity {version('torch-fidelity')}, pool 2048",
        weights_digest=digest,
        resize="299x299 bilinear as in TensorFlow 1, (x - 128) / 128",
        dim=2048,
        embed=embed,
        device=device,
    )


def _inception_weights(given: Path | None) -> Path:
    named = given or _named_inception()
    return fetch_weights("inception") if named is None else _require_file(named, "the Inception weights")


def _named_inception() -> Path | None:
    return Path(os.environ[INCEPTION_VARIABLE]) if os.environ.get(INCEPTION_VARIABLE) else None


def _dinov2(path: Path, device: torch.device, *, model: str = DINOV2_MODEL) -> Extractor:
    """The class token of DINOv2 after its final norm, unscaled, as FD-DINOv2 takes it (Stein et al. 2023)."""
    from driftkit.encoders.loading import state_digest

    state = read_weights(path)
    network = dinov2_network(state, path, model=model).to(device)
    mean = torch.tensor(network.pretrained_cfg["mean"], device=device).view(1, 3, 1, 1)
    std = torch.tensor(network.pretrained_cfg["std"], device=device).view(1, 3, 1, 1)

    def embed(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        # Antialiasing selects the cubic kernel of PIL, and rounding its 8 bits: the convention resizes PIL images.
        resized = F.interpolate(images.float(), size=(DINOV2_SIZE, DINOV2_SIZE), mode="bicubic", antialias=True)
        inputs = (resized.clamp(0, 255).round() / 255 - mean) / std
        return network.forward_features(inputs)[:, 0], None

    return Extractor(
        name="dinov2",
        version=f"timm {version('timm')}, {model}, class token",
        weights_digest=state_digest(state),
        resize=f"{DINOV2_SIZE}x{DINOV2_SIZE} bicubic antialiased, rounded to 8 bits",
        dim=int(network.num_features),
        embed=embed,
        device=device,
    )


def dinov2_network(state: dict[str, torch.Tensor], path: Path, *, model: str) -> Any:
    """A DINOv2 for 224 pixels from a timm or an original state dict of the 518 pixel network.

    Position embeddings are interpolated as the original code does, with its offset of 0.1 and without antialiasing;
    timm's own interpolation gives other features.

    Raises:
        MissingError: the weights are of another network.
    """
    import timm

    network: Any = timm.create_model(model, pretrained=False, num_classes=0, img_size=DINOV2_SIZE)
    with torch.device("meta"):
        native: Any = timm.create_model(model, pretrained=False, num_classes=0)
    family = sys.modules[type(network).__module__]
    problem = ""
    try:
        state = dict(family.checkpoint_filter_fn(dict(state), native))
        side, wanted = native.patch_embed.grid_size[0], network.patch_embed.grid_size[0]
        state["pos_embed"] = _resize_positions(state["pos_embed"], side, wanted)
        network.load_state_dict(state)
    except (KeyError, RuntimeError) as error:  # what torch raises for keys and shapes that do not fit
        problem = str(error)
    if problem:
        raise MissingError(f"{path} does not hold the weights of {model}: {problem[:200]}")
    return network.requires_grad_(False).eval()


def _resize_positions(embedding: torch.Tensor, side: int, wanted: int) -> torch.Tensor:
    """Class position and side x side patch positions [1, 1 + side^2, D] -> [1, 1 + wanted^2, D]."""
    prefix = embedding.shape[1] - side * side
    if prefix not in (0, 1):
        raise KeyError(f"pos_embed has {embedding.shape[1]} positions, expected {side * side + 1}")
    grid = embedding[:, prefix:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    scale = (wanted + 0.1) / side
    grid = F.interpolate(grid, scale_factor=(scale, scale), mode="bicubic", antialias=False)
    return torch.cat([embedding[:, :prefix], grid.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)


def _dinov2_weights(given: Path | None) -> Path:
    if given is not None:
        return _require_file(given, "the DINOv2 weights")
    return fetch_weights("dinov2")


def _require_file(path: Path, what: str) -> Path:
    if not path.is_file():
        raise MissingError(f"{path}: expected the file with {what}, found {'a folder' if path.is_dir() else 'nothing'}")
    return path

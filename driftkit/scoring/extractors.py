"""Extractors by name: Inception, published transformers, packaged networks, pixels, and encoders trained here."""

import io
import os
from importlib.metadata import version
from pathlib import Path

import torch

from driftkit.config.layers import did_you_mean
from driftkit.encoders.lineage import PIXELS, Lineage
from driftkit.encoders.specs import PACKAGED, SPECS, TIMM_PREFIX
from driftkit.encoders.weights import HubFile, UrlFile, fetch, read_weights
from driftkit.errors import ArtifactError, UsageError
from driftkit.scoring.extraction import Extractor
from driftkit.scoring.timm_extractors import (
    CLIP_MODEL,
    DINOV2_MODEL,
    PLACE_FILE,
    clip,
    dinov2,
    packaged_model,
    timm_model,
    timm_weights,
)
from driftkit.storage.files import sha256_file
from driftkit.storage.images import to_float
from driftkit.storage.run_folder import Run

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_DIGEST_PREFIX = "6726825d"
INCEPTION_CLASSES = 1008
INCEPTION_VARIABLE = "DRIFTKIT_INCEPTION_WEIGHTS"
ENCODER_PREFIX = "encoder:"
PIXELS_NAME = "pixels"
PIXELS_SIDE = 16
NAMES = ("inception", "dinov2", "clip", *PACKAGED, PIXELS_NAME, "encoder:RUN", "timm:MODEL")
INSTALLED = "efficientnet-lite2"  # the extractor that comes with the installation
DINOV2_LINEAGE = Lineage("unread", "vit_large_patch14_dinov2", "vit", ("LVD-142M",), labels=False)
INSTALLED_LINEAGE = Lineage("unread", "tf_efficientnet_lite2", "efficientnet", SPECS[INSTALLED].data, labels=True)
HUB_MODELS = {"dinov2": DINOV2_MODEL, "clip": CLIP_MODEL}


def load_extractor(name: str, *, weights: Path | None = None, device: torch.device | str = "cpu") -> Extractor:
    """The extractor of that name: one of NAMES, with RUN the folder of a MAE or classifier run.

    Args:
        weights: a local weights file; None looks where they are kept and then downloads.

    Raises:
        UsageError: no such extractor, or weights for one that has its own.
        ArtifactError: weights that are absent, unreadable or not the published ones.
    """
    device = torch.device(device)
    if weights is not None and (name == PIXELS_NAME or name.startswith(ENCODER_PREFIX)):
        raise UsageError(f"`extractor_weights`: {name} has weights of its own or none; remove the setting")
    given = None if weights is None else _require_file(weights, f"the weights of {name}")
    if name == "inception":
        return _inception(given or _inception_weights(), device)
    if name == "dinov2":
        return dinov2(given or fetch_weights(name), device)
    if name == "clip":
        return clip(given or fetch_weights(name), device)
    if name in PACKAGED:
        path = given or fetch(SPECS[name], otherwise=PLACE_FILE)
        return packaged_model(name, _require_file(path, f"the weights of {name}"), device)
    if name == PIXELS_NAME:
        return _pixels(device)
    if name.startswith(TIMM_PREFIX) and name != TIMM_PREFIX:
        return timm_model(name, timm_weights(name, given), device)
    if name.startswith(ENCODER_PREFIX) and name != ENCODER_PREFIX:
        return _run_encoder(Path(name.removeprefix(ENCODER_PREFIX)), device)
    raise UsageError(f"`extractor` {name}: expected {', '.join(NAMES)}{did_you_mean(name, NAMES)}")


def published_weights(name: str) -> HubFile | UrlFile:
    """The file that the weights of inception, dinov2 or clip are published in."""
    if name == "inception":
        return UrlFile(INCEPTION_URL, f"sha256:{INCEPTION_DIGEST_PREFIX}")
    return HubFile(f"timm/{HUB_MODELS[name]}")


def locate_weights(name: str) -> Path | None:
    """Where the weights of inception, dinov2 or clip lie on this machine, or None; no network is asked."""
    named = _named_inception() if name == "inception" else None
    if named is not None:
        return _require_file(named, f"the Inception weights, as {INCEPTION_VARIABLE} says")
    return published_weights(name).locate()


def fetch_weights(name: str) -> Path:
    """The weights of inception, dinov2 or clip from where they are kept, or downloaded; ArtifactError where neither."""
    file = published_weights(name)
    path = file.locate()
    if path is not None:
        return path
    variable = f" or {INCEPTION_VARIABLE}" if name == "inception" else ""
    try:
        return file.download()
    except ArtifactError as error:
        raise ArtifactError(
            f"{error}; {file.by_hand('`extractor_weights`')}{variable}; without it: `extractor` {INSTALLED}, which is "
            "installed (its numbers compare with each other, not with published ones)"
        ) from None


def _pixels(device: torch.device) -> Extractor:
    """The image itself, coarsely: colours, background and layout, no detail."""

    def embed(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        resized = torch.nn.functional.adaptive_avg_pool2d(to_float(images), PIXELS_SIDE)
        return resized.flatten(1), None

    return Extractor(
        name=PIXELS_NAME,
        version="colours of a 16x16 grid, 1",
        weights_digest="none",
        resize=f"{PIXELS_SIDE}x{PIXELS_SIDE}, averaged",
        dim=3 * PIXELS_SIDE**2,
        embed=embed,
        device=device,
        lineage=PIXELS,
    )


def _run_encoder(path: Path, device: torch.device) -> Extractor:
    """Global means of all feature maps of an encoder trained here, or of the file it exported, one after another."""
    from driftkit.encoders.trained_encoder import load_trained_encoder

    encoder = load_trained_encoder(path, device=device)
    head = None if path.is_file() else _classifier(path, device)

    def embed(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        means = [m.values.float().mean(dim=(2, 3)) for m in encoder.maps(to_float(images))]
        return torch.cat(means, dim=1), head(means[-1]) if head is not None else None

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
        num_classes=0 if head is None else head.out_features,
        lineage=encoder.lineage,
    )


def _classifier(path: Path, device: torch.device) -> torch.nn.Linear | None:
    """The linear head on the mean of the last map that a MAE run was fine-tuned with, if it was."""
    weights = Run.open(path).checkpoint().weights("ema")
    if "head.weight" not in weights:
        return None
    classes, width = weights["head.weight"].shape
    head = torch.nn.Linear(width, classes)
    head.load_state_dict({"weight": weights["head.weight"], "bias": weights["head.bias"]})
    return head.requires_grad_(False).to(device)


def _inception(path: Path, device: torch.device) -> Extractor:
    """torch-fidelity's port of the TensorFlow network that FID is defined with.

    Its own loader would unpickle the file. We read tensors only, and hand it what we read as a file in memory.
    """
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    digest = sha256_file(path)
    if not digest.startswith(INCEPTION_DIGEST_PREFIX):
        raise ArtifactError(
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
        num_classes=INCEPTION_CLASSES,
        inception_logits=True,
        lineage=Lineage(digest, "inception-v3", "inception", ("ImageNet-1k",), labels=True),
    )


def _inception_weights() -> Path:
    named = _named_inception()
    return fetch_weights("inception") if named is None else _require_file(named, "the Inception weights")


def _named_inception() -> Path | None:
    return Path(os.environ[INCEPTION_VARIABLE]) if os.environ.get(INCEPTION_VARIABLE) else None


def _require_file(path: Path, what: str) -> Path:
    if not path.is_file():
        raise ArtifactError(f"{path}: expected a file with {what}, found {'a folder' if path.is_dir() else 'nothing'}")
    return path

"""Extractors by name: Inception, DINOv2, CLIP and other models of timm, packaged networks, pixels, encoders of runs."""

import io
import os
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from driftkit.config.layers import did_you_mean
from driftkit.encoders.lineage import PIXELS, Lineage, family_of
from driftkit.encoders.specs import PACKAGED, SPECS, TIMM_PREFIX, EncoderSpec
from driftkit.encoders.timm_encoder import fits, load_state, own_tensors, timm_lineage, timm_spec
from driftkit.encoders.weights import HubFile, UrlFile, fetch, read_weights, unless_changed
from driftkit.errors import ArtifactError, NotFoundError, UsageError
from driftkit.scoring.extraction import Extractor
from driftkit.scoring.extractor_names import ENCODER_PREFIX, NAMES, PIXELS_NAME
from driftkit.storage.files import sha256_file, state_digest
from driftkit.storage.images import to_float
from driftkit.storage.run_folder import Run

DINOV2_MODEL = "vit_large_patch14_dinov2.lvd142m"
DINOV2_SIZE = 224
CLIP_MODEL = "vit_large_patch14_clip_224.datacompxl"
PACKAGED_SIZE = 128  # side in pixels at which packaged networks see all images
MODES = ("bicubic", "bilinear")
PLACE_FILE = "place the file and give `extractor_weights`"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_URL = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
INCEPTION_DIGEST_PREFIX = "6726825d"
INCEPTION_CLASSES = 1008
INCEPTION_VARIABLE = "DRIFTKIT_INCEPTION_WEIGHTS"
PIXELS_SIDE = 16
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
        if given is None and (named := _named_inception()):
            given = _require_file(named, "the Inception weights")
        return _inception(given or fetch_weights(name), device)
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
        return timm_model(name, given or fetch(timm_spec(name), otherwise=PLACE_FILE), device)
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
    """The weights of inception, dinov2 or clip from where they are kept, or downloaded; NotFoundError where neither."""
    file = published_weights(name)
    path = file.locate()
    if path is not None:
        return path
    variable = f" or {INCEPTION_VARIABLE}" if name == "inception" else ""
    try:
        return file.download()
    except ArtifactError as error:
        raise NotFoundError(
            f"{error}; {file.by_hand('`extractor_weights`')}{variable}; without it: `extractor` {INSTALLED}, which is "
            "installed (its numbers compare with each other, not with published ones)"
        ) from None


def _pixels(device: torch.device) -> Extractor:
    """The image itself, coarsely: colours, background and layout, no detail."""

    def embed(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        resized = F.adaptive_avg_pool2d(to_float(images), PIXELS_SIDE)
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
        classes=() if head is None else Run.open(path).manifest().label_names,
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


def _named_inception() -> Path | None:
    return Path(os.environ[INCEPTION_VARIABLE]) if os.environ.get(INCEPTION_VARIABLE) else None


def _require_file(path: Path, what: str) -> Path:
    if not path.is_file():
        raise ArtifactError(f"{path}: expected a file with {what}, found {'a folder' if path.is_dir() else 'nothing'}")
    return path


def dinov2(path: Path, device: torch.device, *, model: str = DINOV2_MODEL) -> Extractor:
    """The class token of DINOv2 after its final norm, unscaled.

    Source: Stein et al. 2023 (arXiv 2306.04675) and its code, dgm-eval: ViT-L/14 at 224x224, bicubic. Differs: images
    are resized by torch instead of PIL; less than one of a thousand values of 8 bits differs, by 1.
    """
    return _transformer("dinov2", model, path, device, data="LVD-142M", labels=False, img_size=DINOV2_SIZE)


def clip(path: Path, device: torch.device, *, model: str = CLIP_MODEL) -> Extractor:
    """The class token of CLIP's image tower after its last norm, before the projection.

    Source: as `dinov2`; dgm-eval takes ViT-L/14 trained on DataComp-XL. Differs: as there.
    """
    return _transformer("clip", model, path, device, data="DataComp-XL", labels=True)


def _transformer(
    name: str, model: str, path: Path, device: torch.device, *, data: str, labels: bool, **options: Any
) -> Extractor:
    network, digest = _network(timm_spec(f"{TIMM_PREFIX}{model}"), path, device, **options)
    lineage = Lineage(digest, model.partition(".")[0], family_of(network), (data,), labels)
    return _timm_extractor(name, network, lineage, device, size=224, model=model, reading="class token")


def packaged_model(name: str, path: Path, device: torch.device) -> Extractor:
    """The pooled features of a network whose weights come with a Python package: every machine has it."""
    spec = SPECS[name]
    network, digest = _network(spec, path, device)
    lineage = timm_lineage(unless_changed(spec, path), network, digest)
    return _timm_extractor(
        name, network, lineage, device, size=PACKAGED_SIZE, model=spec.model, reading="pooled features"
    )


def timm_model(name: str, path: Path, device: torch.device) -> Extractor:
    """The pooled features of any timm model, as its classifier would see them, at the model's own input size."""
    spec = timm_spec(name)
    network, digest = _network(spec, path, device)
    cfg = network.pretrained_cfg
    size, mode = int(cfg["input_size"][-1]), cfg.get("interpolation")
    mode = mode if mode in MODES else MODES[0]
    lineage = timm_lineage(spec, network, digest)
    return _timm_extractor(
        name, network, lineage, device, size=size, model=spec.model, reading="pooled features", mode=mode
    )


def _network(spec: EncoderSpec, path: Path, device: torch.device, **options: Any) -> tuple[Any, str]:
    """A timm model without its classifier, in evaluation mode, and the digest of its weights.

    They are found in training checkpoints as those of encoders are. ArtifactError where they are of another network.
    """
    import timm

    network: Any = timm.create_model(spec.model, pretrained=False, num_classes=0, **options)
    state = own_tensors(spec, read_weights(path, partial(fits, spec, network)), network, path)
    load_state(network, state, path)
    return network.requires_grad_(False).eval().to(device), state_digest(state)


def resized_as_by_pil(images: torch.Tensor, size: int, mode: str) -> torch.Tensor:
    """Images of values from 0 to 255 [N, 3, H, W] at size x size, float32: whole numbers, as Pillow resizes 8 bits.

    Antialiasing selects Pillow's kernels. As there, rows are resized first, and both results are rounded, halves up.
    """
    resized = images.float()
    for shape in ((images.shape[2], size), (size, size)):
        resized = F.interpolate(resized, size=shape, mode=mode, antialias=True).clamp(0, 255).add(0.5).floor()
    return resized


def _timm_extractor(
    name: str, network: Any, lineage: Lineage, device: torch.device, *, size: int, model: str, reading: str,
    mode: str = "bicubic",
) -> Extractor:  # fmt: skip
    mean = torch.tensor(network.pretrained_cfg["mean"], device=device).view(1, 3, 1, 1)
    std = torch.tensor(network.pretrained_cfg["std"], device=device).view(1, 3, 1, 1)
    network.to(memory_format=torch.channels_last)  # 2.6 times as fast for EfficientNet-Lite2 on a CPU

    def embed(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        inputs = (resized_as_by_pil(images, size, mode) / 255 - mean) / std
        inputs = inputs.contiguous(memory_format=torch.channels_last)
        if reading == "class token":
            return network.forward_features(inputs)[:, 0], None
        return network(inputs), None

    with torch.inference_mode():
        dim = embed(torch.zeros(1, 3, size, size, dtype=torch.uint8, device=device))[0].shape[1]
    return Extractor(
        name=name,
        version=f"timm {version('timm')}, {model}, {reading}",
        weights_digest=lineage.weights,
        resize=f"{size}x{size} {mode} antialiased, rounded to 8 bits after each axis",
        dim=int(dim),
        embed=embed,
        device=device,
        lineage=lineage,
    )

"""Extractors that come through timm: DINOv2 and CLIP as FD-DINOv2 and FD-CLIP take them, and any other model."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from driftkit.encoders.lineage import Lineage, family_of
from driftkit.encoders.specs import SPECS
from driftkit.encoders.timm_encoder import load_state, own_tensors, timm_lineage, timm_spec
from driftkit.encoders.weights import fetch, read_weights, unless_changed
from driftkit.scoring.extraction import Extractor
from driftkit.storage.files import state_digest

DINOV2_MODEL = "vit_large_patch14_dinov2.lvd142m"
DINOV2_SIZE = 224
CLIP_MODEL = "vit_large_patch14_clip_224.datacompxl"
PACKAGED_SIZE = 128  # side in pixels at which packaged networks see all images
MODES = ("bicubic", "bilinear")
PLACE_FILE = "place the file and give `extractor_weights`"


def dinov2(path: Path, device: torch.device, *, model: str = DINOV2_MODEL) -> Extractor:
    """The class token of DINOv2 after its final norm, unscaled.

    Source: Stein et al. 2023 (arXiv 2306.04675) and its code, dgm-eval: ViT-L/14 at 224x224, bicubic. Differs: images
    are resized by torch instead of PIL, to the same 8 bits but for rounding.
    """
    state = read_weights(path)
    network = _network(model, state, path, img_size=DINOV2_SIZE).to(device)
    lineage = _transformer_lineage(network, model, state, "LVD-142M", labels=False)
    return _extractor("dinov2", network, lineage, device, size=DINOV2_SIZE, model=model, reading="class token")


def clip(path: Path, device: torch.device, *, model: str = CLIP_MODEL) -> Extractor:
    """The class token of CLIP's image tower after its last norm, before the projection.

    Source: as `dinov2`; dgm-eval takes ViT-L/14 trained on DataComp-XL. Differs: as there.
    """
    state = read_weights(path)
    network = _network(model, state, path).to(device)
    lineage = _transformer_lineage(network, model, state, "DataComp-XL", labels=True)
    return _extractor("clip", network, lineage, device, size=224, model=model, reading="class token")


def _transformer_lineage(
    network: Any, model: str, state: dict[str, torch.Tensor], data: str, *, labels: bool
) -> Lineage:
    return Lineage(state_digest(state), model.partition(".")[0], family_of(network), (data,), labels)


def packaged_model(name: str, path: Path, device: torch.device) -> Extractor:
    """The pooled features of a network whose weights come with a Python package: an extractor every machine has.

    Comparable between runs and machines; no published figure was measured with it.
    """
    spec = SPECS[name]
    import timm

    network: Any = timm.create_model(spec.model, pretrained=False, num_classes=0)
    state = own_tensors(spec, read_weights(path), network, path)
    load_state(network, state, path)
    network.requires_grad_(False).eval().to(device)
    lineage = timm_lineage(unless_changed(spec, path), network, state_digest(state))
    return _extractor(name, network, lineage, device, size=PACKAGED_SIZE, model=spec.model, reading="pooled features")


def timm_weights(name: str, given: Path | None) -> Path:
    """The weights of timm:MODEL: the given file, or the published one from the cache or the hub.

    Raises:
        UsageError: timm has no such model.
        ArtifactError: the weights are not here and do not come.
    """
    return given or fetch(timm_spec(name), otherwise=PLACE_FILE)


def timm_model(name: str, path: Path, device: torch.device) -> Extractor:
    """The pooled features of any timm model, as its classifier would see them, at the model's own input size."""
    spec = timm_spec(name)
    state = read_weights(path)
    network = _network(spec.model, state, path).to(device)
    cfg = network.pretrained_cfg
    size, mode = int(cfg["input_size"][-1]), cfg.get("interpolation")
    mode = mode if mode in MODES else MODES[0]
    lineage = timm_lineage(spec, network, state_digest(state))
    return _extractor(name, network, lineage, device, size=size, model=spec.model, reading="pooled features", mode=mode)


def _network(model: str, state: dict[str, torch.Tensor], path: Path, **options: Any) -> Any:
    """A timm model without its classifier, in evaluation mode; ArtifactError where the weights are of another one."""
    import timm

    network: Any = timm.create_model(model, pretrained=False, num_classes=0, **options)
    load_state(network, state, path)
    return network.requires_grad_(False).eval()


def _extractor(
    name: str, network: Any, lineage: Lineage, device: torch.device, *, size: int, model: str, reading: str,
    mode: str = "bicubic",
) -> Extractor:  # fmt: skip
    mean = torch.tensor(network.pretrained_cfg["mean"], device=device).view(1, 3, 1, 1)
    std = torch.tensor(network.pretrained_cfg["std"], device=device).view(1, 3, 1, 1)
    network.to(memory_format=torch.channels_last)  # 2.6 times as fast for EfficientNet-Lite2 on a CPU

    def embed(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        # Antialiasing selects the cubic kernel of PIL, and rounding its 8 bits: the convention resizes PIL images.
        resized = F.interpolate(images.float(), size=(size, size), mode=mode, antialias=True)
        inputs = (resized.clamp(0, 255).round() / 255 - mean) / std
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
        resize=f"{size}x{size} {mode} antialiased, rounded to 8 bits",
        dim=int(dim),
        embed=embed,
        device=device,
        lineage=lineage,
    )

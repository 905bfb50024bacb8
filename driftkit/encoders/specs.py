"""The table of encoders. A new published encoder is a new row."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EncoderSpec:
    """One published encoder.

    `taps` name the layers whose outputs are the feature maps, with their indices in timm's `forward_intermediates`.
    `patch` is the side that must divide the input size. `weights_prefix` says that the file is a training checkpoint:
    only keys under the prefix belong to the encoder.
    """

    name: str
    model: str
    taps: tuple[tuple[str, int], ...]
    input_size: int
    patch: int
    feature_set: str
    trained_by: str
    licence: str
    weights_url: str | None = None
    weights_prefix: str = ""
    dropped_keys: tuple[str, ...] = ()


SPECS = {
    spec.name: spec
    for spec in (
        EncoderSpec(
            name="dinov2-multires",
            model="vit_base_patch14_dinov2.lvd142m",
            taps=(("block3", 2), ("block6", 5), ("block9", 8), ("block12", 11)),
            input_size=224,
            patch=14,
            feature_set="multires",
            trained_by="DINOv2, self-supervised, LVD-142M",
            licence="Apache-2.0",
        ),
        EncoderSpec(
            name="convnextv2",
            model="convnextv2_base.fcmae",
            taps=(("stage1", 0), ("stage2", 1), ("stage3", 2), ("stage4", 3)),
            input_size=224,
            patch=32,
            feature_set="multires",
            trained_by="FCMAE, self-supervised, ImageNet-1k",
            licence="CC-BY-NC-4.0",
        ),
        EncoderSpec(
            name="mocov2",
            model="resnet50",
            taps=(("layer1", 1), ("layer2", 2), ("layer3", 3), ("layer4", 4)),
            input_size=224,
            patch=32,
            feature_set="multires",
            trained_by="MoCo v2 for 800 epochs, self-supervised, ImageNet-1k",
            licence="CC-BY-NC-4.0",
            weights_url="https://dl.fbaipublicfiles.com/moco/moco_checkpoints/moco_v2_800ep/moco_v2_800ep_pretrain.pth.tar",
            weights_prefix="module.encoder_q.",
            dropped_keys=("fc.",),
        ),
    )
}

PIXEL = "pixel"


def names() -> tuple[str, ...]:
    """Every encoder name that `--encoder` accepts beside a MAE run."""
    return (PIXEL, *SPECS)

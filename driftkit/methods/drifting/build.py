"""Building the drifting objective: its encoders, the caches of real features, and the record of both."""

from functools import partial
from importlib.metadata import version

from driftkit.encoders.encoder_config import EncoderConfig
from driftkit.encoders.encoder_union import EncoderUnion, UnionMember
from driftkit.encoders.feature_cache import FeatureCache, FeatureSource, open_cache
from driftkit.encoders.feature_sets import FEATURES_VERSION
from driftkit.encoders.frozen_encoder import FrozenEncoder
from driftkit.encoders.registry import encoder_kind, load_encoder
from driftkit.methods.base import BuiltObjective, Setting
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.grouping import GroupImages, Groups, step_groups
from driftkit.methods.drifting.objective import Drifting
from driftkit.models.contract import GeneratorNetworkConfig
from driftkit.protocols import Execution
from driftkit.runtime.device import autocast
from driftkit.runtime.environment import cache_folder


def build_drifting(config: DriftingConfig, setting: Setting) -> BuiltObjective:
    """The objective, and what the manifest records of its encoders."""
    labels = setting.pack.labels[setting.training] if config.class_conditional else None
    groups = step_groups(config, global_batch=setting.global_batch, num_classes=len(setting.pack.classes))
    groups.share(setting.ranks.world_size)  # refuses what ranks cannot share, before anything is loaded
    plain = groups == Groups(1, setting.global_batch, setting.global_batch, 0) and labels is None
    images = None if plain else GroupImages(groups, setting.training, labels, num_classes=len(setting.pack.classes))
    published = [one.encoder for one in config.each() if one.encoder_weights is None and not one.random_weights]
    if setting.ranks.world_size > 1 and published:
        with setting.ranks.first_alone():  # one download per cache, which the other ranks then read
            for name in published:
                encoder_kind(name).fetch(name)

    def load(one: EncoderConfig) -> FrozenEncoder:
        return load_encoder(one, image_size=setting.pack.image_size, device=setting.device)

    encoders = EncoderUnion.load(config, load)
    encoders.require_different()
    record = encoders.record()
    for encoder in encoders.encoders:
        encoder.prepare(setting.device, setting.dtype)  # their digests have been taken
    if config.cache_features:
        encoders = encoders.with_caches(lambda member: _open_cache(member, setting))
    objective = Drifting(
        config,
        encoders,
        network=setting.network if isinstance(setting.network, GeneratorNetworkConfig) else None,
        images=images,
        ranks=setting.ranks,
        compiled=setting.compile,
    )
    return BuiltObjective(objective, record, tuple(groups.advice(by_class=config.class_conditional)))


def _open_cache(member: UnionMember, setting: Setting) -> FeatureCache:
    key = {
        "data": setting.pack.digest,
        "image_size": setting.pack.image_size,
        "encoder": member.encoder.describe(),
        "weights": member.content,
        "feature_set": member.features.name,
        "computed_in": f"{str(setting.dtype).removeprefix('torch.')} on {setting.device.type}",
        "versions": {"features": FEATURES_VERSION, "timm": version("timm"), "torch": version("torch")},
    }
    execution = Execution(autocast=partial(autocast, setting.device, setting.dtype))
    source = FeatureSource(member.encoder, member.features, key, setting.device, execution)
    return open_cache(
        cache_folder() / "features", setting.pack.images, source, flips=setting.flips, ranks=setting.ranks
    )

"""Building the drifting objective: its encoder, the cache of real features, and the record of both."""

from functools import partial
from importlib.metadata import version

import torch

from driftkit.encoders.feature_cache import FeatureCache, FeatureSource, open_cache
from driftkit.encoders.feature_sets import FEATURES_VERSION, feature_set
from driftkit.encoders.frozen_encoder import FrozenEncoder
from driftkit.encoders.lineage import PIXEL_TERM
from driftkit.encoders.registry import encoder_kind, load_encoder
from driftkit.methods.base import BuiltObjective, Setting
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.grouping import GroupImages, Groups, step_groups
from driftkit.methods.drifting.objective import Drifting
from driftkit.models.contract import GeneratorNetworkConfig
from driftkit.protocols import Execution
from driftkit.runtime.device import autocast
from driftkit.runtime.environment import cache_folder
from driftkit.storage.files import state_digest


def build_drifting(config: DriftingConfig, setting: Setting) -> BuiltObjective:
    """The objective, and what the manifest records of its encoder."""
    labels = setting.pack.labels[setting.training] if config.class_conditional else None
    groups = step_groups(config, global_batch=setting.global_batch, num_classes=len(setting.pack.classes))
    groups.share(setting.ranks.world_size)  # refuses what ranks cannot share, before anything is loaded
    plain = groups == Groups(1, setting.global_batch, setting.global_batch, 0) and labels is None
    images = None if plain else GroupImages(groups, setting.training, labels)
    if setting.ranks.world_size > 1 and config.encoder_weights is None and not config.random_weights:
        with setting.ranks.first_alone():  # one download per cache, which the other ranks then read
            encoder_kind(config.encoder).fetch(config.encoder)
    encoder = load_encoder(config, image_size=setting.pack.image_size, device=setting.device)
    encoder = encoder.to(memory_format=torch.channels_last)
    features = config.feature_set or encoder.feature_set
    cache = _open_cache(encoder, features, setting) if config.cache_features else None
    lineages = [encoder.lineage, *([PIXEL_TERM] if feature_set(features).has_pixels else [])]  # of all the loss sees
    record = {
        "name": encoder.name,
        "parameters": encoder.num_parameters,
        **encoder.describe(),
        "feature_set": features,
        "random_weights": encoder.random_weights,
        "weights_digest": encoder.weights_digest,
        "lineage": [lineage.describe() for lineage in lineages],
    }
    encoder.store_weights_for(setting.dtype)  # their digests have been taken
    objective = Drifting(
        config,
        encoder,
        network=setting.network if isinstance(setting.network, GeneratorNetworkConfig) else None,
        images=images,
        ranks=setting.ranks,
        cache=cache,
        compiled=setting.compile,
    )
    return BuiltObjective(objective, record, tuple(groups.advice(by_class=config.class_conditional)))


def _open_cache(encoder: FrozenEncoder, features: str, setting: Setting) -> FeatureCache:
    # The seed of random weights does not tell how this version of timm draws them: only their content does.
    digest = state_digest(encoder.state_dict()) if encoder.random_weights else encoder.weights_digest
    key = {
        "data": setting.pack.digest,
        "image_size": setting.pack.image_size,
        "encoder": encoder.describe(),
        "weights": digest,
        "feature_set": features,
        "computed_in": f"{str(setting.dtype).removeprefix('torch.')} on {setting.device.type}",
        "versions": {"features": FEATURES_VERSION, "timm": version("timm"), "torch": version("torch")},
    }
    execution = Execution(autocast=partial(autocast, setting.device, setting.dtype))
    source = FeatureSource(encoder, feature_set(features), key, setting.device, execution)
    return open_cache(
        cache_folder() / "features", setting.pack.images, source, flips=setting.flips, ranks=setting.ranks
    )

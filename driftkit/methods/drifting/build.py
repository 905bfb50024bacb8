"""Building the drifting objective: its encoder, the cache of real features, and the record of both."""

from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch

from driftkit.encoders.cache import FeatureCache, FeatureSource, open_cache
from driftkit.encoders.features import FEATURES_VERSION, WITH_PIXELS, feature_set
from driftkit.encoders.lineage import PIXEL_TERM, Lineage
from driftkit.encoders.loading import fetch_published, load_encoder
from driftkit.encoders.networks import FrozenEncoder
from driftkit.methods.base import BuiltObjective, Setting
from driftkit.methods.drifting.config import DriftingConfig
from driftkit.methods.drifting.objective import Drifting
from driftkit.protocols import Execution
from driftkit.runtime.device import autocast
from driftkit.runtime.folders import cache_folder
from driftkit.storage.files import state_digest


def build_drifting(config: DriftingConfig, setting: Setting) -> BuiltObjective:
    """The objective, and what the manifest records of its encoder."""
    if setting.ranks.world_size > 1 and config.encoder_weights is None and not config.random_weights:
        with setting.ranks.first_alone():  # one download per cache, which the other ranks then read
            fetch_published(config.encoder)
    encoder = load_encoder(
        config.encoder,
        image_size=setting.pack.image_size,
        input_size=config.input_size,
        resize=config.resize,
        weights=Path(config.encoder_weights) if config.encoder_weights else None,
        random_weights=config.random_weights,
        taps=config.taps,
        map_norm=config.map_norm,
        feature_set=config.feature_set,
        device=setting.device,
    ).to(memory_format=torch.channels_last)
    features = config.feature_set or encoder.feature_set
    cache = _open_cache(encoder, features, setting) if config.cache_features else None
    record = {
        "name": encoder.name,
        "parameters": encoder.num_parameters,
        **encoder.describe(),
        "feature_set": features,
        "random_weights": encoder.random_weights,
        "weights_digest": encoder.weights_digest,
        "lineage": [lineage.describe() for lineage in training_lineages(encoder, features)],
    }
    encoder.store_weights_for(setting.dtype)  # their digests have been taken
    return BuiltObjective(Drifting(config, encoder, ranks=setting.ranks, cache=cache, compiled=setting.compile), record)


def training_lineages(encoder: FrozenEncoder, features: str) -> list[Lineage]:
    """Lineages of all that the loss sees: the encoder, and the pixels where the feature set has them."""
    return [encoder.lineage, *([PIXEL_TERM] if features in WITH_PIXELS else [])]


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

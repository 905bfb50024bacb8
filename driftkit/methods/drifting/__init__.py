"""The mathematics of drifting: the field V and its loss, over one process or many. See `field.py` and `loss.py`."""

from driftkit.methods.drifting.field import AggregatedDrift, aggregated_drift, drift_field
from driftkit.methods.drifting.loss import DriftLoss, drift_loss
from driftkit.methods.drifting.sharing import SharedFeatures, share_features

__all__ = [
    "AggregatedDrift",
    "DriftLoss",
    "SharedFeatures",
    "aggregated_drift",
    "drift_field",
    "drift_loss",
    "share_features",
]

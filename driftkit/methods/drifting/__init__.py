"""The method of arXiv 2602.04770. Start with `field` (V, Algorithm 2 and Appendix A.6), then `loss` and `objective`.

README.md maps equations to code. Networks are in `models`, features in `encoders`.
"""

from driftkit.methods.drifting.field import AggregatedDrift, aggregated_drift, drift_field
from driftkit.methods.drifting.loss import drift_loss
from driftkit.methods.drifting.sharing import SharedFeatures, share_features

__all__ = ["AggregatedDrift", "SharedFeatures", "aggregated_drift", "drift_field", "drift_loss", "share_features"]

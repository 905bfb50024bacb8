"""driftkit: one-step drifting generators, DDPM and rectified flow on the same network, sampled, scored and compared."""

__version__ = "0.1.0"

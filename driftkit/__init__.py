"""driftkit: one-step drifting generators and DDPM on the same U-Net, sampled, scored and compared."""

__version__ = "0.1.0"

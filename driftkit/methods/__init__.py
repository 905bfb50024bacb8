"""What one training step minimises: drifting, DDPM, MAE, and the registry that names them."""

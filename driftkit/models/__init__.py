"""Plain network modules that know neither drifting nor diffusion."""

"""DDPM. Open `objective.py` first; `schedule.py` has the noise schedule, `samplers.py` the samplers."""

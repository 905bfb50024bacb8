"""Rectified flow. Open `objective.py` first: the straight path and its velocity; `samplers.py` integrates it."""

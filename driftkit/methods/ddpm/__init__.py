"""DDPM: noise prediction, with ancestral, DDIM and DPM-Solver++ samplers.

Open `objective.py` first.
"""

"""Rectified flow: velocity prediction on straight paths, with Euler and Heun samplers.

Open `objective.py` first.
"""

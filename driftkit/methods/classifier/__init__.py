"""Classifier of labelled images: an independent evaluator of generators. Open `objective.py` first."""

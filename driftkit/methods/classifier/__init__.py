"""A classifier, whose encoder is used as an independent evaluator.

Open `objective.py` first.
"""

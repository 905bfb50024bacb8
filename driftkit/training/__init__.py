"""The trainer and its hooks, batches, resuming, sampling, cost on paper. What a step minimises is in `methods`.

Open `trainer.py` first.
"""

"""Images in, evaluation record out. The numbers themselves are in `metrics`, tables of runs in `comparison`.

Open `evaluator.py` first.
"""

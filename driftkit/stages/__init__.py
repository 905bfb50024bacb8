"""One module per command: settings and paths in, files and records out. What they are made of lives on the floors below.

Open `train.py` or `fid.py` first.
"""

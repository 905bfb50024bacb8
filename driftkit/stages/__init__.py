"""One module per command: settings and paths in, files and records out. The work is done on the floors below.

Open `train.py` or `fid.py` first.
"""

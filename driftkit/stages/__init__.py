"""One module per command: settings and paths in, files and records out. The work is done in the layers below.

Open `train.py` or `fid.py` first.
"""

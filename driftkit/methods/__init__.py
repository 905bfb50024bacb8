"""A folder per method: settings, objective, samplers, and the `Method` value that the rest sees. Networks are in `models`.

Open `base.py` first, then `drifting/field.py`.
"""

"""Methods: what a training run minimises and how its network is sampled.

Open `registry.py` first. Each folder is one method, whole: config, objective, samplers and one `Method` value.
"""

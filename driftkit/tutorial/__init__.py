"""Drifting on points of the plane, as a tutorial. Open `toy_training` first: the whole method in one short loop.

`toy_field` is the field with its two halves scaled apart, which the ablations need; `toy_figure` draws; `toy_record` is
what is written. The distributions are in `datasets/toys`, the field itself in `methods/drifting`.
"""

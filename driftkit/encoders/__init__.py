"""Frozen encoders. Open `registry` first: ENCODERS lists the kinds, and `load_encoder` finds the kind of a name.

A kind is one file (`pixel`, `timm_encoder`, `trained_encoder`); a published timm encoder is one row of `specs`.
What is made of the maps is in `feature_sets`; `clusters` makes classes of images by them. How the vectors drift is not
here: see `methods/drifting`.
"""

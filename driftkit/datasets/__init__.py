"""Images: one kind of pack, many sources. Open `sources` first: SOURCES lists the kinds, `open_dataset` opens a spec.

A source is one file (`shapes`, `cifar10`, `folder`) with one row; `packs` is what all of them become. Which images a
training step takes is not here: see `training/feed`.
"""

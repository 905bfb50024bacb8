"""Grids: rows of images, and the names on their left."""

import numpy as np
import pytest
import torch
from PIL import Image

from driftkit.storage.images import save_grid


@pytest.mark.parametrize("name", ["two\nlines", "\ud800", "\x1b[31m", "猫", "", "\u202eabc", "e\u0301"])
def test_any_name_of_a_class_can_be_written(name, tmp_path):
    save_grid(tmp_path / "grid.png", torch.zeros(2, 3, 8, 8, dtype=torch.uint8), columns=2, row_names=(name,))
    assert Image.open(tmp_path / "grid.png").height == 68


def test_names_of_rows_stand_to_the_left_of_the_images_and_leave_them_alone(tmp_path):
    images = torch.full((6, 3, 8, 8), 128, dtype=torch.uint8)
    save_grid(tmp_path / "plain.png", images, columns=3)
    save_grid(tmp_path / "named.png", images, columns=3, row_names=("cat", "a name longer than twenty characters"))
    plain, named = (np.array(Image.open(tmp_path / f"{name}.png")) for name in ("plain", "named"))
    assert (named[:, -plain.shape[1] :] == plain).all()
    margin = named[:, : -plain.shape[1]]
    written = (margin < 128).any(axis=(1, 2)).nonzero()[0]
    assert written.min() > 20  # in the middle of the first row of 66 pixels
    assert 66 < written.max() < 132
    assert margin.shape[1] < 250  # the long name is cut

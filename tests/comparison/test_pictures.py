"""Grids, neighbours and frames, as pixels."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from driftkit.comparison.compare_config import CompareConfig
from driftkit.comparison.pictures import (
    evolution,
    grid_figure,
    make_pictures,
    nearest,
    neighbour_figure,
    same_noise_samples,
)
from driftkit.comparison.run_summary import summarise
from driftkit.errors import ArtifactError
from driftkit.runtime.progress import no_report
from driftkit.storage.images import read_grid, save_grid
from driftkit.storage.run_folder import Run
from tests.conftest import driftkit, train_tiny
from tests.scoring.fakes import make_pack, random_images, tiny_extractor


@pytest.mark.parametrize("size", [8, 32, 48, 100])
def test_a_saved_grid_gives_its_images_back(tmp_path, size):
    images = random_images(21, size=size)
    save_grid(tmp_path / "grid.png", images, columns=7)
    assert torch.equal(read_grid(tmp_path / "grid.png", size), images)


def test_what_is_no_grid_is_missing(tmp_path):
    save_grid(tmp_path / "grid.png", random_images(4, size=32), columns=2)
    (tmp_path / "cut.png").write_bytes((tmp_path / "grid.png").read_bytes()[:100])
    for name, size in (("grid.png", 100), ("cut.png", 32), ("gone.png", 32)):
        with pytest.raises(ArtifactError):
            read_grid(tmp_path / name, size)


def test_neighbours_stand_below_their_image():
    generated, real = random_images(3, 1, size=64), random_images(6, 2, size=64).unflatten(0, (3, 2))
    figure = neighbour_figure(generated, real, name="n", alt="a", caption="c")
    pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(figure.png)))).permute(2, 0, 1)
    assert torch.equal(pixels[:, 4:68, 72:136], generated[1])
    below = 4 + 64 + 4 + 8  # a wider gap after the first row
    assert torch.equal(pixels[:, below : below + 64, 72:136], real[1, 0])
    assert torch.equal(pixels[:, below + 68 : below + 132, 72:136], real[1, 1])


def test_frames_are_one_per_step_and_move_in_one_file():
    grids = [(step, random_images(64, step)) for step in (10, 20, 30)]
    made = evolution("run", grids, name="e")
    assert [frame.step for frame in made.frames] == [10, 20, 30]
    assert Image.open(io.BytesIO(made.frames[0].image)).size == (2 * made.width, 2 * made.height)
    moving = Image.open(io.BytesIO(made.animation))
    assert (moving.n_frames, moving.info["loop"]) == (3, 0)


@pytest.mark.parametrize(
    ("size", "tile", "factor"), [(8, 8, 3), (16, 16, 2), (32, 32, 1), (64, 64, 0.5), (100, 100, None), (256, 64, 0.5)]
)
def test_the_page_enlarges_small_images_by_whole_factors_and_files_hold_tiles_of_64(size, tile, factor):
    figure = grid_figure(random_images(9, size=size), name="g", alt="a", caption="c")
    embedded, file = Image.open(io.BytesIO(figure.light)), Image.open(io.BytesIO(figure.png))
    gap = max(1, tile // 16)
    assert embedded.size == (8 * (tile + gap) + gap, 2 * (tile + gap) + gap)
    assert figure.enlarged == (size <= 32)
    assert figure.width == (274 if factor is None else factor * embedded.width)
    assert (file.mode, file.width) == ("RGB", -(-64 // tile) * embedded.width)


@pytest.mark.parametrize("extractor", [None, tiny_extractor()], ids=["pixels", "features"])
def test_neighbours_are_those_of_a_literal_search_whatever_the_chunks(extractor):
    generated, real = random_images(5, 1), random_images(50, 2)
    indices, measured = nearest(generated, real, count=3, extractor=extractor, chunk=7)
    for i, image in enumerate(generated):
        if extractor is None:
            distances = [float(((image.double() - other.double()) / 255).square().mean().sqrt()) for other in real]
        else:
            features = extractor.features(real)[0].double() - extractor.features(image[None])[0].double()
            distances = features.norm(dim=1).tolist()
        order = sorted(range(50), key=distances.__getitem__)[:3]
        assert indices[i].tolist() == order
        torch.testing.assert_close(measured[i], torch.tensor([distances[j] for j in order]))


def test_a_copy_is_found_at_no_distance():
    real = random_images(20, 3)
    indices, distances = nearest(real[[7]], real, count=1)
    assert indices.tolist() == [[7]]
    assert float(distances) < 1e-6


def test_too_few_or_other_images_are_refused():
    with pytest.raises(ValueError, match="at least 3"):
        nearest(random_images(2), random_images(2), count=3)
    with pytest.raises(ValueError, match="expected real images of"):
        nearest(random_images(2), random_images(9, size=16))


def test_the_rows_of_a_grid_are_of_their_classes_where_these_are_named_by_numbers(tmp_path):
    pack = make_pack(tmp_path / "pack.safetensors", random_images(12), torch.arange(12) % 3, ("1", "2", "3"))
    train_tiny(tmp_path / "run", "drift", "--data", pack.path, "--class-conditional", "--groups", 2)
    _, info = same_noise_samples(summarise(Run(tmp_path / "run"), label="run"), torch.device("cpu"))
    assert info["asked_classes"] == ("1",) * 8 + ("2",) * 8 + ("3",) * 8


@pytest.mark.parametrize(
    "more", [(), ("--class-conditional", "--groups", 2)], ids=["unconditional", "class-conditional"]
)
def test_grids_show_the_weights_that_are_compared(tmp_path, more):
    train_tiny(tmp_path / "run", "drift", *more)
    assert driftkit("sample", tmp_path / "run", "-n", 64, "--device", "cpu").exit_code == 0  # of the averaged weights
    config = CompareConfig(weights="raw", neighbours=False)
    summary = summarise(Run(tmp_path / "run"), label="run")
    (grid,) = make_pictures([summary], config, torch.device("cpu"), no_report).grids
    assert "raw weights" in grid.caption


def test_a_grid_has_64_images_where_fewer_were_sampled_and_these_where_the_weights_are_gone(tmp_path):
    train_tiny(tmp_path / "run", "drift")
    assert driftkit("sample", tmp_path / "run", "-n", 8, "--device", "cpu").exit_code == 0
    summary = summarise(Run(tmp_path / "run"), label="run")
    images, _ = same_noise_samples(summary, torch.device("cpu"))
    assert len(images) == 64
    for file in (tmp_path / "run" / "checkpoints").rglob("*.safetensors"):
        file.unlink()
    kept, _ = same_noise_samples(summary, torch.device("cpu"))
    assert torch.equal(kept, images[:8])

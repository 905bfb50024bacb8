"""What is killed: command lines that between them write everything that driftkit writes, on tiny images and networks.

Each works in a sandbox that begins as a copy of what an earlier command has left (its `start`), so that the same words
give the same files everywhere.
"""

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from tests.tiny import TINY_DATA, TINY_MAE, TINY_UNET

CHECKPOINT_EVERY = 2
LOOP = ("--batch-size", "4", "--steps", "7", "--checkpoint-every", str(CHECKPOINT_EVERY), "--sample-every", "3",
        "--set", "trainer.log_every=1", "--set", "trainer.keep_every=4", "--device", "cpu")  # fmt: skip
TEST_SHAPES = "shapes?split=test&image_size=8&count=40"


@dataclass(frozen=True)
class Target:
    """A command line to be killed.

    Attributes:
        start: the target whose finished sandbox this one begins with; None: images alone.
        before: command lines run first, undisturbed, in the sandbox it begins with.
        runs: folders of the runs that it trains.
    """

    name: str
    words: tuple[str, ...]
    start: str | None = None
    before: tuple[tuple[str, ...], ...] = ()
    runs: tuple[str, ...] = ()


def _train(objective: str, output: str, *more: str) -> tuple[str, ...]:
    model = TINY_MAE if objective == "mae" else TINY_UNET
    return ("train", "--objective", objective, "--output", output, *TINY_DATA, *model, *LOOP, *more, "--json")


_FID = ("--reference", TEST_SHAPES, "--extractor", "encoder:mae", "-n", "24", "--device", "cpu", "--allow-collapsed")
_SCORED = (("sample", "drift", "-n", "24", "--device", "cpu"), ("fid", "drift", *_FID))

TARGETS = (
    Target("train mae", _train("mae", "mae"), runs=("mae",)),
    Target(
        "train drift",
        _train("drift", "drift", "--encoder", "mae", "--eval-every", "4", "--set", "evaluation.extractor='encoder:mae'",
               "--set", f"evaluation.reference='{TEST_SHAPES}'", "--set", "evaluation.num_images=24"),
        start="train mae", runs=("drift",),
    ),
    Target("train ddpm", _train("ddpm", "ddpm", "--micro-batch", "2"), runs=("ddpm",)),
    Target(
        "train drift, cached features",
        (*_train("drift", "cached", "--encoder", "mae", "--cache-features"), "--data",
         "shapes?image_size=8&count=2500"),
        start="train mae", runs=("cached",),
    ),
    Target("data: folder", ("data", "images", "--json")),
    Target("data: zip to a pack", ("data", "images.zip", "--output", "pack", "--image-size", "8", "--grid", "grid.png",
                                   "--json")),
    Target("data: another pack replaced", ("data", "images.zip", "--output", "pack", "--force", "--json"),
           start="data: zip to a pack"),
    Target("sample", ("sample", "drift", "-n", "24", "--device", "cpu", "--json"), start="train drift"),
    Target("fid", ("fid", "drift", *_FID, "--json"), start="train drift"),
    Target("fid of every checkpoint", ("fid", "drift", *_FID, "--all-checkpoints", "--json"), start="train drift"),
    Target("compare", ("compare", "drift", "--no-speed", "--device", "cpu", "--output", "report", "--json"),
           start="train drift", before=_SCORED),
    Target("compare again with more", ("compare", "drift", "--no-speed", "--neighbours", "--device", "cpu", "--output",
                                       "report", "--json"),
           start="compare"),
    Target("export", ("export", "drift", "--output", "exported", "--json"), start="train drift"),
    Target("pipeline", ("run", "chain.toml", "--json"), runs=("out/mae", "out/drift")),
)  # fmt: skip

CHAIN = f"""
name = "chain"
output = "out"

[[stage]]
name = "images"
command = "data"
spec = "images"
image_size = 8
output = "{{output}}/images.safetensors"

[[stage]]
name = "mae"
command = "train"
objective = "mae"
data = "{{output}}/images.safetensors"
steps = 3
batch_size = 4
checkpoint_every = {CHECKPOINT_EVERY}
set = {{ model.base_channels = 8, model.num_blocks = [1, 1, 1, 1], trainer.log_every = 1 }}
output = "{{output}}/mae"

[[stage]]
name = "drift"
command = "train"
encoder = "{{output}}/mae"
data = "{{output}}/images.safetensors"
steps = 3
batch_size = 4
checkpoint_every = {CHECKPOINT_EVERY}
set = {{ model.base_channels = 8, model.channel_multipliers = [1, 2], model.num_heads = 2, model.num_res_blocks = 1, trainer.log_every = 1 }}
output = "{{output}}/drift"

[[stage]]
name = "samples"
command = "sample"
run = "{{output}}/drift"
num_images = 24
output = "{{output}}/drift/samples/24.safetensors"

[[stage]]
name = "score"
command = "fid"
target = "{{output}}/drift/samples/24.safetensors"
reference = "{TEST_SHAPES}"
extractor = "encoder:{{output}}/mae"
allow_collapsed = true

[[stage]]
name = "report"
command = "compare"
runs = ["{{output}}/drift", "{{output}}/mae"]
speed = false
output = "{{output}}/report"
"""  # noqa: E501


def make_inputs(folder: Path) -> None:
    """Images of two classes, once as files and once in a zip, and a pipeline that begins with them."""
    folder.mkdir(parents=True)
    noise = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "images.zip", "w") as archive:
        for number in range(60):
            name = f"{'cat' if number % 2 else 'dog'}/{number:03d}.png"
            path = folder / "images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(noise.integers(0, 256, (10, 10, 3), dtype=np.uint8)).save(path)
            archive.write(path, name)
    (folder / "chain.toml").write_text(CHAIN)

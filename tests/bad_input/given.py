"""What a row puts into its folder: functions that make the files a command line names."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

Given = Callable[[Path], None]


def all_of(*parts: Given) -> Given:
    """One after another."""

    def make(folder: Path) -> None:
        for part in parts:
            part(folder)

    return make


def raw(content: bytes, name: str) -> Given:
    """A file of these bytes."""

    def make(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)

    return make


def text(content: str, name: str) -> Given:
    """A file of that text."""
    return raw(content.encode(), name)


def folder_named(name: str) -> Given:
    """An empty folder."""
    return lambda folder: (folder / name).mkdir(parents=True)


def image(name: str, mode: str = "RGB", size: tuple[int, int] = (8, 8), frames: int = 1, seed: int = 0) -> Given:
    """A noisy picture in one of Pillow's modes; the suffix says the format."""

    def make(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pictures = [_noise(mode, size, seed + i) for i in range(frames)]
        pictures[0].save(path, **({"save_all": True, "append_images": pictures[1:]} if frames > 1 else {}))

    return make


def _noise(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    draw = np.random.default_rng(seed)
    if mode == "I;16":
        return Image.fromarray(draw.integers(0, 65536, size[::-1], dtype=np.uint16))
    if mode == "F":
        return Image.fromarray(draw.random(size[::-1], dtype=np.float32))
    colours = Image.fromarray(draw.integers(0, 256, (*size[::-1], 3), dtype=np.uint8))
    if mode not in ("RGBA", "LA"):
        return colours.convert(mode)
    colours.putalpha(Image.fromarray(draw.integers(0, 256, size[::-1], dtype=np.uint8)))
    return colours if mode == "RGBA" else colours.convert("LA")


def images(folder_name: str = "photos", count: int = 16, **more) -> Given:
    """A folder of pictures."""
    return all_of(*(image(f"{folder_name}/{i:02}.png", seed=100 * i, **more) for i in range(count)))


def cut(name: str, size: int = 40) -> Given:
    """What is left of a file when a copy was broken off."""
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size])


def archive(name: str, *members: tuple[str, bytes]) -> Given:
    """A zip with these members."""

    def make(folder: Path) -> None:
        with zipfile.ZipFile(folder / name, "w") as file:
            for member, content in members:
                file.writestr(member, content)

    return make


def tensors(name: str, **content: torch.Tensor) -> Given:
    """A safetensors file."""
    return lambda folder: save_file(content, folder / name)


def link(name: str, to: str) -> Given:
    """A symbolic link."""
    return lambda folder: (folder / name).symlink_to(to)

"""The things that command lines name: packs, runs, samples and an evaluation, made once and changed by nobody."""

import hashlib
import shlex
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import driftkit, train_tiny
from tests.encoders.tiny_autoencoder import tiny_autoencoder
from tests.scoring.fakes import make_pack, random_images


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> dict[str, Path]:
    """Paths by the name that a line gives them; `root` holds them all."""
    root = tmp_path_factory.mktemp("world")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("DRIFTKIT_DATA_DIR", str(root / "data"))
        patch.setenv("DRIFTKIT_CACHE", str(root / "cache"))
        make_pack(root / "pack.safetensors", random_images(64), torch.arange(64) % 4, ("a", "b", "c", "d"))
        make_pack(root / "big.safetensors", random_images(16, size=16))
        make_pack(root / "odd.safetensors", random_images(16, size=9))
        make_pack(root / "wide.safetensors", torch.cat([random_images(16)] * 2, dim=3))
        tiny_autoencoder(root / "vae")
        data = ("--data", root / "pack.safetensors")
        train_tiny(root / "drift", "drift", *data)
        train_tiny(root / "ddpm", "ddpm", *data)
        train_tiny(root / "classes", "ddpm", "--class-conditional", *data)
        train_tiny(root / "certain", "flow", "--class-conditional", "--set", "objective.label_dropout=0", *data)
        train_tiny(root / "mae", "mae", *data)
        samples = root / "samples.safetensors"
        for line in (
            ["sample", root / "drift", "-n", 16, "-o", samples, "--device", "cpu"],
            ["fid", samples, "-r", root / "pack", "--extractor", f"encoder:{root / 'mae'}", "-o", root / "score.json",
             "--write-statistics", root / "statistics.safetensors", "--allow-collapsed", "--device", "cpu"],
        ):  # fmt: skip
            done = driftkit(*line)
            assert done.exit_code == 0, done.output
    names = ("pack", "big", "odd", "wide", "samples", "statistics")
    files = {name: root / f"{name}.safetensors" for name in names}
    return {
        "root": root,
        "score": root / "score.json",
        **files,
        **{n: root / n for n in ("drift", "ddpm", "classes", "certain", "mae", "vae")},
    }


def words_of(line: str, world: dict[str, Path]) -> list[str]:
    """The words of a line as a shell splits it, with the paths of the world."""
    return [word.format_map({**world, "python": sys.executable}) for word in shlex.split(line)]


def snapshot(*folders: Path) -> dict[str, str]:
    """Every path below the folders with what it is: the digest of a file, the target of a link."""
    found = {}
    for path in (path for folder in folders for path in sorted(folder.rglob("*"))):
        if path.is_symlink():
            found[str(path)] = f"link to {path.readlink()}"
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = "folder" if path.is_dir() else "special"
    return found

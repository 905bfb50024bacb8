"""What a score costs next to the network's forward pass: `python -m tests.benchmarks fid`.

10,000 samples of 32x32 pixels against 10,000 real images whose statistics are kept, and 50,000 training images among
which copies are looked for. Inception's own forward pass takes a quarter of an hour on two cores, so it is timed on 256
images and scaled; everything else is timed whole, on features of the same width that a product makes.
"""

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from driftkit.metrics.registry import METRICS
from driftkit.scoring.evaluator import ScoringOptions, evaluate, open_evaluator
from driftkit.scoring.extraction import Extractor
from driftkit.storage.images import write_samples
from tests.benchmarks.harness import Row

COUNT, TRAINING, SIDE, DIM = 10_000, 50_000, 32, 2048
TIMED, BATCH = 256, 64
GOAL = "<= 0.10"


def rows() -> Iterator[Row]:
    forward = inception_seconds() / TIMED * COUNT
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DRIFTKIT_CACHE"] = str(Path(folder) / "cache")
        searching = ScoringOptions(tuple(METRICS.values()), shapes(TRAINING, "train"), allow_collapsed=True)
        for case, options in (
            ("without the search for copies", searching.without_memorization()),
            (f"with it, among {TRAINING:,} images", searching),
        ):
            first, second = (beside_the_forward(Path(folder), options) for _ in range(2))
            for what, seconds, goal in (("statistics made", first, ""), ("statistics kept", second, GOAL)):
                share = seconds / (seconds + forward)
                yield Row("fid", f"{case}, {what}", seconds, forward, "s", share, goal, "Inception's forward")


def shapes(count: int, split: str) -> str:
    """Data SPEC of generated images."""
    return f"shapes?image_size={SIDE}&count={count}&split={split}"


def inception_seconds() -> float:
    """Seconds that Inception takes for TIMED images; its weights do not matter."""
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Untrained(FeatureExtractorInceptionV3):
        """Without a file of weights, which its constructor would read."""

        def load_state_dict(self, *_: object, **__: object) -> None:  # type: ignore[override]
            return None

    network = untrained(Untrained)
    images = torch.randint(0, 256, (TIMED, 3, SIDE, SIDE), dtype=torch.uint8)
    with torch.inference_mode():
        network(images[:BATCH])
        started = time.perf_counter()
        for batch in images.split(BATCH):
            network(batch)
        return time.perf_counter() - started


def untrained(make: Callable[..., torch.nn.Module]) -> torch.nn.Module:
    with tempfile.NamedTemporaryFile(suffix=".pth") as file:
        torch.save({}, file.name)
        return make("inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=file.name)


def beside_the_forward(folder: Path, options: ScoringOptions) -> float:
    """Seconds of a whole evaluation, without those in the extractor's network."""
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3 * SIDE * SIDE, DIM, generator=generator) / 255
    spent = 0.0

    def embed(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        nonlocal spent
        started = time.perf_counter()
        features = torch.relu(images.flatten(1).float() @ matrix)
        spent += time.perf_counter() - started
        return features, None

    extractor = Extractor(
        name="product", version="1", weights_digest="00" * 32, resize="none", dim=DIM, embed=embed,
        device=torch.device("cpu"),
    )  # fmt: skip
    samples = folder / "samples.safetensors"
    if not samples.exists():
        images = torch.randint(0, 256, (COUNT, 3, SIDE, SIDE), dtype=torch.uint8, generator=generator)
        write_samples(samples, images, {"num_images": COUNT, "image_size": SIDE})
    started = time.perf_counter()
    evaluate([open_evaluator(shapes(COUNT, "test"), extractor=extractor, options=options)], samples)
    return time.perf_counter() - started - spent

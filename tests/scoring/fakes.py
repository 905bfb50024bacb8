"""Stand-ins for what scoring and comparing needs: an extractor, packs, and run folders without any training."""

from pathlib import Path
from typing import Any

import torch

from driftkit.datasets.packs import ImagePack, PackSource, write_pack
from driftkit.encoders.lineage import Lineage
from driftkit.scoring.evaluation_record import EvaluationRecord
from driftkit.scoring.evaluator import Evaluation, ScoringOptions, evaluate, open_evaluator
from driftkit.scoring.extraction import Extractor
from driftkit.scoring.image_set import ScoringExecution
from driftkit.storage.images import save_grid, write_samples
from driftkit.storage.run_folder import Run

SIZE = 8


def random_images(count: int, seed: int = 0, *, size: int = SIZE, shift: float = 0.0) -> torch.Tensor:
    """uint8 [N, 3, size, size]: noise around a random colour per image."""
    generator = torch.Generator().manual_seed(seed)
    colour = torch.rand(count, 3, 1, 1, generator=generator) * 0.6 + 0.2 + shift
    noise = 0.1 * torch.randn(count, 3, size, size, generator=generator)
    return ((colour + noise).clamp(0, 1) * 255).round().to(torch.uint8)


def tiny_extractor(name: str = "encoder:tiny", digest: str = "ab" * 32, dim: int = 12) -> Extractor:
    """A seeded random projection with a kink."""
    projection = torch.randn(3 * 16, dim, generator=torch.Generator().manual_seed(7))

    def embed(images: torch.Tensor) -> tuple[torch.Tensor, None]:
        pooled = torch.nn.functional.adaptive_avg_pool2d(images.float() / 255, 4).flatten(1)
        return torch.relu(pooled @ projection), None

    lineage = Lineage(digest, "tiny", "tiny networks", ("noise",))
    return Extractor(name, "1", digest, "4x4 mean", dim, embed, torch.device("cpu"), lineage=lineage)


def score(
    target: Path,
    reference: str,
    *,
    extractor: str | Extractor | None = None,
    image_size: int | None = None,
    options: ScoringOptions | None = None,
    execution: ScoringExecution | None = None,
    **request: Any,
) -> Evaluation:
    """One evaluation of a target, by `tiny_extractor` unless another one is given."""
    evaluator = open_evaluator(
        reference,
        extractor=extractor or tiny_extractor(),
        image_size=image_size,
        options=options,
        execution=execution,
    )
    return evaluate([evaluator], target, **request)[0]


def make_pack(
    path: Path, images: torch.Tensor, labels: torch.Tensor | None = None, classes: tuple[str, ...] = ()
) -> ImagePack:
    """A pack of these images; without labels, unlabelled."""
    labels = torch.full((len(images),), -1) if labels is None else labels
    return write_pack(path, images, labels, classes, source=PackSource(spec=str(path), kind="pack"), label=path.stem)


def make_run(path: Path, objective: str = "drift", *, steps: int = 30, **manifest: Any) -> Run:
    """A finished run without checkpoints."""
    config: dict[str, Any] = {
        "seed": 0,
        "objective": {"name": objective, **({"encoder": "outputs/mae"} if objective == "drift" else {})},
        "model": {"kind": "unet", "base_channels": 16},
        "data": {"spec": "shapes", "image_size": SIZE},
        "trainer": {"steps": steps, "batch_size": 4},
    }
    run = Run(path)
    run.create(config=config, origins={}, inputs={"data": {"spec": "shapes", "digest": "cd" * 32}})
    encoder = {"name": "outputs/mae", "random_weights": False, "weights_digest": "ef" * 32}
    fields = {
        "state": "done",
        "step": steps,
        "images_seen": 4 * steps,
        "train_seconds": 12.5,
        "parameters": 1_234_567,
        "device": "cpu",
        "peak_memory_gib": 0.5,
        "encoder": encoder if objective == "drift" else None,
    }
    run.update(**{**fields, **manifest})
    for step in range(10, steps + 1, 10):
        health = {"drift_norm": 1.0 / step, "gradient_norm": 1.0} if objective == "drift" else {}
        run.append_metrics(
            {"step": step, "images": 4 * step, "seconds": 0.4 * step, "images_per_second": 10.0, "loss": 3.0 / step,
             "terms": {}, "health": health}
        )  # fmt: skip
    return run


def add_samples(run: Run, count: int = 16, *, seed: int = 0, **info: Any) -> Path:
    """A samples file in the run."""
    method = run.manifest().config["objective"]["name"]
    sampler, nfe = ("one-step", 1) if method == "drift" else ("ddim", 50)
    path = run.path / "samples" / f"{sampler}-{seed}.safetensors"
    record = {
        "num_images": count, "image_size": SIZE, "seed": seed, "sampler": sampler, "nfe": nfe, "weights": "ema",
        "step": run.manifest().step, "method": method, "encoder": None, "run": str(run.path), "data": "shapes",
        **info,
    }  # fmt: skip
    write_samples(path, random_images(count, seed + 1), record)
    return path


def add_frames(run: Run, steps: tuple[int, ...] = (10, 20, 30)) -> None:
    """Grids as a training leaves them."""
    for step in steps:
        save_grid(run.path / "samples" / f"step-{step:08d}.png", random_images(64, step), columns=8)


KIN = {"degree": "kin", "reason": "the training encoder itself"}


def evaluation(fid: float, **changes: Any) -> dict[str, Any]:
    """An evaluation of 100 images, as JSON data; fields of its sampling may be changed like its own."""
    sampling = {"method": "ddpm", "sampler": "ddim", "nfe": 50, "weights": "ema", "step": 30, "seed": 0,
                "options": {}, "precision": "float32", "encoder": None}  # fmt: skip
    floor = {"num_images": 100, "seed": 0, "metrics": {"fid": 1.5}}
    return {
        "kind": "evaluation",
        "format_version": EvaluationRecord.format_version,
        "name": "fid@100",
        "num_images": 100,
        "target": "run",
        "metrics": {"fid": fid, "kid_mean": 0.01, "kid_std": 0.001, "precision": 0.5, "recall": 0.25},
        "floor": floor,
        "extractor": {"name": "encoder:tiny", "version": "1", "weights_digest": "ab", "resize": "r", "dim": 12,
                      "precision": "float32 (IEEE)"},
        "reference": {"spec": "real", "digest": "cd", "count": 500, "image_size": SIZE},
        "run": "run",
        "sampling": {**sampling, **{key: changes.pop(key) for key in sampling if key in changes}},
        "kinship": {"degree": "independent", "reason": "another family"},
        "warnings": ["100 images are few"],
        **changes,
    }  # fmt: skip


def evaluation_record(fid: float, **changes: Any) -> EvaluationRecord:
    """The same as a record."""
    return EvaluationRecord.of(evaluation(fid, **changes), Path("evaluation.json"))

"""Everything that reads files or words of others, as functions of bytes: DriftkitError may come out, nothing else."""

import contextlib
import importlib.util
import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from driftkit.cli.app import check
from driftkit.comparison.agreement import pairs_of, scored_runs
from driftkit.comparison.conclusions import cautions, findings
from driftkit.comparison.report import ComparisonRecord, render_report
from driftkit.comparison.run_summary import differences, equality_notes, open_runs, summarise
from driftkit.comparison.score_table import score_records, score_tables, to_csv
from driftkit.config.layers import parse_assignments
from driftkit.config.pipeline_file import load_pipeline
from driftkit.config.sampling_config import SamplingConfig
from driftkit.datasets.arrangement import arrange
from driftkit.datasets.cifar10 import parse_batch
from driftkit.datasets.containers import Container, Tar, Zip
from driftkit.datasets.decode import decode_image
from driftkit.datasets.packs import open_pack
from driftkit.datasets.sources import open_dataset, parse_spec, resolve
from driftkit.encoders.registry import encoder_kind
from driftkit.encoders.trained_encoder import load_trained_encoder
from driftkit.encoders.weights import read_weights
from driftkit.errors import DriftkitError
from driftkit.methods.registry import METHODS
from driftkit.models.mae_resnet import MAEResNet, MAEResNetConfig
from driftkit.models.registry import build_network
from driftkit.scoring.evaluation_record import read_evaluations
from driftkit.scoring.extraction import extract
from driftkit.scoring.image_set import ImageSet, ScoringExecution, is_run, open_target
from driftkit.scoring.statistics_file import (
    ImagesInfo,
    StatisticsRecord,
    open_statistics_file,
    read_foreign_statistics,
)
from driftkit.stages.model_card import describe_run, to_markdown
from driftkit.stages.run import is_done
from driftkit.storage.files import state_digest, write_json, write_tensors
from driftkit.storage.images import read_samples, write_samples
from driftkit.storage.run_folder import Run
from driftkit.training.sampling import load_network
from driftkit.training.train_config import load_config, resolve_config
from tests.encoders.loading import load
from tests.image_files import png
from tests.scoring.fakes import evaluation, make_pack, make_run, random_images, tiny_extractor

Reader = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        seeds: valid contents.
        form: what the contents are: a key of `edits.FORMATS`, or anything else for plain bytes.
        read: may raise DriftkitError.
    """

    seeds: Sequence[bytes]
    form: str
    read: Reader


def each(*readers: Callable[[], object]) -> None:
    """Call all of them, whichever are refused."""
    for reader in readers:
        with contextlib.suppress(DriftkitError):
            reader()


def json_bytes(document: object) -> bytes:
    return json.dumps(document).encode()


def pack_card(folder: Path) -> Target:
    make_pack(folder / "p.safetensors", random_images(4), torch.tensor([0, 1, 0, 1]), ("cat", "dog"))
    card = folder / "p.json"

    def read(content: bytes) -> None:
        card.write_bytes(content)
        pack = open_pack(folder / "p")
        each(pack.class_counts, lambda: pack.image_size, lambda: pack.limited(1), pack.verify)
        json.dumps(pack.card.model_dump(mode="json"))

    return Target([card.read_bytes()], "json", read)


TINY = {"model": {"kind": "unet", "base_channels": 8, "channel_multipliers": [1, 2], "num_heads": 2,
                  "attention_resolutions": [4], "num_res_blocks": 1},
        "data": {"spec": "shapes", "image_size": 8, "holdout": 0}, "objective": {"name": "ddpm"}}  # fmt: skip


def manifest(folder: Path) -> Target:
    run = make_run(folder / "run", "ddpm")
    config = load_config(TINY)
    run.update(config=config.model_dump(mode="json"))
    state = build_network(config.model, image_size=8).state_dict()
    run.save_checkpoint(
        30,
        weights={"raw": state, "ema": state},
        optimizer={},
        state={"step": 30, "images_seen": 120, "train_seconds": 1.0},
        headers={},
    )
    write_json(run.path / "evaluations" / "1.json", evaluation(3.0))

    def read(content: bytes) -> None:
        run.manifest_path.write_bytes(content)
        each(
            lambda: open_runs([run.path]),
            lambda: encoder_kind(str(run.path)).image_size(str(run.path)),
            lambda: load(str(run.path)),
        )
        opened = Run.open(run.path)
        summary = summarise(opened, label="run")
        json.dumps([asdict(summary), differences([summary]), equality_notes([summary])], allow_nan=False)
        network, resolved, checkpoint = load_network(opened)
        card = describe_run(opened, resolved, weights="ema", step=checkpoint.step)
        graph = METHODS[resolved.objective.name].graph(resolved.objective, network, resolved.data.sample_shape)
        about = {"created": "", "difference": None, "file": "f", "sha256": "0" * 64, "driftkit": "0"}
        about |= {"graph": graph.kind, "title": graph.title, "notes": graph.notes, "file_format": "onnx"}
        about |= {"autoencoder": None, "sample_shape": [3, 8, 8]}
        about |= {"start_time": graph.start_time, "network_time": graph.network_time}
        tensor = {"dtype": "float32", "shape": ["N", 3, 8, 8]}
        about |= {"inputs": dict.fromkeys(graph.inputs, tensor), "output": {graph.output: ["N", 3, 8, 8]}}
        to_markdown({**card, **about})

    return Target([run.manifest_path.read_bytes()], "json", read)


def metrics(folder: Path) -> Target:
    run = make_run(folder / "run")

    def read(content: bytes) -> None:
        run.metrics_path.write_bytes(content)
        each(lambda: json.dumps(asdict(summarise(run, label="run")), allow_nan=False), lambda: run.rewind_metrics(20))
        run.metrics()

    return Target([run.metrics_path.read_bytes()], "jsonl", read)


def evaluations(folder: Path) -> Target:
    run = make_run(folder / "run")
    place = run.path / "evaluations" / "1.json"
    write_json(place.with_name("0.json"), evaluation(2.0, seed=1))

    def read(content: bytes) -> None:
        place.write_bytes(content)
        documents, _ = read_evaluations(run)
        summaries = [summarise(run, label="run")]
        tables = score_tables([("run", d) for d in documents], summaries)
        records = score_records(tables, summaries, [])
        pairs = pairs_of(tables, scored_runs(tables))
        record = ComparisonRecord(
            driftkit="0", created="", runs=summaries, score_tables=tables, pairs=pairs, records=records,
            findings=findings(tables, pairs, []), cautions=cautions(tables, pairs, summaries),
        )  # fmt: skip
        to_csv(records)
        render_report(record, figures={t.key: [] for t in tables}, colours={"run": 0})

    seeds = [json_bytes(evaluation(3.0)), json_bytes(evaluation(3.0, options={"eta": 1.0}))]
    return Target(seeds, "json", read)


PIPELINE = (
    b"""
name = "demo"
output = "outputs/demo"
stage = [
  {name = "mae", command = "train", objective = "mae", output = "{output}/mae", set = {"trainer.steps" = 6}},
  {each = [{id = "a", tau = 0.1}], name = "drift-{id}", command = "train", encoder = "pixel", nproc = 2, steps = 5,
   taps = ["a"], random-weights = true, output = "{output}/{id}", set = {objective = {taus = ["{tau}"]}}},
  {name = "fid", command = "fid", target = "{output}/a", reference = "shapes", num-images = 10},
]
""".replace(b"\n", b" ")
    .replace(b" name =", b"\nname =", 1)
    .replace(b" output =", b"\noutput =", 1)
    .replace(b" stage =", b"\nstage =", 1)
)


def pipeline(folder: Path) -> Target:
    place = folder / "p.toml"

    def read(content: bytes) -> None:
        place.write_bytes(content)
        loaded = load_pipeline(place)
        for stage in loaded.stages:
            check([stage.command, *stage.arguments], where="here")
            stage.command_line()
            is_done(loaded, stage)

    return Target([PIPELINE], "toml", read)


def config_file(folder: Path) -> Target:
    place = folder / "c.toml"

    def read(content: bytes) -> None:
        place.write_bytes(content)
        each(*(lambda o=o: resolve_config(objective=o, file=place)[0].model_dump_json() for o in ("drift", "mae")))
        resolve_config(file=place)

    seed = b'seed = 1\ntrainer = {steps = 5, betas = [0.9, 0.99]}\nobjective = {name = "drift", taus = [0.1]}\n'
    return Target([seed + b'data = {spec = "shapes"}\nmodel = {base_channels = 8}\n'], "toml", read)


def config_words(_: Path) -> Target:
    def read(content: bytes) -> None:
        words = content.decode("utf-8", "surrogateescape").split("\n")
        each(lambda: parse_assignments(words))
        resolve_config(assignments=words)

    seeds = [
        b"trainer.steps=5\nmodel.channel_multipliers=[1,2]\nseed=3",
        b"objective.taus=[0.1, 0.2]\ndata.spec=shapes",
    ]
    return Target(seeds, "text", read)


def statistics_record(folder: Path) -> Target:
    """Statistics whose tensors are those that their record names, whatever else it says."""
    images, extractor = random_images(6), tiny_extractor()
    stats = extract(extractor, ImageSet.of_tensor(images), ScoringExecution())
    survey = stats.survey
    assert survey is not None
    tensors = {"mean": stats.moments.mean, "scatter": stats.moments.scatter, "rows": stats.rows,
               "indices": stats.indices, "digests": survey.digests, "flat": survey.flat.to(torch.uint8),
               "steps": survey.steps}  # fmt: skip
    place = folder / "s.safetensors"

    def read(content: bytes) -> None:
        header = content.decode("utf-8", "replace")
        kept = tensors
        with contextlib.suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
            document = json.loads(content)
            kept = {name: tensors[name] for name in document.pop("tensors") if name in tensors}
            header = json.dumps({**document, "sha256": state_digest(kept)})
        write_tensors(place, kept, header={"driftkit": "statistics", "record": header})
        open_statistics_file(place, extractor)

    about = ImagesInfo(spec="real", digest="cd" * 32, count=6, image_size=8)
    record = StatisticsRecord(images=about, extractor=extractor.info)
    return Target([json_bytes({**record.document(), "tensors": list(tensors)})], "json", read)


def npz(folder: Path) -> Target:
    memory = io.BytesIO()
    np.savez(memory, mu=np.zeros(12), sigma=np.eye(12))
    place, extractor = folder / "s.npz", tiny_extractor()

    def read(content: bytes) -> None:
        place.write_bytes(content)
        read_foreign_statistics(place, extractor)

    return Target([memory.getvalue()], "bytes", read)


def safetensors(folder: Path) -> Target:
    """A file of tensors as everything that takes one."""
    place = folder / "t.safetensors"
    seeds = []
    write_samples(place, random_images(2), {"num_images": 2, "seed": 0})
    seeds.append(place.read_bytes())
    make_pack(folder / "p.safetensors", random_images(2))
    seeds.append((folder / "p.safetensors").read_bytes())
    pack_card = (folder / "p.json").read_bytes()

    def read(content: bytes) -> None:
        place.write_bytes(content)
        (folder / "p.safetensors").write_bytes(content)
        (folder / "p.json").write_bytes(pack_card)
        each(
            lambda: open_pack(folder / "p"),
            lambda: load_trained_encoder(place),
            lambda: encoder_kind(str(place)).image_size(str(place)),
            lambda: open_statistics_file(place, tiny_extractor()),
            lambda: read_weights(place),
        )
        read_samples(place)

    return Target(seeds, "safetensors", read)


def samples_record(folder: Path) -> Target:
    place = folder / "s.safetensors"
    write_samples(place, random_images(2), {"num_images": 2, "seed": 0, "run": "r", "sampler_options": {}})

    def read(content: bytes) -> None:
        place.with_suffix(".json").write_bytes(content)
        open_target(place, SamplingConfig(), ScoringExecution())
        read_samples(place)

    return Target([place.with_suffix(".json").read_bytes()], "json", read)


def encoder_header(folder: Path) -> Target:
    model = MAEResNetConfig(base_channels=4, num_blocks=(1, 1, 1, 1))
    weights = {k: v for k, v in MAEResNet(model).state_dict().items() if k.startswith(("stem.", "stages."))}
    place = folder / "encoder.safetensors"
    header = {"driftkit": "encoder", "model": model.model_dump(mode="json"), "image_size": 8}

    def read(content: bytes) -> None:
        found = {"driftkit": "encoder", "model": content.decode("utf-8", "replace")}
        with contextlib.suppress(ValueError, RecursionError, AttributeError):
            document = json.loads(content)
            found = {str(k): v if isinstance(v, str) else json.dumps(v) for k, v in document.items()}
            json.dumps(found, ensure_ascii=False).encode()
        with contextlib.suppress(UnicodeEncodeError):  # a header that nobody can write
            write_tensors(place, weights, header=found)
        each(lambda: encoder_kind(str(place)).image_size(str(place)))
        load_trained_encoder(place)

    return Target([json_bytes(header)], "json", read)


def encoder_name(_: Path) -> Target:
    def read(content: bytes) -> None:
        name = content.decode("utf-8", "surrogateescape")
        each(lambda: encoder_kind(name).image_size(name))
        load(name, random_weights=False)

    os.environ["HF_HUB_OFFLINE"] = "1"
    return Target([b"pixel", b"timm:resnet999", b"mocov3", b"outputs/mae", b"encoder.safetensors"], "text", read)


def data_spec(folder: Path) -> Target:
    make_pack(folder / "p.safetensors", random_images(2))

    def read(content: bytes) -> None:
        text = content.decode("utf-8", "surrogateescape")
        if text.startswith(("/", "~")) or ".." in text or text.strip("./") == "":
            return  # whatever else lies on this machine
        each(lambda: parse_spec(text))
        resolve(text, allow_download=False, data_dir=folder / "data")

    seeds = [b"shapes?split=test&image_size=16&palette=primary", b"cifar10:test", b"p.safetensors", b"x.zip?split=val"]
    return Target(seeds, "text", read)


def _archive(container: Container) -> None:
    names = container.names()
    container.digest()
    each(lambda: arrange(container), lambda: arrange(container, "t"), lambda: arrange(container, class_level=1))
    for _, data in container.contents(set(names)):
        each(lambda data=data: decode_image(data, "image", 8))


def zip_archive(folder: Path) -> Target:
    place = folder / "x.zip"
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("cat/1.png", png())
        archive.writestr("dog/2.png", png())

    def read(content: bytes) -> None:
        place.write_bytes(content)
        _archive(Zip(place))

    return Target([memory.getvalue()], "bytes", read)


def tar_archive(folder: Path) -> Target:
    place = folder / "x.tar"
    seeds = []
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        memory = io.BytesIO()
        with tarfile.open(fileobj=memory, mode="w", format=form) as archive:
            for name in ("cat/1.png", "dog/" + "x" * 120 + ".png"):
                member = tarfile.TarInfo(name)
                member.size = len(png())
                archive.addfile(member, io.BytesIO(png()))
        seeds.append(memory.getvalue())

    def read(content: bytes) -> None:
        place.write_bytes(content)
        _archive(Tar(place))

    return Target(seeds, "bytes", read)


def _import(place: Path, seeds: Sequence[bytes], spec: str = "") -> Target:
    """Importing the file at a place, or a spec of which it is a part."""

    def read(content: bytes) -> None:
        place.write_bytes(content)
        try:
            open_dataset(spec or str(place), data_dir=place.parent / "data", allow_download=False)
        finally:
            shutil.rmtree(place.parent / "data", ignore_errors=True)

    return Target(seeds, "bytes", read)


def _written(write: Callable[[io.BytesIO], object]) -> bytes:
    memory = io.BytesIO()
    write(memory)
    return memory.getvalue()


def image_npz(folder: Path) -> Target:
    images, labels = random_images(2).numpy(), np.array([0, 3])
    seeds = [_written(lambda file: np.savez(file, images, labels)), _written(lambda file: np.savez(file, x=images))]
    return _import(folder / "x.npz", seeds)


def image_npy(folder: Path) -> Target:
    images = random_images(2).numpy()
    seeds = [_written(lambda file: np.save(file, images)), _written(lambda file: np.save(file, images[:, 0]))]
    return _import(folder / "x.npy", seeds)


def image_parquet(folder: Path) -> Target:
    import pyarrow
    import pyarrow.parquet

    cells = [{"bytes": png(), "path": "1.png"}, {"bytes": png(), "path": "2.png"}]
    table = pyarrow.table({"image": cells, "label": [0, 1]})
    return _import(folder / "x.parquet", [_written(lambda file: pyarrow.parquet.write_table(table, file))])


def shards(folder: Path) -> Target:
    def write(file: io.BytesIO) -> None:
        with tarfile.open(fileobj=file, mode="w") as archive:
            for name, data in (("1.png", png()), ("1.cls", b"3"), ("2.png", png()), ("2.cls", b"4")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))

    content = _written(write)
    (folder / "x-001.tar").write_bytes(content)
    return _import(folder / "x-000.tar", [content], spec=str(folder / "x-{000..001}.tar"))


def cifar10_binary(folder: Path) -> Target:
    return _import(folder / "data_batch_1.bin", [bytes([3, *[90] * 3072, 4, *[9] * 3072])])


def image(_: Path) -> Target:
    seeds = []
    for kind, mode in (("PNG", "P"), ("PNG", "I;16"), ("JPEG", "CMYK"), ("GIF", "P"), ("WEBP", "RGBA"), ("TIFF", "LA"),
                       ("BMP", "RGB"), ("PPM", "L")):  # fmt: skip
        memory = io.BytesIO()
        Image.new(mode, (8, 8)).save(memory, kind)
        seeds.append(memory.getvalue())
    return Target(seeds, "bytes", lambda content: decode_image(content, "image", 8))


def cifar10_batch(_: Path) -> Target:
    import pickle  # to write one; nothing here reads any

    seeds = [pickle.dumps({b"data": bytes(6144), b"labels": [3, 4]}, protocol=p) for p in (2, 5)]
    return Target(seeds, "bytes", lambda content: parse_batch(content, "batch"))


def torch_file(folder: Path) -> Target:
    memory, place = io.BytesIO(), folder / "w.pth"
    torch.save({"state_dict": {"a": torch.zeros(2)}}, memory)

    def read(content: bytes) -> None:
        place.write_bytes(content)
        read_weights(place)

    return Target([memory.getvalue()], "bytes", read)


def run_folder(folder: Path) -> Target:
    """The record that a pipeline keeps, and the name of a folder that is no run."""
    place = folder / "p.toml"
    place.write_bytes(b'output = "o"\nstage = [{name = "d", command = "data", spec = "shapes", output = "o/x"}]\n')
    loaded = load_pipeline(place)
    (folder / "o").mkdir()
    entry = {"fingerprint": "0", "products": ["."], "identity": "1", "state": "done"}

    def read(content: bytes) -> None:
        (loaded.output / "pipeline.json").write_bytes(content)
        is_done(loaded, loaded.stages[0])
        is_run(loaded.output)

    return Target([json_bytes({"kind": "pipeline", "name": "p", "stages": {"d": entry}})], "json", read)


TARGETS: dict[str, Callable[[Path], Target]] = {
    "pack-card": pack_card,
    "manifest": manifest,
    "metrics": metrics,
    "evaluations": evaluations,
    "pipeline": pipeline,
    "pipeline-record": run_folder,
    "config-file": config_file,
    "config-words": config_words,
    "statistics-record": statistics_record,
    "npz": npz,
    "safetensors": safetensors,
    "samples-record": samples_record,
    "encoder-header": encoder_header,
    "encoder-name": encoder_name,
    "data-spec": data_spec,
    "zip": zip_archive,
    "tar": tar_archive,
    "image": image,
    "cifar10-batch": cifar10_batch,
    "cifar10-binary": cifar10_binary,
    "image-npz": image_npz,
    "image-npy": image_npy,
    "shards": shards,
    "torch-file": torch_file,
    **({"parquet": image_parquet} if importlib.util.find_spec("pyarrow") else {}),
}
"""Name -> makes the target in an empty folder, which is the working directory while it reads."""

"""Exporting: the network of a run as one file that other programs load, with a card that describes it."""

import importlib.util
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import ConfigDict
from torch import nn

from driftkit import __version__
from driftkit.config.export_config import ExportConfig
from driftkit.config.weights_name import EMA
from driftkit.encoders.autoencoder import Autoencoder
from driftkit.encoders.trained_encoder import ENCODER_FILE
from driftkit.errors import ArtifactError, NotFoundError, RefusedError, UsageError
from driftkit.methods.base import Graph
from driftkit.methods.registry import METHODS
from driftkit.stages.model_card import code, describe_run, to_markdown
from driftkit.storage.files import atomic_folder, read_tensors, sha256_file, state_digest, write_tensors
from driftkit.storage.records import Record
from driftkit.storage.run_folder import MANIFEST, Checkpoint, Run, now
from driftkit.training.initialisation import EXPORT, ORIGIN, origin_of
from driftkit.training.latents import DecodedNetwork, open_autoencoder
from driftkit.training.sampling import load_network

SUFFIXES = {"safetensors": ".safetensors", "onnx": ".onnx", "torchscript": ".pt"}
WEIGHTS_ONLY = ("safetensors", "run")  # formats without graph, whose weights may be of another type
TOLERANCE = 1e-4  # largest difference between an exported graph and its network
TRIED_BATCHES = (1, 3)
TRACED_BATCH = 2


class ExportRecord(Record):
    """model.json: what the file is, how its graph is called, and everything that the model card says."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    kind: ClassVar[str] = "export"

    driftkit: str
    created: str
    file_format: str
    graph: str
    file: str
    sha256: str


@dataclass(frozen=True)
class Export:
    folder: Path
    model: Path
    document: dict[str, Any]  # the card


def export(run: Run, settings: ExportConfig) -> Export:
    """Write the network of a run and its model card into a folder, whole or not at all.

    "safetensors" are weights, "run" is a run folder with these weights alone, which samples and is scored like the
    whole one, "onnx" and "torchscript" are graphs that need no driftkit. Every graph is compared with its network, at
    two batch sizes, before anything is kept.

    Raises:
        UsageError: a format without the dtype, a run that generates nothing, or a folder that is no
            earlier export.
        ArtifactError: no checkpoint, or packages of the extra that are absent.
        RefusedError: the graph computes something else than the network.
    """
    name, format, dtype = run.objective, settings.format, settings.dtype
    graph_of = METHODS[name].graph if name in METHODS else None
    if graph_of is None:
        raise UsageError(
            f"{run.path}: a {name} run generates no images; its encoder is exported as {run.path / ENCODER_FILE} when "
            "the training ends, and `encoder` takes that file like the run"
        )
    if dtype != "float32" and format not in WEIGHTS_ONLY:
        raise UsageError(
            f"`dtype` {dtype}: expected float32, the type of {format} graphs; {', '.join(WEIGHTS_ONLY)} take others"
        )
    weights = run.kept_name(settings.weights)
    if format == "run" and not weights.startswith(EMA):
        raise UsageError(
            f"`weights` {weights}: expected an average for format run, ema or ema-DECAY, which ema then is"
        )
    folder = settings.output or run.path / "exports" / format
    _require_free(folder, force=settings.force)
    needed = ("onnx", "onnxruntime", "onnxscript") if format == "onnx" else ()
    if absent := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise NotFoundError(f"`format` onnx needs {', '.join(absent)}; install the extra: uv sync --extra onnx")
    network, config, checkpoint = load_network(run, weights=weights, step=settings.step)
    size = config.data.image_size
    assert size is not None, "a saved config names the image size"
    autoencoder, shape = open_autoencoder(config, run=run), config.data.sample_shape
    # A graph of one evaluation goes from noise to images; a sampler stands between others and the decoder.
    decoded = autoencoder is not None and METHODS[run.objective].sees_pixels and format not in WEIGHTS_ONLY
    whole = DecodedNetwork(network, autoencoder) if autoencoder is not None and decoded else network
    graph = graph_of(config.objective, whole, shape)
    if autoencoder is not None:
        graph = _in_latents(graph, autoencoder, shape, decoded=decoded)
    graph.module.eval().requires_grad_(False)
    document = {
        "driftkit": __version__,
        "created": now(),
        "file_format": format,
        "graph": graph.kind,
        "title": graph.title,
        "start_time": graph.start_time,
        "network_time": graph.network_time,
        "notes": graph.notes,
        "inputs": {
            name: {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": ["N", *tensor.shape[1:]]}
            for name, tensor in zip(graph.inputs, graph.example(1), strict=True)
        },
        "sample_shape": list(shape),
        "autoencoder": None if autoencoder is None else {**autoencoder.describe(), "included": decoded},
        "output": {graph.output: ["N", *((3, size, size) if decoded else shape)]},
        **describe_run(run, config, weights=weights, step=checkpoint.step),
        ORIGIN: origin_of(run, weights=weights, step=checkpoint.step)[1].model_dump(mode="json"),
    }
    if dtype != "float32":
        network.to(getattr(torch, dtype))
        document |= {"dtype": dtype, ORIGIN: {**document[ORIGIN], "digest": state_digest(network.state_dict())}}
    with atomic_folder(folder) as temporary:
        if format == "run":
            name, document["difference"] = _write_run(temporary, run, checkpoint, network, weights), None
        else:
            name = f"{graph.kind}{SUFFIXES[format]}"
            document["difference"] = _write_model(temporary / name, graph, network, format, document)
        document |= {"file": name, "sha256": sha256_file(temporary / name)}
        record = ExportRecord(**document)
        record.write(temporary / "model.json")
        document = record.document()
        (temporary / "README.md").write_text(to_markdown(document), encoding="utf-8")
    return Export(folder, folder / name, document)


def _in_latents(graph: Graph, autoencoder: Autoencoder, shape: Sequence[int], *, decoded: bool) -> Graph:
    """The graph of a network of latents, and how they are decoded; `decoded`: the decoder is part of it."""
    facts = autoencoder.describe()
    scale, offset = (", ".join(f"{value:.6g}" for value in sorted(set(facts[key]))) for key in ("scale", "offset"))
    place = f"{code(facts['spec'])} (diffusers {facts['class']}, sha256 `{facts['digest'][:16]}…`)"
    does = "is part of this file" if decoded else "is not part of this file; samplers do not clip latents"
    notes = f"""\
## Latents

The network works on latents [{", ".join(map(str, shape))}] of the autoencoder {place}. Its decoder
{does}. image = decoder(latents / scale + offset), scale {scale}, offset {offset}; `model.json` has them by channel.
With diffusers: `AutoencoderKL.from_pretrained(...).decode(latents / scale + offset).sample`.
A licence of the autoencoder's weights may bind what was trained with it.
"""
    output = graph.output if decoded or graph.output != "images" else "latents"
    return replace(graph, output=output, notes="\n".join(filter(None, [graph.notes, notes])))


def _require_free(folder: Path, *, force: bool) -> None:
    """Refuse to replace anything but an earlier export, and that only with `force`."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    try:
        record = ExportRecord.read(folder / "model.json")
    except ArtifactError:
        raise UsageError(f"`output` {folder}: expected a new folder or an earlier export, got something else") from None
    if not force:
        raise UsageError(f"`output` {folder}: holds an export already; `force` replaces it")
    own = {record.file.split("/")[0], "README.md", "model.json", MANIFEST}
    if others := sorted(path.name for path in folder.iterdir() if path.name not in own):
        raise UsageError(
            f"`output` {folder}: holds {', '.join(others)} besides an export; move them, or give another folder"
        )


def _write_run(folder: Path, run: Run, checkpoint: Checkpoint, network: nn.Module, weights: str) -> str:
    """The run with this checkpoint and this average alone, named ema; returns the path of its file in the folder."""
    manifest, state = run.manifest(), checkpoint.state()
    header = read_tensors(checkpoint.weights_path(weights))[1]
    reached = {key: getattr(state, key) for key in ("step", "images_seen", "train_seconds")}
    if checkpoint.step != manifest.step:
        reached["state"] = "interrupted"
    trainer = {**manifest.config["trainer"]}
    if weights != EMA:  # the one average that is here is the first one of this run
        trainer["ema_decay"] = float(weights.removeprefix(f"{EMA}-"))
    manifest.model_copy(update={**reached, "config": {**manifest.config, "trainer": trainer}}).write(folder / MANIFEST)
    tensors = {EMA: network.state_dict()}
    exported = Run(folder).save_checkpoint(
        checkpoint.step, weights=tensors, optimizer=None, state=dict(state), headers={EMA: header}
    )
    return str(exported.weights_path(EMA).relative_to(folder))


def _write_model(
    path: Path, graph: Graph, network: nn.Module, format: str, document: dict[str, Any]
) -> dict[str, Any] | None:
    """Write one file, and return the largest difference to the network where the file holds a graph.

    Raises:
        RefusedError: the difference is larger than 1e-4 of the network's largest output, or 1e-4 where that is below 1.
    """
    if format == "safetensors":
        keys = ("model", "image_size", "sample_shape", "autoencoder", "weights", "step", ORIGIN)
        header = {"driftkit": EXPORT, **{key: document[key] for key in keys}}
        write_tensors(path, network.state_dict(), header=header)
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracers warn of the shape checks in torch's own group norm
        call = _trace(path, graph) if format == "torchscript" else _to_onnx(path, graph, document)
    worst, scale = 0.0, 0.0
    for count in TRIED_BATCHES:
        inputs = graph.example(count)
        with torch.inference_mode():
            expected = graph.module(*inputs)
        worst = max(worst, float((call(inputs) - expected).abs().max()))
        scale = max(scale, float(expected.abs().max()))
    if not worst <= TOLERANCE * max(1.0, scale):
        raise RefusedError(
            f"{format}: the exported graph differs from the network by {worst:.2g}, expected at most {TOLERANCE:g}; "
            "nothing was written"
        )
    return {"largest": worst, "tolerance": TOLERANCE, "batch_sizes": list(TRIED_BATCHES)}


Call = Callable[[tuple[torch.Tensor, ...]], torch.Tensor]


def _trace(path: Path, graph: Graph) -> Call:
    traced = torch.jit.trace(graph.module, graph.example(TRACED_BATCH), check_trace=False)
    torch.jit.save(traced, str(path))
    loaded = torch.jit.load(str(path))
    return lambda inputs: loaded(*inputs).detach()


def _to_onnx(path: Path, graph: Graph, document: dict[str, Any]) -> Call:
    import logging

    import onnx
    import onnxruntime

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    batch = torch.export.Dim("batch")
    program = torch.onnx.export(
        graph.module,
        graph.example(TRACED_BATCH),
        dynamo=True,
        verbose=False,
        input_names=list(graph.inputs),
        output_names=[graph.output],
        dynamic_shapes=tuple({0: batch} for _ in graph.inputs),
    )
    assert program is not None, "the exporter of torch.export gives a program"
    program.save(str(path), external_data=False)
    model = onnx.load(str(path))
    onnx.helper.set_model_props(
        model, {"driftkit": json.dumps({k: document[k] for k in ("method", "step", "weights")})}
    )
    onnx.save(model, str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def call(inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
        arrays = {name: tensor.numpy() for name, tensor in zip(graph.inputs, inputs, strict=True)}
        return torch.from_numpy(session.run(None, arrays)[0])

    return call

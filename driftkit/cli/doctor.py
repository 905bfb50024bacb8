"""`driftkit doctor`: what this machine has, and what it lacks."""

import os
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from driftkit.cli.output import JsonOption, emit, facts_table, option
from driftkit.errors import shortened

if TYPE_CHECKING:
    from rich.table import Table

    from driftkit.stages.doctor import Examination, PublishedItem

GIB = 2**30


def command(
    offline: Annotated[bool, option("--offline", help="Do not ask hosts whether they answer (up to 4 s).")] = False,
    as_json: JsonOption = False,
) -> dict[str, Any]:
    """Show versions, devices, folders, weights and data; for what is missing, the command that fetches it.

    [bold]Examples[/bold]

      driftkit doctor
      driftkit doctor --offline --json
    """
    from driftkit.errors import DriftkitError
    from driftkit.stages.doctor import examine

    examination = examine(offline=offline)
    document = asdict(examination)
    emit(document, as_json=as_json, show=lambda: _show(examination))
    if examination.problems:
        raise DriftkitError("; ".join(examination.problems))
    return document


def _show(examination: "Examination") -> None:
    from rich.markup import escape

    from driftkit.runtime.terminal import open_console

    console = open_console(highlight=False)
    console.print(facts_table(_facts(examination)))
    if examination.files:
        console.print()
        console.print(_files(examination.files))
    for line in examination.warnings:
        console.print(f"[yellow]warning:[/] {escape(line)}", soft_wrap=True)


def _facts(examination: "Examination") -> Iterator[tuple[str, str]]:
    """Title and markup of every line about the machine."""
    from rich.filesize import decimal
    from rich.markup import escape

    versions = (f"{name} {version or '[red]is not installed[/]'}" for name, version in examination.versions.items())
    yield "versions", ", ".join(versions)
    fit = "torch and torchvision do not work, see below"
    if examination.ok:
        build = f"built for {examination.cuda_build}" if examination.cuda_build else "a build for CPUs"
        fit = f"torch is {build}; torchvision fits it"
    yield "build", fit
    extras = ", ".join(f"{name} {version or 'not installed'}" for name, version in examination.extras.items())
    lacking = " ".join(f"--extra {name}" for name, version in examination.extras.items() if version is None)
    yield "extras", extras + (f" (uv sync {lacking})" if lacking else "")

    cpu = examination.cpu
    words = [cpu.machine, f"{cpu.usable_cores} of {cpu.cores} cores"]
    if cpu.torch_threads is not None:
        words.append(f"{cpu.torch_threads} torch threads (OMP_WAIT_POLICY {cpu.waiting_threads or 'unset'})")
    words += [f"{cpu.memory_bytes / GIB:.1f} GiB of memory", f"{cpu.available_bytes / GIB:.1f} free"]
    yield "cpu", ", ".join(words)
    for index, gpu in enumerate(examination.gpus):
        bfloat16 = "bfloat16" if gpu.bfloat16 else "no bfloat16"
        about = f"compute capability {gpu.compute_capability}, {bfloat16}, NCCL {examination.nccl or 'missing'}"
        yield f"gpu {index}", f"{escape(gpu.name)}, {gpu.memory_bytes / GIB:.1f} GiB, {about}"
    if not examination.gpus:
        yield "gpu", "none that torch can use"

    for folder in examination.folders:
        state = "" if folder.exists else ", not made yet"
        state += "" if folder.writable else ", [red]cannot be written[/]"
        yield folder.title, f"{escape(_short(folder.path))} ({folder.free_bytes / GIB:.1f} GiB free{state})"

    answers: dict[str | None, list[str]] = {}
    for host in examination.hosts:
        answers.setdefault(None if host.reachable else host.reason, []).append(host.host.partition("://")[2])
    texts = [f"[green]reached[/] {', '.join(names)}" for names in [answers.pop(None, [])] if names]
    texts += [
        f"[yellow]no answer[/] from {', '.join(names)} ({escape(str(reason))})" for reason, names in answers.items()
    ]
    yield "network", "; ".join(texts) or "not asked"

    if packs := examination.packs:
        names = [escape(name.removesuffix(".safetensors")) for name in packs.names]
        yield "packs", f"{shortened(names, 6)} ({decimal(packs.bytes)})" if names else "none imported yet"


def _files(files: "list[PublishedItem]") -> "Table":
    from rich.filesize import decimal
    from rich.markup import escape
    from rich.table import Table

    table = Table("name", "kind", "size", "path, or the command that fetches it", box=None, padding=(0, 2, 0, 0))
    table.columns[2].justify = "right"
    for column in table.columns[:3]:
        column.no_wrap = True
    table.columns[3].overflow = "fold"
    for file in files:
        if file.path is None:
            table.add_row(file.name, file.kind, "[yellow]missing[/]", file.fetch)
        else:
            # The hub's names for snapshots take three lines in a terminal and say nothing.
            path = file.path.partition("/snapshots/")[0]
            table.add_row(file.name, file.kind, f"[green]{decimal(file.bytes or 0)}[/]", escape(_short(path)))
    return table


def _short(path: str) -> str:
    inside = path.partition("/site-packages/")[2]
    if inside:
        return f"Python package {inside.partition('/')[0]}"
    home = os.path.expanduser("~")
    return f"~{path.removeprefix(home)}" if path.startswith(f"{home}/") else path

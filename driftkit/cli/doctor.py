"""`driftkit doctor`: what this machine has, and what it lacks."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from driftkit.cli.output import JsonOption, emit, option

if TYPE_CHECKING:
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
    from rich.table import Table

    from driftkit.runtime.terminal import open_console

    console = open_console(highlight=False)
    facts = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in (
        *_versions(examination),
        *_devices(examination),
        *_folders(examination),
        *_network(examination),
        *_packs(examination),
    ):
        facts.add_row(name, text)
    console.print(facts)
    if examination.files:
        console.print()
        console.print(_files(examination.files))
    for line in examination.warnings:
        console.print(f"[yellow]warning:[/] {escape(line)}", soft_wrap=True)


def _versions(examination: "Examination") -> list[tuple[str, str]]:
    versions = [f"{name} {version or '[red]is not installed[/]'}" for name, version in examination.versions.items()]
    extras = ", ".join(f"{name} {version or 'not installed'}" for name, version in examination.extras.items())
    lacking = ",".join(name for name, version in examination.extras.items() if version is None)
    if lacking:
        extras += f" (pip install 'driftkit\\[{lacking}]')"
    fit = "torch and torchvision do not work, see below"
    if examination.ok:
        build = f"built for {examination.cuda_build}" if examination.cuda_build else "a build for CPUs"
        fit = f"torch is {build}; torchvision fits it"
    return [("versions", ", ".join(versions)), ("build", fit), ("extras", extras)]


def _devices(examination: "Examination") -> list[tuple[str, str]]:
    from rich.markup import escape

    cpu = examination.cpu
    words = [cpu.machine, f"{cpu.usable_cores} of {cpu.cores} cores"]
    if cpu.torch_threads is not None:
        words.append(f"{cpu.torch_threads} torch threads (OMP_WAIT_POLICY {cpu.waiting_threads or 'unset'})")
    if cpu.memory_bytes is not None:
        words.append(f"{cpu.memory_bytes / GIB:.1f} GiB of memory")
    if cpu.available_bytes is not None:
        words.append(f"{cpu.available_bytes / GIB:.1f} free")
    rows = [("cpu", ", ".join(words))]
    for index, gpu in enumerate(examination.gpus):
        bfloat16 = "bfloat16" if gpu.bfloat16 else "no bfloat16"
        memory = f"{gpu.memory_bytes / GIB:.1f} GiB"
        about = f"compute capability {gpu.compute_capability}, {bfloat16}, NCCL {examination.nccl or 'missing'}"
        rows.append((f"gpu {index}", f"{escape(gpu.name)}, {memory}, {about}"))
    return rows if examination.gpus else [*rows, ("gpu", "none that torch can use")]


def _folders(examination: "Examination") -> list[tuple[str, str]]:
    from rich.markup import escape

    rows = []
    for folder in examination.folders:
        state = "" if folder.exists else ", not made yet"
        state += "" if folder.writable else ", [red]cannot be written[/]"
        free = f"{folder.free_bytes / GIB:.1f} GiB free"
        rows.append((folder.title, f"{escape(_short(folder.path))} ({free}{state})"))
    return rows


def _network(examination: "Examination") -> list[tuple[str, str]]:
    from rich.markup import escape

    if not examination.hosts:
        return [("network", "not asked")]
    answers = [host.host.partition("://")[2] for host in examination.hosts if host.reachable]
    silent: dict[str, list[str]] = {}
    for host in examination.hosts:
        if not host.reachable:
            silent.setdefault(host.reason or "no reason given", []).append(host.host.partition("://")[2])
    texts = [f"[green]reached[/] {', '.join(answers)}"] if answers else []
    texts += [f"[yellow]no answer[/] from {', '.join(names)} ({escape(reason)})" for reason, names in silent.items()]
    return [("network", "; ".join(texts))]


def _packs(examination: "Examination") -> list[tuple[str, str]]:
    from rich.filesize import decimal
    from rich.markup import escape

    packs = examination.packs
    if packs is None:
        return []
    names = [escape(name.removesuffix(".safetensors")) for name in packs.names]
    more = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return [("packs", f"{', '.join(names[:6])}{more} ({decimal(packs.bytes)})" if names else "none imported yet")]


def _files(files: "list[PublishedItem]") -> Any:
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
            # The hub's names for snapshots take three lines in a terminal and tell nobody anything.
            path = file.path.partition("/snapshots/")[0]
            table.add_row(file.name, file.kind, f"[green]{decimal(file.bytes or 0)}[/]", escape(_short(path)))
    return table


def _short(path: str) -> str:
    home = str(Path.home())
    return f"~{path.removeprefix(home)}" if path.startswith(f"{home}/") else path

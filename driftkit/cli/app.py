"""The program: its subcommands, how errors become one line and an exit code, and `--debug`."""

import errno
import functools
import itertools
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from driftkit import __version__
from driftkit.cli import compare, data, doctor, export, fid, prefetch, probe_encoder, run, sample, toy, train, verify
from driftkit.cli.help_text import MOST, DriftkitCommand, print_help
from driftkit.cli.options import expand_place_variables, with_flags
from driftkit.errors import (
    EXIT_INTERRUPTED,
    ArtifactError,
    DriftkitError,
    InterruptedRunError,
    ResourceError,
    StorageError,
    UsageError,
)
from driftkit.runtime.environment import keep_freed_memory, read_launch, set_thread_defaults, set_user_defaults
from driftkit.runtime.signals import StoppedError, ending_cleanly, exit_code
from driftkit.runtime.terminal import open_standard_streams, replace_unknown_characters, say

EXIT_CODES = (
    "Exit codes: 0 ok, 1 failure, 2 usage, 3 data or weights missing or damaged. 4: out of memory or disk, no such "
    "device, or the folder is in use. 5: a check on results refused. 130, 143 or 129: stopped by SIGINT, SIGTERM or "
    "SIGHUP; a training saves first."
)


class DriftkitGroup(TyperGroup):
    """A command group that turns every error into one line on stderr and the documented exit code."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        print_help(self, ctx)

    def main(self, args: Sequence[str] | None = None, **options: Any) -> Any:  # type: ignore[override]
        words = list(sys.argv[1:] if args is None else args)
        # --debug is accepted anywhere, since people add it to the end of the command that failed.
        options_end = words.index("--") if "--" in words else len(words)
        debug = "--debug" in words[:options_end] or os.environ.get("DRIFTKIT_DEBUG", "") not in ("", "0")
        words = [w for i, w in enumerate(words) if w != "--debug" or i > options_end]
        standalone = bool(options.pop("standalone_mode", True))
        options["prog_name"] = "driftkit"
        try:
            with ending_cleanly():
                _refuse_empty_values(words[:options_end])
                _require_working_folder()
                expand_place_variables()
                result = super().main(words, standalone_mode=False, **options)
        except Exception as error:
            if debug and not hasattr(error, "format_message"):
                raise
            code, message = explain(error, words)
            if not (getattr(error, "on_all_ranks", False) and read_launch().rank > 0):
                say(message)
            result = code
        except StoppedError as stopped:
            sys.stderr.write(f"stopped by {stopped}; nothing half-written is left; give the same command again\n")
            result = exit_code(stopped.number)
        if standalone:
            sys.stdout.flush()
            sys.exit(result if isinstance(result, int) else 0)
        return result


def _require_working_folder() -> None:
    try:
        os.getcwd()
    except FileNotFoundError:
        raise UsageError("the working folder was removed; change to another folder") from None


def explain(error: Exception, words: Sequence[str]) -> tuple[int, str]:
    """Exit code and the one line that says what was got, what was expected and one fix; it ends in the error's code."""
    known = _understood(error, words)
    command = next((word for word in words if not word.startswith("-")), "")
    return known.exit_code, f"error: {with_flags(_one_line(str(known)), command)} [{known.code}]"


def _understood(error: Exception, words: Sequence[str]) -> DriftkitError:
    """The error as one of those with an exit code and a message for people."""
    if isinstance(error, DriftkitError):
        return error
    text = str(error)
    if hasattr(error, "format_message"):  # typer's usage errors
        context = getattr(error, "ctx", None)
        command = context.command_path if context is not None else "driftkit"
        if not (message := _usage_message(error, words)):  # the help was printed, for a line without a command
            message = "no command is given"
        return UsageError(f"{message} (see {command} --help)")
    if type(error).__name__ == "Abort":  # click's word for Ctrl-C where no handler of ours stands
        return InterruptedRunError("interrupted", EXIT_INTERRUPTED)
    if shortage := _shortage(error):
        return ResourceError(f"{shortage}; lower --batch-size, --num-images or --input-size")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return StorageError(f"{text}; free some space, or choose another disk")
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return UsageError(f"{str(error.filename)[:60]}...: the name is too long for a file; give a shorter one")
    if isinstance(error, PermissionError):
        return ArtifactError(f"{error.filename}: reading is not permitted; change its permissions")
    if isinstance(error, OSError):
        return DriftkitError(text)
    return _BugError(f"{type(error).__name__}: {text} (a bug: --debug shows where)")


class _BugError(DriftkitError):
    code = "bug"


def _shortage(error: Exception) -> str | None:
    """Where memory ran out, for work that does not know itself what would fit; None where it did not."""
    if "torch" not in sys.modules:  # do not import torch just to report this
        return "out of memory" if isinstance(error, MemoryError) else None
    import torch

    from driftkit.runtime.memory import describe_shortage, is_out_of_memory

    if not is_out_of_memory(error):
        return None
    cuda = isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available()
    return describe_shortage(error, torch.device("cuda" if cuda else "cpu"))


def _usage_message(error: Any, words: Sequence[str]) -> str:
    """typer's message, with the word it complains of, which it leaves out."""
    message: str = _one_line(error.format_message())
    parameter, context = getattr(error, "param", None), getattr(error, "ctx", None)
    flags = getattr(parameter, "opts", [])
    given = [word for flag, word in itertools.pairwise(words) if flag in flags]
    given += [word.partition("=")[2] for word in words if word.partition("=")[0] in flags and "=" in word]
    if not given and parameter is not None and context is not None:
        value = parameter.resolve_envvar_value(context)
        return message if value is None else f"{message}, got {value!r} from a DRIFTKIT_ variable"
    return f"{message}, got {given[-1]!r}" if given and given[-1] not in message else message


def _refuse_empty_values(words: Sequence[str]) -> None:
    """An empty word is what a shell makes of an unset variable, and as a path it would mean this folder."""
    for flag, word in itertools.pairwise(["", *words]):
        if (word == "" and flag.startswith("-")) or re.fullmatch(r"--[a-z-]+=", word):
            name = (flag if word == "" else word).rstrip("=")
            raise UsageError(f"{name}: expected a value, got an empty word; is a variable of the shell unset?")


def _one_line(text: str) -> str:
    return " ".join(text.split())


app = typer.Typer(
    cls=DriftkitGroup,
    add_completion=True,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "auto_envvar_prefix": "DRIFTKIT",
        "max_content_width": MOST,
    },
    epilog=EXIT_CODES,
)
for module in (toy, probe_encoder, data, train, sample, fid, compare, export, run, prefetch, verify, doctor):
    app.command(module.__name__.rpartition(".")[2].replace("_", "-"), cls=DriftkitCommand)(module.command)


def invoke(arguments: Sequence[str]) -> Any:
    """Run one command line in this process and give what its command returned; errors are raised."""
    return TyperGroup.main(_root(), list(arguments), prog_name="driftkit", standalone_mode=False)


def check(arguments: Sequence[str], *, where: str) -> None:
    """Parse a command line without running it.

    Raises:
        UsageError: a word of it does not fit; the message begins with `where`.
    """
    name, *rest = arguments
    root = _root()
    parent = root.make_context("driftkit", [name, *rest], resilient_parsing=True)
    command = root.get_command(parent, name)
    assert command is not None, f"{name} is a command of ours"
    try:
        command.make_context(name, list(rest), parent=parent)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        raise UsageError(f"{where}: {_usage_message(error, rest)}") from None


@functools.cache
def _root() -> DriftkitGroup:
    group = typer.main.get_command(app)
    assert isinstance(group, DriftkitGroup)
    return group


def _print_version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"driftkit {__version__}\n")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the full traceback of an error; accepted anywhere on the line.")
    ] = False,
) -> None:
    """Train one-step drifting generators, DDPM and rectified flow on the same images; sample, score and compare them.

    [bold]Examples[/bold]

      driftkit run pipelines/toy.toml     drifting in pictures, within a minute
      driftkit run pipelines/demo.toml    the whole chain in minutes on a laptop
      driftkit probe-encoder --list       encoders that drifting can work with
      driftkit train --encoder mocov2     a drifting generator on CIFAR-10
      driftkit compare outputs/*          scores, curves, grids, speed side by side
    """


def main() -> None:
    """Entry point of the console script."""
    open_standard_streams()
    replace_unknown_characters()
    set_user_defaults()
    set_thread_defaults()  # here, since they are read when torch loads
    keep_freed_memory()
    app()

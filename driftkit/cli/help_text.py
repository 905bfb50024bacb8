"""Help as a manual page: usage, what the command does, examples, and options under headings, in 80 columns or more.

Typer's own boxes have five columns side by side, which at 80 columns cut off the names of options.
"""

import inspect
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

MOST = 100  # columns that are used, however wide the terminal is
LEFT = 26  # columns before what is said of an option; names that need more stand in a line of their own
ARGUMENTS, GENERAL = "Arguments", "Options"  # headings of what has none of its own


class DriftkitCommand(TyperCommand):
    """A command whose help is a manual page."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        print_help(self, ctx)


def print_help(command: TyperCommand | TyperGroup, context: Any) -> None:
    """Print the manual page of a command, or of a group with its commands, on stdout."""
    from rich.text import Text

    from driftkit.runtime.terminal import open_console

    console = open_console(most=MOST, highlight=False)
    console.print(context.get_usage(), markup=False, soft_wrap=True)
    for paragraph in inspect.cleandoc(command.help or "").split("\n\n"):
        console.print()
        if paragraph.startswith(" "):  # examples
            console.print(paragraph, markup=False, soft_wrap=True)
        else:
            _print_wrapped(console, Text.from_markup(" ".join(paragraph.split())))
    panels: dict[str, list[tuple[Text, Text]]] = {ARGUMENTS: []}
    parameters: list[Any] = command.get_params(context)
    for parameter in parameters:
        heading = ARGUMENTS if parameter.param_type_name == "argument" else parameter.rich_help_panel or GENERAL
        panels.setdefault(heading, []).append((_names(parameter), Text.from_markup(parameter.help or "")))
    if isinstance(command, TyperGroup):
        panels["Commands"] = list(_commands(command, context))
    panels[GENERAL] = panels.pop(GENERAL)  # last
    for heading, entries in panels.items():
        if entries:
            console.print(f"\n[bold]{heading}[/bold]")
        for names, text in entries:
            _print_wrapped(console, text, left=names)
    if command.epilog:
        console.print()
        _print_wrapped(console, Text(command.epilog))


def _names(parameter: Any) -> "Text":
    """The names of an option and what stands for its value, or that of an argument."""
    from rich.text import Text

    if parameter.param_type_name == "argument":
        return Text(parameter.metavar or str(parameter.name).upper(), style="bold cyan")
    words = sorted(parameter.opts, key=len)  # short ones first
    if f"--no-{words[-1].removeprefix('--')}" in parameter.secondary_opts:
        words[-1] = words[-1].replace("--", "--[no-]", 1)
    names = Text(", ".join(words), style="bold cyan")
    return names if parameter.is_flag else names.append(f" {parameter.metavar or 'VALUE'}", style="not bold yellow")


def _commands(group: TyperGroup, context: Any) -> "Iterator[tuple[Text, Text]]":
    """Every command with the first paragraph of its help."""
    from rich.text import Text

    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None, "the group has listed it"
        first = inspect.cleandoc(command.help or "").partition("\n\n")[0]
        yield Text(name, style="bold cyan"), Text.from_markup(" ".join(first.split()))


def _print_wrapped(console: "Console", text: "Text", *, left: "Text | None" = None) -> None:
    """Print a text in the width of the console; with something to its left, in a column of its own."""
    from rich.text import Text

    margin = 0 if left is None else LEFT
    head = Text() if left is None else Text("  ").append_text(left)
    if left is not None and len(head) + 2 > LEFT:
        console.print(head, soft_wrap=True)
        head = Text()
    for line in text.wrap(console, max(20, console.width - margin)):
        line.rstrip()
        head.pad_right(margin - len(head))
        console.print(head.append_text(line), soft_wrap=True)
        head = Text()

"""The Typer application that commands are registered with, its common options, and usage errors."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from tithe.errors import SettingsError
from tithe.extras import __version__
from tithe.printable import json_text


class Usage(SettingsError):
    """A wrong command line; the exit code is 2."""


LATE: dict[
    Callable[..., Any], Callable[[], Callable[..., Any]]
] = {}  # stub of a command -> function that makes the command
HOW: dict[str, Any] = {
    "no_args_is_help": True,
    "add_completion": False,
    "rich_markup_mode": None,
    "pretty_exceptions_enable": False,
    "context_settings": {"help_option_names": ["-h", "--help"], "max_content_width": 110},
}
Place = Annotated[Path, typer.Option("--output", "-o", help="Where the result goes.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where the result goes.")]
RunDir = Annotated[Path | None, typer.Option(help="Run folder; beside the output by default.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print the record to stdout.")]


class Command(TyperCommand):
    """A command that refuses an option given twice; Typer would silently use only the last value."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line.

        Raises:
            Usage: an option that takes one value has two, or is switched on and off.
        """
        # The parser's third result is the order of parameters, one entry each time one is given.
        given: list[Any] = [*self.make_parser(ctx).parse_args(args=[*args])[2]]
        for option, times in Counter(given).items():
            repeatable = getattr(option, "multiple", False) or option.param_type_name != "option"
            if times > 1 and not repeatable and (not option.is_flag or option.secondary_opts):
                raise Usage(f"`{max(option.opts, key=len)}` is given {times} times", hint="give it once")
        return super().parse_args(ctx, args)


class Commands(typer.Typer):
    """A Typer application whose commands refuse an option given twice."""

    def command(self, name: str | None = None, **how: Any) -> Callable[[Any], Any]:
        """Register a command."""
        return super().command(name, **{"cls": Command} | how)


class Group(TyperGroup):
    """A group that makes a command's options only when it is called, so that listing all commands is quick."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find a command, and replace its stub by the command with all options."""
        name, command, rest = super().resolve_command(ctx, args)
        make = LATE.get(inspect.unwrap(command.callback)) if command is not None and command.callback else None
        if make is not None:
            single = Commands(**HOW)
            single.command(name)(make())
            command = get_command(single)
        return name, command, rest


app = Commands(
    help="Pick the few percent of an instruction-tuning set that teach a given language model most.",
    cls=Group,
    **HOW | {"add_completion": True},
)


def group(name: str, about: str) -> Commands:
    """Make a group of commands under one word, such as `tithe head train`."""
    made = Commands(help=about, cls=Group, **HOW)
    app.add_typer(made, name=name)
    return made


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def print_json(record: Mapping[str, Any], wanted: bool) -> None:
    """Print a record to stdout if `--json` was given."""
    if wanted:
        print(json_text(record))

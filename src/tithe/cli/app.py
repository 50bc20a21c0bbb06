"""The program that commands hang on, and the errors of its own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from tithe.errors import SettingsError
from tithe.extras import __version__
from tithe.printable import json_text


class Usage(SettingsError):
    """A command line that cannot be meant."""


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Command(TyperCommand):
    """Takes each option once: of two values one would be passed over without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the command line.

        Raises:
            Usage: an option that takes one value has two, or is switched on and off.
        """
        given: list[Any] = [*self.make_parser(ctx).parse_args(args=[*args])[2]]
        for option, times in Counter(given).items():
            repeatable = getattr(option, "multiple", False) or option.param_type_name != "option"
            if times > 1 and not repeatable and (not option.is_flag or option.secondary_opts):
                raise Usage(f"`{max(option.opts, key=len)}` is given {times} times", hint="give it once")
        return super().parse_args(ctx, args)


class Commands(typer.Typer):
    """Commands that take each option once."""

    def command(self, name: str | None = None, **how: Any) -> Callable[[Any], Any]:
        return super().command(name, **{"cls": Command} | how)


app = Commands(
    help="Pick the few percent of an instruction-tuning set that teach a given language model most.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)


def group(name: str, about: str) -> Commands:
    """Commands under a common word, such as `tithe head train`."""
    made = Commands(
        help=about,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings=CONTEXT,
    )
    app.add_typer(made, name=name)
    return made


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def print_json(record: Mapping[str, Any], wanted: bool) -> None:
    if wanted:
        print(json_text(record))

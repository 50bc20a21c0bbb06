"""The program that commands hang on, and the errors of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from tithe import __version__
from tithe.errors import SettingsError
from tithe.printable import json_text


class Usage(SettingsError):
    """A command line that cannot be meant."""


CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}
app = typer.Typer(
    help="Pick the few percent of an instruction-tuning set that teach a given language model most.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings=CONTEXT,
)


def group(name: str, about: str) -> typer.Typer:
    """Commands under a common word, such as `tithe head train`."""
    made = typer.Typer(
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

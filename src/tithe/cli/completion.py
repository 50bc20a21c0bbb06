"""Say what a shell can complete an option's value with: names that are installed or bundled, and listed choices.

The shell asks by starting `tithe` with an environment variable; Typer reads the words and finds the option. What
answers here imports nothing heavy. Where it finds no value, the shell completes file names.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import Parameter
from typing import Any, Literal, TypeAlias, get_args, get_origin

from tithe.errors import TitheError

Values: TypeAlias = Mapping[str, str]  # value -> what it means, or an empty text
Completer: TypeAlias = Callable[[str], list[tuple[str, str]]]
OPTIONS = ("--install-completion", "--show-completion")
ASKED = "_TITHE_COMPLETE"  # the environment variable with which a shell asks
SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")


def scorers() -> Values:
    from tithe import plugins

    return dict.fromkeys(plugins.names(plugins.SCORERS), "")


def selectors() -> Values:
    from tithe import plugins

    return dict.fromkeys(plugins.names(plugins.SELECTORS), "")


def templates() -> Values:
    from tithe.data.templates import TEMPLATE_NAMES

    return TEMPLATE_NAMES


def presets() -> Values:
    from tithe.settings import PRESETS

    return {name: f"`{','.join(preset['scorer'])}` as in its paper" for name, preset in PRESETS.items()}


def models() -> Values:
    from tithe.engine.model_source import BUNDLED

    return dict.fromkeys(BUNDLED, "bundled, for trying out")


def recipes() -> Values:
    from tithe.lab.tune.settings import RECIPES

    return dict.fromkeys(RECIPES, "")


def export_targets() -> Values:
    return dict.fromkeys(("messages", "alpaca", "prompt-completion", "llamafactory", "axolotl", "trl"), "")


def datasets() -> Values:
    return {"starter": "bundled, 600 labelled records"}


def formats() -> Values:
    return dict.fromkeys(("auto", "alpaca", "prompt-completion", "messages", "sharegpt"), "")


def devices() -> Values:
    return dict.fromkeys(("auto", "cpu", "cuda", "cuda:all", "mps"), "")


def encoders() -> Values:
    return {"self": "the scoring model", "tfidf": "words, without a model"}


def gates() -> Values:
    return {"auto": "as loose as the estimated damage allows", "50%": "the half that looks sound"}


# Names of settings, and of commands' own options -> the values to offer. Settings with listed choices need no line.
OFFERED: Mapping[str, Callable[[], Values]] = {
    "scorer": scorers,
    "by": scorers,
    "selector": selectors,
    "template": templates,
    "preset": presets,
    "model": models,
    "weak_model": models,
    "strong_model": models,
    "dataset": datasets,
    "recipe": recipes,
    "to": export_targets,
    "format": formats,
    "device": devices,
    "encoder": encoders,
    "gate": gates,
}
LISTS = {"scorer"}  # take several values with commas between
FILES = {"model", "weak_model", "strong_model", "dataset", "template", "recipe", "encoder"}  # take a path as well


def offer_values(parameters: Sequence[Parameter], settings: Any) -> None:
    """Give each parameter that has known values a function for the shell's completion.

    Args:
        parameters: of a command, annotated as Typer reads them.
        settings: the class of the command's settings.
    """
    for one in parameters:
        name = one.name.removesuffix("_flag")  # the option beside a positional argument
        field = settings.model_fields.get(name)
        choices = listed(field.annotation) if field is not None else ()
        if name in OFFERED or choices:
            (how,) = one.annotation.__metadata__
            how.autocompletion = completer(name, choices)


def listed(annotation: Any) -> tuple[str, ...]:
    """Return the texts that a setting's type allows, if it lists them."""
    if get_origin(annotation) is Literal:
        return tuple(one for one in get_args(annotation) if isinstance(one, str))
    return tuple(text for inner in get_args(annotation) for text in listed(inner))


def completer(name: str, choices: Sequence[str] = ()) -> Completer:
    """Make the function that Typer calls with the beginning of a value."""

    def complete(incomplete: str) -> list[tuple[str, str]]:
        values = OFFERED[name]() if name in OFFERED else dict.fromkeys(choices, "")
        before, comma, start = incomplete.rpartition(",") if name in LISTS else ("", "", incomplete)
        found = {
            f"{before}{comma}{value}": said.replace("`", "")
            for value, said in values.items()
            if value.startswith(start) and value not in before.split(",")
        }
        # With no name left the shell completes paths itself, and better: spaces, hidden files, one folder at a time.
        if found and name in FILES and before == "":
            found |= dict.fromkeys(paths(incomplete), "")
        return list(found.items())

    return complete


def paths(start: str) -> Iterator[str]:
    """Yield the files and folders of the current folder that begin so, hidden ones left out."""
    with os.scandir() as entries:
        names = sorted(f"{entry.name}/" if entry.is_dir() else entry.name for entry in entries)
    yield from (name for name in names if name.startswith(start) and not name.startswith("."))


def keep_help_on_a_line() -> None:
    """Keep Typer from wrapping a value's help: a shell would take the second line for another value."""
    if ASKED in os.environ:
        os.environ["COLUMNS"] = str(10**4)


def demand_shell(arguments: Sequence[str]) -> None:
    """Refuse to print or install completion if nobody can tell for which shell.

    Raises:
        TitheError: no known shell started this process.
    """
    if not any(option in arguments for option in OPTIONS):
        return
    from shellingham import ShellDetectionFailure, detect_shell

    try:
        name, _ = detect_shell()
    except ShellDetectionFailure:
        name = ""
    if name not in SHELLS:
        said = f"there is no completion for the shell `{name}`" if name else "which shell this is cannot be told"
        raise TitheError(
            said, hint="`_TITHE_COMPLETE=source_bash tithe` prints the script for bash; `source_zsh`, `source_fish`"
        )

"""Make a command's options from a settings class, so that name, type and help are written once, with the setting."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_origin

import typer
from typer.models import ArgumentInfo

from tithe.cli.app import LATE, Usage
from tithe.cli.completion import offer_values

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

PLURAL = {"dataset": "data sets", "model": "models"}
Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of settings; flags win.")]


@dataclass(frozen=True)
class Takes:
    """Decorator that gives a command `f(settings, **own options)` an option for each setting.

    The settings class is imported only when the command is called, so that `tithe --help` is quick.

    Args:
        settings: the settings class, as `module:Name`.
        argument: the setting that can also be given as a positional argument.
        several: whether it may be repeated, as by a shell that expands `*.jsonl`.
        metavar: that argument's name on the help page.
        about: that argument's help; None for the setting's own.
        only: names of the settings that the command takes, separated by spaces; None for all.
        without: names of the settings that it does not take.
        needs: names, separated by spaces, of which at least one must be given -> the message if none is, and a hint.
            A YAML file may give those that are settings.
        config: whether the command takes a YAML file of settings.
        raw: whether `f` gets the given options by name instead of settings.
        within: context manager around the making of the settings and the command.
    """

    settings: str
    argument: str | None = None
    several: bool = False
    metavar: str = "DATA"
    about: str | None = None
    only: str | None = None
    without: str = ""
    needs: Mapping[str, tuple[str, str]] = field(default_factory=dict)
    config: bool = True
    raw: bool = False
    within: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __call__(self, f: Callable[..., None]) -> Callable[[], None]:
        def late() -> None:
            """Stub for the command until its settings are imported."""

        late.__name__, late.__doc__ = f.__name__, f.__doc__
        LATE[late] = lambda: self.full(f)
        return late

    def full(self, f: Callable[..., None]) -> Callable[..., None]:
        """Make the command, with all its options in the signature, from which Typer reads them."""
        from tithe.settings import settings_from

        module, _, name = self.settings.partition(":")
        model = getattr(importlib.import_module(module), name)
        own = list(inspect.signature(f, eval_str=True).parameters.values())[1:]  # all but the settings

        def command(**given: Any) -> None:
            mine = {one.name: given.pop(one.name) for one in own}
            config = given.pop("config", None)
            self.merge(given)
            for names, (said, hint) in self.needs.items():
                first, *others = names.split()
                found = any((given | mine).get(one) not in (None, []) for one in (first, *others))
                # A YAML file may hold a missing setting, but never one of the command's own options.
                if not found and (first in mine or config is None):
                    raise Usage(said, hint=hint)
            with self.within():
                f(given if self.raw else settings_from(model, given, config), **mine)

        made = self.parameters(model) + ([parameter("config", Config)] if self.config else [])
        offer_values([*own, *made], model)
        keyword = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in sorted([*own, *made], key=place)]
        command.__signature__ = inspect.Signature(keyword)  # type: ignore[attr-defined]
        command.__name__, command.__doc__ = f.__name__, f.__doc__
        return command

    def parameters(self, model: Any) -> list[inspect.Parameter]:
        """Make a parameter for each setting, and for each switch that empties a list."""
        from tithe.typed import meanings

        texts, found = meanings(model), list[inspect.Parameter]()
        names = [*model.model_fields] if self.only is None else self.only.split()
        for name in names:
            if name in self.without.split():
                continue
            one = model.model_fields[name]
            if name == self.argument:
                about = typer.Argument(metavar=self.metavar, help=sentence(self.about or texts.get(name, "")))
                found.insert(0, parameter(name, Annotated[list[str] | None if self.several else str | None, about]))
                if self.about is None:
                    found.append(setting_parameter(f"{name}_flag", name, one, f"the same as {self.metavar}"))
            else:
                found.append(setting_parameter(name, name, one, texts.get(name, "")))
            if (emptied := flag_of(one).emptied) is not None:
                switch = typer.Option(f"--no-{name.replace('_', '-')}", help=sentence(emptied))
                found.append(parameter(f"no_{name}", Annotated[bool, switch], default=False))
        return found

    def merge(self, given: dict[str, Any]) -> None:
        """Merge settings that can be given in two ways under their own names, in place.

        Raises:
            Usage: one was given in both ways.
        """
        name = self.argument
        if name is not None and (flagged := given.pop(f"{name}_flag", None)) is not None:
            if given[name]:
                first = given[name][0] if self.several else given[name]
                raise Usage(f"two {PLURAL[name]}: `{first}` and `--{name} {flagged}`", hint="give one")
            given[name] = flagged
        for switch in [one for one in given if one.startswith("no_") and one.removeprefix("no_") in given]:
            if given.pop(switch):
                emptied = switch.removeprefix("no_")
                if given[emptied]:
                    dashed = emptied.replace("_", "-")
                    raise Usage(f"`--no-{dashed}` and `--{dashed}` exclude each other")
                given[emptied] = ()


def parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    """Make a keyword parameter."""
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def place(one: inspect.Parameter) -> int:
    """Return a parameter's sort key on the help page: required ones, then those with a short name, then the rest."""
    (how,) = one.annotation.__metadata__
    short = any(len(name) == 2 for name in how.param_decls or ())
    return 0 if one.default is one.empty else 1 if short or isinstance(how, ArgumentInfo) else 2


def setting_parameter(parameter_name: str, name: str, one: FieldInfo, text: str) -> inspect.Parameter:
    """Make the option of one setting, or its positional argument."""
    flag, kind, about = flag_of(one), kind_of(one), sentence(text)
    if flag.positional:
        return parameter(parameter_name, Annotated[kind | None, typer.Argument(metavar=flag.metavar, help=about)])
    dashed = name.replace("_", "-")
    switches = kind is bool and (flag.negative or one.default is not False)
    spelled = f"--{dashed}/--no-{dashed}" if switches else f"--{dashed}"
    made = typer.Option(spelled, *flag.other, metavar=flag.metavar, help=about)
    return parameter(parameter_name, Annotated[kind | None, made])


def flag_of(one: FieldInfo) -> Any:
    """Return how a setting is written on the command line."""
    from tithe.typed import Flag

    return next((note for note in one.metadata if isinstance(note, Flag)), Flag())


def kind_of(one: FieldInfo) -> Any:
    """Return the type that Typer parses an option's value as; the settings class checks the value itself."""
    from tithe.typed import kinds_of

    if (kind := flag_of(one).kind) is not None:
        return kind
    # Tuples are repeatable options, choices are text, and so are settings that may have several types.
    kinds = {list[str] if get_origin(kind) is tuple else kind for kind in kinds_of(one.annotation)} - {type(None)}
    kinds = {str if get_origin(kind) is Literal else kind for kind in kinds}
    return kinds.pop() if len(kinds) == 1 else str


def sentence(text: str) -> str:
    """Give a text a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""

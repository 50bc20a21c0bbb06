"""Find scorers, selectors and readouts by name, through entry points; the built-in ones are entry points too.

A spec is a name with settings, as on the command line: `superfiltering`, `band(low=0.1, high=0.5)`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from tithe.errors import SettingsError, TitheError, did_you_mean
from tithe.specs import parse_spec, read_settings, split_top

if TYPE_CHECKING:
    from tithe.engine.readouts.base import Readout, RunFacts
    from tithe.gate.damage import Damage
    from tithe.scorers.base import Scorer
    from tithe.selectors.base import Selector

T = TypeVar("T")
SCORERS: Final = "tithe.scorers"
SELECTORS: Final = "tithe.selectors"
READOUTS: Final = "tithe.readouts"
DAMAGE: Final = "tithe.damage"
STEPS: Final = "tithe.steps"  # functions of the lab that the core calls by name
NONE: Final[Mapping[str, Any]] = {}


def names(group: str) -> list[str]:
    """Return all names of a group, sorted; import nothing."""
    return sorted({point.name for point in installed(group)})


def installed(group: str) -> Sequence[EntryPoint]:
    """Return the entry points of a group.

    They are cached: the metadata of all packages takes milliseconds to read, and a plan asks for every example.
    """
    return _installed(group, tuple(sys.path))


@cache
def _installed(group: str, path: tuple[str, ...]) -> tuple[EntryPoint, ...]:
    return tuple(entry_points(group=group))


def scorer(name: str) -> type[Scorer]:
    """Return the scorer class of this name.

    Raises:
        SettingsError: there is none, or two packages have one.
    """
    from tithe.scorers.base import Scorer

    return _load(SCORERS, name, Scorer)  # type: ignore[type-abstract]


def selector(name: str) -> type[Selector]:
    """Return the selector class of this name.

    Raises:
        SettingsError: there is none, or two packages have one.
    """
    from tithe.selectors.base import Selector

    return _load(SELECTORS, name, Selector)  # type: ignore[type-abstract]


def damage_kind(name: str) -> type[Damage]:
    """Return the class of a kind of damage.

    Raises:
        SettingsError: there is none, or two packages have one.
    """
    from tithe.gate.damage import Damage

    return _load(DAMAGE, name, Damage)  # type: ignore[type-abstract]


def readout(name: str) -> type[Readout]:
    """Return the readout class for `name` or `name:argument`.

    Raises:
        SettingsError: there is none, or two packages have one.
    """
    from tithe.engine.readouts.base import Readout

    return _load(READOUTS, name.partition(":")[0], Readout, plain=True)  # type: ignore[type-abstract]


def build_readout(name: str, run: RunFacts) -> Readout:
    """Make the readout that a scorer asks for.

    Raises:
        TitheError: the name is unknown, or something that the readout needs is missing.
    """
    return readout(name).make(name.partition(":")[2], run)


def step(name: str) -> Callable[..., Any]:
    """Return a function of the lab that a run calls before it scores; the core must not import the lab.

    Raises:
        SettingsError: no installed package has such a step.
    """
    for point in installed(STEPS):
        if point.name == name:
            return cast("Callable[..., Any]", _import(point))
    raise SettingsError(f"the step `{name}` is not installed", hint="install tithe again")


def build_scorer(spec: str, defaults: Mapping[str, Any] = NONE) -> Scorer:
    """Build the scorer of a spec; see `build`."""
    return cast("Scorer", build(SCORERS, spec, defaults))


def build_selector(spec: str, defaults: Mapping[str, Any] = NONE) -> Selector:
    """Build the selector of a spec; see `build`."""
    return cast("Selector", build(SELECTORS, spec, defaults))


def build(group: str, spec: str, defaults: Mapping[str, Any] = NONE) -> Any:
    """Build an object of a group from `name` or `name(key=value, key=value)`.

    The type of the field decides how a value is read: int, float, bool, str, Literal, or Optional of these (`none`).

    Args:
        group: entry point group.
        spec: name and settings.
        defaults: settings of the run, used for fields that the spec leaves out; others are ignored.

    Raises:
        SettingsError: an unknown name or setting, a value of the wrong type, or a missing setting.
    """
    name, settings = parse_spec(spec)
    cls = {SCORERS: scorer, SELECTORS: selector, DAMAGE: damage_kind}[group](name)
    chosen = read_settings(cls, name, settings)
    values = {key: value for key, value in defaults.items() if key in setting_names(cls)} | chosen
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:  # raised by a plugin's own checks
        raise SettingsError(f"`{spec}`: {error}") from error


def setting_names(cls: type) -> list[str]:
    """Return the names of a scorer's or selector's settings."""
    from tithe.scorers.base import settings_of

    return [one.name for one in settings_of(cls)]


def damage_kinds(chosen: Sequence[str] = ()) -> dict[str, Damage]:
    """Return kinds of damage by name: the chosen ones, or all that are installed.

    Raises:
        SettingsError: there is no such kind, or one is given twice.
    """
    if len(set(chosen)) < len(chosen):
        raise SettingsError(f"a kind of damage is given twice: {', '.join(chosen)}", hint="name each kind once")
    return {name: cast("Damage", build(DAMAGE, name)) for name in chosen or names(DAMAGE)}


def split_specs(text: str) -> list[str]:
    """Split a comma-separated list of specs; commas in brackets and quotes do not separate.

    Raises:
        SettingsError: an entry is empty, or brackets or quotes do not match.
    """
    parts = [part.strip() for part in split_top(text)]
    if not all(parts):
        raise SettingsError(f"`{text}` has an empty entry", hint="for example `ifd,length`")
    return parts


def _load(group: str, name: str, base: type[T], *, plain: bool = False) -> type[T]:
    points = [point for point in installed(group) if point.name == name]
    if not points:
        kind = group.rpartition(".")[2].removesuffix("s")
        raise SettingsError(f"there is no {kind} `{name}`", hint=did_you_mean(name, names(group)))
    # Two installations of one package list the same class twice; only different classes are a clash.
    found = [_import(point) for point in points]
    for point, other in zip(points, found, strict=True):
        if other is not found[0]:
            message = f"`{name}` is claimed by two packages, {_package(points[0])} and {_package(point)}"
            raise SettingsError(message, hint="uninstall one of them")
    cls = found[0]
    if not (isinstance(cls, type) and issubclass(cls, base) and (plain or is_dataclass(cls))):
        what = f"{base.__module__}.{base.__qualname__}"
        kind = "class" if plain else "dataclass"
        raise SettingsError(f"`{points[0].value}` of {_package(points[0])} is not a {kind} derived from `{what}`")
    return cls


def _import(point: EntryPoint) -> Any:
    try:
        return point.load()
    except TitheError:
        raise
    except Exception as error:  # importing a foreign module may raise anything
        message = f"`{point.name}` of {_package(point)} cannot be imported: {type(error).__name__}: {error}"
        raise SettingsError(message, hint="reinstall or uninstall that package") from error


def _package(point: EntryPoint) -> str:
    return f"`{point.dist.name}`" if point.dist else "an unnamed package"

"""Names -> classes, by entry points: ours and anyone's take the same road.

A spec is a name with settings, as on the command line: `superfiltering`, `band(low=0.1, high=0.5)`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from tithe.errors import SettingsError, TitheError, did_you_mean
from tithe.specs import parse_spec, read_settings, split_top

if TYPE_CHECKING:
    from tithe.engine.readouts.base import Readout, RunFacts
    from tithe.scorers.base import Scorer
    from tithe.selectors.base import Selector

T = TypeVar("T")
SCORERS: Final = "tithe.scorers"
SELECTORS: Final = "tithe.selectors"
READOUTS: Final = "tithe.readouts"
STEPS: Final = "tithe.steps"  # what a run does before it scores, and what stands above the run
NONE: Final[Mapping[str, Any]] = {}


def names(group: str) -> list[str]:
    """All names of a group, sorted; nothing is imported for it."""
    return sorted({point.name for point in entry_points(group=group)})


def scorer(name: str) -> type[Scorer]:
    """The scorer class of that name."""
    from tithe.scorers.base import Scorer

    return _load(SCORERS, name, Scorer)  # type: ignore[type-abstract]


def selector(name: str) -> type[Selector]:
    """The selector class of that name."""
    from tithe.selectors.base import Selector

    return _load(SELECTORS, name, Selector)  # type: ignore[type-abstract]


def readout(name: str) -> type[Readout]:
    """Return the readout class that a scorer asks for as `name` or `name:argument`.

    Raises:
        SettingsError: there is none of that name, or two packages have one.
    """
    from tithe.engine.readouts.base import Readout

    return _load(READOUTS, name.partition(":")[0], Readout, plain=True)  # type: ignore[type-abstract]


def build_readout(name: str, run: RunFacts) -> Readout:
    """Make the readout that a scorer asks for.

    Raises:
        TitheError: there is none of that name, or what it needs is not there.
    """
    return readout(name).make(name.partition(":")[2], run)


def step(name: str) -> Callable[..., Any]:
    """Return the function of a step that a run takes before it scores; the core names it and does not import it.

    Raises:
        SettingsError: no installed package has it.
    """
    for point in entry_points(group=STEPS, name=name):
        return cast("Callable[..., Any]", _import(point))
    raise SettingsError(f"the step `{name}` is not installed", hint="install tithe again")


def build_scorer(spec: str, defaults: Mapping[str, Any] = NONE) -> Scorer:
    """The scorer that a spec describes."""
    return cast("Scorer", build(SCORERS, spec, defaults))


def build_selector(spec: str, defaults: Mapping[str, Any] = NONE) -> Selector:
    """The selector that a spec describes."""
    return cast("Selector", build(SELECTORS, spec, defaults))


def build(group: str, spec: str, defaults: Mapping[str, Any] = NONE) -> Any:
    """An object of the group from `name` or `name(key=value, key=value)`.

    Values are read by the type of the field: int, float, bool, str, Literal, and Optional of these (`none`).

    Args:
        group: of entry points.
        spec: name and settings.
        defaults: settings of the run, for those that the spec leaves out; the object takes what it has a field for.

    Raises:
        SettingsError: for an unknown name or setting, a value of the wrong type, or a setting that is missing.
    """
    name, settings = parse_spec(spec)
    cls = scorer(name) if group == SCORERS else selector(name) if group == SELECTORS else _load(group, name, object)
    chosen = read_settings(cls, name, settings)
    values = {key: value for key, value in defaults.items() if key in setting_names(cls)} | chosen
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:  # a plugin's own check of its settings
        raise SettingsError(f"`{spec}`: {error}") from error


def setting_names(cls: type) -> list[str]:
    """What can be set of a scorer or selector."""
    from tithe.scorers.base import settings_of

    return [one.name for one in settings_of(cls)]


def split_specs(text: str) -> list[str]:
    """The specs of a comma-separated list; commas in brackets and quotes do not separate.

    Raises:
        SettingsError: for an empty entry, or brackets and quotes that do not match.
    """
    parts = [part.strip() for part in split_top(text)]
    if not all(parts):
        raise SettingsError(f"`{text}` has an empty entry", hint="for example `ifd,length`")
    return parts


def _load(group: str, name: str, base: type[T], *, plain: bool = False) -> type[T]:
    points = [point for point in entry_points(group=group) if point.name == name]
    if not points:
        kind = group.rpartition(".")[2].removesuffix("s")
        raise SettingsError(f"there is no {kind} `{name}`", hint=did_you_mean(name, names(group)))
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
    except Exception as error:  # whatever a foreign module raises while it is imported
        message = f"`{point.name}` of {_package(point)} cannot be imported: {type(error).__name__}: {error}"
        raise SettingsError(message, hint="reinstall or uninstall that package") from error


def _package(point: EntryPoint) -> str:
    return f"`{point.dist.name}`" if point.dist else "an unnamed package"

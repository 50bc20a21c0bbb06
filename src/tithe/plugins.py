"""Names -> classes, by entry points: ours and anyone's take the same road.

A spec is a name with settings, as on the command line: `superfiltering`, `band(low=0.1, high=0.5)`.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import MISSING, Field, fields, is_dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from tithe.errors import SettingsError, TitheError, did_you_mean

if TYPE_CHECKING:
    from tithe.scorers.base import Scorer
    from tithe.selectors.base import Selector

T = TypeVar("T")
SCORERS: Final = "tithe.scorers"
SELECTORS: Final = "tithe.selectors"
_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_OPEN, _CLOSE, _QUOTES = "([{", ")]}", "'\""


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


def build_scorer(spec: str) -> Scorer:
    """The scorer that a spec describes."""
    return cast("Scorer", build(SCORERS, spec))


def build_selector(spec: str) -> Selector:
    """The selector that a spec describes."""
    return cast("Selector", build(SELECTORS, spec))


def build(group: str, spec: str) -> Any:
    """An object of the group from `name` or `name(key=value, key=value)`.

    Values are read by the type of the field: int, float, bool, str, Literal, and Optional of these (`none`).

    Raises:
        SettingsError: for an unknown name or setting, a value of the wrong type, or a setting that is missing.
    """
    name, settings = _parse(spec)
    cls = scorer(name) if group == SCORERS else selector(name) if group == SELECTORS else _load(group, name, object)
    known = {one.name: one for one in fields(cast(Any, cls)) if one.init}
    for key in settings:
        if key not in known:
            raise SettingsError(f"`{name}` has no setting `{key}`", hint=did_you_mean(key, known))
    missing = [key for key, one in known.items() if key not in settings and _required(one)]
    if missing:
        example = ", ".join(f"{key}=..." for key in missing)
        raise SettingsError(f"`{name}` needs the setting `{missing[0]}`", hint=f"`{name}({example})`")
    hints = get_type_hints(cls)
    values = {key: _read(text, hints[key], f"`{name}`: `{key}`") for key, text in settings.items()}
    try:
        return cls(**values)
    except (ValueError, TypeError) as error:  # a plugin's own check of its settings
        raise SettingsError(f"`{spec}`: {error}") from error


def split_specs(text: str) -> list[str]:
    """The specs of a comma-separated list; commas in brackets and quotes do not separate.

    Raises:
        SettingsError: for an empty entry, or brackets and quotes that do not match.
    """
    parts = [part.strip() for part in _split(text)]
    if not all(parts):
        raise SettingsError(f"`{text}` has an empty entry", hint="for example `ifd,length`")
    return parts


def _load(group: str, name: str, base: type[T]) -> type[T]:
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
    if not (isinstance(cls, type) and issubclass(cls, base) and is_dataclass(cls)):
        what = f"{base.__module__}.{base.__qualname__}"
        raise SettingsError(f"`{points[0].value}` of {_package(points[0])} is not a dataclass derived from `{what}`")
    return cast("type[T]", cls)


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


def _parse(spec: str) -> tuple[str, dict[str, str]]:
    """Name and settings, still text."""
    name, bracket, rest = spec.strip().partition("(")
    name = name.strip()
    if not name or (bracket and not rest.endswith(")")) or (not bracket and ")" in name):
        raise SettingsError(f"`{spec}` cannot be read", hint="`name` or `name(key=value, key=value)`")
    settings: dict[str, str] = {}
    inside = rest[:-1].strip()
    for part in _split(inside) if inside else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not key or not equals or key in settings:
            why = f"has `{key}` twice" if key in settings else f"has `{part.strip()}` where `key=value` is expected"
            raise SettingsError(f"`{spec}` {why}")
        settings[key] = value
    return name, settings


def _split(text: str) -> Iterator[str]:
    """Parts between top-level commas."""
    start, depth, quote = 0, 0, ""
    for place, char in enumerate(text):
        if quote:
            quote = "" if char == quote else quote
        elif char in _QUOTES:
            quote = char
        elif char in _OPEN or char in _CLOSE:
            depth += 1 if char in _OPEN else -1
        elif char == "," and depth == 0:
            yield text[start:place]
            start = place + 1
        if depth < 0:
            break
    if depth or quote:
        raise SettingsError(f"`{text}`: brackets or quotes do not match")
    yield text[start:]


def _required(one: Field[Any]) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def _read(text: str, hint: Any, what: str) -> Any:
    """The value that a text stands for under a type hint."""
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    plain = text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in _QUOTES else text
    for kind in sorted(kinds, key=lambda kind: kind is str):  # text fits everything, so it is tried last
        try:
            return _read_one(plain, kind)
        except (ValueError, KeyError):
            continue
    wanted = " or ".join(_describe(kind) for kind in kinds)
    raise SettingsError(f"{what} is {wanted}, not `{text}`")


def _read_one(text: str, kind: Any) -> Any:
    if kind is types.NoneType:
        return {"none": None, "null": None}[text.lower()]
    if kind is bool:
        return _BOOLS[text.lower()]
    if kind in (int, float, str):
        return kind(text)
    if get_origin(kind) is Literal:
        return {str(choice): choice for choice in get_args(kind)}[text]
    raise ValueError(kind)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind))
    known = {int: "a whole number", float: "a number", bool: "`true` or `false`", str: "text", types.NoneType: "`none`"}
    return known.get(kind, f"a {kind} that cannot be given as text")

"""Parse specs, which are names with settings: `name`, `name(key=value, key="a, b")`."""

from __future__ import annotations

import math
import re
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, NoReturn, Union, cast, get_args, get_origin, get_type_hints

from tithe.errors import SettingsError, did_you_mean

SEEDS = 2**32  # NumPy and transformers take smaller seeds
_BOOLS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")  # fits into 64 bits
_OPEN, _CLOSE, _QUOTES = "([{", ")]}", "'\""


def read_settings(cls: type, name: str, settings: Mapping[str, str]) -> dict[str, Any]:
    """Convert settings to the types of a dataclass's fields.

    The types may be int, float, bool, str, Literal, and Optional of these (`none`). Fields marked as learned cannot be
    set.

    Raises:
        SettingsError: an unknown setting, a value of the wrong type, or a setting that is missing.
    """
    known = {one.name: one for one in fields(cast(Any, cls)) if one.init and not one.metadata.get("learned")}
    for key in settings:
        if key not in known:
            raise SettingsError(f"`{name}` has no setting `{key}`", hint=did_you_mean(key, known))
    missing = [key for key, one in known.items() if key not in settings and _required(one)]
    if missing:
        example = ", ".join(f"{key}=..." for key in missing)
        raise SettingsError(f"`{name}` needs the setting `{missing[0]}`", hint=f"`{name}({example})`")
    hints = get_type_hints(cls)
    values = {key: read_setting(text, hints[key], f"`{name}`: `{key}`") for key, text in settings.items()}
    seed = values.get("seed", 0)
    if isinstance(seed, int) and not 0 <= seed < SEEDS:
        raise SettingsError(f"`{name}`: `seed` cannot be `{seed}`: it must be at least 0 and below {SEEDS}")
    return values


def parse_spec(spec: str) -> tuple[str, dict[str, str]]:
    """Split a spec into its name and its settings; values stay text.

    Raises:
        SettingsError: the spec cannot be read.
    """
    name, bracket, rest = spec.strip().partition("(")
    name = name.strip()
    if not name or (bracket and not rest.endswith(")")) or (not bracket and ")" in name):
        raise SettingsError(f"`{spec}` cannot be read", hint="`name` or `name(key=value, key=value)`")
    settings: dict[str, str] = {}
    inside = rest[:-1].strip()
    for part in split_top(inside) if inside else ():
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not key or not equals or key in settings:
            why = f"has `{key}` twice" if key in settings else f"has `{part.strip()}` where `key=value` is expected"
            raise SettingsError(f"`{spec}` {why}")
        settings[key] = value
    return name, settings


def split_top(text: str) -> Iterator[str]:
    """Yield the parts between the commas that are outside brackets and quotes."""
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
        if depth < 0:  # a closing bracket without an opening one
            break
    if depth or quote:
        raise SettingsError(f"`{text}`: brackets or quotes do not match")
    yield text[start:]


def _required(one: Field[Any]) -> bool:
    return one.default is MISSING and one.default_factory is MISSING


def read_setting(text: str, hint: Any, what: str) -> Any:
    """Convert a text to a type.

    Args:
        text: the value as written, perhaps in quotes.
        hint: the type, or a union.
        what: name of the setting in the message.

    Raises:
        SettingsError: it is no value of that type.
    """
    kinds = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
    # Quotes keep commas and brackets in a value, and are not a part of it.
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
    if kind is int:
        return int(text) if _WHOLE.fullmatch(text) else _refuse(text)
    if kind is float:
        return float(text) if math.isfinite(float(text)) else _refuse(text)
    if kind is str:
        return text
    if get_origin(kind) is Literal:
        return {str(choice): choice for choice in get_args(kind)}[text]
    raise ValueError(kind)


def _refuse(text: str) -> NoReturn:
    raise ValueError(text)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(kind))
    known = {int: "a whole number", float: "a number", bool: "`true` or `false`", str: "text", types.NoneType: "`none`"}
    return known.get(kind, f"a {kind} that cannot be given as text")

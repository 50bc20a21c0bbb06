"""JSON in which no object has a field twice: `json.loads` would keep the last of them without a word."""

from __future__ import annotations

import json
from typing import Any


class FieldTwiceError(ValueError):
    """An object has two fields of the same name."""


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object of these fields.

    Raises:
        FieldTwiceError: a name occurs twice.
    """
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        raise FieldTwiceError(f"the field `{twice[:40]}` stands twice in one object")
    return made


def loads(text: str) -> Any:
    """Return the value of a JSON text.

    Raises:
        ValueError: it is not JSON, or an object has a field twice.
    """
    return DECODER.decode(text)


DECODER = json.JSONDecoder(object_pairs_hook=unique)

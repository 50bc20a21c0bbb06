"""Parse the setting that says which column is what: `prompt=question,response=answer`. Imports nothing heavy."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tithe.errors import SettingsError, did_you_mean

PARTS = ("prompt", "response", "context", "system", "messages", "tools")  # each is a column of the record
OF_TURNS = ("role", "content")  # each is a field of a message
SPEAKERS = ("user", "assistant")  # each is a value of a message's role
ROLES = (*PARTS, *OF_TURNS, *SPEAKERS)
# Words of the known shapes, for people who think in them.
ALSO = {
    "instruction": "prompt",
    "input": "context",
    "output": "response",
    "completion": "response",
    "conversations": "messages",
}
_NEXT = re.compile(r",(?=\s*\w+\s*=)")  # a comma inside a column's name stays there


def read_columns(value: Any) -> Any:
    """Return the entries `role=column` of a text, a list of them, or a mapping; anything else unchanged.

    Raises:
        SettingsError: an entry has no `=`, a role that does not exist, or a role or column that was given before.
    """
    if isinstance(value, Mapping):
        pairs: list[tuple[Any, Any]] = list(value.items())
    elif isinstance(value, str) or (isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)):
        texts = [value] if isinstance(value, str) else value
        pairs = [split_entry(part) for text in texts for part in _NEXT.split(text) if part.strip()]
    else:
        return value
    found: dict[str, str] = {}
    for role, column in pairs:
        add_entry(found, role, column)
    return tuple(f"{role}={found[role]}" for role in ROLES if role in found)


def split_entry(text: str) -> tuple[str, str]:
    """Split `prompt=question` at its first `=`.

    Raises:
        SettingsError: there is none.
    """
    role, sign, column = text.partition("=")
    if not sign:
        raise SettingsError(
            f"`columns` cannot be `{text.strip()}`: it has no `=`", hint="for example `prompt=question,response=answer`"
        )
    return role.strip(), column.strip()


def add_entry(found: dict[str, str], role: Any, column: Any) -> None:
    """Add a role and its column.

    Raises:
        SettingsError: one of them is impossible, or was given before.
    """
    if not isinstance(column, str) or not column or "\0" in column:
        raise SettingsError(
            f"`columns` names no column for `{role}`: `{column!r}`" if column else f"`columns`: `{role}` has no column",
            hint="for example `prompt=question,response=answer`",
        )
    known = ALSO.get(str(role), str(role))
    if known not in ROLES:
        raise SettingsError(
            f"`columns`: `{role}` is no part of an example that a column could hold",
            hint=did_you_mean(str(role), ROLES),
        )
    if known in found:
        raise SettingsError(
            f"`columns` names two columns for `{known}`: `{found[known]}` and `{column}`", hint="give one"
        )
    # The value of a role may well be the name of some column, so only columns are compared with columns.
    kind = next(group for group in (PARTS, OF_TURNS, SPEAKERS) if known in group)
    other = next((name for name in kind if found.get(name) == column), None)
    if other is not None:
        raise SettingsError(
            f"`columns` gives `{column}` twice, as the {other} and as the {known}", hint="a column is one of them"
        )
    found[known] = column

"""The exceptions that tithe raises on purpose.

TitheError                 one sentence for the user, and often a hint
├── SettingsError          an unknown name, an impossible value, or settings that exclude each other
├── DataError              a file or a record that cannot be read
├── TemplateError          a template that does not exist or cannot render
├── ModelError             a model or tokenizer that does not exist or does not fit
├── EndpointError          a server that cannot be reached or does not answer
├── StoreError             a run folder that is in use, damaged or not written by tithe
├── OutputError            a file that exists, or cannot be written
└── MissingExtraError      a package of an optional extra is not installed
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tithe.printable import hint_line, one_line


class TitheError(Exception):
    """An error the user can act on: what went wrong, where, and with which values; `hint` is the way out.

    Message and hint are each one line, safe to print whatever the values contain.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(one_line(message))
        self.hint = None if hint is None else hint_line(hint)


class SettingsError(TitheError): ...


class DataError(TitheError): ...


class TemplateError(TitheError): ...


class ModelError(TitheError): ...


class EndpointError(TitheError): ...


class StoreError(TitheError): ...


class OutputError(TitheError): ...


class MissingExtraError(TitheError): ...


def brief(value: object, longest: int = 80) -> str:
    """Return a value as text on one line, cut to `longest` characters."""
    text = " ".join(str(value)[: 2 * longest].split())
    return text if len(text) <= longest else f"{text[: longest - 1]}…"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return the hint for a mistyped name: the nearest known one, or all of them."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean `{near[0]}`?" if near else f"there is: {', '.join(names) or 'nothing'}"


def demand(*parts: object) -> None:
    """Do nothing: the call evaluates its arguments, which may raise. `python -O` would skip an `assert`."""

"""Guard parsers of foreign bytes, read small files behind that guard, and parse JSON strictly.

A parser may raise anything on untrusted bytes: `ValueError`, `RecursionError`, `SyntaxError`, `zlib.error`, or a
library's own exceptions. `foreign` turns all of them into one sentence for the user. The original stays the cause, and
`TITHE_DEBUG=1` shows it. Keep the guarded block as small as the call of the parser.

A JSON object with a repeated field is refused: `json.loads` would silently keep the last value.
"""

from __future__ import annotations

import json
import reprlib
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tithe.errors import TitheError

PANIC = "PanicException"  # of libraries written in Rust: a `BaseException` without a public name
SHOWN = 120  # characters of a value or of a library's message
MOST_JSON = 1 << 30  # bytes of a run record
SPECIAL = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
    (stat.S_ISSOCK, "a socket"),
)

_short = reprlib.Repr()
_short.maxstring = _short.maxother = _short.maxlong = SHOWN
_short.maxtuple = _short.maxlist = _short.maxdict = _short.maxset = 8
_short.maxlevel = 3


@contextmanager
def foreign(
    kind: type[TitheError],
    said: str,
    hint: str | None = None,
    *,
    told: Callable[[BaseException], str] | None = None,
    passes: Callable[[BaseException], bool] = lambda error: False,
) -> Iterator[None]:
    """Turn any exception of a parser into one of our errors.

    Args:
        kind: class of our error.
        said: what is wrong and where, e.g. "`a.npy` is no array"; the parser's message follows.
        hint: the way out.
        told: turns the exception into that message; `describe_error` by default.
        passes: tells which exceptions to pass on unchanged, for a caller that handles them.
    """
    try:
        yield
    except TitheError:
        raise
    except BaseException as error:
        if passes(error) or not (isinstance(error, Exception) or type(error).__name__ == PANIC):
            raise
        raise kind(f"{said}: {(told or describe_error)(error)}", hint=hint) from error


def describe_error(error: BaseException) -> str:
    """Describe an exception in one short line for a user."""
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 ({error.reason})"
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it does not fit into the memory"
    if isinstance(error, KeyError) and error.args:
        return f"`{cut(str(error.args[0]))}` is missing"
    text = str(getattr(error, "strerror", None) or error).strip()
    line = cut(text.splitlines()[0]) if text else ""
    kind = type(error).__name__
    clear = not isinstance(error, TypeError | AttributeError | LookupError)  # messages that need the type's name
    return (line if clear else f"{kind}: {line}") if line else kind


def cut(text: str, most: int = SHOWN) -> str:
    """Return the text, shortened if it is long."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def shown(value: Any) -> str:
    """Format a value for a message, shortened if it is long; text gets no quotes."""
    return cut(value) if isinstance(value, str) else cut(_short.repr(value))


def demand_regular(path: Path, kind: type[TitheError], hint: str | None = None, *, piped: bool = False) -> None:
    """Refuse a device, a pipe or a socket: reading one may never end, and gives its bytes only once.

    Args:
        path: an existing path.
        kind: class of the error.
        hint: the way out.
        piped: accept a pipe that the shell has opened, as by `<(...)`.

    Raises:
        TitheError: it is a special file; of class `kind`.
        OSError: nothing exists there.
    """
    what = special_kind(path)
    if what is None or (piped and what == "a pipe" and path.parts[:2] == ("/", "dev")):
        return
    raise kind(f"`{path}` is {what} and not a file", hint=hint)


def special_kind(path: Path) -> str | None:
    """Return the kind of a special file, or None for a regular one.

    Raises:
        OSError: nothing exists there.
    """
    mode = path.stat().st_mode
    return next((name for is_kind, name in SPECIAL if is_kind(mode)), None)


def read_small(path: Path, kind: type[TitheError], most: int, hint: str | None = None, *, piped: bool = False) -> bytes:
    """Read a file of at most `most` bytes.

    Raises:
        TitheError: the file is missing, special or larger; of class `kind`.
    """
    with foreign(kind, f"cannot read `{path}`", hint):
        demand_regular(path, kind, hint, piped=piped)
        with path.open("rb") as stream:
            raw = stream.read(most + 1)
    if len(raw) > most:
        raise kind(f"`{path}` has more than {most:,} bytes, which is no file of its kind", hint=hint)
    return raw


def read_json(path: Path, kind: type[TitheError], hint: str, shape: Any = None) -> dict[str, Any]:
    """Read the object in a JSON file.

    Args:
        path: the file.
        kind: class of the error.
        hint: the way out.
        shape: pydantic model of the required keys; should allow others.

    Raises:
        TitheError: the file is damaged; of class `kind`.
    """
    raw = read_small(path, kind, MOST_JSON, hint)
    with foreign(kind, f"`{path}` is damaged", hint):
        found = json.loads(raw.decode("utf-8"))
    if not isinstance(found, dict):
        raise kind(f"`{path}` is damaged: it holds no JSON object", hint=hint)
    if shape is not None:
        demand_shape(found, shape, path, kind, hint)
    return found


def demand_shape(found: Any, shape: Any, path: Path, kind: type[TitheError], hint: str) -> None:
    """Refuse values that do not fit the model `shape`.

    Raises:
        TitheError: a value does not fit; of class `kind`, naming file and key.
    """
    from pydantic import ValidationError

    try:
        shape.model_validate(found, strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise kind(f"`{path}` is damaged: `{cut(key)}`: {first['msg']}", hint=hint) from error


class FieldTwiceError(ValueError):
    """A JSON object with two fields of the same name."""


def unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object made of these fields.

    Raises:
        FieldTwiceError: a name occurs twice.
    """
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in made if names.count(name) > 1)
        raise FieldTwiceError(f"the field `{twice[:40]}` stands twice in one object")
    return made


def parse_json(text: str) -> Any:
    """Parse a JSON text.

    Raises:
        ValueError: it is not JSON, or an object has a field twice.
    """
    return _DECODER.decode(text)


_DECODER = json.JSONDecoder(object_pairs_hook=unique_fields)

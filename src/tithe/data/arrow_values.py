"""Values of Arrow as JSON lines would have them: a struct has only the fields that are there.

All structs of a column have one type, so that a record holds null for every field that only other records have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from tithe.errors import DataError

Convert: TypeAlias = Callable[[Any], Any]
RENDERED = ("arguments", "parameters", "tools", "functions")  # what is in them is rendered as it stands


class Plain:
    """Turns records of one Arrow schema into plain ones: nulls in structs are left out, maps are objects.

    Args:
        schema: of the record batches.

    Raises:
        DataError: a column, or a field of a struct, occurs twice.
    """

    def __init__(self, schema: Any, what: str) -> None:
        self._dropped: set[str] = set()
        _refuse_twice(schema, what)
        made = {field.name: self._convert(field.type, field.name if field.name in RENDERED else "") for field in schema}
        self._columns = {name: convert for name, convert in made.items() if convert is not None}

    def record(self, record: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """Return the record and what is to be noted about it; nulls of whole columns stay."""
        self._dropped.clear()
        for name, convert in self._columns.items():
            if record[name] is not None:
                record[name] = convert(record[name])
        return record, tuple(map(null_note, sorted(self._dropped)))

    def _convert(self, type_: Any, rendered: str) -> Convert | None:
        """Return what makes a value of this type plain, None where it is so already."""
        import pyarrow.types as is_a

        if is_a.is_struct(type_):
            fields = [type_.field(i) for i in range(type_.num_fields)]
            inner = {one.name: self._convert(one.type, rendered or _rendered(one.name)) for one in fields}
            return lambda value: self._struct(value, inner, rendered)
        if is_a.is_map(type_):
            item = self._convert(type_.item_type, rendered) or _same
            return lambda value: _object([(key, None if one is None else item(one)) for key, one in value])
        if is_a.is_nested(type_) and hasattr(type_, "value_type"):
            each = self._convert(type_.value_type, rendered)
            return None if each is None else lambda value: [None if one is None else each(one) for one in value]
        return None

    def _struct(self, value: dict[str, Any], inner: dict[str, Convert | None], rendered: str) -> dict[str, Any]:
        out = {}
        for name, one in value.items():
            if one is not None:
                convert = inner[name]
                out[name] = one if convert is None else convert(one)
            elif rendered:
                self._dropped.add(rendered)
        return out


def null_note(name: str) -> str:
    """Return what is said of nulls that were left out."""
    return f"null fields in `{name}` count as absent: Parquet and Arrow do not tell the two apart"


def without_nulls(value: Any) -> Any:
    """Return a value of an Arrow table, of which the types are not known, without nulls in its objects."""
    if isinstance(value, dict):
        return {name: without_nulls(one) for name, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def _rendered(name: str) -> str:
    return name if name in RENDERED else ""


def _same(value: Any) -> Any:
    return value


def _object(pairs: list[tuple[Any, Any]]) -> Any:
    """Return a map as an object; as pairs if a key is no text or occurs twice."""
    made = dict(pairs)
    return made if len(made) == len(pairs) and all(isinstance(key, str) for key in made) else pairs


def _refuse_twice(schema: Any, what: str, inside: str = "") -> None:
    import pyarrow.types as is_a

    names = [field.name for field in schema]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        kind = f"fields named `{twice[:40]}` in `{inside}`" if inside else f"columns named `{twice[:40]}`"
        raise DataError(f"{what} has two {kind}", hint="rename or remove one of them")
    for field in schema:
        type_ = field.type
        while is_a.is_nested(type_) and hasattr(type_, "value_type"):
            type_ = type_.value_type
        for part in [type_.item_type] if is_a.is_map(type_) else [type_]:
            if is_a.is_struct(part):
                inner = [part.field(i) for i in range(part.num_fields)]
                _refuse_twice(inner, what, f"{inside}.{field.name}".lstrip("."))

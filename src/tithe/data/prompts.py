"""Prompts of a data set, whatever responses it has or has not; and records with another response put in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tithe.data.files import Dataset
from tithe.data.formats import COMPLETIONS, CONVERSATIONS, OUTPUTS, Record, Shape, examples
from tithe.data.ids import Occurrences
from tithe.data.turns import ROLES, RecordError, loads
from tithe.errors import DataError
from tithe.records import BadRow, Example

STAND_IN = "."  # where a response will be; never seen outside


def prompts(dataset: Dataset) -> Iterator[Example | BadRow]:
    """Every record as an example whose response is a stand-in, in order; what has no prompt is a bad row.

    Raises:
        DataError: a bad row, where the data set is read strictly.
    """
    seen = Occurrences()
    for number, row in dataset.rows():
        if row.fault is not None:
            found: list[Example | BadRow] = [BadRow(number, row.where, row.fault)]
        else:
            record = with_response(row.record, dataset.format, STAND_IN)
            found = list(examples(record, dataset.format, "last", number, row.where, seen, row.notes))
        for item in found:
            if isinstance(item, BadRow) and dataset.strict:
                raise DataError(f"{item.where}: {item.reason}", hint="without `--strict` such rows are set aside")
            yield item


def with_response(record: Any, shape: Shape, text: str) -> Any:
    """The record with this text as its last response; one that cannot be read is given back as it is."""
    if not isinstance(record, Mapping):
        return record
    if shape == "alpaca":
        return without(record, OUTPUTS) | {OUTPUTS[0]: text}
    if shape == "prompt-completion":
        return without(record, COMPLETIONS) | {COMPLETIONS[0]: text}
    names = ("messages",) if shape == "messages" else CONVERSATIONS
    name = next((name for name in names if record.get(name) is not None), None)
    turns = None if name is None else as_list(record[name])
    if name is None or turns is None:
        return record
    said = turns[:-1] if turns and is_response(turns[-1]) else turns
    return {**record, name: [*said, {"role": "assistant", "content": text}]}


def without(record: Record, names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in names}


def as_list(value: object) -> list[Any] | None:
    """Turns as a list, also from the text of a CSV cell."""
    if isinstance(value, str):
        try:
            value = loads(value, "turns")
        except RecordError:
            return None
    return list(value) if isinstance(value, list | tuple) else None


def is_response(turn: object) -> bool:
    if not isinstance(turn, Mapping):
        return False
    name = turn.get("role") if turn.get("role") is not None else turn.get("from")
    return isinstance(name, str) and ROLES.get(name.strip().lower()) in ("assistant", "function_call")

"""Read prompts without responses and files of answers, and replace the response of a record."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tithe.data.dataset import Dataset
from tithe.data.formats import COMPLETIONS, CONVERSATIONS, INPUTS, OUTPUTS, Record, Shape, read_examples
from tithe.data.ids import Occurrences
from tithe.data.lines import reading
from tithe.data.sniff import sniff
from tithe.data.turns import ROLES, RecordError, json_type, parse_field, quoted_names
from tithe.errors import DataError
from tithe.records import BadRow, Example, Message

PLACEHOLDER = "."  # stands for a response that is not there yet; never shown


def read_prompts(dataset: Dataset) -> Iterator[Example | BadRow]:
    """Yield every record as an example with a placeholder response, in order; a record without a prompt is a bad row.

    Raises:
        DataError: a bad row in a data set that is read strictly.
    """
    seen = Occurrences()
    for number, row in dataset.rows():
        if row.fault is not None:
            found: list[Example | BadRow] = [BadRow(number, row.where, row.fault)]
        else:
            given = dataset.names.read(
                row.record,
                dataset.format,
                "last",
                number,
                row.where,
                seen,
                row.notes,
                change=lambda record: with_response(record, dataset.format, PLACEHOLDER),
                needs_response=False,
            )
            found = list(given)
        for item in found:
            if isinstance(item, BadRow) and dataset.strict:
                raise DataError(f"{item.where}: {item.reason}", hint="without `--strict` such rows are set aside")
            yield item


def with_response(record: Any, shape: Shape, text: str) -> Any:
    """Return the record with this text as its last response; an unreadable record is returned unchanged."""
    if not isinstance(record, Mapping):
        return record
    if shape == "alpaca":
        return _drop_fields(record, OUTPUTS) | {OUTPUTS[0]: text}
    if shape == "prompt-completion":
        return _drop_fields(record, COMPLETIONS) | {COMPLETIONS[0]: text}
    names = ("messages",) if shape == "messages" else CONVERSATIONS
    name = next((name for name in names if record.get(name) is not None), None)
    turns = None if name is None else _parse_turns(record[name])
    if name is None or turns is None:
        return record
    # Replace a response at the end; a dialogue that ends with the prompt gets one appended.
    said = turns[:-1] if turns and _is_response(turns[-1]) else turns
    return {**record, name: [*said, {"role": "assistant", "content": text}]}


def _drop_fields(record: Record, names: tuple[str, ...]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in names}


def _parse_turns(value: object) -> list[Any] | None:
    """Return turns as a list, also from the JSON of a CSV cell; None if it is not a list."""
    if isinstance(value, str):
        try:
            value = parse_field(value, "turns")
        except RecordError:
            return None
    return list(value) if isinstance(value, list | tuple) else None


def _is_response(turn: object) -> bool:
    if not isinstance(turn, Mapping):
        return False
    name = turn.get("role") if turn.get("role") is not None else turn.get("from")
    return isinstance(name, str) and ROLES.get(name.strip().lower()) in ("assistant", "function_call")


# Vicuna's prompt set has `text`, Koala's `prompt`, WizardLM's `Instruction`, Self-Instruct's `instruction` with
# `instances`, LIMA's `conversations` with a plain text in it.
PROMPTS = ("instruction", "Instruction", "prompt", "question", "text", "query")
_RESPONSES = ("response", *OUTPUTS[:1], "completion", "answer")


def read_prompt_set(path: Path) -> Iterator[Example | BadRow]:
    """Yield every record of a prompt set as an example with a placeholder response, in order.

    Raises:
        DataError: the file does not exist or holds no records.
    """
    return _read_file(path, lambda record: PLACEHOLDER)


def read_answers(path: Path) -> Iterator[Example | BadRow]:
    """Yield every record of a file of answers, in order; an answer may be empty but not missing.

    Raises:
        DataError: the file does not exist or holds no records.
    """
    return _read_file(path, _read_response)


def _read_file(path: Path, response: Callable[[Any], str]) -> Iterator[Example | BadRow]:
    """Yield every record of a file as an example with the response that `response` returns for it."""
    seen = Occurrences()
    with reading(path):
        if not path.is_file():
            raise DataError(f"no file `{path}`")
    for number, row in enumerate(sniff(path).rows()):
        try:
            if row.fault is not None:
                raise RecordError(row.fault)
            shaped, shape = _to_known_shape(row.record)
            said = Message("assistant", response(row.record))
        except RecordError as error:
            yield BadRow(number, row.where, str(error))
            continue
        # An empty answer is an error in training data but valid here, so the example is made with a placeholder first.
        for item in read_examples(
            with_response(shaped, shape, PLACEHOLDER), shape, "last", number, row.where, seen, row.notes
        ):
            yield item if isinstance(item, BadRow) else replace(item, response=said)


def _to_known_shape(record: Any) -> tuple[Record, Shape]:
    """Return the record, or its prompt alone, in one of the shapes that `formats` reads.

    Raises:
        RecordError: the record has no prompt, or more than one.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"the record is {json_type(record)}, it must be an object")
    if isinstance(record.get("messages"), list):
        return record, "messages"
    for name in CONVERSATIONS:
        if isinstance(record.get(name), list):
            return record, "sharegpt"
        if isinstance(record.get(name), str):
            return {"instruction": record[name]}, "alpaca"
    if isinstance(record.get("prompt"), list):
        return record, "prompt-completion"
    asked = next((name for name in PROMPTS if isinstance(record.get(name), str)), None)
    if asked is None:
        raise RecordError(
            f"no prompt: there is {quoted_names([str(key) for key in record])}, none of {quoted_names(PROMPTS)}"
        )
    return {"instruction": record[asked], "input": _read_input(record), "system": record.get("system")}, "alpaca"


def _read_input(record: Record) -> str | None:
    """Return the input beside the instruction, from the record itself or its only instance."""
    instances = record.get("instances")
    if isinstance(instances, list):
        if len(instances) != 1 or not isinstance(instances[0], Mapping):
            raise RecordError(f"`instances` holds {len(instances)}, it must hold one")
        record = instances[0]
    found = next((record[name] for name in INPUTS if record.get(name) is not None), None)
    if found is not None and not isinstance(found, str):
        raise RecordError(f"`input` is {json_type(found)}, it must be a string")
    return found or None


def _read_response(record: Any) -> str:
    """Return the answer that a record holds.

    Raises:
        RecordError: the record has no answer.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"the record is {json_type(record)}, it must be an object")
    name = next((name for name in _RESPONSES if name in record), None)
    if name is not None and isinstance(record[name], str):
        return str(record[name])
    places = ("messages", *CONVERSATIONS, *COMPLETIONS[:1])
    turns: list[Any] = next((record[place] for place in places if isinstance(record.get(place), list)), [])
    last = turns[-1] if turns and isinstance(turns[-1], Mapping) else {}
    text = last.get("content", last.get("value"))
    who = last.get("role", last.get("from"))
    if isinstance(text, str) and who in ("assistant", "gpt"):
        return text
    if name is not None:
        raise RecordError(f"`{name}` is {json_type(record[name])}, it must be a string")
    raise RecordError(
        f"no answer: there is {quoted_names([str(key) for key in record])}, none of {quoted_names(_RESPONSES)}"
    )

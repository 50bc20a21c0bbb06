"""Read prompts without their responses, pair them with answers, and put other responses into records."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tithe.data.dataset import Dataset
from tithe.data.formats import COMPLETIONS, CONVERSATIONS, INPUTS, OUTPUTS, Record, Shape, examples
from tithe.data.ids import Occurrences
from tithe.data.lines import reading
from tithe.data.sniff import sniff
from tithe.data.turns import ROLES, RecordError, kind, listing, loads
from tithe.errors import DataError
from tithe.records import BadRow, Example, Message

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


# Vicuna's set has `text`, Koala's `prompt`, WizardLM's `Instruction`, Self-Instruct's `instruction` with `instances`,
# LIMA's `conversations` with a mere text in it.
PROMPTS = ("instruction", "Instruction", "prompt", "question", "text", "query")
RESPONSES = ("response", *OUTPUTS[:1], "completion", "answer")


def prompts_of(path: Path) -> Iterator[Example | BadRow]:
    """Every record of a prompt set as an example whose response is a stand-in, in order.

    Raises:
        DataError: the file is not there or holds no records.
    """
    return read(path, lambda record: STAND_IN)


def answers_of(path: Path) -> Iterator[Example | BadRow]:
    """Every record of a file of answers, in order; an answer may be empty, but it has to be there.

    Raises:
        DataError: the file is not there or holds no records.
    """
    return read(path, response_of)


def read(path: Path, response: Callable[[Any], str]) -> Iterator[Example | BadRow]:
    """Every record with the response that is made of it."""
    seen = Occurrences()
    with reading(path):
        if not path.is_file():
            raise DataError(f"no file `{path}`")
    for number, row in enumerate(sniff(path).rows()):
        try:
            if row.fault is not None:
                raise RecordError(row.fault)
            shaped, shape = in_known_shape(row.record)
            said = Message("assistant", response(row.record))
        except RecordError as error:
            yield BadRow(number, row.where, str(error))
            continue
        # An empty answer is none to learn from, but one to be judged: it takes its place afterwards.
        for item in examples(with_response(shaped, shape, STAND_IN), shape, "last", number, row.where, seen, row.notes):
            yield item if isinstance(item, BadRow) else replace(item, response=said)


def in_known_shape(record: Any) -> tuple[Record, Shape]:
    """The prompt of a record in one of the shapes that are read everywhere.

    Raises:
        RecordError: it has no prompt, or more than one.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"the record is {kind(record)}, it must be an object")
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
        raise RecordError(f"no prompt: there is {listing([str(key) for key in record])}, none of {listing(PROMPTS)}")
    return {"instruction": record[asked], "input": input_of(record), "system": record.get("system")}, "alpaca"


def input_of(record: Record) -> str | None:
    """What stands beside the instruction, in the record itself or in its one instance."""
    instances = record.get("instances")
    if isinstance(instances, list):
        if len(instances) != 1 or not isinstance(instances[0], Mapping):
            raise RecordError(f"`instances` holds {len(instances)}, it must hold one")
        record = instances[0]
    found = next((record[name] for name in INPUTS if record.get(name) is not None), None)
    if found is not None and not isinstance(found, str):
        raise RecordError(f"`input` is {kind(found)}, it must be a string")
    return found or None


def response_of(record: Any) -> str:
    """The answer that a record holds.

    Raises:
        RecordError: there is none.
    """
    if not isinstance(record, Mapping):
        raise RecordError(f"the record is {kind(record)}, it must be an object")
    name = next((name for name in RESPONSES if name in record), None)
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
        raise RecordError(f"`{name}` is {kind(record[name])}, it must be a string")
    raise RecordError(f"no answer: there is {listing([str(key) for key in record])}, none of {listing(RESPONSES)}")

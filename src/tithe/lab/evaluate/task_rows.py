"""A record of a task's local file -> a row as the hub's data set has it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from tithe.data.containers import Row
from tithe.data.sniff import sniff
from tithe.errors import DataError
from tithe.lab.evaluate.programs import entry_point, plus_tests

Record: TypeAlias = Mapping[str, Any]
BEFORE = "Question: "


def gsm8k(record: Record, where: str) -> dict[str, Any]:
    return {name: field(record, name, TEXT, where) for name in ("question", "answer")}


def humaneval(record: Record, where: str) -> dict[str, Any]:
    """OpenAI's file as it is; in files without `entry_point` the tests end with a call that names it."""
    row = {name: field(record, name, TEXT, where) for name in ("task_id", "prompt", "test")}
    if "entry_point" in record:
        return row | {"entry_point": field(record, "entry_point", TEXT, where)}
    test, name = entry_point(row["test"], where)
    return row | {"test": test, "entry_point": name}


def humaneval_plus(record: Record, where: str) -> dict[str, Any]:
    """The hub's file as it is; of EvalPlus's own file, with inputs, the tests are made."""
    row = {name: field(record, name, TEXT, where) for name in ("task_id", "prompt", "entry_point", "test")}
    if "plus_input" not in record:
        return row
    inputs = [*field(record, "base_input", MANY, where), *field(record, "plus_input", MANY, where)]
    reference = row["prompt"] + field(record, "canonical_solution", TEXT, where)
    return row | {"test": plus_tests(reference, row["entry_point"], inputs, record.get("atol", 0))}


def arc(record: Record, where: str) -> dict[str, Any]:
    if "query" not in record and "answerKey" in record:
        return arc_of_the_hub(record, where)
    texts = field(record, "choices", TEXTS, where)
    gold = choice(record, "gold", len(texts), where)
    labels = [chr(ord("A") + i) for i in range(len(texts))]
    question = field(record, "query", TEXT, where).removeprefix(BEFORE)
    return {"question": question, "choices": {"text": texts, "label": labels}, "answerKey": labels[gold]}


def arc_of_the_hub(record: Record, where: str) -> dict[str, Any]:
    choices = record.get("choices")
    if not isinstance(choices, Mapping):
        raise DataError(
            f"{where}: the field `choices` is {str(choices)[:60]!r}, and not an object of `text` and `label`"
        )
    found = {name: field(choices, name, TEXTS, where) for name in ("text", "label")}
    key = field(record, "answerKey", TEXT, where)
    if key not in found["label"] or len(found["label"]) != len(found["text"]):
        raise DataError(f"{where}: the field `answerKey` is `{key}`, and the labels are {', '.join(found['label'])}")
    return {"question": field(record, "question", TEXT, where), "choices": found, "answerKey": key}


def piqa(record: Record, where: str) -> dict[str, Any]:
    if "query" not in record:
        row = {name: field(record, name, TEXT, where) for name in ("goal", "sol1", "sol2")}
        return row | {"label": choice(record, "label", 2, where)}
    texts = field(record, "choices", TEXTS, where)
    if len(texts) != 2:
        raise DataError(f"{where}: the field `choices` holds {len(texts)} texts, and not 2")
    goal = field(record, "query", TEXT, where).removeprefix(BEFORE).removesuffix("\n")
    return {"goal": goal, "sol1": texts[0], "sol2": texts[1], "label": choice(record, "gold", 2, where)}


def truthfulqa(record: Record, where: str) -> dict[str, Any]:
    """One true answer against all false ones, and all true ones against all false ones."""
    question = field(record, "question", TEXT, where)
    best = field(record, "best_answer", TEXT, where)
    right, wrong = (field(record, f"{name}_answers", TEXTS, where) for name in ("correct", "incorrect"))
    return {
        "question": question,
        "correct_answers": right,
        "incorrect_answers": wrong,
        "mc1_targets": {"choices": [best, *wrong], "labels": [1] + [0] * len(wrong)},
        "mc2_targets": {"choices": [*right, *wrong], "labels": [1] * len(right) + [0] * len(wrong)},
    }


TEXT, TEXTS, NUMBER, MANY = "a text", "a list of texts", "a whole number", "a list"


def records(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Where and what, of each record of a JSON lines, JSON, CSV or Parquet file, packed or not.

    Raises:
        DataError: it cannot be read, or a record is no object.
    """
    found = 0
    for row in sniff(path).rows():
        found += 1
        yield row.where, an_object(row)
    if not found:
        raise DataError(f"`{path}` has no records", hint="a task needs at least one")


def an_object(row: Row) -> Mapping[str, Any]:
    if row.fault is not None or not isinstance(row.record, Mapping):
        raise DataError(f"{row.where}: {row.fault or 'the record is no object with fields'}")
    return row.record


def field(record: Mapping[str, Any], name: str, kind: str, where: str) -> Any:
    """One field of a record.

    Raises:
        DataError: it is not there, or of another kind.
    """
    if name not in record:
        raise DataError(f"{where}: the record has no field `{name}`", hint=f"it has: {', '.join(record) or 'nothing'}")
    value = record[name]
    fits = {
        TEXT: isinstance(value, str),
        TEXTS: isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value),
        NUMBER: isinstance(value, int) and not isinstance(value, bool),
        MANY: isinstance(value, list),
    }
    if not fits[kind]:
        raise DataError(f"{where}: the field `{name}` is {str(value)[:60]!r}, and not {kind}")
    return value


def choice(record: Mapping[str, Any], name: str, choices: int, where: str) -> int:
    """A field that points at one of so many choices, counted from 0."""
    value: int = field(record, name, NUMBER, where)
    if not 0 <= value < choices:
        raise DataError(f"{where}: the field `{name}` is {value}, and there are {choices} choices, counted from 0")
    return value

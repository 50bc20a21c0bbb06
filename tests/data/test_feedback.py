"""Preference data and other fields beside a dialogue are refused or reported, never ignored silently."""

# ruff: noqa: E501 - each case of a table in one line

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.data.test_dataset import lines, put
from tithe.data.dataset import open_dataset
from tithe.data.formats import Shape, read_examples
from tithe.data.ids import Occurrences
from tithe.errors import DataError
from tithe.records import BadRow, Example

PROMPT = [{"role": "user", "content": "q"}]
ANSWER = [{"role": "assistant", "content": "a"}]
OTHER = [{"role": "assistant", "content": "b"}]
WAY = "; write `chosen` as `messages`, or as `prompt` and `completion`"


def read(record: object, shape: Shape) -> Example | BadRow:
    (item,) = read_examples(record, shape, "last", 0, "f:1", Occurrences())
    return item


def notes(record: object, shape: Shape) -> tuple[str, ...]:
    item = read(record, shape)
    assert isinstance(item, Example), item
    return item.notes


@pytest.mark.parametrize(
    ("record", "shape", "words"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "prompt-completion", "a pair of responses (`chosen`, `rejected`)"),
        ({"prompt": PROMPT, "chosen": ANSWER, "rejected": OTHER}, "prompt-completion", "a pair of responses (`chosen`, `rejected`)"),
        ({"instruction": "q", "input": "", "chosen": "a", "rejected": "b"}, "alpaca", "a pair of responses (`chosen`, `rejected`)"),
        ({"messages": PROMPT, "chosen": ANSWER[0], "rejected": OTHER[0]}, "messages", "a pair of responses (`chosen`, `rejected`)"),
        ({"messages": [*PROMPT, *ANSWER, *PROMPT], "chosen": ANSWER[0], "rejected": OTHER[0]}, "messages", "a pair of responses (`chosen`, `rejected`)"),
        ({"prompt": "q", "response_0": "a", "response_1": "b", "better": 0}, "prompt-completion", "a pair of responses (`response_0`, `response_1`)"),
        ({"prompt": "q", "completions": ["s1", "s2"], "labels": [True, False]}, "prompt-completion", "several responses to one prompt (`completions` with `labels`, as of single steps)"),
        ({"instruction": "q", "completions": [{"response": "a", "overall_score": 7}]}, "alpaca", "several responses to one prompt (`completions`)"),
    ],
)  # fmt: skip
def test_preference_data_is_refused_with_a_way_out(record: dict[str, Any], shape: Shape, words: str) -> None:
    item = read(record, shape)
    assert isinstance(item, BadRow)
    way = WAY if "`chosen`" in words else WAY.replace("`chosen`", "the wanted one")
    assert item.reason == f"preference or feedback data: {words}{way}"


def test_a_file_of_nothing_but_pairs_is_refused_at_once(tmp_path: Path) -> None:
    path = put(tmp_path / "a.jsonl", lines([{"chosen": [*PROMPT, *ANSWER], "rejected": [*PROMPT, *OTHER]}] * 3))
    with pytest.raises(DataError, match="holds preference or feedback data: a pair of responses") as error:
        open_dataset(path)
    assert error.value.hint == WAY.removeprefix("; ")


@pytest.mark.parametrize("label", [False, "false", "False"])
@pytest.mark.parametrize("name", ["label", "kto_tag"])
def test_an_undesirable_completion_is_named(label: object, name: str) -> None:
    (note,) = notes({"prompt": "q", "completion": "a", name: label}, "prompt-completion")
    assert f"`{name}` is false" in note and "undesirable" in note and f"--drop '{name} == " in note
    assert notes({"prompt": "q", "completion": "a", name: True}, "prompt-completion") == ()
    (again,) = notes({"messages": [*PROMPT, *ANSWER], name: label}, "messages")
    assert again == note


def test_other_responses_and_scores_beside_the_response_are_named() -> None:
    record = {"messages": [*PROMPT, *ANSWER], "chosen": ANSWER, "rejected": OTHER, "score_chosen": 7.0, "margin": None}
    assert notes(record, "messages") == (
        "`chosen` is another response, of preference data, and is not read",
        "`rejected` is another response, of preference data, and is not read",
        "`score_chosen` is feedback on the response and is not looked at; `select --drop` can use numbers",
    )
    (swift,) = notes({"messages": [*PROMPT, *ANSWER], "rejected_response": "b"}, "messages")
    assert swift == "`rejected_response` is another response, of preference data, and is not read"


@pytest.mark.parametrize(
    ("record", "shape", "names"),
    [
        ({"instruction": "q", "output": "a", "history": "before"}, "alpaca", ["history"]),
        ({"instruction": "q", "output": "a", "history": [["x", "y"]]}, "alpaca", []),
        ({"instruction": "q", "output": "a", "images": ["x.png"]}, "alpaca", ["images"]),
        ({"instruction": "q", "output": "a", "images": [], "image": None, "system_prompt": ""}, "alpaca", []),
        ({"instruction": "q", "output": "a", "response": "b", "input": "i", "context": "c"}, "alpaca", ["context", "response"]),
        ({"instruction": "q", "output": None, "response": "b", "context": "c"}, "alpaca", []),
        ({"messages": [*PROMPT, *ANSWER], "system_prompt": "s", "prompt": "q"}, "messages", ["system_prompt"]),
        ({"messages": [{"role": "system", "content": "s"}, *PROMPT, *ANSWER], "system": "t"}, "messages", ["system"]),
        ({"messages": [{"role": "system", "content": "s"}, *PROMPT, *ANSWER], "system": "s"}, "messages", []),
        ({"messages": [*PROMPT, *ANSWER], "system": "s", "source": "web"}, "messages", []),
        ({"prompt": "q", "completion": "a", "reasoning": "r"}, "prompt-completion", ["reasoning"]),
        ({"messages": [{"role": "user", "content": "q", "images": ["x"]}, {"role": "assistant", "content": "a", "refusal": None}]}, "messages", ["images"]),
    ],
)  # fmt: skip
def test_text_that_is_left_out_of_the_dialogue_is_named(record: dict[str, Any], shape: Shape, names: list[str]) -> None:
    found = notes(record, shape)
    assert [note.split("`")[1] for note in found] == names
    assert all("not read" in note for note in found)


@pytest.mark.parametrize("turns", ["last", "all"])
@pytest.mark.parametrize("role", ["user", "tool"])
def test_a_dialogue_that_goes_on_after_the_response_is_noted(role: str, turns: Any) -> None:
    record = {"messages": [*PROMPT, *ANSWER, {"role": role, "content": "more"}]}
    (item,) = read_examples(record, "messages", turns, 0, "f:1", Occurrences())
    assert isinstance(item, Example) and item.turn == 1
    assert item.notes == (
        f"the dialogue ends with a turn of the {role} after the last response: an earlier turn is scored",
    )


@pytest.mark.parametrize(
    ("turn", "words"),
    [
        ({"from": "gpt", "value": None}, "`value` of `conversations[1]` is null, it must be a string or a list of parts"),
        ({"role": "assistant", "content": None}, "`content` of `conversations[1]` is null, it must be a string or a list of parts"),
        ({"role": "assistant", "content": None, "tool_calls": []}, "`content` of `conversations[1]` is null, it must be a string or a list of parts"),
        ({"role": None, "content": "a"}, "`role` of `conversations[1]` is null, it must be a string"),
        ({"from": None, "value": "a"}, "`from` of `conversations[1]` is null, it must be a string"),
        (None, "`conversations[1]` is null, it must be an object with a role and a content"),
        ({"from": "gpt", "value": [{"type": None, "text": None}]}, "a `text` part of `conversations[1]` is null, it must be a string"),
        ({"from": "gpt", "tool_calls": [None]}, "a tool call in `conversations[1]` is null, it must be an object"),
        ({"from": "gpt", "tool_calls": [{"function": {"name": None}}]}, "a tool call in `conversations[1]` has no function name: `name` is null"),
    ],
)  # fmt: skip
def test_null_is_called_null(turn: object, words: str) -> None:
    item = read({"conversations": [{"from": "human", "value": "q"}, turn]}, "sharegpt")
    assert isinstance(item, BadRow) and item.reason == words


def test_null_in_a_history_is_called_null() -> None:
    item = read({"instruction": "q", "output": "a", "history": [["x", None]]}, "alpaca")
    assert isinstance(item, BadRow)
    assert item.reason == "`history` must hold pairs of an instruction and a response: there is a string, null"

"""Marks that keep a turn out of the loss: which are followed and which are only reported."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tithe.data.formats import Shape, read_examples
from tithe.data.ids import Occurrences
from tithe.records import BadRow, Example


def read(record: object, turns: Any = "last", shape: Shape = "messages") -> list[Example | BadRow]:
    return list(read_examples(record, shape, turns, 0, "f:1", Occurrences()))


def dialogue(**mark: Any) -> dict[str, Any]:
    """Return a record with two responses, the second one marked."""
    return {
        "messages": [
            {"role": "user", "content": "u1"},
            {"role": "assistant", "content": "a1"},
            {"role": "user", "content": "u2"},
            {"role": "assistant", "content": "a2", **mark},
        ]
    }


def only(record: object) -> Example:
    (item,) = read(record)
    assert isinstance(item, Example), item
    return item


PIECES = [{"begin_offset": 0, "end_offset": 1, "train": False}, {"begin_offset": 1, "end_offset": 2, "train": False}]


@pytest.mark.parametrize(
    "mark",
    [
        {"loss_mask": 0},  # verl
        {"loss_mask": [0, 0, 0]},
        {"step_loss_mask": 0},
        {"weight": 0},  # OpenAI, Mistral, Together, Fireworks
        {"weight": 0.0},
        {"weight": "0"},
        {"weight": "0.0"},
        {"train": False},  # axolotl
        {"train": "false"},
        {"training": False},
        {"training": " False "},
        {"train_detail": PIECES},
        {"training_detail": PIECES},
        {"loss": False},  # ms-swift, xtuner
        {"loss_scale": 0.0},
        {"masked": True},  # torchtune
        {"masked": 1},
        {"is_masked": "true"},
    ],
)
def test_a_turn_marked_as_not_to_be_learnt_is_context(mark: dict[str, Any]) -> None:
    got = only(dialogue(**mark))
    (name,) = mark
    assert got.turn == 1 and got.response.content == "a1"
    assert got.notes == (f"a turn that `{name}` marks as not to be learnt is context alone",)


@pytest.mark.parametrize(
    "mark",
    [
        {"loss_mask": 1},
        {"loss_mask": None},
        {"weight": 1.0},
        {"weight": "1"},
        {"train": True},
        {"loss": "true"},
        {"masked": False},
        {"masked": "false"},
        {"name": "bot", "timestamp": 0},
    ],
)
def test_a_turn_marked_as_to_be_learnt_is_the_response_without_a_word(mark: dict[str, Any]) -> None:
    got = only(dialogue(**mark))
    assert (got.turn, got.notes) == (3, ())


@pytest.mark.parametrize(
    ("mark", "words"),
    [
        ({"weight": 0.3}, "`weight` says a weight other than 0 and 1: the turn is scored whole, with weight 1"),
        ({"loss_mask": [0, 1]}, "`loss_mask` says a part of a turn: the turn is scored whole, with weight 1"),
        (
            {"train_detail": [{"train": True}, {"train": False}]},
            "`train_detail` says a part of a turn: the turn is scored whole, with weight 1",
        ),
        ({"train_on_inputs": False}, "the mark `train_on_inputs` of a turn is not understood, and not followed"),
        ({"mask": 1}, "the mark `mask` of a turn is not understood, and not followed"),
        ({"loss": {"x": 1}}, "the mark `loss` of a turn is not understood, and not followed"),
        ({"weight": "much"}, "the mark `weight` of a turn is not understood, and not followed"),
        ({"weight": float("nan")}, "the mark `weight` of a turn is not understood, and not followed"),
    ],
)
def test_marks_that_are_not_followed_are_named(mark: dict[str, Any], words: str) -> None:
    got = only(dialogue(**mark))
    assert (got.turn, got.notes) == (3, (words,))


@pytest.mark.parametrize("name", ["loss_mask", "weights", "train", "loss_masks"])
@pytest.mark.parametrize("entries", [[0, 1, 0, 0], [1, 0], ["true", "false"]])
def test_a_list_in_the_record_marks_turns(name: str, entries: list[Any]) -> None:
    got = only(dialogue() | {name: entries})
    assert got.turn == 1 and got.notes == (f"a turn that `{name}` marks as not to be learnt is context alone",)


def test_lists_that_are_none_of_turns_are_named() -> None:
    got = only(dialogue() | {"loss_mask": [1, 1, 0], "assistant_masks": [0, 1, 1]})
    assert got.turn == 3
    assert got.notes == (
        "`loss_mask` of the record is no list of one number for each turn, and not followed",
        "the mark `assistant_masks` of the record is not understood, and not followed",
    )
    (plain,) = read({"instruction": "q", "output": "a", "loss_mask": [0, 1]}, shape="alpaca")
    assert isinstance(plain, Example)
    assert plain.notes == ("the mark `loss_mask` of the record is not understood, and not followed",)


def test_a_mark_on_a_whole_record_is_named_and_the_record_scored() -> None:
    (got,) = read({"prompt": "q", "completion": "a", "weight": 0}, shape="prompt-completion")
    assert isinstance(got, Example)
    assert got.notes == (
        "`weight` of the record is 0 or false: it is scored all the same; `select --drop` can leave it out",
    )
    (full,) = read({"prompt": "q", "completion": "a", "weight": 2}, shape="prompt-completion")
    assert isinstance(full, Example) and full.notes == ()


def test_all_turns_marked_is_a_bad_row_and_all_turns_leaves_marked_ones_out() -> None:
    record = dialogue(loss=False)
    assert [item.turn for item in read(record, "all") if isinstance(item, Example)] == [1]
    record["messages"][1]["masked"] = True
    (bad,) = read(record)
    assert (
        isinstance(bad, BadRow)
        and bad.reason == "every assistant turn has weight 0 or another mark that keeps it from being learnt"
    )


def test_marks_of_function_calls_in_a_cell_of_text() -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}', "loss": False},
        {"from": "observation", "value": "r"},
        {"from": "gpt", "value": "done"},
    ]
    both = read({"conversations": json.dumps(turns)}, "all", "sharegpt")
    assert [item.turn for item in both if isinstance(item, Example)] == [3]

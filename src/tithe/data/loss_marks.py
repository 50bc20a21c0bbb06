"""Read the marks with which trainers keep a turn out of the loss.

A mark is a field of the turn (OpenAI and Mistral `weight`, axolotl `train` and `train_detail`, ms-swift and xtuner
`loss`, verl `loss_mask`, torchtune `masked`), or a list in the record with an entry for each turn.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from tithe.records import ResponseNote

LEARNT = frozenset(
    [
        "weight",
        "loss_weight",
        "loss_scale",
        "loss",
        "loss_mask",
        "step_loss_mask",
        "train",
        "training",
        "trainable",
        "train_on_turn",
        "should_train",
        "compute_loss",
        "has_loss",
        "output_with_loss",
        "learn",
    ]
)  # 0 or false: do not train on it
WEIGHTS = tuple(sorted(LEARNT))
MASKED = frozenset(["masked", "is_masked", "mask_loss", "ignore_loss", "no_loss"])  # 1 or true: do not train on it
PIECES = frozenset(["train_detail", "training_detail"])  # axolotl: marks on pieces of the text
LISTS = frozenset(f"{name}s" for name in LEARNT) | LEARNT  # in a record: an entry for each turn
USUAL_FIELDS = frozenset(
    [
        "role",
        "from",
        "content",
        "value",
        "name",
        "tool_calls",
        "tool_call_id",
        "function_call",
        "text",
        "reasoning_content",
        "reasoning",
        "thinking",
    ]
)
_LIKE_MARK = re.compile(
    r"(^|_)(loss|masks?|masked|weights?|trains?|trained|training|trainable|learn|learnt)(_|$)", re.I
)
_WORDS = {"true": 1.0, "yes": 1.0, "false": 0.0, "no": 0.0}


def judge_turn(turn: Mapping[str, Any], notes: list[str]) -> bool:
    """Tell whether to train on an assistant turn; note the marks that are followed and those that are not."""
    if turn.keys() <= USUAL_FIELDS:  # shortcut: true of nearly all turns
        return True
    learnt = True
    for key, value in turn.items():
        if value is None or key in USUAL_FIELDS:
            continue
        amount = _amount(key, value)
        if amount is not None:
            learnt &= _follow(key, amount, notes)
        elif is_like_mark(key):
            notes.append(ResponseNote(f"the mark `{str(key)[:40]}` of a turn is not understood, and not followed"))
    return learnt


def judge_record(
    record: Mapping[str, Any], turns: Sequence[object], spoken: Sequence[int], notes: list[str]
) -> set[int]:
    """Return the turns that a list in the record marks as not to be trained on.

    Args:
        record: the whole record.
        turns: its turns as written.
        spoken: indices of the assistant's turns.
        notes: new notes are appended here.
    """
    left: set[int] = set()
    for key in _lists_in(tuple(record)):
        entries = record[key]
        if not isinstance(entries, (list, tuple)) or not entries:
            continue
        # The list has an entry for each turn or for each assistant turn; any other length is ambiguous.
        places = range(len(turns)) if len(entries) == len(turns) else spoken if len(entries) == len(spoken) else None
        amounts = [_amount(key.removesuffix("s") if key not in LEARNT else key, entry) for entry in entries]
        if places is None or None in amounts:
            notes.append(
                ResponseNote(f"`{key}` of the record is no list of one number for each turn, and not followed")
            )
            continue
        for place, amount in zip(places, amounts, strict=True):
            if place in spoken and amount is not None and not _follow(key, amount, notes):
                left.add(place)
    return left


@lru_cache(maxsize=1024)
def _lists_in(names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if name in LISTS)


def note_record(record: Mapping[str, Any], notes: list[str], followed: Collection[str] = ()) -> None:
    """Note marks on a whole record; the record is scored in any case.

    Args:
        record: the whole record.
        notes: new notes are appended here.
        followed: names of lists that `judge_record` has read.
    """
    for key, value in record.items():
        if value is None or not is_like_mark(key):
            continue
        if isinstance(value, (list, tuple)):
            if value and key not in followed:
                notes.append(ResponseNote(f"the mark `{key[:40]}` of the record is not understood, and not followed"))
        elif _amount(key, value) == 0:
            said = "true" if key in MASKED else "0 or false"
            notes.append(
                ResponseNote(
                    f"`{key}` of the record is {said}: it is scored all the same; `select --drop` can leave it out"
                )
            )


@lru_cache(maxsize=1024)
def is_like_mark(key: object) -> bool:
    """Tell whether a field's name contains a word for loss, masks, weights or training."""
    return isinstance(key, str) and _LIKE_MARK.search(key) is not None


def _follow(key: str, amount: float, notes: list[str]) -> bool:
    if amount <= 0:
        notes.append(ResponseNote(f"a turn that `{key}` marks as not to be learnt is context alone"))
        return False
    if amount != 1:
        what = "a part of a turn" if key in PIECES or "mask" in key else "a weight other than 0 and 1"
        notes.append(ResponseNote(f"`{key}` says {what}: the turn is scored whole, with weight 1"))
    return True


def _amount(key: str, value: Any) -> float | None:
    """Return how much of the turn to train on, from 0 for nothing to 1; None if this is not a known mark."""
    if key in PIECES:
        pieces = value if isinstance(value, (list, tuple)) else ()
        said = [_number(piece.get("train")) if isinstance(piece, Mapping) else None for piece in pieces]
        return _mean([one for one in said if one is not None])
    if key not in LEARNT and key not in MASKED:
        return None
    amount = _mean([_number(one) for one in value]) if isinstance(value, (list, tuple)) else _number(value)
    return amount if amount is None or key in LEARNT else 1 - amount


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there and len(there) == len(values) else None


def _number(value: Any) -> float | None:
    """Return a mark's value as a number, also if it is written as text; None if it is not one."""
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower(), value)
    if not isinstance(value, (bool, int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return None if math.isnan(number) else number

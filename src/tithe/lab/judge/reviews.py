"""Review files: our own, and those that the authors of IFD have published."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tithe.data.containers import Row
from tithe.data.lines import reading
from tithe.data.sniff import sniff
from tithe.errors import DataError
from tithe.lab.judge.tally import Review, Scored
from tithe.records import Problem

OWN, CHERRY = ("item", "given", "swapped"), ("scores", "scores_reverse")


def read_reviews(path: Path) -> list[Review]:
    """Both reviews of every prompt.

    Raises:
        DataError: the file cannot be read, or a record is no review: which, and what it lacks.
    """
    with reading(path):
        if not path.is_file():
            raise DataError(f"no file `{path}`")
    found = []
    for number, row in enumerate(sniff(path).rows(), 1):
        try:
            found.append(review_of(row, number))
        except ValueError as error:
            raise DataError(f"{row.where}, record {number}: {error}", hint=hint_of(row.record)) from None
    if not found:
        raise DataError(f"`{path}` holds no reviews")
    most, times = Counter(review.item for review in found).most_common(1)[0]
    if times > 1:
        raise DataError(f"`{path}` holds {times} reviews of the prompt `{most}`", hint="each prompt is counted once")
    return found


def hint_of(record: Any) -> str | None:
    known = isinstance(record, Mapping) and any(name in record for name in (*OWN, *CHERRY))
    return None if known else "read are what `tithe judge compare` writes, and the review files of Cherry_LLM"


def review_of(row: Row, number: int) -> Review:
    """One record of either layout.

    Raises:
        ValueError: what is wrong with it.
    """
    if row.fault is not None:
        raise ValueError(row.fault)
    record = row.record
    if not isinstance(record, Mapping):
        raise ValueError("it is no object")
    if any(name in record for name in CHERRY):
        demand(record, CHERRY)
        # In `scores` the first number is that of `Answer1`, in `scores_reverse` that of `Answer2`, which stood first.
        given, swapped = pair(record["scores"], "scores"), pair(record["scores_reverse"], "scores_reverse")
        return Review(f"record {number}", of(given), of(swapped, swap=True))
    demand(record, OWN)
    item = record["item"]
    if not isinstance(item, str):
        raise ValueError("`item` is not a text")
    return Review(item, own(record["given"], "given"), own(record["swapped"], "swapped"), record.get("same") is True)


def demand(record: Mapping[str, Any], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in record]
    if missing:
        there = ", ".join(f"`{str(name)[:40]}`" for name in [*record][:8]) or "nothing"
        raise ValueError(f"`{missing[0]}` is missing: there is {there}")


def own(value: Any, name: str) -> Scored | Problem:
    """A review as we write it: `{"a": 8, "b": 6}`, or `{"problem": "why"}`."""
    if isinstance(value, Mapping) and isinstance(value.get("problem"), str):
        return Problem(value["problem"])
    if isinstance(value, Mapping) and number(value.get("a")) and number(value.get("b")):
        return Scored(float(value["a"]), float(value["b"]))
    raise ValueError(f"`{name}` holds neither the numbers `a` and `b` nor a `problem`")


def pair(value: Any, name: str) -> tuple[float, float]:
    """Two numbers, as a list or as the text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"`{name}` is `{value[:40]}`, it must be two numbers") from None
    if isinstance(value, list) and len(value) == 2 and all(map(number, value)):
        return float(value[0]), float(value[1])
    raise ValueError(f"`{name}` is `{str(value)[:40]}`, it must be two numbers")


def of(scores: tuple[float, float], swap: bool = False) -> Scored | Problem:
    """-1 is how FastChat's scripts, and those made of them, mark a reply without scores."""
    if min(scores) < 0:
        return Problem(f"scores of {scores[0]:g} and {scores[1]:g}, which mark a reply without scores")
    return Scored(*(scores[::-1] if swap else scores))


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max

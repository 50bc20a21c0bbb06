"""What a judge's reply says: two numbers, or why there are none."""

from __future__ import annotations

import re

from tithe.records import Problem

LOWEST, HIGHEST = 0.0, 10.0  # 1 to 10 is asked for; GPT-4 gives 0 to answers that are none
_MARK = r"[\s*_#`>\[\](){}\"']*"
_NUMBER = rf"{_MARK}(\d{{1,6}}(?:\.\d{{1,6}})?)(?:\s*/\s*10(?:\.0)?(?![\d.]))?{_MARK}"
_LINE = re.compile(rf"(?:{_MARK}[A-Za-z ]{{1,30}}:)?{_NUMBER}(?:[\s,;|&]|\band\b)+{_NUMBER}\.?\s*")
_THOUGHTS = "</think>"


def scores_of(reply: str) -> tuple[float, float] | Problem:
    """The two numbers of the first line that holds two numbers and nothing else.

    Marks such as `**`, a word and a colon before them, commas between, and `/10` after each do not disturb. A line
    such as "Answer 1 is better than answer 2" holds two numbers, too, but not nothing else.
    """
    head, closed, rest = reply.rpartition(_THOUGHTS)
    if not closed and reply.lstrip().startswith("<think>"):
        return Problem("the reply ends before the judge's thinking does")
    said = rest if closed else head + rest
    if not said.strip():
        return Problem("the reply is empty")
    found = next((match for line in said.splitlines() if (match := _LINE.fullmatch(line))), None)
    if found is None:
        return Problem("no line of the reply holds two numbers and nothing else")
    first, second = float(found[1]), float(found[2])
    if not (LOWEST <= first <= HIGHEST and LOWEST <= second <= HIGHEST):
        return Problem(f"scores of {first:g} and {second:g}: they must be from 1 to 10")
    return first, second

"""What a judge's reply says: two numbers, or why there are none."""

from __future__ import annotations

import re

from tithe.records import Problem

LOWEST, HIGHEST = 0.0, 10.0  # 1 to 10 is asked for; GPT-4 gives 0 to answers that are none
_MARKS, _COMMAS = "*_#`>[](){}\"'", ",;|&"
_LEFT_OUT = re.compile(r"[\s*_#`>\[\](){}\"']*")  # marks and spaces before a word or a number
_NAME = re.compile(r"[A-Za-z][A-Za-z ]{0,29}:")
_NUMBER = re.compile(r"(\d{1,6}(?:\.\d{1,6})?)(?:\s*/\s*10(?:\.0)?(?![\d.]))?")
_DIGIT, _AND = re.compile(r"\d"), re.compile(r"\band\b")
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
    found = next((numbers for line in said.splitlines() if (numbers := two_numbers(line))), None)
    if found is None:
        return Problem("no line of the reply holds two numbers and nothing else")
    first, second = found
    if not (LOWEST <= first <= HIGHEST and LOWEST <= second <= HIGHEST):
        return Problem(f"scores of {first:g} and {second:g}: they must be from 1 to 10")
    return first, second


def two_numbers(line: str) -> tuple[float, float] | None:
    """The numbers of a line that holds two and nothing else, in one pass from left to right.

    One pattern for the whole line would try every way of sharing a run of spaces between its parts: a reply of a few
    hundred would stop the run.
    """
    start = after_marks(line, 0)
    if name := _NAME.match(line, start):
        start = after_marks(line, name.end())
    first = _NUMBER.match(line, start)
    digit = _DIGIT.search(line, first.end()) if first else None
    if first is None or digit is None or not separates(line[first.end() : digit.start()]):
        return None
    second = _NUMBER.match(line, digit.start())
    if second is None or line[after_marks(line, second.end()) :].removeprefix(".").strip():
        return None
    return float(first[1]), float(second[1])


def after_marks(line: str, start: int) -> int:
    found = _LEFT_OUT.match(line, start)
    return found.end() if found else start


def separates(text: str) -> bool:
    """Whether two numbers are apart: by spaces, commas or `and`, with marks around these."""
    text = _AND.sub(",", f"0{text}0")[1:-1]  # between digits, where `and` has to be a word
    signs = "".join(text.split())
    core = signs.strip(_MARKS)
    return set(core) <= set(_COMMAS) and (bool(core) or len(signs) < len(text))

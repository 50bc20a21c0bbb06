"""What a reply says, and what it does not."""

from __future__ import annotations

import random
import re

import pytest

from tithe.lab.judge.judge_loop import EXAMPLES, question, scores_of, two_numbers
from tithe.records import Message, Problem


@pytest.mark.parametrize(
    ("reply", "scores"),
    [
        ("8 7\nAnswer 1 is clearer.", (8, 7)),
        ("9 8.5", (9, 8.5)),
        ("\n\n  10 1  \nreasons", (10, 1)),
        ("8, 7", (8, 7)),
        ("8,7", (8, 7)),
        ("**8 7**", (8, 7)),
        ("`8` | `7`", (8, 7)),
        ("[8.0, 7.0]", (8, 7)),
        ("Scores: 8 7.", (8, 7)),
        ("8/10 and 7/10", (8, 7)),
        ("10/10, 10 / 10", (10, 10)),
        ("0 0\nneither gave an answer", (0, 0)),
        ("Here is my judgement.\n\n6 4\n", (6, 4)),
        ("<think>1 2 or rather\n3 4</think>\n\n5 6", (5, 6)),
        ("1 2, hm</think>7 7", (7, 7)),
        ("8\t7\r\nwhy", (8, 7)),
    ],
)
def test_two_numbers(reply: str, scores: tuple[float, float]) -> None:
    assert scores_of(reply) == scores


@pytest.mark.parametrize(
    ("reply", "why"),
    [
        ("", "empty"),
        (" \n ", "empty"),
        ("<think>8 7", "thinking"),
        ("<think>8 7</think>", "empty"),
        ("Answer 1 is better than answer 2", "no line"),
        ("Assistant 1: 8, Assistant 2: 9", "no line"),
        ("8", "no line"),
        ("8/10", "no line"),  # one score, not eight and ten
        ("8-9", "no line"),
        ("8 9 10", "no line"),
        ("1. 8 9", "no line"),
        ("-1 -1", "no line"),
        ("nan nan", "no line"),
        ("1e3 5", "no line"),
        ("eight seven", "no line"),
        ("85 90", "scores of 85 and 90"),
        ("8 10.5", "scores of 8 and 10.5"),
        ("8 11\n8 7", "scores of 8 and 11"),  # the first such line counts
    ],
)
def test_no_verdict(reply: str, why: str) -> None:
    found = scores_of(reply)
    assert isinstance(found, Problem) and why in found.reason


def test_a_long_line_takes_no_time() -> None:
    assert isinstance(scores_of("* " * 50_000 + "x"), Problem)
    assert isinstance(scores_of("a " * 50_000), Problem)
    assert isinstance(scores_of("1 " * 50_000), Problem)


@pytest.mark.parametrize("gap", [" ", "\t ", "* ", "_", ", ", "and ", " and", "( ", "/", ".", "\u3000"])
def test_a_reply_of_gaps_ends(gap: str) -> None:
    """A pattern for the whole line takes 37 seconds for 400 blanks in each gap, and sixteen times that for 800."""
    run = gap * 100_000
    for reply in (f"8{run}7{run}x", f"{run}8{run}", f"{run}a{run}", f"Scores:{run}8{run}7{run}9", f"8{run}/{run}10 7x"):
        found = scores_of(reply)
        assert isinstance(found, Problem)
    blank = not gap.strip()
    assert scores_of(f"{run}8{run}7{run}.") == ((8, 7) if blank or gap in ("* ", "( ") else scores_of("x"))


MARK = r"[\s*_#`>\[\](){}\"']*"
NUMBER = rf"{MARK}(\d{{1,6}}(?:\.\d{{1,6}})?)(?:\s*/\s*10(?:\.0)?(?![\d.]))?{MARK}"
LINE = re.compile(rf"(?:{MARK}[A-Za-z][A-Za-z ]{{0,29}}:)?{NUMBER}(?:[\s,;|&]|\band\b)+{NUMBER}\.?\s*")


def test_the_form_is_that_of_one_pattern() -> None:
    """The pattern says in one line what is read; short lines it can be asked about."""
    drawn, read = random.Random(1), 0
    parts = ["8", "7", "10", "/10", " /10.0", ".5", ".", " ", "  ", "\t", "*", "**", "_", "(", "]", ",", ";", "|"]
    parts += ["and", " and ", "Scores:", "a ", ": ", "x", "1234567", "-", "/", '"']
    parts += ["8", "7", " "] * 4
    for _ in range(60_000):
        line = "".join(drawn.choices(parts, k=drawn.randint(2, 7)))
        match = LINE.fullmatch(line)
        assert two_numbers(line) == (match and (float(match[1]), float(match[2]))), line
        read += match is not None
    assert read > 500


def test_the_question_shows_both_in_order_and_reminds() -> None:
    task = [Message("user", "Name {a} colour.")]
    asked = question(task, "red {first}", " ")
    assert asked.index("Name {a} colour.") < asked.index("red {first}") < asked.index("(no answer was given)")
    assert question(task, "x", "y", 1).startswith(question(task, "x", "y")) and question(task, "x", "y", 1) != asked
    assert len({question(task, "x", "y", attempt) for attempt in range(4)}) == 4
    assert all(scores_of(example) == (float(example[0]),) * 2 for example in EXAMPLES)


def test_a_dialogue_says_who_speaks() -> None:
    task = [Message("system", "Be kind."), Message("user", "Hello"), Message("assistant", "Hi")]
    assert "[system]\nBe kind.\n\n[user]\nHello\n\n[assistant]\nHi\n" in question(task, "x", "y")

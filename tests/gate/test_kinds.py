"""Every kind of damage makes what its docstring shows, and takes any text."""

from __future__ import annotations

import random
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.gate.small import pool_of, record
from tithe import plugins
from tithe.gate.damage import Damage, Others, damaged
from tithe.testing.fake_bench import EXAMPLES

KINDS = plugins.damage_kinds()
SHOWN = re.compile(r'Example: "(.*)" becomes "(.*)"')
CAPITAL, GERMAN, *_ = EXAMPLES
# What the examples take from another record; Guten Morgen for all others.
LENDERS = {
    "wrong-turn": record("a", "Name a river.", "The Rhine."),
    "mixed": record("b", "How do I fry eggs?", "Add the eggs and stir well."),
}
HARD = {
    "empty": "",
    "one letter": "a",
    "emoji": "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f3f3\ufe0f",
    "right to left": "\u05e9\u05dc\u05d5\u05dd \u202bworld\u202c \u0645\u0631\u062d\u0628\u0627. \u05de\u05d4?",
    "lone surrogates": "\ud800 one \udfff two \udc00three four five six",
    "100 kB": "The sky is blue, 42 times. " * 3800,
    "100 kB without a space": "a" * 100_000,
    "a line without an end, and a number": "a" * 100_000 + "3.14",
    "spaces at the end": "one two" + " " * 100_000,
    "only spaces": " \n\t\u3000 ",
    "NUL": "\x00",
    "NUL inside": "one\x00 two \x00 three four five six",
    "no spaces": "\u5929\u7a7a\u662f\u84dd\u8272\u7684\u3002\u4e3a\u4ec0\u4e48\uff1f",
    "braces": "{prompt} {0} {} \\1 \\g<0> %s",
}


@pytest.mark.parametrize("name", KINDS)
def test_the_example_in_the_docstring_is_what_the_kind_makes(name: str) -> None:
    shown = SHOWN.search(KINDS[name].__doc__ or "")
    assert shown is not None, f"`{name}` has no example"
    before, after = shown.groups()
    example = replace(CAPITAL, response=replace(CAPITAL.response, content=before))
    lender = LENDERS.get(name, GERMAN)
    others = Others(lender, lender)
    # `numbers` draws three digits of nine each: one seed of 729 gives those shown.
    made = (damaged(KINDS[name], example, others, random.Random(seed)) for seed in range(10_000))
    assert after in made


def copy_differs(kind: Damage, text: str, prompt: str, other: str, seed: int) -> bool:
    """Whether the copy is another text, or None, and the seed decides alone which."""
    example = record("a", prompt, text)
    others = Others(record("b", other, other), record("c", text, prompt))
    found = damaged(kind, example, others, random.Random(seed))
    another = found is None or (found.strip() != "" and found.split() != text.split())
    return another and damaged(kind, example, others, random.Random(seed)) == found


@pytest.mark.parametrize("text", HARD.values(), ids=HARD.keys())
@pytest.mark.parametrize("name", KINDS)
def test_hard_texts_crash_no_kind(name: str, text: str) -> None:
    for seed in range(3):
        assert copy_differs(KINDS[name], text, text, text[::-1], seed)
        assert copy_differs(KINDS[name], text, "Name the capital of France.", "One two three four five six", seed)


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=[]), max_size=60),
    st.lists(st.sampled_from(["one", "two.", "3", "\n", "\u00e9", "\u3002", "  ", "!", "<|end|>"]), max_size=20).map(
        " ".join
    ),
)


@pytest.mark.slow
@given(text=TEXTS, prompt=TEXTS, other=TEXTS, seed=st.integers(0, 99))
@settings(max_examples=150, deadline=None)
def test_any_text_crashes_no_kind(text: str, prompt: str, other: str, seed: int) -> None:
    for kind in KINDS.values():
        assert copy_differs(kind, text, prompt, other, seed)


@pytest.mark.parametrize("name", sorted({*KINDS} - {"numbers"}))
def test_ordinary_records_can_be_damaged(name: str) -> None:
    """A response of nine words leaves no kind but the one that needs digits without a copy."""
    pool = pool_of(3)
    plain = replace(pool[0], response=replace(pool[0].response, content="The sky is blue because air scatters it."))
    assert damaged(KINDS[name], plain, Others(pool[1], pool[2]), random.Random(0)) is not None


def test_a_cut_ends_inside_a_sentence() -> None:
    text = "One two three. Four five six. Seven eight nine."
    for seed in range(50):
        found = damaged(KINDS["cut"], record("a", "?", text), Others(CAPITAL, CAPITAL), random.Random(seed))
        assert found is not None and text.startswith(found) and not found.endswith(".")


def test_other_answers_come_from_a_similar_prompt_or_are_of_like_length() -> None:
    near, like = record("b", "Name the capital of Italy.", "Rome."), record("c", "Say no.", "Never")
    made = {damaged(KINDS["other-answer"], CAPITAL, Others(like, near), random.Random(seed)) for seed in range(20)}
    assert made == {"Rome.", "Never"}

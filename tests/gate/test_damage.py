"""Drawing records and damaging them: by their content and the seed alone."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from tests.gate.small import pool_of, record
from tithe import plugins
from tithe.errors import DataError, SettingsError
from tithe.gate.damage import COPY, Damage, Others, damaged, draw_records, make_copies, pieces, sentences
from tithe.records import Example

POOL = pool_of(60)
OTHERS = Others(POOL[1], POOL[2])


@dataclass(frozen=True)
class Shouts(Damage):
    name: ClassVar[str] = "shouts"

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        return example.response.content.upper()


@dataclass(frozen=True)
class Never(Damage):
    name: ClassVar[str] = "never"

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        return None


@dataclass(frozen=True)
class Unchanged(Damage):
    name: ClassVar[str] = "unchanged"

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        return f"  {example.response.content}\n"


@dataclass(frozen=True)
class Raises(Damage):
    name: ClassVar[str] = "raises"

    def damage(self, example: Example, others: Others, draw: random.Random) -> str | None:
        raise KeyError("no such word")


@dataclass(frozen=True)
class Bytes(Damage):
    name: ClassVar[str] = "bytes"

    def damage(self, example: Example, others: Others, draw: random.Random) -> Any:
        return b"no text"


def copies_of(pool: list[Example], *, seed: int = 0, copies: int = 1, count: int = 20) -> list[tuple[str, str]]:
    made = make_copies(draw_records(pool, count, seed), pool, plugins.damage_kinds(), copies=copies, seed=seed)
    return [(copy.example.id, copy.example.response.content) for copy in made]


def test_the_order_of_the_pool_does_not_matter() -> None:
    shuffled = random.Random(1).sample(POOL, len(POOL))
    assert [one.id for one in draw_records(shuffled, 20, 0)] == [one.id for one in draw_records(POOL, 20, 0)]
    assert copies_of(shuffled) == copies_of(POOL)


def test_the_seed_changes_what_is_drawn_and_how_it_is_damaged() -> None:
    assert {one.id for one in draw_records(POOL, 20, 0)} != {one.id for one in draw_records(POOL, 20, 1)}
    every = [dict(copies_of(POOL, seed=seed, count=len(POOL))) for seed in (0, 1)]
    assert every[0] != every[1]


def test_a_content_is_drawn_once() -> None:
    again = [record("0000-1", POOL[0].prompt[0].content, POOL[0].response.content), *POOL]
    assert len(draw_records(again, 100, 0)) == len(POOL)


def test_kinds_take_turns_and_one_that_cannot_leaves_its_turn_to_the_next() -> None:
    kinds = {"shouts": Shouts(), "never": Never(), "cut": plugins.build(plugins.DAMAGE, "cut")}
    made = make_copies(POOL[:4], POOL, kinds, copies=1, seed=0)
    assert [(copy.place, copy.kind) for copy in made] == [(0, "shouts"), (1, "cut"), (2, "shouts"), (3, "cut")]
    for copy in made:
        assert copy.example.id == f"{COPY}{copy.kind}:{POOL[copy.place].id}"
        assert copy.example.prompt == POOL[copy.place].prompt


def test_several_copies_of_a_record_are_of_different_kinds() -> None:
    made = make_copies(POOL[:10], POOL, plugins.damage_kinds(), copies=3, seed=0)
    kinds = [[copy.kind for copy in made if copy.place == place] for place in range(10)]
    assert all(len(set(each)) == len(each) == 3 for each in kinds)


def test_a_record_that_no_kind_can_damage_is_skipped() -> None:
    drawn = [POOL[0], record("ffff", "Say one word.", "word"), POOL[1]]
    made = make_copies(drawn, POOL, {"cut": plugins.build(plugins.DAMAGE, "cut")}, copies=1, seed=0)
    assert [copy.place for copy in made] == [0, 2]


def test_nothing_that_can_be_damaged_is_refused() -> None:
    with pytest.raises(DataError, match="none of 60 drawn responses can be damaged"):
        make_copies(POOL, POOL, {"never": Never()}, copies=1, seed=0)


def test_prompts_without_words_are_no_obstacle() -> None:
    silent = [record(f"{i:04x}", "?", f"answer {i} with six words more", i) for i in range(6)]
    made = make_copies(silent, silent, {"cut": plugins.build(plugins.DAMAGE, "cut")}, copies=1, seed=0)
    assert len(made) == 6


def test_a_kind_that_changes_only_the_space_has_not_damaged_anything() -> None:
    assert damaged(Unchanged(), POOL[0], OTHERS, random.Random(0)) is None


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Raises(), r"the kind of damage `raises` failed on `word0x0 .*`: KeyError: 'no such word'"),
        (Bytes(), "the kind of damage `bytes` returned bytes, not a text or None"),
    ],
)
def test_a_faulty_kind_is_named(kind: Damage, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make_copies(POOL[:1], POOL, {kind.name: kind}, copies=1, seed=0)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("3.14 is pi. Yes", ["3.14 is pi.", " Yes"]),
        ("One.\n\nTwo\nThree!", ["One.", "\n\nTwo", "\nThree!"]),
        ("Wait... what?! Oh", ["Wait...", " what?!", " Oh"]),
        ("好。对", ["好。", "对"]),
        ("", []),
    ],
)
def test_sentences_lose_no_letter(text: str, parts: list[str]) -> None:
    assert sentences(text) == parts


def test_words_with_the_space_before_them() -> None:
    assert pieces(" One  two\nthree \n") == [" One", "  two", "\nthree"]


@pytest.mark.parametrize("text", ["a" * 100_000 + ".b", "a" + " " * 100_000, "\n" * 100_000 + "a", ". " * 50_000])
def test_long_texts_are_split_in_linear_time(text: str) -> None:
    """Both took time by the square of the length: minutes for 100 kB."""
    assert "".join(sentences(text)) == text
    assert "".join(pieces(text)) == text.rstrip()

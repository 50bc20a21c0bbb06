"""Near-duplicates: the similarity as defined, no pair below the threshold, and the same answer in any process."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
from collections.abc import Sequence

import pytest

from tithe.duplicates import near as near_module
from tithe.duplicates.near import HASHES, MISSED, NearDuplicates, Twin, choose_bands, missed
from tithe.duplicates.shingles import ComparedText, jaccard, shingles
from tithe.errors import MissingExtraError, SettingsError
from tithe.records import Example, Message

WORDS = ("river", "stone", "lamp", "window", "garden", "bread", "winter", "letter", "music", "table", "horse", "paper")


def example(number: int, prompt: str, response: str, row: int | None = None, system: str = "") -> Example:
    messages = (*((Message("system", system),) if system else ()), Message("user", prompt))
    place = number if row is None else row
    return Example(f"{number:016x}", place, len(messages), messages, Message("assistant", response))


def sentence(draw: random.Random, words: int = 40) -> str:
    return " ".join(draw.choice(WORDS) + str(draw.randrange(100)) for _ in range(words))


def slow_similarity(a: Example, b: Example) -> float:
    """From the definition, with sets of text; for texts of plain words."""

    def runs(text: str) -> set[str]:
        return {text[i : i + 5] for i in range(max(1, len(text) - 4))}

    def share(one: str, other: str) -> float:
        return len(runs(one) & runs(other)) / len(runs(one) | runs(other))

    whole = [f"{one.prompt[-1].content} {one.response.content}" for one in (a, b)]
    return min(share(whole[0], whole[1]), share(a.response.content, b.response.content))


def found(examples: Sequence[Example], threshold: float) -> dict[str, Twin]:
    near = NearDuplicates(threshold)
    for one in examples:
        near.sign(one)
    near.add_all(examples, near.may_have_twins())
    return near.find([one.id for one in examples], [one.row for one in examples])


def pool(copies: int = 30) -> list[Example]:
    """Texts that share nothing but words, each with a copy of which some words are others."""
    draw, made = random.Random(3), list[Example]()
    for i in range(copies):
        prompt, response = sentence(draw, 12), sentence(draw)
        words = response.split()
        for place in draw.sample(range(len(words)), i % 12):
            words[place] = "other" + str(i)
        made += [example(2 * i, prompt, response), example(2 * i + 1, prompt, " ".join(words))]
    return made


def test_shingles_are_the_runs_of_five_characters() -> None:
    assert len(shingles("abcdefg")) == 3 and len(shingles("abc")) == 1 and len(shingles("")) == 0
    assert len(shingles("aaaaaaaaaa")) == 1
    assert len(set(shingles("abc")) & set(shingles("abcab"))) == 0  # a short text is another run than a long one's
    # abcdef and abcdeg have abcde in common, of three.
    assert jaccard(shingles("abcdef"), shingles("abcdeg")) == 1 / 3
    assert jaccard(shingles(""), shingles("")) == 0.0


def test_the_last_letter_and_the_order_matter() -> None:
    texts = ["abcde", "abcdf", "bbcde", "edcba", "abced"]
    hashes = {int(shingles(text)[0]) for text in texts}
    assert len(hashes) == len(texts) and len({value >> 32 for value in hashes}) == len(texts)


def test_similarity_is_as_defined() -> None:
    examples = pool()
    for a, b in itertools.combinations(examples[:24], 2):
        assert ComparedText.of(a).similarity(ComparedText.of(b)) == pytest.approx(slow_similarity(a, b), abs=1e-12)


def test_case_punctuation_and_the_system_message_do_not_count() -> None:
    a = example(0, "What is a river?", "A river is water that flows, from a spring to the sea.", system="Be brief.")
    b = example(1, "WHAT is a river", "a river -- is water that flows from a spring; to the SEA!")
    assert ComparedText.of(a).similarity(ComparedText.of(b)) == 1.0


def test_another_response_or_question_is_no_near_duplicate() -> None:
    draw = random.Random(0)
    passage = sentence(draw, 200)
    ask = [example(i, f"{passage} {q}?", a) for i, (q, a) in enumerate([("Who came", "A baker"), ("When", "In 1921")])]
    assert slow_similarity(*ask) == 0.0 and found(ask, 0.8) == {}
    assert ComparedText.of(ask[0]).similarity(ComparedText.of(ask[1])) == 0.0


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.95, 1.0])
def test_all_pairs_and_no_others(threshold: float) -> None:
    """Compared with all pairs: nothing below the threshold, and every pair of this pool."""
    examples = pool()
    kept: list[Example] = []
    expected = {}
    for one in examples:
        alike = [(slow_similarity(one, other), other) for other in kept]
        similarity, twin = max(alike, default=(0.0, one), key=lambda pair: pair[0])
        if similarity >= threshold:
            expected[one.id] = (twin.id, similarity)
        else:
            kept.append(one)
    got = {id_: (twin.id, twin.similarity) for id_, twin in found(examples, threshold).items()}
    assert got == {id_: (twin, pytest.approx(value)) for id_, (twin, value) in expected.items()}
    assert len(got) >= 3 and (threshold == 0.5 or len(got) < 30)  # the pool has some of both


def test_the_first_given_stays_in_any_order() -> None:
    examples = pool(8)
    near = NearDuplicates(0.5)
    for one in examples:
        near.sign(one)
    near.add_all(examples, near.may_have_twins())
    forwards = near.find([one.id for one in examples], [one.row for one in examples])
    backwards = near.find([one.id for one in examples[::-1]], [one.row for one in examples[::-1]])
    assert {(twin.id, id_) for id_, twin in backwards.items()} == {(id_, twin.id) for id_, twin in forwards.items()}
    shuffled = random.Random(1).sample(examples, len(examples))
    again = NearDuplicates(0.5)  # another order of the file, the same order of scores
    for one in shuffled:
        again.sign(one)
    again.add_all(shuffled, again.may_have_twins())
    assert again.find([one.id for one in examples], [one.row for one in examples]) == forwards


def test_a_chain_is_not_one_group() -> None:
    """A is like B and B like C, but A is not like C: C stays, as what it is like is gone."""
    words = [f"word{i}" for i in range(60)]
    texts = [" ".join(words[i : i + 40]) for i in (0, 6, 12)]
    a, b, c = (example(i, "Say it", text) for i, text in enumerate(texts))
    assert slow_similarity(a, b) >= 0.7 and slow_similarity(b, c) >= 0.7 and slow_similarity(a, c) < 0.6
    assert [(id_, twin.id) for id_, twin in found([a, b, c], 0.7).items()] == [(b.id, a.id)]
    assert set(found([b, a, c], 0.7)) == {a.id, c.id}


def test_turns_of_one_record_are_no_near_duplicates() -> None:
    text = sentence(random.Random(5))
    turns = [example(0, text, text, row=3), example(1, f"{text} yes", text, row=3)]
    assert found(turns, 0.8) == {}
    apart = [turns[0], example(1, f"{text} yes", text, row=4)]
    assert set(found(apart, 0.8)) == {apart[1].id}


def test_symbols_only_are_compared_with_nothing() -> None:
    near = NearDuplicates(0.8)
    for one in (example(0, "?", "!"), example(1, "??", "!!")):
        near.sign(one)
    assert near.without_text == 2 and near.may_have_twins() == set() and near.find([], []) == {}
    assert near.record["compared"] == 0 and near.record["without_text"] == 2


def test_bands_find_a_pair_at_the_threshold() -> None:
    for hundredths in range(50, 101):
        bands, rows = choose_bands(hundredths / 100)
        assert bands >= 2 and bands * rows <= HASHES
        assert missed(hundredths / 100, bands, rows) <= MISSED
    assert missed(0.5, 1, 1) == 0.5 and missed(0.5, 2, 1) == 0.25 and missed(0.5, 1, 2) == 0.75


@pytest.mark.parametrize("threshold", [0.0, 0.49, 1.01, -1.0])
def test_a_threshold_that_makes_no_sense(threshold: float) -> None:
    with pytest.raises(SettingsError, match=r"0\.5 to 1"):
        NearDuplicates(threshold)


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(MissingExtraError, match="datasketch") as caught:
        near_module.import_datasketch()
    assert caught.value.hint is not None and "near-duplicates" in caught.value.hint


@pytest.mark.slow
def test_other_processes_find_the_same() -> None:
    """Nothing depends on the seed by which Python hashes texts."""
    code = "import json; from tests.duplicates.test_near import found, pool; "
    code += "print(json.dumps({i: [t.id, t.similarity] for i, t in found(pool(), 0.6).items()}))"
    said = [
        subprocess.run(
            [sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True
        ).stdout
        for seed in ("1", "2")
    ]
    here = {id_: [twin.id, twin.similarity] for id_, twin in found(pool(), 0.6).items()}
    assert json.loads(said[0]) == json.loads(said[1]) == here and len(here) > 10

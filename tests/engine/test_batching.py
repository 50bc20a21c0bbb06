"""Cutting passes into batches: each once, within the budget, longest first, no response in a shared beginning."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.models import make_pass
from tithe.engine.batching import SAME_START, WORTH_SHARING, Batch, common_length, make_batches, shared_starts
from tithe.records import Pass


@st.composite
def pass_lists(draw: st.DrawFn) -> list[Pass]:
    """Passes of which many begin alike, for a while."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    stems = rng.integers(0, 4, (draw(st.integers(1, 3)), 60))
    passes = []
    for _ in range(draw(st.integers(0, 25))):
        length, fork = rng.integers(1, 61), rng.integers(0, 61)
        ids = rng.choice(stems)[:length].copy()
        ids[fork:] = rng.integers(0, 4, len(ids[fork:]))
        passes.append(make_pass(ids, int(rng.integers(0, length))))
    return passes


def tokens(passes: list[Pass], batch: Batch, padded: bool) -> int:
    lengths = [len(passes[i].ids) - batch.prefix for i in batch.index]
    return max(lengths) * len(lengths) if padded else sum(lengths) + batch.prefix


@given(
    passes=pass_lists(), budget=st.sampled_from([1, 7, 64, 500, 10_000]), padded=st.booleans(),
    share=st.booleans(), alone_above=st.sampled_from([None, 1, 20, 59, 100]),
)  # fmt: skip
def test_every_property(passes: list[Pass], budget: int, padded: bool, share: bool, alone_above: int | None) -> None:
    batches = make_batches(passes, budget=budget, padded=padded, share=share and not padded, alone_above=alone_above)
    assert sorted(i for batch in batches for i in batch.index) == list(range(len(passes)))
    longest = [max(len(passes[i].ids) for i in batch.index) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    for batch in batches:
        assert batch.index
        lengths = [len(passes[i].ids) for i in batch.index]
        assert lengths == sorted(lengths, reverse=True)
        if len(batch.index) == 1:
            assert batch.prefix == 0
            continue
        assert tokens(passes, batch, padded) <= budget
        assert alone_above is None or max(lengths) <= alone_above
        first = passes[batch.index[0]].ids[: batch.prefix].tolist()
        for i in batch.index:
            assert passes[i].ids[: batch.prefix].tolist() == first
            assert batch.prefix == 0 or batch.prefix < passes[i].start  # what predicts the response is in the tail


@given(passes=pass_lists())
def test_no_batch_could_have_taken_the_next_pass(passes: list[Pass]) -> None:
    """Filled greedily: fewer batches would not do for neighbours in length."""
    for padded in (False, True):
        batches = make_batches(passes, budget=64, padded=padded)
        for one, other in pairwise(batches):
            assert tokens(passes, Batch((*one.index, other.index[0])), padded) > 64


@given(passes=pass_lists())
def test_shared_starts_against_a_naive_count(passes: list[Pass]) -> None:
    heads = Counter(tuple(p.ids[:SAME_START].tolist()) for p in passes if p.start > SAME_START)
    groups = shared_starts(passes)
    assert sorted(i for members, _ in groups for i in members) == list(range(len(passes)))
    assert groups[-1][1] == 0
    for members, prefix in groups[:-1]:
        head = tuple(passes[members[0]].ids[:SAME_START].tolist())
        assert len(members) == heads[head] >= WORTH_SHARING
        assert prefix == naive_common([passes[i] for i in members]) >= SAME_START
    lonely = {head for head, count in heads.items() if count < WORTH_SHARING}
    for i in groups[-1][0]:
        assert passes[i].start <= SAME_START or tuple(passes[i].ids[:SAME_START].tolist()) in lonely


def naive_common(passes: list[Pass]) -> int:
    length = 0
    while all(length < p.start - 1 for p in passes) and len({int(p.ids[length]) for p in passes}) == 1:
        length += 1
    return length


def test_common_length_stops_before_the_first_response() -> None:
    ids = list(range(40))
    assert common_length([make_pass(ids, 30), make_pass(ids, 20)]) == 19
    assert common_length([make_pass(ids, 30), make_pass([*ids[:17], 99, *ids[18:]], 25)]) == 17


def test_sharing_saves_what_it_says() -> None:
    """Ten records behind a preamble of 40 tokens, tails of 10: 140 tokens instead of 500."""
    rng = np.random.default_rng(0)
    preamble = rng.integers(0, 9, 40)
    passes = [make_pass(np.concatenate([preamble, [100 + i], rng.integers(0, 9, 9)]), 45) for i in range(10)]
    (batch,) = make_batches(passes, budget=140, share=True)
    assert batch == Batch(tuple(range(10)), 40)
    assert len(make_batches(passes, budget=139, share=True)) == 2
    assert len(make_batches(passes, budget=140)) == 5


def test_equal_lengths_keep_input_order() -> None:
    passes = [make_pass([1, 2, 3], 1) for _ in range(7)]
    assert [batch.index for batch in make_batches(passes, budget=9)] == [(0, 1, 2), (3, 4, 5), (6,)]


def test_nothing_to_read() -> None:
    assert make_batches([], budget=10) == []
    assert make_batches([], budget=10, share=True) == []


def shown_passes(shots: int, each: int, *, length: int) -> list[Pass]:
    """`each` passes behind every one of some worked examples; all passes begin with one preamble."""
    rng = np.random.default_rng(0)
    preamble = rng.integers(0, 9, SAME_START + 4).astype(np.int32)
    passes = []
    for _ in range(shots):
        shot = np.concatenate([preamble, rng.integers(0, 9, length - len(preamble)).astype(np.int32)])
        for _ in range(each):
            ids = np.concatenate([shot, rng.integers(0, 9, 30).astype(np.int32)])
            passes.append(Pass(ids, length + 20, shots=length))
    return passes


def test_a_worked_example_that_many_share_is_read_once() -> None:
    passes = shown_passes(3, 10, length=100)
    groups = shared_starts(passes)
    assert sorted(len(members) for members, prefix in groups if prefix) == [10, 10, 10]
    for members, prefix in groups:
        assert not members or prefix >= 100
        assert len({passes[i].ids[:prefix].tobytes() for i in members}) <= 1


def test_a_worked_example_of_few_passes_or_few_tokens_is_read_with_the_preamble_alone() -> None:
    for passes in (shown_passes(5, WORTH_SHARING - 1, length=400), shown_passes(5, WORTH_SHARING, length=60)):
        (members, prefix), (rest, _) = shared_starts(passes)
        assert (len(members), prefix, rest) == (len(passes), SAME_START + 4, [])


def test_equal_beginnings_without_shots_are_no_worked_example() -> None:
    passes = [Pass(p.ids, p.start) for p in shown_passes(2, 10, length=100)]
    assert [prefix for _, prefix in shared_starts(passes)] == [SAME_START + 4, 0]


def test_passes_with_worked_examples_leave_the_other_batches_as_they_are() -> None:
    shown = shown_passes(3, 10, length=100)
    plain = [Pass(p.ids[-60:], 40) for p in shown]
    both = make_batches([*plain, *shown], budget=300, share=True)
    before = make_batches(plain, budget=300, share=True)
    assert [batch for batch in both if max(batch.index) < len(plain)] == before
    assert all(min(batch.index) >= len(plain) for batch in both if batch not in before)

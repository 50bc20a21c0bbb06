"""Passes are cut into batches: each once, within the budget, longest first, shared prefixes read once."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import groupby, pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from tests.engine.models import make_pass
from tithe.engine.batches import (
    SAME_START,
    WORTH_NESTING,
    WORTH_SHARING,
    Batch,
    Prefix,
    SharedPrefix,
    Star,
    common_length,
    find_stars,
    make_batches,
    nested_order,
    shared_starts,
)
from tithe.records import Pass


@st.composite
def pass_lists(draw: st.DrawFn) -> list[Pass]:
    """Passes of which many share a prefix, and some show others."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    stems = rng.integers(0, 4, (draw(st.integers(1, 3)), 60))
    passes: dict[bytes, Pass] = {}
    for _ in range(draw(st.integers(0, 25))):
        length, fork = rng.integers(1, 61), rng.integers(0, 61)
        ids = rng.choice(stems)[:length].copy()
        ids[fork:] = rng.integers(0, 4, len(ids[fork:]))
        made = make_pass(ids, int(rng.integers(0, length)))
        passes[made.key] = made
    plain = list(passes.values())
    for _ in range(draw(st.integers(0, 25)) if plain else 0):
        shot = plain[rng.integers(len(plain))].ids
        shot = shot[: len(shot) - rng.integers(0, 2)]  # at times cut, so that nothing is it
        if len(shot):
            ids = np.concatenate([shot, rng.integers(0, 4, rng.integers(1, 40))]).astype(np.int32)
            made = Pass(ids, int(rng.integers(len(shot), len(ids))), shots=len(shot))
            passes[made.key] = made
    return list(passes.values())


@st.composite
def branched(draw: st.DrawFn) -> list[Pass]:
    """Passes that share a prefix, of which some share a longer one, and some of those a still longer one."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    pieces = [[rng.integers(0, 99, rng.integers(4, 40)) for _ in range(draw(st.integers(1, 4)))] for _ in range(3)]
    passes: dict[bytes, Pass] = {}
    for _ in range(draw(st.integers(0, 40))):
        path = [level[rng.integers(len(level))] for level in pieces[: rng.integers(1, 4)]]
        ids = np.concatenate([*path, rng.integers(0, 99, rng.integers(2, 30))])
        made = make_pass(ids, int(rng.integers(len(ids) // 2, len(ids))))
        passes[made.key] = made
    return list(passes.values())


def tokens(passes: list[Pass], batch: Batch, padded: bool) -> int:
    lengths = [len(passes[i].ids) for i in batch.index]
    return max(lengths) * len(lengths) if padded else sum(lengths) - batch.saved


@given(
    passes=pass_lists() | branched(), budget=st.sampled_from([1, 7, 64, 500, 10_000]), padded=st.booleans(),
    share=st.booleans(), single_above=st.sampled_from([None, 1, 20, 59, 100]),
)  # fmt: skip
def test_every_property(passes: list[Pass], budget: int, padded: bool, share: bool, single_above: int | None) -> None:
    share = share and not padded
    batches = make_batches(passes, budget=budget, padded=padded, share=share, single_above=single_above)
    assert sorted(i for batch in batches for i in batch.index) == list(range(len(passes)))
    longest = [max(len(passes[i].ids) for i in batch.index) for batch in batches]
    assert longest == sorted(longest, reverse=True)
    assert share or not any(batch.after for batch in batches)
    for batch in batches:
        check(passes, batch)
        assert batch.tokens(passes) == naive_tokens(passes, batch)
        if len(batch.index) > 1:
            assert tokens(passes, batch, padded) <= budget
            assert single_above is None or max(len(passes[i].ids) for i in batch.index) <= single_above


def naive_tokens(passes: list[Pass], batch: Batch) -> int:
    """Return the places of the batch's passes."""
    read = {(place, at) for place, i in enumerate(batch.index) for at in range(len(passes[i].ids) - 1)}
    for place, after in enumerate(batch.after):
        if after is not None:
            read -= {(place, at) for at in range(after.tokens)}
            if after.tokens == len(passes[batch.index[after.place]].ids):
                read.add((after.place, after.tokens - 1))
    return len(read)


def check(passes: list[Pass], batch: Batch) -> None:
    """Check that shared prefixes are equal, and that a pass continues only earlier ones."""
    assert batch.index
    assert batch.after == () or len(batch.after) == len(batch.index)
    assert batch.after == () or any(batch.after)
    for place, after in enumerate(batch.after):
        if after is not None:
            one, other = passes[batch.index[place]], passes[batch.index[after.place]]
            assert after.place < place and 0 < after.tokens <= one.start
            assert one.ids[: after.tokens].tolist() == other.ids[: after.tokens].tolist()
            assert len(other.ids) >= after.tokens


@given(passes=pass_lists() | branched(), budget=st.sampled_from([64, 500]))
def test_halves_of_halves(passes: list[Pass], budget: int) -> None:
    for batch in make_batches(passes, budget=budget, share=True):
        if len(batch.index) > 1:
            one, other = batch.halves()
            assert one.index + other.index == batch.index
            for half in (one, other):
                check(passes, half)
            assert one.saved + other.saved <= batch.saved


@given(passes=pass_lists())
def test_no_batch_could_have_taken_the_next_pass(passes: list[Pass]) -> None:
    """Batches are filled greedily: neighbours in length would not fit into fewer."""
    for padded in (False, True):
        batches = make_batches(passes, budget=64, padded=padded)
        for one, other in pairwise(batches):
            assert tokens(passes, Batch((*one.index, other.index[0])), padded) > 64


@given(passes=pass_lists())
def test_stars_against_a_naive_search(passes: list[Pass]) -> None:
    stars, rest = find_stars(passes)
    assert sorted([i for star in stars for i in star.members] + rest) == list(range(len(passes)))
    assert not any(passes[i].shots for i in rest)
    for star in stars:
        first, *others = (passes[i] for i in star.members)
        leaves = others if not first.shots else [first, *others]
        assert all(leaf.shots for leaf in leaves)
        shots = {tuple(leaf.ids[: leaf.shots].tolist()) for leaf in leaves}
        assert len(shots) == 1
        (shot,) = shots
        centres = [p.key for p in passes if not p.shots and tuple(p.ids.tolist()) == shot and len(shot) >= SAME_START]
        assert not centres if first.shots else first.key in centres
        same = [p for p in passes if p.shots and tuple(p.ids[: p.shots].tolist()) == shot]
        assert len(leaves) == (len(same) if len(shot) >= SAME_START else 1)


@given(passes=pass_lists(), budget=st.sampled_from([1, 30, 100, 300]))
def test_pieces_of_a_star(passes: list[Pass], budget: int) -> None:
    for star in find_stars(passes)[0]:
        pieces = list(star.pieces(passes, budget))
        assert tuple(i for piece in pieces for i in piece.members) == star.members
        for piece in pieces:
            assert len(piece.members) == 1 or piece.size(passes) <= budget
        for one, other in pairwise(pieces):
            more = Star((*one.members, other.members[0]), star.tokens)
            assert more.size(passes) > budget


@given(passes=pass_lists() | branched())
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


@given(passes=branched())
def test_nested_beginnings_against_a_naive_search(passes: list[Pass]) -> None:
    for members, tokens in shared_starts(passes)[:-1]:
        group = [passes[i] for i in members]
        lengths = [len(p.ids) for p in group]
        found = list(nested_order(group, lengths, tokens))
        if not found:
            whole = Prefix(tokens)
            found = [(i, whole) for i in sorted(range(len(group)), key=lambda i: -lengths[i])]
        assert sorted(i for i, _ in found) == list(range(len(group)))
        (whole,) = {list(start.chain())[-1] for _, start in found}
        assert whole.tokens == tokens and whole.within is None
        check_nested(group, found, whole)


def check_nested(group: list[Pass], found: list[tuple[int, Prefix]], whole: Prefix) -> None:
    """Check that passes with a common prefix are adjacent and in order, and that no other prefix would save enough."""
    places: dict[Prefix, list[int]] = defaultdict(list)
    for place, (_, start) in enumerate(found):
        for one in start.chain():
            places[one].append(place)
    for one, at in places.items():
        passes = [group[found[place][0]] for place in at]
        assert at == list(range(at[0], at[-1] + 1))
        assert one.tokens == naive_common(passes)
        if one.within is not None:
            assert one.tokens >= one.within.tokens + SAME_START
            assert (len(at) - 1) * (one.tokens - one.within.tokens) >= WORTH_NESTING
        # Of what is directly in it, passes and longer beginnings, the longest come first, else those given first.
        parts = [[one for one, _ in part] for _, part in groupby(found[at[0] : at[-1] + 1], key=directly(one))]
        order = [(-max(len(group[i].ids) for i in part), min(part)) for part in parts]
        assert order == sorted(order)
        alone = [group[i] for i, start in found if start is one]
        for length in range(one.tokens + SAME_START, max(p.start for p in passes)):
            heads = [tuple(p.ids[:length].tolist()) for p in alone if p.start > length]
            assert all((n - 1) * (length - one.tokens) < WORTH_NESTING for n in Counter(heads).values())


def directly(within: Prefix) -> Callable[[tuple[int, Prefix]], int | Prefix]:
    """Return a pass, or the prefix of it that is one level longer than `within`."""

    def key(found: tuple[int, Prefix]) -> int | Prefix:
        i, start = found
        return next((one for one in start.chain() if one.within is within), i)

    return key


@given(passes=branched(), budget=st.sampled_from([64, 100, 200, 500]))
def test_no_more_is_read_than_with_one_beginning_a_group(passes: list[Pass], budget: int) -> None:
    plain = [pass_ for pass_ in passes if not pass_.shots]
    read = 0
    for members, prefix in shared_starts(plain):
        left = 0
        for length in sorted((len(plain[i].ids) for i in members), reverse=True):
            fits = length - prefix <= left  # tokens left in the open batch; none is open at first
            own = length - prefix if fits else length
            left = left - own if fits else budget - length
            read += own
    batches = make_batches(plain, budget=budget, share=True)
    assert sum(tokens(plain, batch, False) for batch in batches) <= read


def with_system_prompts(each: int, tail: int) -> list[Pass]:
    """Records alternate between two system prompts of 300 tokens, after a preamble of 30, with own tails."""
    rng = np.random.default_rng(0)
    preamble, *prompts = (rng.integers(0, 99, length) for length in (30, 300, 300))
    return [
        make_pass(np.concatenate([preamble, prompts[i % 2], [100 + i], rng.integers(0, 99, tail - 1)]), 335)
        for i in range(2 * each)
    ]


def test_two_system_prompts_are_read_once_each() -> None:
    passes = with_system_prompts(50, 50)
    (batch,) = make_batches(passes, budget=10_000, share=True)
    assert tokens(passes, batch, False) == 30 + 2 * 300 + 100 * 50
    counts = Counter(batch.after)
    assert (
        counts[None] == 1
        and counts[SharedPrefix(0, 30)] == 1
        and counts[SharedPrefix(0, 330)] == counts[SharedPrefix(50, 330)] == 49
    )


def test_two_system_prompts_in_small_batches() -> None:
    """13 tails of 50 fit after 330 tokens: 4 batches per prompt are enough, and one may have both prompts."""
    passes = with_system_prompts(50, 50)
    batches = make_batches(passes, budget=1000, share=True)
    least = 100 * 50 + 8 * 330
    assert least <= sum(tokens(passes, batch, False) for batch in batches) <= least + 300
    assert len(batches) == 8
    for batch in batches:
        check(passes, batch)
        assert tokens(passes, batch, False) <= 1000


def test_the_same_passes_give_the_same_batches() -> None:
    passes = with_system_prompts(20, 30)
    again = [Pass(pass_.ids.copy(), pass_.start) for pass_ in passes]
    for budget in (500, 1000, 10_000):
        assert make_batches(passes, budget=budget, share=True) == make_batches(again, budget=budget, share=True)


def dialogue(turns: int) -> list[Pass]:
    """Make the passes of one dialogue: each turn has 18 tokens of prompt and two of response."""
    ids = np.random.default_rng(0).integers(0, 99, 20 * turns)
    return [make_pass(ids[: 20 * turn], 20 * turn - 2) for turn in range(1, turns + 1)]


def test_each_turn_of_a_dialogue_goes_on_from_another() -> None:
    passes = dialogue(40)
    (batch,) = make_batches(passes, budget=10_000, share=True)
    check(passes, batch)
    # The last turn's pass is read whole, of all others what begins with the last prompt token; but the last three have
    # 737 tokens in common with the fourth from the end, as 2 x 20 more would save less than `WORTH_NESTING`.
    assert tokens(passes, batch, False) == 20 * 40 + 37 * 3 + (20 * 38 - 737) + (20 * 39 - 737)


def test_turns_without_end_are_no_recursion() -> None:
    passes = dialogue(1100)
    assert len(list(nested_order(passes, [len(pass_.ids) for pass_ in passes], 17))) == 1100


def test_two_of_three_may_have_much_more_in_common() -> None:
    """Twenty more shared tokens are not worth it for three passes, but two of them share 320 more."""
    rng = np.random.default_rng(0)
    common = rng.integers(0, 99, 350)
    own = [(common[:50], 97), (common, 98), (common, 99)]
    passes = [make_pass([*ids, number, *rng.integers(0, 99, 40)], len(ids) + 5) for ids, number in own]
    found = {
        i: (start.tokens, start.within and start.within.tokens) for i, start in nested_order(passes, [91, 391, 391], 30)
    }
    assert found == {0: (30, None), 1: (350, 30), 2: (350, 30)}


def test_halves_of_a_batch_read_beginnings_once_each() -> None:
    passes = with_system_prompts(50, 50)
    (batch,) = make_batches(passes, budget=10_000, share=True)
    for half in batch.halves():
        check(passes, half)
        assert tokens(passes, half, False) == 330 + 50 * 50
    quarters = [quarter for half in batch.halves() for quarter in half.halves()]
    assert [tokens(passes, quarter, False) for quarter in quarters] == [330 + 25 * 50] * 4


def test_common_length_stops_before_the_first_response() -> None:
    ids = list(range(40))
    assert common_length([make_pass(ids, 30), make_pass(ids, 20)]) == 19
    assert common_length([make_pass(ids, 30), make_pass([*ids[:17], 99, *ids[18:]], 25)]) == 17


def test_sharing_saves_what_it_says() -> None:
    """Ten records after a preamble of 40 tokens, with tails of 10: 140 tokens instead of 500."""
    rng = np.random.default_rng(0)
    preamble = rng.integers(0, 9, 40)
    passes = [make_pass(np.concatenate([preamble, [100 + i], rng.integers(0, 9, 9)]), 45) for i in range(10)]
    (batch,) = make_batches(passes, budget=140, share=True)
    assert batch == Batch(tuple(range(10)), (None, *[SharedPrefix(0, 40)] * 9))
    assert batch.saved == 360
    assert len(make_batches(passes, budget=139, share=True)) == 2
    assert len(make_batches(passes, budget=140)) == 5


def test_equal_lengths_keep_input_order() -> None:
    passes = [make_pass([1, 2, 3], 1) for _ in range(7)]
    assert [batch.index for batch in make_batches(passes, budget=9)] == [(0, 1, 2), (3, 4, 5), (6,)]


def test_nothing_to_read() -> None:
    assert make_batches([], budget=10) == []
    assert make_batches([], budget=10, share=True) == []


def shown_passes(shots: int, each: int, *, length: int) -> list[Pass]:
    """Make `each` passes after every one of some worked examples; all passes begin with one preamble."""
    rng = np.random.default_rng(0)
    preamble = rng.integers(0, 9, SAME_START + 4).astype(np.int32)
    passes = []
    for _ in range(shots):
        shot = np.concatenate([preamble, rng.integers(0, 9, length - len(preamble)).astype(np.int32)])
        for _ in range(each):
            ids = np.concatenate([shot, rng.integers(0, 9, 30).astype(np.int32)])
            passes.append(Pass(ids, length + 20, shots=length))
    return passes


def test_a_worked_example_that_several_show_is_read_once() -> None:
    passes = shown_passes(5, 10, length=100)
    (batch,) = make_batches(passes, budget=10_000, share=True)
    # Five examples of 100, of which four are read after the preamble, and 50 tails of 30.
    assert tokens(passes, batch, False) == 5 * 100 - 4 * (SAME_START + 4) + 50 * 30


def test_an_example_that_is_read_itself_is_the_beginning_of_those_that_show_it() -> None:
    """A worked example's own pass costs nothing: the tokens are those of the passes that show it."""
    shown = shown_passes(5, 10, length=100)
    centres = [Pass(shown[i].ids[:100], 60) for i in range(0, 50, 10)]
    other = Pass(np.arange(50, dtype=np.int32), 30)
    passes = [*shown, *centres, other]
    star, alone = sorted(make_batches(passes, budget=10_000, share=True), key=lambda batch: -len(batch.index))
    assert alone == Batch((55,))
    assert set(star.index) == set(range(55))
    assert tokens(passes, star, False) == 5 * 100 - 4 * (SAME_START + 4) + 50 * 30
    for centre in range(50, 55):
        place = star.index.index(centre)
        leaves = [star.index[k] for k, after in enumerate(star.after) if after == SharedPrefix(place, 100)]
        assert leaves == list(range((centre - 50) * 10, (centre - 49) * 10))


def test_equal_beginnings_without_shots_are_no_worked_example() -> None:
    passes = [Pass(p.ids, p.start) for p in shown_passes(2, 10, length=100)]
    assert find_stars(passes) == ([], list(range(20)))


def test_what_is_shown_by_nobody_is_batched_as_if_nothing_were_shown() -> None:
    shown = shown_passes(3, 10, length=100)
    plain = [Pass(p.ids[-60:], 40) for p in shown]
    both = make_batches([*plain, *shown], budget=300, share=True)
    before = make_batches(plain, budget=300, share=True)
    assert [batch for batch in both if max(batch.index) < len(plain)] == before
    assert all(min(batch.index) >= len(plain) for batch in both if batch not in before)

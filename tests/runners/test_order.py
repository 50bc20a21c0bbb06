"""The reading order: a permutation that keeps families of examples together."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tithe.runners.order import order_by_shots


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[str], list[str | None]]:
    count = draw(st.integers(0, 30))
    ids = draw(st.permutations([f"e{i}" for i in range(count)]))
    other = st.one_of(st.none(), st.sampled_from([*ids, "from elsewhere", "another"]))
    return ids, [draw(other) for _ in ids]


def naive_families(ids: list[str], shown: list[str | None]) -> list[set[str]]:
    families = [{one} | ({other} if other else set()) for one, other in zip(ids, shown, strict=True)]
    merged = True
    while merged:
        merged = False
        for i, one in enumerate(families):
            for other in families[i + 1 :]:
                if one & other:
                    one |= other
                    families.remove(other)
                    merged = True
                    break
    return families


@given(graph=graphs())
def test_families_stand_together(graph: tuple[list[str], list[str | None]]) -> None:
    ids, shown = graph
    order = order_by_shots(ids, shown)
    assert sorted(order) == list(range(len(ids)))
    family = {one: k for k, members in enumerate(naive_families(ids, shown)) for one in members}
    walked = [family[ids[i]] for i in order]
    changes = [k for i, k in enumerate(walked) if i == 0 or walked[i - 1] != k]
    assert len(changes) == len(set(changes))  # no family is left and entered again
    firsts = [next(i for i in range(len(ids)) if family[ids[i]] == k) for k in changes]
    assert firsts == sorted(firsts)


def test_who_shows_an_example_follows_it() -> None:
    ids = ["a", "b", "c", "d", "e", "f", "g"]
    shown = ["g", None, "g", "b", "elsewhere", "d", None]
    # a shows g, as c does: a, g, c; then b, with d that shows it and f that shows d; e is alone.
    assert order_by_shots(ids, shown) == [0, 6, 2, 1, 3, 5, 4]


def test_nothing_shown_is_the_order_of_the_input() -> None:
    assert order_by_shots(["c", "a", "b"], [None, None, None]) == [0, 1, 2]
    assert order_by_shots([], []) == []

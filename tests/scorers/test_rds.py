"""RDS+: whom the targets take, and in which order. Numbers by hand, and dealt out slowly."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.scorers.bench import Bench, angle, example
from tithe.errors import DataError, SettingsError
from tithe.records import Answer, Ask, Example, Problem, Scores, Vector
from tithe.scorers import rds
from tithe.scorers import targets as dealing
from tithe.scorers.rds import RDS
from tithe.scorers.targets import Targets, round_robin
from tithe.selectors.budget import Budget
from tithe.selectors.rank import Top

NONE = Problem("no response token left")


@dataclass
class Directions(Bench):
    """Args:
    directions: content -> degrees, or why there is no vector.
    """

    directions: Mapping[str, float | Problem] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=list)

    def answers(self, asks: Sequence[Mapping[str, Ask]]) -> list[dict[str, Answer | Problem]]:
        self.sizes.append(len(asks))
        return [{name: self.direction(ask.spec.example) for name, ask in each.items()} for each in asks]

    def direction(self, one: Example) -> Answer | Problem:
        found = self.directions[one.id.removeprefix("pool:").partition("-")[0]]
        return found if isinstance(found, Problem) else Vector(np.array(angle(found), dtype=np.float32))


def bench(records: Mapping[str, float | Problem], targets: Mapping[str, float | Problem]) -> Directions:
    contents = {name.partition("-")[0]: where for name, where in {**records, **targets}.items()}
    rows = [example(name, i) for i, name in enumerate(records)]
    return Directions(rows, pool=[example(name, i) for i, name in enumerate(targets)], directions=contents)


RECORDS: dict[str, float | Problem] = {"a": 0, "b": 10, "c": 50, "d": 80, "e": 100}
TARGETS: dict[str, float | Problem] = {"s": 1, "t": 90}


def scores(scorer: RDS, made: Directions) -> dict[str, float | Problem]:
    ready = scorer.prepare(made)
    found = {}
    for one in made.examples:
        answer = made.direction(one)
        found[one.id] = answer if isinstance(answer, Problem) else ready.score(one, {"given": answer})
    return found


def test_targets_take_in_turn() -> None:
    """s takes a, t takes d (as near as e, and first), s takes b, t takes e, s is left with c."""
    made = bench(RECORDS, TARGETS)
    got = scores(RDS(target="x"), made)
    assert got == pytest.approx({"a": 1, "d": 0.8, "b": 0.6, "e": 0.4, "c": 0.2})
    assert made.kept["targets"]["target"] == ["pool:s", "pool:t"]
    assert made.kept["targets"]["nearest"] == ["a", "d"]
    assert made.kept["targets"]["cosine"] == pytest.approx(np.cos(np.radians([1, 10])), abs=1e-6)
    assert made.notes == {"targets": 2, "records_in_target_set": 0} and made.said == []


def test_greatest_and_mean_cosine() -> None:
    cosines = {name: np.cos(np.radians([abs(at - 1), abs(at - 90)])) for name, at in RECORDS.items()}  # type: ignore
    got = scores(RDS(target="x", by="max"), bench(RECORDS, TARGETS))
    assert got == pytest.approx({name: max(each) for name, each in cosines.items()}, abs=2e-6)
    got = scores(RDS(target="x", by="mean"), bench(RECORDS, TARGETS))
    assert got == pytest.approx({name: sum(each) / 2 for name, each in cosines.items()}, abs=2e-6)


def test_beside_the_score_stand_the_greatest_cosine_and_whose_it_is() -> None:
    made = bench(RECORDS, TARGETS)
    ready = RDS(target="x").prepare(made)
    for name, row in (("a", 0), ("b", 0), ("d", 1), ("e", 1)):
        one = example(name)
        answer = made.direction(one)
        assert not isinstance(answer, Problem)
        more = ready.more(one, {"given": answer})
        assert more["target"] == row and set(more) == set(RDS.also)
        away = abs(RECORDS[name] - (1, 90)[row])  # type: ignore[operator]
        assert more["cosine"] == pytest.approx(np.cos(np.radians(away)), abs=1e-6)


def slowly(cosines: npt.NDArray[np.float32]) -> list[int]:
    """The next target takes its best record that is left, of equals the first."""
    order: list[int] = []
    for j in itertools.cycle(range(cosines.shape[1])):
        left = [i for i in range(len(cosines)) if i not in order]
        if not left:
            return order
        order.append(max(left, key=lambda i: (cosines[i, j], -i)))
    raise AssertionError


@settings(deadline=None, max_examples=60)
@given(n=st.integers(0, 40), m=st.integers(1, 7), values=st.integers(1, 50), seed=st.integers(0, 99))
def test_dealt_out_slowly_it_is_the_same(n: int, m: int, values: int, seed: int) -> None:
    """With many ties where there are few values, and queues of several blocks."""
    cosines = (np.random.default_rng(seed).integers(0, values, (n, m)) / values).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dealing, "BLOCK", 2)
        assert round_robin(cosines) == slowly(cosines)


def test_ties_keep_input_order() -> None:
    """A thousand records of three distinct cosines."""
    cosines = (np.arange(1000) * 7 % 3 / 4).astype(np.float32)[:, None].repeat(2, axis=1)
    best = [i for value in (0.5, 0.25, 0.0) for i in range(1000) if cosines[i, 0] == value]
    assert round_robin(cosines) == best


@pytest.mark.parametrize("k", [1, 2, 3, 7, 24, 25])
def test_any_budget_of_the_top_is_what_the_targets_took_first(k: int) -> None:
    """One target's turn more is one record more: the score falls strictly in the order of taking."""
    rng = np.random.default_rng(k)
    records: dict[str, float | Problem] = {f"r{i}": float(at) for i, at in enumerate(rng.uniform(0, 360, 25))}
    targets: dict[str, float | Problem] = {f"t{i}": float(at) for i, at in enumerate(rng.uniform(0, 360, 4))}
    got = scores(RDS(target="x"), bench(records, targets))
    cosines = np.array([[np.cos(np.radians(r - t)) for t in targets.values()] for r in records.values()])  # type: ignore
    first = slowly(cosines.astype(np.float32))[:k]
    values = np.array(list(got.values()), dtype=np.float64)
    kept = Top().select(Scores(list(got), values), Budget.parse(k)).kept
    assert kept == [list(records)[i] for i in sorted(first)]
    assert len(set(values)) == 25 and values.max() == 1 and values.min() == pytest.approx(1 / 25)


def test_a_record_without_a_vector_has_no_turn() -> None:
    made = bench({**RECORDS, "b": NONE}, TARGETS)
    got = scores(RDS(target="x"), made)
    assert got["b"] == NONE
    assert {name: got[name] for name in "adec"} == pytest.approx({"a": 1, "d": 0.75, "c": 0.5, "e": 0.25})
    ready = RDS(target="x").prepare(made)  # and if it has one later
    late = ready.score(example("b"), {"given": Vector(np.array(angle(10), dtype=np.float32))})
    assert isinstance(late, Problem) and "no turn" in late.reason


def test_targets_without_a_vector_take_nothing() -> None:
    made = bench(RECORDS, {"s": NONE, "t": 90})
    assert scores(RDS(target="x"), made)["d"] == 1
    assert made.said == ["note: 1 of 2 targets have no hidden states to compare"]
    with pytest.raises(DataError, match="none of the 2 records of the target `x` has hidden states"):
        RDS(target="x").prepare(bench(RECORDS, {"s": NONE, "t": NONE}))


def test_a_target_that_stands_there_twice_has_one_turn() -> None:
    once, twice = bench(RECORDS, TARGETS), bench(RECORDS, {"s": 1, "s-1": 1, "t": 90})
    assert scores(RDS(target="x"), twice) == scores(RDS(target="x"), once)


def test_records_that_are_targets_are_counted_and_scored_as_any_other() -> None:
    made = bench({**RECORDS, "s": 1, "s-1": 1}, TARGETS)
    got = scores(RDS(target="x"), made)
    assert made.said == ["note: in the target set themselves, with cosine 1: 2 of 7 records"]
    assert made.notes["records_in_target_set"] == 2
    assert got["s"] == 1 and got["s-1"] == pytest.approx(1 - 2 / 7)


def test_vectors_are_held_a_chunk_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what is beyond six decimals, which differs with the chunk, decides nothing."""
    monkeypatch.setattr(rds, "CHUNK", 2)
    made = bench({**RECORDS, "b": NONE, "c": NONE}, TARGETS)
    whole = bench({**RECORDS, "b": NONE, "c": NONE}, TARGETS)
    got = scores(RDS(target="x"), made)
    assert made.sizes == [2, 2, 2, 1]
    monkeypatch.setattr(rds, "CHUNK", 4096)
    assert scores(RDS(target="x"), whole) == got and whole.sizes == [2, 5]


def test_equal_records_tie_whatever_their_chunk() -> None:
    """The same direction with the last bits changed."""
    vectors = np.array([angle(30)] * 5, dtype=np.float32)
    vectors[::2] = np.nextafter(vectors[::2], 2, dtype=np.float32)
    cosines = Targets(np.array([angle(5), angle(70)], dtype=np.float32), [0, 1], {}).cosines(vectors)
    assert round_robin(cosines) == [0, 1, 2, 3, 4]


def test_no_record_has_a_vector() -> None:
    made = bench(dict.fromkeys("ab", NONE), TARGETS)
    ready = RDS(target="x").prepare(made)
    assert ready.found is not None and not ready.found.places and made.kept["targets"]["target"] == []


def test_what_cannot_be() -> None:
    with pytest.raises(SettingsError, match="`rds` needs a target set"):
        RDS().prepare(bench(RECORDS, TARGETS))
    with pytest.raises(SettingsError, match="`by` is `round-robin`, `max` or `mean`, not `min`"):
        RDS(by="min")  # type: ignore[arg-type]

"""wICI and NUGGETS: whom they probe, and what they make of what they read. Numbers by hand."""

from __future__ import annotations

import math

import pytest

from tests.scorers.bench import Bench, angle, example, nll
from tithe.errors import DataError, SettingsError
from tithe.records import Nll, Problem
from tithe.scorers.nuggets import Nuggets
from tithe.scorers.wici import WICI, Probe

# Three bundles of three, each a degree wide; `x1` is the middle of the first.
BUNDLES = {f"{name}{i}": angle(at + i - 1) for name, at in (("x", 0), ("y", 60), ("z", 120)) for i in range(3)}


def bench(means: dict[tuple[str, str], float | Problem] | None = None, names: list[str] | None = None) -> Bench:
    examples = [example(name, i) for i, name in enumerate(names or BUNDLES)]
    return Bench(examples, vectors=BUNDLES, means=means or {})


def probes(scorer: WICI) -> dict[str, list[str]]:
    assert scorer.found is not None
    return {id_: [probe.example.id for probe in found] for id_, found in scorer.found.items()}


def test_probes_are_the_hardest_of_each_cluster_near() -> None:
    """IFD is given / alone, alone is 1: of x the hardest is x2, of y y0, of z z1; x2 itself has x0 in its place."""
    hard: dict[tuple[str, str], float | Problem] = {("given", name): 0.5 for name in BUNDLES}
    hard |= {
        ("given", "x2"): 0.9,
        ("given", "y0"): 0.8,
        ("given", "z1"): 0.7,
        ("given", "x0"): 0.6,
        ("given", "z0"): 0.55,
    }
    made = bench(hard)
    found = probes(WICI(near=8, probes=3).prepare(made))
    assert {id_: set(each) for id_, each in found.items()} == {
        **{name: {"x2", "y0", "z1"} for name in BUNDLES if name not in ("x2", "y0", "z1")},
        "x2": {"x0", "y0", "z1"},
        "y0": {"x2", "y1", "z1"},  # of y1 and y2, equally hard, the nearer one
        "z1": {"x2", "y0", "z0"},
    }  # fmt: skip
    assert set(made.kept["probes"]) == {"id", "probe", "similarity"} and len(made.kept["probes"]["id"]) == 27
    assert probes(WICI(near=2, probes=2).prepare(made))["x1"] == ["x0", "x2"]


def test_no_probe_without_a_number_of_its_own() -> None:
    none = Problem("no response token left")
    made = bench({("given", "x0"): none, ("alone", "y0"): none, ("given", "z0"): 1.2})
    found = probes(WICI(near=8, probes=8).prepare(made))
    assert set(found) == set(BUNDLES)  # they are scored all the same, as worked examples
    assert set().union(*map(set, found.values())) == set(BUNDLES) - {"x0", "y0"}
    found = probes(WICI(near=8, probes=8, terms="positive").prepare(made))
    assert set().union(*map(set, found.values())) == set(BUNDLES) - {"x0", "y0", "z0"}
    hopeless = bench({("alone", name): none for name in BUNDLES if name != "x0"})
    with pytest.raises(DataError, match="of 9 only 1 can be probes"):
        WICI().prepare(hopeless)


def scorer(terms: str = "all") -> WICI:
    """Probes p, q and r at distances 0.2, 0.4 and 1, of IFD 0.8, 0.5 and 0.9, all alone 2 nats a token."""
    given = {"p": 1.6, "q": 1.0, "r": 1.8}
    far = {"p": 0.2, "q": 0.4, "r": 1.0}
    found = {"a": [Probe(example(name), nll(given[name]), nll(2.0), far[name]) for name in given]}
    return WICI(terms=terms, found=found)  # type: ignore[arg-type]


def test_the_weighted_sum() -> None:
    """Shown a, p falls to 1.2 / 2 (helps by 0.2), q rises to 1.4 / 2 (harms by 0.2), r stays."""
    answers = {"probe0": nll(1.2), "probe1": nll(1.4), "probe2": nll(1.8)}
    assert scorer().score(example("a"), answers) == pytest.approx((0.2 * 0.2 - 0.4 * 0.2 + 0) / (2 * 3))
    assert scorer("positive").score(example("a"), answers) == pytest.approx(0.2 * 0.2 / (2 * 3))
    assert {ask.spec.example.id for ask in scorer().asks(example("a")).values()} == {"p", "q", "r"}
    assert {tuple(s.id for s in ask.spec.shots) for ask in scorer().asks(example("a")).values()} == {("a",)}


def test_a_probe_without_room_is_in_neither_sum_nor_number() -> None:
    assert scorer().score(example("a"), {"probe1": nll(1.4)}) == pytest.approx(-0.4 * 0.2 / 2)
    assert scorer().score(example("a"), {}) == Problem("no other record can be a probe")


def test_the_same_tokens_of_a_probe_are_compared() -> None:
    """Alone, a tokenizer without BOS leaves the first of three tokens unscored: it counts nowhere."""
    probe = Probe(example("p"), Nll(9.0, 3, 5.0), Nll(8.0, 2, math.nan), 1.0)
    got = WICI(found={"a": [probe]}).score(example("a"), {"probe0": Nll(7.0, 3, 5.0)})
    assert got == pytest.approx((4 / 8 - 2 / 8) / 2)


@pytest.mark.parametrize("settings", [{"probes": 0}, {"near": 3}, {"terms": "some"}])
def test_wici_refuses(settings: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        WICI(**settings)  # type: ignore[arg-type]


def test_anchors_are_the_records_nearest_to_the_centres() -> None:
    """Three bundles, three centres: the middle of each bundle."""
    made = bench()
    ready = Nuggets(anchors=3, encoder="tfidf").prepare(made)
    assert ready.found is not None
    assert [anchor.example.id for anchor in ready.found] == ["x1", "y1", "z1"] == made.kept["anchors"]["id"]
    assert made.embedded == [(9, "tfidf")] and made.said == []
    assert list(ready.asks(example("x0"))) == ["anchor0", "anchor1", "anchor2"]
    assert list(ready.asks(example("x1"))) == list(ready.asks(example("x1-1"))) == ["anchor1", "anchor2"]


def test_few_records_are_all_anchors() -> None:
    made = bench(names=["x0", "y0", "z0"])
    ready = Nuggets().prepare(made)
    assert made.embedded == [] and made.said == ["note: 3 records are no more than 100 anchors: each is one"]
    assert len(ready.asks(example("x0"))) == 2


def test_the_share_that_is_helped() -> None:
    """Zero-shot all have 1 nat a token: helped, not helped, exactly as before, which is no help."""
    ready = Nuggets(anchors=3).prepare(bench())
    answers = {"anchor0": nll(0.9), "anchor1": nll(1.1), "anchor2": nll(1.0)}
    assert ready.score(example("x0"), answers) == pytest.approx(1 / 3)
    assert ready.score(example("x0"), {"anchor0": nll(0.9), "anchor2": nll(0.8)}) == 1.0
    assert isinstance(ready.score(example("x0"), {}), Problem)


def test_an_anchor_that_cannot_be_scored_is_none() -> None:
    none = Problem("no response token left")
    ready = Nuggets(anchors=3).prepare(bench({("given", "y1"): none}))
    assert ready.found is not None and [anchor.example.id for anchor in ready.found] == ["x1", "z1"]
    with pytest.raises(DataError, match="of 3 anchor tasks only 1 can be scored"):
        Nuggets(anchors=3).prepare(bench({("given", "y1"): none, ("given", "z1"): none}))

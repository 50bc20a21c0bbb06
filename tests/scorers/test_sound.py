"""Sound on a workbench whose hidden states are made up so that the truth is known."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

from tests.gate.small import pool_of
from tithe.engine.readouts.base import READOUTS
from tithe.errors import DataError, SettingsError
from tithe.gate.damage import COPY, draw_records
from tithe.gate.probes import Line, Probes, SoundMargin
from tithe.records import Answer, Ask, Example, Nll, Problem, States, Vector
from tithe.scorers.sound import LOWEST_AUC, Sound, logistic
from tithe.testing import FakeBench
from tithe.testing.fake_bench import digest

POOL = pool_of(120)
LOSS = Nll(20.0, 10, 2.0)  # the same for all: it says nothing
SETTINGS: dict[str, Any] = {"records": 100, "kinds": "shuffled+repeats"}


def states_of(example: Example, shift: float) -> States:
    """Draw states by the id; a copy's response is shifted."""
    random = np.random.default_rng(list(digest(example.id, 8)))
    values = random.normal(size=(2, 3, 4))
    if example.id.startswith(COPY):
        values[:, 1, 0] -= shift
    return States(values.astype(np.float32))


@dataclass
class StatesBench(FakeBench):
    """A workbench that can fit probes.

    Args:
        states: what the model shows of a record.
        probes: what was fitted.
        asked: all asks.
    """

    examples: Sequence[Example] = tuple(POOL)
    states: Callable[[Example], Answer | Problem] = lambda example: states_of(example, 4.0)
    probes: Probes | None = None
    asked: list[Mapping[str, Ask]] = field(default_factory=list)

    @property
    def made_up(self) -> bool:
        return False

    def answers(self, asks: Sequence[Mapping[str, Ask]]) -> Sequence[Mapping[str, Answer | Problem]]:
        self.asked += asks
        return [{name: self.answer(ask) for name, ask in each.items()} for each in asks]

    def answer(self, ask: Ask) -> Answer | Problem:
        found = self.states(ask.spec.example)
        return LOSS if ask.readout == "nll" and isinstance(found, States) else found

    def keep_probes(self, probes: Probes) -> None:
        self.probes = probes


@pytest.fixture(scope="module")
def bench() -> StatesBench:
    return StatesBench()


@pytest.fixture(scope="module")
def ready(bench: StatesBench) -> Sound:
    return Sound(**SETTINGS).prepare(bench)


def test_drawn_records_are_scored_by_probes_that_have_not_seen_them(bench: StatesBench, ready: Sound) -> None:
    assert ready.learned is not None and bench.probes is not None
    drawn = draw_records(POOL, 100, 0)
    assert set(ready.learned.own) == {one.id for one in drawn}
    assert [copy.example.id.partition(COPY)[1] for copy in ready.learned.copies] == [COPY] * 100
    margins = [ready.score(one, {"given": states_of(one, 4.0), "loss": LOSS}) for one in drawn]
    outputs = np.stack([bench.probes(states_of(one, 4.0).values) for one in drawn])
    in_sample = ready.learned.margin(outputs[:, :4], np.full(len(drawn), LOSS.mean)).tolist()
    assert np.corrcoef(margins, in_sample)[0, 1] > 0.8 and margins != pytest.approx(in_sample, abs=1e-3)  # type: ignore[arg-type]
    assert ready.asks(drawn[0])["given"].readout == "parts"


def test_others_are_scored_by_the_probes_of_all(bench: StatesBench, ready: Sound) -> None:
    assert ready.learned is not None and bench.probes is not None
    other = next(one for one in POOL if one.id not in ready.learned.own)
    assert ready.asks(other)["given"].readout == "probes"
    margin = SoundMargin(Line(2.0, 5.0), Line(0.5, -1.0))  # a loss of 2 gives log odds of 1
    plain = replace(ready, learned=replace(ready.learned, margin=margin))
    outputs = [1.0, 2.0, 3.0, 0.5, 2.0, 0.5]
    answers = {"given": Vector(np.array(outputs, dtype=np.float32)), "loss": LOSS}
    least = -math.log(sum(math.exp(-one) for one in (1.0, 2.0, 3.0, 0.5, 1.0)))
    assert plain.score(other, answers) == pytest.approx(0.5 * least - 1.0)
    # The kinds are in the order of their names: repeats, shuffled.
    assert plain.more(other, answers) == {
        "probability": pytest.approx(1 / (1 + math.exp(1.0 - 0.5 * least))),
        "looks_like": "repeats",
        "looks_like_probability": pytest.approx(1 / (1 + np.exp(-2.0))),
    }


def test_what_is_noted_said_and_kept(bench: StatesBench, ready: Sound) -> None:
    assert bench.notes["drawn"] == bench.notes["copies"] == 100
    # Two layers shifted by 4 each: at best Phi(sqrt(32 / 2)).
    assert bench.notes["auc"] > 0.9 and set(bench.notes["auc_by_kind"]) == {"repeats", "shuffled"}
    assert bench.notes["estimated_damage"] < 0.1
    assert bench.said[0].startswith("sound: 100 drawn records against 100 damaged copies, held out: AUC ")
    table = bench.kept["damage"]
    assert len(table["id"]) == len(table["kind"]) == len(table["sound"]) == len(table["taught"]) == 200
    assert all(one.startswith(COPY) == bool(kind) for one, kind in zip(table["id"], table["kind"], strict=True))


def test_the_order_of_the_pool_does_not_matter(bench: StatesBench, ready: Sound) -> None:
    other = StatesBench(examples=tuple(reversed(POOL)))
    assert Sound(**SETTINGS).prepare(other).learned == ready.learned
    assert other.probes is not None and bench.probes is not None
    assert other.probes.fingerprint == bench.probes.fingerprint


def test_a_seed_draws_other_records(ready: Sound) -> None:
    other = Sound(**SETTINGS, seed=1).prepare(StatesBench())
    assert other.learned is not None and ready.learned is not None
    assert set(other.learned.own) != set(ready.learned.own) and other.learned.seed == 1


def test_what_is_asked_later_is_read_with_the_records_and_not_with_the_copies() -> None:
    bench = StatesBench()
    replace(Sound(**SETTINGS), along=("count",)).prepare(bench)
    assert [sorted(ask.readout for ask in each.values()) for each in bench.asked] == (
        [["count", "nll", "parts"]] * 100 + [["nll", "parts"]] * 100
    )
    assert "nll" in READOUTS


def test_several_copies_of_each() -> None:
    bench = StatesBench()
    Sound(**SETTINGS, copies=2).prepare(bench)
    assert (bench.notes["drawn"], bench.notes["copies"]) == (100, 200)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("trim", [0.0, 0.3])
def test_a_model_that_sees_no_difference_is_refused(seed: int, trim: float) -> None:
    """Also with trimming, which must not teach the probes who was held out."""
    bench = StatesBench(states=lambda example: states_of(example, 0.0))
    with pytest.raises(DataError, match="this model cannot tell damage in this data: AUC 0") as caught:
        Sound(**SETTINGS, trim=trim, seed=seed).prepare(bench)
    assert caught.value.hint == "take a larger model, or leave the gate out"
    assert bench.notes["auc"] < LOWEST_AUC and bench.probes is None


def test_copies_that_look_like_the_records_are_refused() -> None:
    """Random labels: each copy shows just what its record does."""
    bench = StatesBench(states=lambda example: states_of(replace(example, id=example.id.rpartition(":")[2]), 0.0))
    with pytest.raises(DataError, match="this model cannot tell damage"):
        Sound(**SETTINGS).prepare(bench)


def test_a_model_that_tells_no_more_than_the_length_does_is_refused() -> None:
    """The pool's responses are about equally long, and every cut one is shorter: length alone has an AUC of 1."""
    with pytest.raises(DataError, match=r"1\.00 by their length alone"):
        Sound(records=100, kinds="cut").prepare(StatesBench(states=lambda example: states_of(example, 20.0)))


def test_records_that_the_model_cannot_read_are_left_out_with_their_copies() -> None:
    gone = {one.id for one in draw_records(POOL, 100, 0)[:7]}
    lost = draw_records(POOL, 100, 0)[7].id  # only its copy cannot be read

    def states(example: Example) -> Answer | Problem:
        unreadable = example.id in gone or (example.id.startswith(COPY) and example.id.endswith(f":{lost}"))
        return Problem("out of memory") if unreadable else states_of(example, 4.0)

    bench = StatesBench(states=states)
    found = Sound(**SETTINGS).prepare(bench)
    assert (bench.notes["drawn"], bench.notes["copies"]) == (92, 92)
    assert found.learned is not None and not {*gone, lost} & set(found.learned.own)


def test_nothing_that_can_be_read_is_refused_with_its_reason() -> None:
    bench = StatesBench(states=lambda example: Problem("out of memory"))
    with pytest.raises(DataError, match="read none of the 100 drawn records and their copies: out of memory"):
        Sound(**SETTINGS).prepare(bench)


def test_a_small_pool_is_refused() -> None:
    with pytest.raises(DataError, match="`sound` draws 400 records, and there are 120 different ones") as caught:
        Sound().prepare(StatesBench())
    assert "sound(records=120)" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"records": 0}, "at least one record and copy, not 0 and 1"),
        ({"copies": 0}, "at least one record and copy, not 400 and 0"),
        ({"trim": 0.6}, "`trim` is between 0 and 0.5, not 0.6"),
        ({"trim": -0.1}, "`trim` is between 0 and 0.5, not -0.1"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Sound(**settings)


def test_an_unknown_kind_is_named() -> None:
    with pytest.raises(SettingsError, match="shuffeld") as caught:
        Sound(records=100, kinds="cut+shuffeld").prepare(StatesBench())
    assert "shuffled" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("value", "expected"), [(-1e6, 0), (-700.5, 0), (-1.0, 1 / (1 + math.e)), (0.0, 0.5), (40.0, 1), (1e6, 1)]
)
def test_the_logistic_of_any_margin(value: float, expected: float) -> None:
    assert logistic(value) == pytest.approx(expected, abs=1e-15)

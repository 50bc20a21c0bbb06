"""The contract of scorers that prepare: each fault that it promises to notice is planted once."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import pytest

from tests.scorers.bench import spec_of
from tithe import plugins
from tithe.errors import SettingsError
from tithe.records import Answer, Ask, Example, Problem
from tithe.scorers.base import LEARNED, NOTHING_SCORED, Scorer, Workbench, given, learns, nll, settings_of, shown
from tithe.testing import FakeBench, check_scorer


@dataclass(frozen=True)
class Next(Scorer):
    """High: the next record in front makes this one harder.

    Args:
        step: how far away the next one is.
    """

    name: ClassVar[str] = "next"
    unit: ClassVar[str] = "nats per token"
    reads: ClassVar[str] = "shown: nll"

    step: int = 1
    after: Mapping[str, Example] | None = field(default=None, metadata=LEARNED, repr=False, compare=False)

    def prepare(self, bench: Workbench) -> Any:
        rows = bench.examples
        bench.keep("after", {"id": [one.id for one in rows]})
        return replace(self, after={one.id: rows[(i + self.step) % len(rows)] for i, one in enumerate(rows)})

    def asks(self, example: Example) -> dict[str, Ask]:
        assert self.after is not None
        return {"one": Ask(shown(example, [self.after[example.id]]), "nll")}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        answer = nll(answers, "one")
        return answer.mean if answer.tokens else NOTHING_SCORED


@dataclass(frozen=True)
class Resets(Next):
    """High: as above."""

    def prepare(self, bench: Workbench) -> Any:
        return replace(super().prepare(bench), step=2)


@dataclass(frozen=True)
class Shows(Next):
    """High: as above."""

    after: Mapping[str, Example] | None = field(default=None, metadata=LEARNED)


@dataclass(frozen=True)
class Mutates(Next):
    """High: as above."""

    def prepare(self, bench: Workbench) -> Any:
        ready = super().prepare(bench)
        object.__setattr__(self, "after", ready.after)
        return ready


@dataclass(frozen=True)
class Draws(Next):
    """High: as above."""

    def prepare(self, bench: Workbench) -> Any:
        rows = list(bench.examples)
        return replace(self, after={one.id: random.choice([x for x in rows if x is not one]) for one in rows})


@dataclass(frozen=True)
class Stumbles(Next):
    """High: as above."""

    def prepare(self, bench: Workbench) -> Any:
        raise KeyError("nobody")


@dataclass(frozen=True)
class Changes(Next):
    """High: as above."""

    def prepare(self, bench: Workbench) -> Any:
        ready = super().prepare(bench)
        return Next(ready.step, ready.after)


@dataclass(frozen=True)
class Strays(Next):
    """High: as above."""

    def asks(self, example: Example) -> dict[str, Ask]:
        assert self.after is not None
        return {"one": Ask(given(self.after[example.id]), "nll")}


@pytest.mark.slow
def test_a_good_one_passes() -> None:
    bench = FakeBench()
    check_scorer(Next, bench=bench)
    check_scorer(Next(step=2))
    assert list(bench.kept) == ["after"]


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (Resets, "changes a setting"),
        (Shows, "the learned field `after` is shown or compared"),
        (Mutates, "changes the scorer"),
        (Draws, "two preparations on the same data ask differently"),
        (Stumbles, "raises KeyError"),
        (Changes, "returns Next"),
        (Strays, "is about another example"),
    ],
)
def test_a_faulty_one_is_noticed(fault: type[Scorer], message: str) -> None:
    random.seed(0)
    with pytest.raises(AssertionError, match=message):
        check_scorer(fault)


def test_a_fake_bench_is_the_same_each_time() -> None:
    one, other = FakeBench(), FakeBench()
    assert (one.embed(one.examples, "x") == other.embed(other.examples, "x")).all()
    assert abs((one.embed(one.examples, "x") ** 2).sum(axis=1) - 1).max() < 1e-6
    asks = [{"given": Ask(given(example), "nll"), "tokens": Ask(given(example), "count")} for example in one.examples]
    assert one.answers(asks) == other.answers(asks)
    assert {example.id for example in one.load("x")}.isdisjoint(example.id for example in one.examples)
    with pytest.raises(AssertionError, match="different lengths"):
        one.keep("odd", {"a": [1], "b": [1, 2]})


LEARNERS = [name for name in plugins.names(plugins.SCORERS) if learns(plugins.build_scorer(name))]


def test_which_learn() -> None:
    assert {"miwv", "nuggets", "wici"} <= set(LEARNERS) and not {"ifd", "grape"} & set(LEARNERS)


@pytest.mark.parametrize("name", LEARNERS)
def test_what_is_learned_is_nobodys_to_set_or_see(name: str) -> None:
    from tithe.cli.listings import settings_text
    from tithe.run.method import scorer_record

    cls, bare = plugins.scorer(name), plugins.build_scorer(spec_of(name))
    learned = [one.name for one in fields(cls) if one.metadata.get("learned")]
    ready = bare.prepare(FakeBench())
    assert learned
    for field_ in learned:
        assert field_ not in [one.name for one in settings_of(cls)] and f"{field_}=" not in settings_text(cls)
        with pytest.raises(SettingsError, match=f"`{name}` has no setting `{field_}`"):
            plugins.build_scorer(f"{name}({field_}=none)")
        assert field_ not in scorer_record(ready) and f"{field_}=" not in repr(ready)
    assert ready == bare
    unchanged = all(getattr(ready, field_) is getattr(bare, field_) for field_ in learned)
    assert unchanged == (name == "deita")  # which learns from tables alone


@pytest.mark.parametrize(
    "spec",
    [
        "miwv(shots=2)",
        "miwv(shot_pool=x)",
        "miwv(exclude_similarity=0.1)",
        "wici(near=2, probes=1)",
        "wici(terms=positive)",
        "nuggets(anchors=2)",
        "rds(target=x, by=max)",
        "rds(target=x, by=mean)",
        "deita(part=complexity)",
        "deita(part=quality)",
        "selectit(alpha=0)",
    ],
)
def test_other_settings_pass_too(spec: str) -> None:
    check_scorer(plugins.build_scorer(spec))

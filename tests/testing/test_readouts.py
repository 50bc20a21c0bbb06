"""The contract of readouts: ours pass it, and planted faults do not."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

import tithe
from tests.e2e.command import records, write_jsonl
from tithe import plugins
from tithe.engine.forward.states import StateReadout
from tithe.engine.heads.probe import ProbeHead
from tithe.engine.readouts.base import NllReadout, Readout
from tithe.engine.readouts.head_readout import MarginReadout
from tithe.engine.readouts.options import OptionsReadout, Replies
from tithe.engine.readouts.parts import ProbeMargins
from tithe.errors import SettingsError
from tithe.records import Ask, Margin, Nll, Pass, Problem
from tithe.scorers.base import Scorer, given
from tithe.testing import check_readout

REPLIES = Replies(np.array([5, 3], dtype=np.int32), 1, (3, 4, 6))
HEAD = ProbeHead(torch.arange(32.0).reshape(4, 8), torch.tensor(0.5), (0, 1, 2, 3), 4, 8)


def questions() -> list[Pass]:
    """Passes that end with the first reply."""
    return [Pass(np.array([*range(n), 5, 3], dtype=np.int32), n) for n in (2, 6)]


OURS = {
    "nll": lambda: plugins.readout("nll")(),
    "nll_tokens": lambda: plugins.readout("nll_tokens")(),
    "count": lambda: plugins.readout("count")(),
    "weighted": lambda: plugins.readout("weighted")(),
    "options": lambda: OptionsReadout(REPLIES),
    "pooled": lambda: plugins.readout("pooled")("last"),
    "head": lambda: MarginReadout(HEAD, "head-0"),
    "parts": lambda: plugins.readout("parts")(),
    "probes": lambda: ProbeMargins(lambda states: states.astype(np.float64).sum(axis=(0, 2)), "0123456789abcdef"),
}
MORE: dict[str, dict[str, Any]] = {"options": {"argument": "1,2,3", "passes": questions()}}


@pytest.mark.parametrize("name", plugins.names(plugins.READOUTS))
def test_every_registered_readout_passes(name: str) -> None:
    check_readout(OURS[name](), **MORE.get(name, {}))


class Highest(NllReadout):
    """The least likely token of a response: what a package of somebody else's may add."""

    name = "highest"
    version = 1
    fields: ClassVar[dict[str, Any]] = {"highest": "float64"}

    def read(self, view: Any) -> Any:
        if not len(view.nll):
            return Problem("no token has context")
        return {"highest": float(view.nll.max())}

    def answer(self, row: Any) -> Margin:
        return Margin(float(row["highest"]))

    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Margin:
        return Margin(2 * mean)


class OtherKind(Highest):
    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Any:
        return Nll(mean, 1, mean)


class NotMadeUp(Highest):
    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Any:
        return Readout.made_up.__func__(cls, argument, tokens, mean, first)  # type: ignore[attr-defined]


class OtherFields(Highest):
    fields: ClassVar[dict[str, Any]] = {"top": "float64"}


class Rounds(Highest):
    fields: ClassVar[dict[str, Any]] = {"highest": "float32"}

    def read(self, view: Any) -> Any:
        return {"highest": float(view.nll.sum(dtype=np.float64)) / 3} if len(view.nll) else Problem("no token")


class NoVersion(Highest):
    version = 0


class BadName(Highest):
    name = "high est"


class Nothing(Highest):
    def read(self, view: Any) -> Any:
        return Problem(" ")


class Sums(StateReadout):
    """The sum of a response's last states."""

    name = "sums"
    version = 1
    fields: ClassVar[dict[str, Any]] = {"margin": "float64"}
    of_all = False

    def layers(self, count: int) -> Any:
        return (count - 1,)

    def span(self, pass_: Pass) -> range:
        return range(pass_.start, len(pass_.ids))

    def reader(self, passes: Any, model: Any) -> Any:
        return Summing(self.lengths(passes), self.of_all)

    def read(self, view: Any) -> Any:
        return {"margin": float(view.found)}

    def answer(self, row: Any) -> Margin:
        return Margin(row["margin"])

    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Margin:
        return Margin(mean)


class Summing:
    def __init__(self, lengths: Any, of_all: bool) -> None:
        self.lengths, self.of_all = list(lengths), of_all

    def take(self, layer: int, rows: torch.Tensor) -> None:
        rows = rows - rows.mean(0) if self.of_all else rows
        self.found = [part.sum() for part in torch.split(rows, self.lengths)]

    def results(self) -> Any:
        return lambda: self.found


class Neighbours(Sums):
    of_all = True


class NoLayer(Sums):
    def layers(self, count: int) -> Any:
        return (count,)


class NoSpan(Sums):
    def span(self, pass_: Pass) -> range:
        return range(pass_.start, len(pass_.ids) + 1)


class NotPlain(Highest):
    def describe(self) -> dict[str, Any]:
        return {"where": Path()}


FAULTS = [
    (OtherKind, "answer\\(\\) gives Margin, made_up\\(\\) Nll"),
    (NotMadeUp, "made_up\\(\\) raises NotImplementedError"),
    (OtherFields, "gives \\['highest'\\], and `fields` are \\['top'\\]"),
    (Rounds, "got back"),
    (NoVersion, "`version` is a whole number from 1 on, not 0"),
    (BadName, "part of a folder's name"),
    (Nothing, "a `Problem` without a reason"),
    (Neighbours, "in a batch and .* by itself"),
    (NoLayer, "they ascend from 0 to 3"),
    (NoSpan, "span\\(\\) gives"),
    (NotPlain, "which `run.json` cannot"),
]


@pytest.mark.parametrize("good", [Highest, Sums])
def test_a_good_one_passes(good: type[Readout]) -> None:
    check_readout(good)
    check_readout(good())


@pytest.mark.parametrize(("fault", "message"), FAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_a_faulty_one_is_noticed(fault: type[Readout], message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_readout(fault)


@dataclass(frozen=True)
class Surprise(Scorer):
    """High: one token of the response is very unlikely."""

    name: ClassVar[str] = "surprise"
    unit: ClassVar[str] = "nats"
    reads: ClassVar[str] = "given"

    def asks(self, example: Any) -> Any:
        return {"given": Ask(given(example), "highest")}

    def score(self, example: Any, answers: Any) -> Any:
        return answers["given"].value


def test_a_readout_of_another_package_is_one_class_and_one_entry_point(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    own = [
        EntryPoint("highest", f"{__name__}:Highest", plugins.READOUTS),
        EntryPoint("surprise", f"{__name__}:Surprise", plugins.SCORERS),
    ]
    monkeypatch.setattr(
        plugins, "installed", lambda group: [*entry_points(group=group), *(one for one in own if one.group == group)]
    )
    data = write_jsonl(tmp_path / "data.jsonl", records(12))
    how: dict[str, Any] = {"model": "pocket", "device": "cpu", "dtype": "fp32", "run_dir": tmp_path / "run"}
    planned = tithe.plan(data, scorer="surprise", model="pocket")
    assert planned.record["counts"]["passes"] == {"given": 12}
    result = tithe.score(data, scorer="surprise,perplexity", **how)
    assert (result.scores("surprise").values >= np.log(1.0)).all() and not result.scores("surprise").problems
    assert (tmp_path / "run" / "answers" / "highest-v1").is_dir()
    again = tithe.score(data, scorer="surprise", **how)
    assert again.record["work"]["passes_computed"] == 0
    np.testing.assert_array_equal(again.scores().values, result.scores("surprise").values)


def test_an_unknown_readout_is_refused_in_plans_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It was made up as a likelihood before."""
    own = EntryPoint("surprise", f"{__name__}:Surprise", plugins.SCORERS)
    monkeypatch.setattr(
        plugins, "installed", lambda group: [*entry_points(group=group), *([own] if group == own.group else [])]
    )
    data = write_jsonl(tmp_path / "data.jsonl", records(3))
    with pytest.raises(SettingsError, match="scorer `surprise`: unknown readout `highest`") as caught:
        tithe.plan(data, scorer="surprise", model="pocket")
    assert "weighted" in str(caught.value.hint)

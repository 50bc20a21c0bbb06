"""The local runner reads nothing twice and nothing unasked, and gives the same numbers however it is interrupted."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from tests.engine.models import plain, twin
from tithe import runners
from tithe.data.render import RenderSettings, make_renderer
from tithe.engine.engine import Engine
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.loading import load_model
from tithe.engine.model_source import find_model, load_tokenizer
from tithe.engine.readouts.base import READOUTS
from tithe.engine.store.store import Store, answers_name
from tithe.errors import SettingsError
from tithe.records import Answer, Ask, BadRow, Example, Message, Nll, Problem
from tithe.runners.local import LocalRunner, ScoredWindow, prefetch
from tithe.scorers.base import Scorer, given, shown
from tithe.scorers.ifd import IFD
from tithe.scorers.length import Length
from tithe.scorers.perplexity import Perplexity
from tithe.scorers.random import Random

WORDS = ["red", "green", "blue", "book", "friend", "letter", "weather", "answer", "sum", "twelve", "task", "write"]


def examples(count: int = 20, seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)

    def words(n: int) -> str:
        return " ".join(rng.choice(WORDS, n))

    return [
        Example(
            f"{i:04d}", i, 1, (Message("user", words(int(rng.integers(1, 12)))),),
            Message("assistant", words(int(rng.integers(1, 15)))),
        )
        for i in range(count)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def loaded(model_dir: Path) -> LoadedModel:
    return load_model(find_model(str(model_dir)), device="cpu", dtype="fp32")


Make = Callable[..., LocalRunner]


@pytest.fixture
def make(model_dir: Path, loaded: LoadedModel, tmp_path: Path) -> Make:
    """Make a runner on one run folder; each call stands for a new process."""

    def made(
        *scorers: Scorer, budget: int = 120, per_token: bool = False, model: bool = True, folder: Path = tmp_path
    ) -> LocalRunner:
        renderer = make_renderer(load_tokenizer(find_model(str(model_dir))), RenderSettings("chat", max_length=200))
        readouts = ["nll_tokens" if per_token else "nll"]
        stores = {r: Store(folder, READOUTS[r], answers_name("m", "fp32", 1)) for r in readouts} if model else {}
        engine = Engine(loaded, budget=budget, workers=1)
        return LocalRunner(
            {s.name: s for s in scorers}, renderer, (lambda: engine) if model else None, stores, per_token
        )

    return made


def values(scored: list[ScoredWindow]) -> list[Mapping[str, float | Problem]]:
    return [row for window in scored for row in window.scores]


def test_scores_are_the_formula_over_the_twins_numbers(make: Make, model_dir: Path) -> None:
    items, model = examples(), plain(model_dir)
    runner = make(IFD(), Perplexity(), Length(), Random())
    (window,) = runner.run(items)
    for i, row in enumerate(window.scores):
        slots = window.window.slots[i][0]
        means = {}
        for name, slot in slots.items():
            assert not isinstance(slot, Problem)
            pass_ = window.window.passes[slot.index]
            means[name] = float(np.mean(twin(model, pass_)))
            assert pass_.start > 0
        assert row["ifd"] == pytest.approx(means["given"] / means["alone"], rel=1e-5)
        assert row["perplexity"] == pytest.approx(np.exp(means["given"]), rel=1e-4)
        assert row["length"] == pass_.response_tokens
    assert runner.work.passes == len(window.window.passes) and runner.work.reused == runner.work.failed == 0


def test_answers_are_reused(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    items = examples()
    first = make(IFD())
    straight = values(list(first.run(items)))
    again = make(IFD(), Perplexity())
    monkeypatch.setattr(again, "engine", lambda: pytest.fail("everything is answered: no model is needed"))
    resumed = values(list(again.run(items)))
    assert [row["ifd"] for row in resumed] == [row["ifd"] for row in straight]
    assert (again.work.passes, again.work.tokens) == (0, 0)
    assert again.work.reused == first.work.passes


def test_half_answered_is_finished_byte_for_byte(make: Make, tmp_path: Path) -> None:
    """Whichever answers are stored, the missing ones are read in the batches of an uninterrupted run."""
    items = examples(30)
    straight = values(list(make(IFD(), folder=tmp_path / "a").run(items)))
    for seed in range(3):
        folder = tmp_path / f"half-{seed}"
        one = make(IFD(), folder=folder)
        window = one.plan(items)
        keep = np.random.default_rng(seed).random(len(window.passes)) < 0.5
        full = Store(tmp_path / "a", READOUTS["nll"], answers_name("m", "fp32", 1))
        rows = [
            (pass_.key, {"total": a.total, "tokens": a.tokens, "first": a.first})
            for pass_, kept in zip(window.passes, keep, strict=True)
            if kept and isinstance(a := full.get([pass_.key])[pass_.key], Nll)
        ]
        one.stores["nll"].put(rows)
        one.stores["nll"].flush()
        again = make(IFD(), folder=folder)
        assert values(list(again.run(items))) == straight
        assert again.work.reused == keep.sum()
        assert len(Store(folder, READOUTS["nll"], answers_name("m", "fp32", 1))) == len(window.passes)


def test_what_only_counts_runs_without_a_model(make: Make) -> None:
    runner = make(Length(), Random(), model=False)
    rows = values(list(runner.run(examples(5))))
    assert all(isinstance(row["length"], float) and row["length"] >= 1 for row in rows)
    assert runner.work.passes == runner.work.tokens == 0


@dataclass(frozen=True)
class Typo(Scorer):
    """A scorer that asks for an unknown readout."""

    name: ClassVar[str] = "typo"
    unit: ClassVar[str] = "none"
    reads: ClassVar[str] = "given: nl"

    def asks(self, example: Example) -> dict[str, Ask]:
        return {"given": Ask(given(example), "nl")}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        return 0.0


def test_an_unknown_readout_is_named(make: Make) -> None:
    with pytest.raises(SettingsError, match="scorer `typo`: unknown readout `nl`") as caught:
        list(make(Typo()).run(examples(2)))
    assert caught.value.hint == "did you mean `nll`?"


def test_a_readout_without_a_store_is_said(make: Make) -> None:
    """A scorer that asks for more of later examples than of the first."""
    runner = make(Perplexity())
    runner.per_token = True
    with pytest.raises(SettingsError, match="`nll_tokens`"):
        list(runner.run(examples(2)))


def test_tokens_add_up_to_totals(make: Make, tmp_path: Path) -> None:
    items = examples(8)
    plain_ones = values(list(make(IFD(), folder=tmp_path / "a").run(items)))
    for _ in range(2):  # fresh, then from the store
        (window,) = make(IFD(), per_token=True, folder=tmp_path / "b").run(items)
        assert values([window]) == plain_ones
        for answer in window.answers.values():
            assert isinstance(answer, Nll) and answer.per_token is not None
            assert len(answer.per_token) == answer.tokens
            assert answer.total == pytest.approx(float(answer.per_token.sum(dtype=np.float64)))
            assert answer.first == answer.per_token[0]


def test_bad_rows_and_problems_pass_through(make: Make) -> None:
    items: list[Example | BadRow] = list(examples(4))
    items[1] = BadRow(1, "x:2", "no response")
    items[2] = Example("empty", 2, 1, (Message("user", "x"),), Message("assistant", ""))
    (window,) = make(IFD(), Length(), Random()).run(items)
    assert len(window.scores) == 3
    assert isinstance(window.scores[1]["ifd"], Problem) and isinstance(window.scores[1]["length"], Problem)
    assert isinstance(window.scores[1]["random"], float)


def test_out_of_memory_is_tried_again_next_time(
    make: Make, loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tithe.engine.forward.forward.PACK_EVEN", 1)
    monkeypatch.setattr("tithe.engine.engine.gc.collect", lambda: 0)  # slow where pytest and transformers are loaded
    items = examples(12)
    straight = values(list(make(IFD(), folder=tmp_path / "a").run(items)))
    window = make(IFD()).plan(items)
    limit = sorted(len(p.ids) for p in window.passes)[-5]
    assert loaded.head is not None

    def check(module: Any, args: Any, given: dict[str, Any]) -> None:
        if given["input_ids"].numel() + 1 > limit:
            raise torch.OutOfMemoryError("out of memory")

    hook = loaded.head.backbone.register_forward_pre_hook(check, with_kwargs=True)
    short = make(IFD(), budget=limit, folder=tmp_path / "b")
    rows = values(list(short.run(items)))
    hook.remove()
    failed = [i for i, row in enumerate(rows) if isinstance(row["ifd"], Problem)]
    assert short.work.failed == sum(len(p.ids) > limit for p in window.passes) > 0
    assert {str(rows[i]["ifd"]) for i in failed} == {str(Problem("out of memory at batch size 1"))}
    store = Store(tmp_path / "b", READOUTS["nll"], answers_name("m", "fp32", 1))
    assert len(store) == len(window.passes) - short.work.failed
    again = make(IFD(), budget=limit, folder=tmp_path / "b")
    for row, wanted in zip(values(list(again.run(items))), straight, strict=True):
        assert row["ifd"] == pytest.approx(wanted["ifd"], rel=1e-5)
    assert again.work.failed == 0 and again.work.reused == len(store)


@pytest.mark.parametrize("overlapped", [False, True])
def test_windows_come_in_input_order_and_change_nothing(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, overlapped: bool
) -> None:
    items = examples(23)
    straight = values(list(make(IFD(), folder=tmp_path / "a").run(items)))
    real = runners.local.windows
    monkeypatch.setattr("tithe.runners.local.windows", lambda stream, size: real(stream, 5))
    shares: list[float] = []
    runner = make(IFD(), folder=tmp_path / "b")
    runner.progress, runner.overlapped = shares.append, overlapped
    scored = list(runner.run(items))
    assert [e.row for window in scored for e in window.window.examples] == list(range(23))
    for row, wanted in zip(values(scored), straight, strict=True):
        assert row["ifd"] == pytest.approx(wanted["ifd"], rel=1e-5)
    assert sum(shares) == pytest.approx(23)


def test_a_stopped_run_has_kept_what_it_flushed(make: Make, tmp_path: Path) -> None:
    runner = make(IFD())
    stream = runner.run(examples(6))
    next(stream)
    stream.close()
    runner.stores["nll"].flush()
    again = make(IFD())
    list(again.run(examples(6)))
    assert again.work.passes == 0


@dataclass
class Watched:
    """Make a runner with windows of five examples, and a log of the order of its steps."""

    runner: LocalRunner
    read: list[str] = field(default_factory=list)  # names of threads, one a batch


@pytest.fixture
def watched(make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Watched]:
    real = runners.local.windows
    monkeypatch.setattr("tithe.runners.local.windows", lambda stream, size: real(stream, 5))

    def made(name: str, *, overlapped: bool = True) -> Watched:
        one = Watched(make(IFD(), budget=40, folder=tmp_path / name))
        one.runner.overlapped = overlapped
        one.runner.progress = lambda _: one.read.append(threading.current_thread().name)
        return one

    return made


def test_a_window_is_read_while_the_one_before_is_scored(watched: Callable[..., Watched]) -> None:
    items, one = examples(23), watched("a")
    stream = one.runner.run(items)
    next(stream)
    own = threading.current_thread().name
    assert set(one.read) == {own}  # the first window: what loads the model can be interrupted
    next(stream)
    before = len(one.read)
    wait_until(lambda: len(one.read) > before)  # nobody asked for the third
    assert own not in one.read[before:]
    rest = values(list(stream))
    assert rest == values(list(watched("b", overlapped=False).runner.run(items)))[10:]


def test_a_run_that_is_stopped_reads_one_batch_more_at_most(watched: Callable[..., Watched]) -> None:
    items, one = examples(23), watched("a")
    begun, go_on, third = threading.Event(), threading.Event(), list[float]()

    def progress(share: float) -> None:
        if share and len(one.runner.trace.spans) == 2:  # in the third window
            third.append(share)
            begun.set()
            go_on.wait(5)

    one.runner.progress = progress
    stream = one.runner.run(items)
    next(stream), next(stream)
    assert begun.wait(5)
    threading.Timer(0.1, go_on.set).start()
    stream.close()
    assert len(third) == 1 and third[0] < 4.0  # of five examples
    one.runner.progress, passes = lambda _: None, one.runner.work.passes
    assert len(list(one.runner.run(examples(5, seed=1)))) == 1  # that it was stopped once is no matter later
    one.runner.stores["nll"].flush()
    again = watched("a")
    wanted = values(list(watched("b", overlapped=False).runner.run(items)))
    assert values(list(again.runner.run(items))) == wanted
    assert again.runner.work.reused >= passes - 1 > 0


def test_an_error_in_the_thread_that_reads_is_the_runs(
    watched: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = watched("a")
    stream = one.runner.run(examples(23))
    next(stream)
    assert one.runner.engine is not None
    monkeypatch.setattr(one.runner.engine(), "read", fails)
    with pytest.raises(SettingsError, match="no more"):
        list(stream)


def fails(*_: object) -> Iterator[None]:
    raise SettingsError("no more")
    yield


def wait_until(true: Callable[[], bool]) -> None:
    for _ in range(500):
        if true():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come true")


def test_ahead_makes_one_item_while_the_last_is_worked_on() -> None:
    made: list[int] = []
    second = threading.Event()

    def stream() -> Iterator[int]:
        for i in range(4):
            made.append(i)
            if i == 1:
                second.set()
            yield i

    items = prefetch(stream())
    assert next(items) == 0
    assert second.wait(5)
    assert list(items) == [1, 2, 3] and made == [0, 1, 2, 3]


def test_ahead_hands_errors_over() -> None:
    def stream() -> Iterator[int]:
        yield 1
        raise SettingsError("no more")

    items = prefetch(stream())
    assert next(items) == 1
    with pytest.raises(SettingsError, match="no more"):
        next(items)


@dataclass(frozen=True)
class Behind(Scorer):
    """High: unlikely after one or the other of two examples."""

    name: ClassVar[str] = "behind"
    unit: ClassVar[str] = "nats"
    reads: ClassVar[str] = "shown: nll"

    before: tuple[Example, ...]

    def asks(self, example: Example) -> dict[str, Ask]:
        return {shot.id: Ask(shown(example, [shot]), "nll") for shot in self.before}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        return float(len(answers))


@dataclass(frozen=True)
class Tolerant(Behind):
    """High: unlikely after two examples; is content with one of them."""

    name: ClassVar[str] = "tolerant"
    partial: ClassVar[bool] = True


def test_who_can_do_with_some_answers_gets_those(make: Make) -> None:
    """One of twenty examples is too long to fit a shot, so no scorer has a number for it."""
    good, bad = examples(1)[0], Example("bad", 0, 1, (Message("user", "\ud800"),), Message("assistant", "x"))
    long = Example("long", 9, 1, (Message("user", "red " * 120),), Message("assistant", "red"))
    both, none = (good, bad), (bad,)
    runner = make(Behind(both), Tolerant(both))
    rows = values(list(runner.run([*examples(3), long])))
    assert [row["tolerant"] for row in rows[:3]] == [1.0] * 3
    assert all(isinstance(row["behind"], Problem) for row in rows)
    assert rows[0]["behind"].reason.startswith("no worked example: ")
    assert isinstance(rows[3]["tolerant"], Problem)
    (row,) = values(list(make(Tolerant(none)).run(examples(1))))
    assert isinstance(row["tolerant"], Problem)


def test_reading_before_the_scores(make: Make) -> None:
    """The answers equal those of a run, in order, with one window or several, and none is read twice."""
    items = examples(9)
    runner = make(Perplexity())
    read = [answers for _, each in runner.read([IFD().asks(item) for item in items]) for answers in each]
    assert len(read) == 9 and runner.work.passes == 18
    straight = values(list(runner.run(items)))
    assert runner.work.passes == 18
    for answers, row in zip(read, straight, strict=True):
        assert np.exp(answers["given"].mean) == pytest.approx(row["perplexity"])
    assert list(runner.read([])) == []
    with pytest.raises(SettingsError, match="a scorer: unknown readout `nil`"):
        list(runner.read([{"x": Ask(given(items[0]), "nil")}]))


@dataclass(frozen=True)
class Shows(Scorer):
    """A scorer that shows one of a few examples far away in the data."""

    name: ClassVar[str] = "shows"
    unit: ClassVar[str] = "nats per token"
    reads: ClassVar[str] = "given, shown: nll"
    of: Mapping[str, Example] = field(default_factory=dict)

    def asks(self, example: Example) -> dict[str, Ask]:
        return {"zero": Ask(given(example), "nll"), "one": Ask(shown(example, (self.of[example.id],)), "nll")}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        one, zero = answers["one"], answers["zero"]
        assert isinstance(one, Nll) and isinstance(zero, Nll)
        return one.mean - zero.mean


def show_far(items: list[Example]) -> Shows:
    """Shows the five longest examples, each to every fifth example."""
    longest = sorted(items, key=lambda one: -len(one.prompt[0].content + one.response.content))[:6]
    return Shows({one.id: next(shot for shot in longest[i % 5 :] if shot != one) for i, one in enumerate(items)})


def test_examples_that_show_each_other_are_read_next_to_each_other(
    make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Reading in advance gives the same numbers with fewer tokens, and leaves the windows nothing to read."""
    items = examples(60)
    scorer = show_far(items)
    monkeypatch.setattr("tithe.planner.WINDOW", 10)
    straight, ahead_of = (make(scorer, budget=1000, folder=tmp_path / name) for name in "ab")
    wanted = values(list(straight.run(items)))
    assert ahead_of.read_together(items)
    read = (ahead_of.work.passes, ahead_of.work.tokens)
    got = values(list(ahead_of.run(items)))
    assert (ahead_of.work.passes, ahead_of.work.tokens) == read
    assert ahead_of.work.reused == 0
    assert [row["shows"] for row in got] == pytest.approx([row["shows"] for row in wanted], abs=1e-5)
    assert ahead_of.work.tokens < 0.9 * straight.work.tokens
    again = make(scorer, budget=1000, folder=tmp_path / "b")
    monkeypatch.setattr(again, "engine", lambda: pytest.fail("everything is answered: no model is needed"))
    assert again.read_together(items) and values(list(again.run(items))) == got
    assert again.work.reused == ahead_of.work.passes


def test_where_one_window_holds_all_or_nothing_is_shown_nothing_is_read_ahead(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = examples(20)
    runner = make(show_far(items), budget=100)
    assert not runner.read_together(items) and runner.work.passes == 0
    monkeypatch.setattr("tithe.planner.WINDOW", 10)
    assert not make(IFD()).read_together(items)
    own = make(Shows({one.id: one for one in items}))
    assert (
        not own.read_together(items) and own.work.passes == 0
    )  # as candidates of `nuggets`: nothing to bring together


def test_what_failed_is_not_tried_twice_in_a_run(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    items = examples(30)
    monkeypatch.setattr("tithe.planner.WINDOW", 10)
    runner, tried = make(show_far(items)), list[int]()
    engine = runner.engine() if runner.engine else None
    assert engine is not None
    whole = engine.run_forward

    def small(passes: Any, asked: Any, after: Any) -> Any:
        tried.append(len(passes))
        if max(len(pass_.ids) for pass_ in passes) > 60:
            raise torch.OutOfMemoryError("out of memory")
        return whole(passes, asked, after)

    monkeypatch.setattr(engine, "run_forward", small)
    monkeypatch.setattr("tithe.engine.engine.gc.collect", lambda: 0)  # a second each time where pytest is loaded
    assert runner.read_together(items)
    count, failed = len(tried), runner.work.failed
    assert failed > 0
    rows = values(list(runner.run(items)))
    assert (len(tried), runner.work.failed) == (count, failed)
    assert any(isinstance(row["shows"], Problem) for row in rows)
    assert any(isinstance(row["shows"], float) for row in rows)


@pytest.mark.slow
def test_waiting_for_tokens_is_counted_but_for_the_first_window(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tithe.planner.WINDOW", 10)
    runner = make(IFD())
    plan = runner.plan

    def slow(items: Any, encoded: Any) -> Any:
        time.sleep(0.5)
        return plan(items, encoded)

    monkeypatch.setattr(runner, "plan", slow)
    began = time.monotonic()
    assert len(list(runner.run(examples(20)))) == 2
    whole = time.monotonic() - began
    assert 0 < runner.work.waited <= whole - 0.5
    again = make(IFD())
    monkeypatch.setattr(again, "plan", slow)
    assert len(list(again.run(examples(20)))) == 2
    assert again.work.waited == 0  # nothing was to be read

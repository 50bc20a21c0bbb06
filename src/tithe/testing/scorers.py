"""Check that a scorer keeps to the contract."""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tithe.records import Answer, Ask, Example, Problem
from tithe.scorers.base import Scorer, Workbench, learns, settings_of
from tithe.testing.fake_bench import EXAMPLES, Fabricate, FakeBench, describe, fabricate, fabricated, lookup
from tithe.testing.settings import check_settings, check_texts, expect, global_seed

_SECTION = re.compile(r"^\s*(Paper|Formula|Reads|Range|Differs):", re.MULTILINE)


def check_scorer(
    scorer: Scorer | type[Scorer],
    *,
    examples: Sequence[Example] = EXAMPLES,
    answers: Mapping[str, Fabricate] | None = None,
    bench: Workbench | None = None,
) -> None:
    """Assert that a scorer keeps to the contract, on made-up answers, without a model.

    A scorer that prepares is prepared twice, and then checked like any other.

    Args:
        scorer: an instance, or a class that can be created without settings.
        examples: what to score, if the scorer handles only certain examples.
        answers: for readouts of your own, readout -> a function (tokens, mean NLL, is the first token scored) that
            makes up an answer. Registered readouts do so themselves.
        bench: what to prepare with; a `FakeBench` of the examples by default.

    Raises:
        AssertionError: with the rule that was broken.
    """
    one = _made(scorer)
    known = answers or {}
    check_settings(one, "scorer")
    check_texts(one, ("unit", "reads"), "scorer")
    _check_docstring(one)
    if learns(one):
        one = _check_prepare(one, bench or FakeBench(examples, known))
    for example in examples:
        asks = _check_asks(one, example, known)
        for given in fabricated(asks, known):
            _check_score(one, example, given)
        if any(ask.readout.startswith("nll") for ask in asks.values()):
            _check_nothing_scored(one, example, asks, known)
    _check_neighbours(one, examples, known)


def _made(scorer: Scorer | type[Scorer]) -> Scorer:
    cls = scorer if isinstance(scorer, type) else type(scorer)
    title = f"scorer `{cls.__qualname__}`"
    expect(issubclass(cls, Scorer), f"{title}: is not derived from `tithe.scorers.base.Scorer`")
    if not isinstance(scorer, type):
        return scorer
    try:
        return scorer()
    except TypeError as error:
        hint = "give `check_scorer` an instance if it needs settings"
        raise AssertionError(f"{title}: cannot be made without settings ({error}); {hint}") from error


def _check_prepare(one: Scorer, bench: Workbench) -> Scorer:
    """Assert that `prepare` returns a new scorer with equal settings, and only fills fields marked as learned."""
    title = f"scorer `{one.name}`: prepare()"
    before = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    learned = {field.name for field in dataclasses.fields(one)} - {field.name for field in settings_of(one)}
    for field in dataclasses.fields(one):
        plain = field.name not in learned or not (field.compare or field.repr)
        hint = "`field(default=None, metadata=LEARNED, repr=False, compare=False)`"
        expect(plain, f"{title}: the learned field `{field.name}` is shown or compared; {hint}")
    ready, again = _prepared(one, bench, title), _prepared(one, bench, title)
    after = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    expect(_same(before, after), f"{title} changes the scorer; `dataclasses.replace` makes another")
    expect(type(ready) is type(one), f"{title} returns {type(ready).__name__}")
    hint = "a field that it fills is marked: `field(default=None, metadata=LEARNED, repr=False, compare=False)`"
    expect(ready == one and repr(ready) == repr(one), f"{title} changes a setting; {hint}")
    for example in bench.examples:
        message = f"{title}: two preparations on the same data ask differently; take randomness from a `seed` setting"
        expect(ready.asks(example) == again.asks(example), message)
    return ready


def _prepared(one: Scorer, bench: Workbench, title: str) -> Scorer:
    try:
        return one.prepare(bench)
    except Exception as error:
        raise AssertionError(f"{title} raises {type(error).__name__}: {error}") from error


def _check_docstring(one: Scorer) -> None:
    """Assert that a docstring that names a paper also gives formula and range."""
    found = set(_SECTION.findall(type(one).__doc__ or ""))
    missing = {"Formula", "Range"} - found if "Paper" in found else set()
    title = f"scorer `{one.name}`"
    expect(not missing, f"{title}: its docstring names a paper but has no `{min(missing, default='')}:` section")


def _check_asks(one: Scorer, example: Example, known: Mapping[str, Fabricate]) -> dict[str, Ask]:
    title = f"scorer `{one.name}`: asks()"
    before = copy.deepcopy(example)
    asks = one.asks(example)
    expect(isinstance(asks, dict), f"{title} returns {type(asks).__name__}, not a dict")
    for key, ask in asks.items():
        expect(isinstance(key, str) and isinstance(ask, Ask), f"{title} holds {key!r}: {type(ask).__name__}, not `Ask`")
        about = ask.spec.example == example or (learns(one) and example in ask.spec.shots)
        expect(about, f"{title}: `{key}` is about another example; other examples are `shots`")
        hint = "say how to make up its answers: `check_scorer(..., answers={...})`"
        expect(lookup(ask.readout, known) is not None, f"{title}: unknown readout `{ask.readout}`; {hint}")
    expect(example == before, f"{title} changes the example")
    expect(one.asks(example) == asks, f"{title} differs when it is called twice; it may depend on the example only")
    expect(copy.deepcopy(one).asks(example) == asks, f"{title} differs for a copy of the scorer, as a worker has it")
    return asks


def _check_score(one: Scorer, example: Example, answers: Mapping[str, Answer]) -> None:
    title = f"scorer `{one.name}`: score() of {describe(answers)}"
    before = copy.deepcopy((example, dict(answers)))
    score = _score(one, example, answers, title)
    _check_value(score, title)
    expect(_same((example, dict(answers)), before), f"{title} changes what it was given")
    moved = dataclasses.replace(example, row=example.row + 7, where="another file:8")
    for what, other in (
        ("a second call", _score(one, example, answers, title)),
        ("a copy of the scorer", _score(copy.deepcopy(one), example, answers, title)),
        ("the same example in another row", _score(one, moved, answers, title)),
        ("another global random state", _with_other_seed(one, example, answers, title)),
    ):
        hint = "it may depend on the example's content and its answers only"
        expect(other == score, f"{title} is {score!r}, but {other!r} for {what}; {hint}")


def _check_value(score: object, title: str) -> None:
    if isinstance(score, Problem):
        expect(score.reason.strip() != "", f"{title} is a `Problem` without a reason")
        return
    kind = type(score).__name__
    expect(isinstance(score, float), f"{title} is {kind} {score!r}, not a float or a `Problem`; `float(...)` makes one")
    message = f"{title} is {score!r}; what cannot be scored is a `Problem` with its reason"
    expect(isinstance(score, float) and math.isfinite(score), message)


def _check_nothing_scored(
    one: Scorer, example: Example, asks: Mapping[str, Ask], known: Mapping[str, Fabricate]
) -> None:
    """Assert that a response without a scored token gives a `Problem`, neither an exception nor a number."""
    empty = {key: fabricate(ask, known)(0, 0.0, False) for key, ask in asks.items()}
    title = f"scorer `{one.name}`: score() of a response without a scored token"
    score = _score(one, example, empty, title)
    expect(isinstance(score, Problem), f"{title} is {score!r}, not a `Problem`")


def _check_neighbours(one: Scorer, examples: Sequence[Example], known: Mapping[str, Fabricate]) -> None:
    """Assert that a score does not depend on which examples were scored before."""
    work = [(example, fabricated(one.asks(example), known)[-1]) for example in examples]
    # A scorer that keeps state would score the second order differently.
    forth = [one.score(*item) for item in work]
    back = [one.score(*item) for item in reversed(work)][::-1]
    expect(forth == back, f"scorer `{one.name}`: scores depend on which examples were scored before; keep no state")


def _score(one: Scorer, example: Example, answers: Mapping[str, Answer], title: str) -> float | Problem:
    try:
        with np.errstate(all="ignore"):  # only the value is checked, warnings are fine
            return one.score(example, answers)
    except Exception as error:
        hint = "what cannot be scored is a `Problem`, not an exception"
        raise AssertionError(f"{title} raises {type(error).__name__}: {error}; {hint}") from error


def _with_other_seed(one: Scorer, example: Example, answers: Mapping[str, Answer], title: str) -> float | Problem:
    with global_seed(4711):
        return _score(one, example, answers, title)


def _same(one: Any, other: Any) -> bool:
    """Compare two values: arrays by content, and NaN equal to itself."""
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other, equal_nan=True))
    if dataclasses.is_dataclass(one) and not isinstance(one, type):
        pairs = ((getattr(one, field.name), getattr(other, field.name)) for field in dataclasses.fields(one))
        return type(one) is type(other) and all(_same(*pair) for pair in pairs)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(one[key], other[key]) for key in one)
    if isinstance(one, tuple):
        return len(one) == len(other) and all(_same(*pair) for pair in zip(one, other, strict=True))
    return bool(one == other or (one != one and other != other))

"""Check that a selector keeps to the contract."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tithe.errors import SettingsError
from tithe.records import Scores, Selection
from tithe.selectors.base import Selector
from tithe.selectors.budget import Budget
from tithe.testing.settings import check_settings, expect, global_seed

Column: TypeAlias = Callable[[int], npt.NDArray[Any]]

BUDGETS = (1, 7, 0.1, "33%", 1.0, "100-tokens", "2k-tokens", 10_000)
MOST_REASONS = 12


def check_selector(selector: Selector, *, columns: Mapping[str, Column] | None = None) -> None:
    """Assert that a selector keeps to the contract, on generated scores and budgets.

    Args:
        selector: an instance, with the settings to be tested.
        columns: columns that the selector reads beyond `source` (text, some missing), `response_tokens`,
            `prompt_tokens` and `prompt` (a hash, three examples each): name -> a function from a number of examples
            to that many values.

    A selector with a field `encoder` gets vectors, as in a run, and must refuse scores without them.

    Raises:
        AssertionError: with the rule that was broken.
    """
    check_settings(selector, "selector")
    _check_reads(selector)
    made = _columns() | dict(columns or {})
    for title, scores in _pools(made, vectors=hasattr(selector, "encoder")):
        for given in BUDGETS:
            budget = Budget.parse(given)
            if _impossible(scores, budget):  # `_check_refusals` covers it
                continue
            what = f"selector `{selector.name}` on {title} with a budget of `{given}`"
            selection = _select(selector, scores, budget, what)
            _check_complete(scores, selection, what)
            _check_budget(scores, budget, selection, what)
            _check_reasons(scores, selection, what)
    _check_repeatable(selector, made)
    _check_order_free(selector, made)
    _check_refusals(selector, made)


def _columns() -> dict[str, Column]:
    return {
        "source": lambda n: np.array([("web", "book", "web", None)[i % 4] for i in range(n)], dtype=object),
        "response_tokens": lambda n: np.arange(n) % 37 + 1,
        "prompt_tokens": lambda n: np.arange(n) % 11 + 5,
        "prompt": lambda n: np.array([f"{i // 3:016x}" for i in range(n)], dtype=object),
    }


def _check_reads(selector: Selector) -> None:
    """Check `reads` and `encoder`, which a run looks at before anything else of a selector."""
    title = f"selector `{selector.name}`"
    reads = selector.reads
    good = isinstance(reads, tuple) and all(isinstance(one, str) for one in reads)
    expect(good, f"{title}: `reads` is a tuple of column names, not {reads!r}; one name is `(name,)`")
    encoder = getattr(selector, "encoder", "self")
    expect(isinstance(encoder, str) and encoder != "", f"{title}: `encoder` is text, not {encoder!r}")


def _pools(columns: Mapping[str, Column], *, vectors: bool) -> Iterator[tuple[str, Scores]]:
    """Yield scores of the kinds that have exposed faults in selectors."""
    rng = np.random.default_rng(7)
    distinct = rng.permutation(200) / 7
    holes = np.where(np.arange(200) % 3 == 0, np.nan, distinct)
    yield "200 distinct scores", _scores(distinct, columns)
    yield "1,000 examples of three distinct scores", _scores(rng.integers(0, 3, 1000).astype(float), columns)
    yield "200 scores of which every third is missing", _scores(holes, columns)
    yield "40 negative scores", _scores(-1 - distinct[:40], columns)
    yield "40 equal scores", _scores(np.ones(40), columns)
    yield "one example", _scores(np.array([0.5]), columns)
    yield "20 examples without any score", _scores(np.full(20, np.nan), columns)
    yield "no example at all", _scores(np.array([]), columns)
    if vectors:
        yield "40 examples with equal vectors", replace(_scores(distinct[:40], columns), vectors=_unit(40)[[0] * 40])
        yield "200 examples of which four each have equal vectors", _duplicates(holes, columns)


def _scores(values: npt.NDArray[np.float64], columns: Mapping[str, Column]) -> Scores:
    problems = {int(i): ("no response token left", "not finite")[int(i) % 2] for i in np.flatnonzero(np.isnan(values))}
    ids = [f"{i * 7919 % 65536:04x}-example" for i in range(len(values))]
    made = {name: make(len(values)) for name, make in columns.items()}
    return Scores(ids, values, problems, made, vectors=_unit(len(values)))


def _duplicates(values: npt.NDArray[np.float64], columns: Mapping[str, Column]) -> Scores:
    """Return scores in which four examples each share a vector; one of these vectors is zero, of unknown prompts."""
    scores, vectors = _scores(values, columns), _unit(len(values))
    vectors[0] = 0
    return replace(scores, vectors=vectors[np.arange(len(values)) // 4])


def _unit(rows: int) -> npt.NDArray[np.float32]:
    """Return (rows, 16) distinct vectors of length 1, clustered like those of prompts."""
    rng = np.random.default_rng(11)  # a fixed seed: every run checks the same vectors
    centres = rng.normal(size=(7, 16))
    vectors = centres[rng.integers(0, 7, rows)] + 0.5 * rng.normal(size=(rows, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors, dtype=np.float32)


def _impossible(scores: Scores, budget: Budget) -> bool:
    """Tell whether a share comes to less than one row; `_check_refusals` tests that case."""
    return budget.unit == "share" and 0 < len(scores) < 1 / budget.amount


def _select(selector: Selector, scores: Scores, budget: Budget, what: str) -> Selection:
    columns = {name: column.copy() for name, column in scores.columns.items()}
    before = scores.values.copy(), columns, _vectors(scores).copy()
    try:
        selection = selector.select(scores, budget)
    except Exception as error:
        raise AssertionError(f"{what}: raised {type(error).__name__}: {error}") from error
    expect(isinstance(selection, Selection), f"{what}: returns {type(selection).__name__}, not a `Selection`")
    same = np.array_equal(scores.values, before[0], equal_nan=True)
    same = same and all(list(scores.columns[name]) == list(column) for name, column in before[1].items())
    same = same and np.array_equal(_vectors(scores), before[2])
    expect(same, f"{what}: changed the scores it was given; work on a copy")
    return selection


def _vectors(scores: Scores) -> npt.NDArray[np.float32]:
    assert scores.vectors is not None
    return scores.vectors


def _check_complete(scores: Scores, selection: Selection, what: str) -> None:
    kept, dropped = list(selection.kept), list(selection.dropped)
    lost = set(scores.ids) - set(kept) - set(dropped)
    expect(not lost, f"{what}: {len(lost)} examples are neither kept nor dropped, e.g. `{min(lost, default='')}`")
    odd = (set(kept) | set(dropped)) - set(scores.ids)
    expect(not odd, f"{what}: {len(odd)} ids are not of the input, e.g. `{min(odd, default='')}`")
    expect(len(kept) == len(set(kept)), f"{what}: an example is kept twice")
    place = {id_: index for index, id_ in enumerate(scores.ids)}
    for name, ids in ("kept", kept), ("dropped", dropped):
        expect(ids == sorted(ids, key=place.__getitem__), f"{what}: `{name}` is not in input order; see `settle`")


def _check_budget(scores: Scores, budget: Budget, selection: Selection, what: str) -> None:
    kept = len(selection.kept)
    rows = budget.rows(len(scores), len(scores) - len(scores.problems))
    if rows is not None:
        expect(kept <= rows, f"{what}: keeps {kept} rows of {rows}")
        return
    cost = dict(zip(scores.ids, scores.columns["response_tokens"].tolist(), strict=True))
    spent = sum(cost[id_] for id_ in selection.kept)
    expect(spent <= budget.amount, f"{what}: keeps {spent} response tokens of {budget.amount}; see `Budget.take`")


def _check_reasons(scores: Scores, selection: Selection, what: str) -> None:
    for index, problem in scores.problems.items():
        reason = selection.dropped.get(scores.ids[index])
        expect(reason is not None, f"{what}: keeps an example that has no score")
        expect(reason == problem, f"{what}: an example without a score is dropped for `{reason}`, not `{problem}`")
    for reason in set(selection.dropped.values()):
        expect(isinstance(reason, str) and reason.strip() != "", f"{what}: {reason!r} is no reason")
    many = len(selection.reasons())
    message = f"{what}: {many} different reasons cannot be counted; leave numbers and ids out of them"
    expect(many <= MOST_REASONS, message)


def _check_repeatable(selector: Selector, columns: Mapping[str, Column]) -> None:
    """Assert that a second call gives an equal selection, whatever the global random state is."""
    scores, budget = _scores(np.random.default_rng(1).permutation(200) / 3, columns), Budget.parse(30)
    found = []
    for seed, one in enumerate((selector, selector, replace(selector))):
        with global_seed(seed):
            found.append(one.select(scores, budget))
    same = all(list(one.kept) == list(found[0].kept) and one.dropped == found[0].dropped for one in found)
    message = f"selector `{selector.name}`: two calls differ; take randomness from a `seed` setting, keep no state"
    expect(same, message)


def _check_order_free(selector: Selector, columns: Mapping[str, Column]) -> None:
    """Assert that shuffling the input keeps the same examples, where no score is tied."""
    scores = _scores(np.random.default_rng(2).permutation(200) / 3, columns)
    order = np.random.default_rng(3).permutation(200)
    moved = {name: column[order] for name, column in scores.columns.items()}
    ids = [scores.ids[i] for i in order]
    shuffled = Scores(ids, scores.values[order], {}, moved, vectors=_vectors(scores)[order])
    for given in (30, "500-tokens"):
        budget = Budget.parse(given)
        one, other = (set(selector.select(pool, budget).kept) for pool in (scores, shuffled))
        message = f"selector `{selector.name}`: shuffling the input changes {len(one ^ other)} examples of `{given}`"
        expect(one == other, f"{message}; decide by score or id, not by position")


def _check_refusals(selector: Selector, columns: Mapping[str, Column]) -> None:
    """Assert that a selector refuses a share of less than one row, and missing columns or vectors."""
    scores = _scores(np.arange(10.0), columns)
    bare = replace(scores, columns={name: one for name, one in scores.columns.items() if name != "response_tokens"})
    cases = [
        (scores, "1%", "1 % of 10 examples comes to no row"),
        (bare, "50-tokens", "there is no column `response_tokens`"),
    ]
    if hasattr(selector, "encoder"):
        cases.append((replace(scores, vectors=None), "5", "there are no vectors"))
    for name in set(selector.reads) & set(columns):
        without = {other: one for other, one in scores.columns.items() if other != name}
        cases.append((replace(scores, columns=without), "5", f"there is no column `{name}`"))
    for pool, given, why in cases:
        try:
            selector.select(pool, Budget.parse(given))
        except SettingsError:
            continue
        raise AssertionError(f"selector `{selector.name}`: {why}, which must raise SettingsError")

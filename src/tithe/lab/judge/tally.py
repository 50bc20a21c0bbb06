"""Turn reviews, two per prompt in both orders, into wins, ties and losses, and into a win rate with its interval."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from tithe.data.containers import Row
from tithe.data.lines import reading
from tithe.data.sniff import sniff
from tithe.errors import DataError, SettingsError
from tithe.lab.evaluate.measured import Measured
from tithe.records import Problem

LEVEL = 0.95
WORDS = {1: "win", 0: "tie", -1: "loss"}


@dataclass(frozen=True, slots=True)
class ReviewScores:
    """Scores of both sides in one review, whichever was shown first."""

    a: float
    b: float

    @property
    def sign(self) -> int:
        """Return 1 if A has the higher score, -1 if B has it, else 0."""
        return (self.a > self.b) - (self.a < self.b)


@dataclass(frozen=True, slots=True)
class Review:
    """Both reviews of one prompt.

    Args:
        item: the prompt's id, the same in every comparison.
        given: scores with A shown first, or why there are none.
        swapped: scores with B shown first, or why there are none.
        same: whether both answers are the same text; then no judge was asked.
    """

    item: str
    given: ReviewScores | Problem
    swapped: ReviewScores | Problem
    same: bool = False

    @property
    def value(self) -> int | Problem:
        """Return +1 if A wins, -1 if it loses, 0 for a tie: the sign of the sum of both signs.

        Orders that contradict each other are a tie (Li et al. 2024, arXiv 2308.12032, section 4). With a missing review
        there is no verdict, not a tie.
        """
        for one in (self.given, self.swapped):
            if isinstance(one, Problem):
                return one
        assert isinstance(self.given, ReviewScores) and isinstance(self.swapped, ReviewScores)
        total = self.given.sign + self.swapped.sign
        return (total > 0) - (total < 0)


@dataclass(frozen=True)
class Tally:
    """How often A wins, ties and loses.

    Args:
        win: prompts that A wins.
        tie: prompts without a winner.
        loss: prompts that A loses.
        no_verdict: prompts with a missing review; not part of the other counts.
        why: reason -> prompts without a verdict.
        orders: `agree`, `first` (each order prefers the answer shown first), `second` or `else` -> prompts.
        level: confidence level of the interval.
    """

    win: int
    tie: int
    loss: int
    no_verdict: int = 0
    why: Mapping[str, int] = field(default_factory=dict)
    orders: Mapping[str, int] = field(default_factory=dict)
    level: float = LEVEL

    @property
    def n(self) -> int:
        return self.win + self.tie + self.loss

    @property
    def win_rate(self) -> float | None:
        """Return the win rate, from 0 to 2, where 1 means equally good; None if nothing was judged."""
        return win_rate(self.win, self.tie, self.loss) if self.n else None

    @property
    def interval(self) -> dict[str, Any] | None:
        """Return the interval of the win rate; None if nothing was judged."""
        if not self.n:
            return None
        low, high = score_interval(self.win, self.tie, self.loss, self.level)
        return {"low": 1 + low, "high": 1 + high, "level": self.level, "method": METHOD}

    def as_dict(self) -> dict[str, Any]:
        numbers = {"win": self.win, "tie": self.tie, "loss": self.loss, "no_verdict": self.no_verdict, "n": self.n}
        more = {"no_verdict_reasons": dict(self.why), "orders": dict(self.orders)}
        return numbers | {"win_rate": self.win_rate, "interval": self.interval} | more


def tally(reviews: Sequence[Review], level: float = LEVEL) -> Tally:
    """Count reviews."""
    values = [review.value for review in reviews]
    counts = Counter(value for value in values if not isinstance(value, Problem))
    why = Counter(value.reason for value in values if isinstance(value, Problem))
    orders = Counter(order_agreement(review) for review in reviews if not isinstance(review.value, Problem))
    return Tally(counts[1], counts[0], counts[-1], why.total(), dict(why.most_common()), dict(orders), level)


def order_agreement(review: Review) -> str:
    """Say how the verdicts of the two orders agree."""
    assert isinstance(review.given, ReviewScores) and isinstance(review.swapped, ReviewScores)
    signs = (review.given.sign, review.swapped.sign)
    if signs[0] == signs[1]:
        return "agree"
    return {(1, -1): "first", (-1, 1): "second"}.get(signs, "else")


def judge_measured(reviews: Sequence[Review], name: str, about: Mapping[str, Any] | None = None) -> Measured:
    """Return the reviews as a metric: +1, 0 or -1 for A per prompt, or why there is no verdict.

    Args:
        reviews: one per prompt.
        name: name of the prompt set; the metric is `judge <name>`.
        about: what the values depend on.
    """
    values = {review.item: review.value for review in reviews}
    there = {item: value for item, value in values.items() if not isinstance(value, Problem)}
    return Measured(
        metric=f"judge {name}",
        kind="number",
        unit="win - loss",
        higher_is_better=True,
        items=tuple(there),
        values=np.array([*there.values()], dtype=np.float64),
        problems={item: value.reason for item, value in values.items() if isinstance(value, Problem)},
        about=dict(about or {}),
    )


def win_rate(wins: int, ties: int, losses: int) -> float:
    """Return 1 + (wins - losses) / all: 2 if A always wins, 1 if both are equally good, 0 if A always loses.

    As in Jiang et al. 2026, arXiv 2511.07074, and Li et al. 2024, arXiv 2308.12032.

    Raises:
        SettingsError: a count is negative, or nothing was judged.
    """
    if min(wins, ties, losses) < 0 or wins + ties + losses == 0:
        raise SettingsError(f"no win rate of {wins} wins, {ties} ties and {losses} losses")
    return 1 + (wins - losses) / (wins + ties + losses)


METHOD = "score interval of a difference of paired proportions (Tango 1998)"


def score_interval(wins: int, ties: int, losses: int, level: float = 0.95) -> tuple[float, float]:
    """Return the confidence interval of (wins - losses) / all, within -1 and 1.

    An item is +1, 0 or -1, so wins and losses depend on each other: their difference is distributed like that of the
    discordant pairs of a McNemar table. The interval holds the differences that a score test at `1 - level` does not
    reject (Wilson's idea). Unlike a bootstrap's, it has a width even with 80 of 80 wins.

    Paper:    Tango 1998, Equivalence test and confidence interval for the difference in proportions for the
              paired-sample design, Statistics in Medicine 17, 891-908
    Formula:  (W - L - n d)^2 = z^2 n (2 q + d (1 - d)), solved for d on both sides of (W - L) / n, where q is the
              likeliest share of losses if the difference were d

    Args:
        wins: items of +1.
        ties: items of 0.
        losses: items of -1.
        level: confidence level, between 0 and 1.

    Raises:
        SettingsError: the level or a count is out of range, or nothing was counted.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    n = wins + ties + losses
    if min(wins, ties, losses) < 0 or n == 0:
        raise SettingsError(f"no interval of {wins} wins, {ties} ties and {losses} losses")
    if not 0 < level < 1:
        raise SettingsError(f"the confidence level is {level}, it must be between 0 and 1", hint="for example 0.95")
    z2 = float(norm.isf((1 - level) / 2)) ** 2

    def beyond(d: float, more: int, fewer: int) -> float:
        """Return a value above 0 if the score test rejects the difference d."""
        q = share_of_losses(d, more, fewer, n)
        return (more - fewer - n * d) ** 2 - z2 * n * (2 * q + d * (1 - d))

    def upper(more: int, fewer: int) -> float:
        """Return the upper end; the lower one is that of the swapped counts, negated."""
        at = (more - fewer) / n
        if more == n:
            return 1.0
        # `beyond` is at most 0 at the estimate itself, and with ties only it is exactly 0 there: start just above it.
        return float(brentq(beyond, at + 1e-9, 1.0, args=(more, fewer), xtol=1e-12))

    return -upper(losses, wins), upper(wins, losses)


def share_of_losses(d: float, wins: int, losses: int, n: int) -> float:
    """Return the likeliest share of losses among n items if that of wins is larger by d: the root of a quadratic."""
    b = (2 * n - wins + losses) * d - wins - losses
    return (sqrt(max(0.0, b * b + 8 * n * losses * d * (1 - d))) - b) / (4 * n)


OWN, CHERRY = ("item", "given", "swapped"), ("scores", "scores_reverse")  # fields of our records, and Cherry_LLM's


def read_reviews(path: Path) -> list[Review]:
    """Read a file of reviews: our own, or one that the authors of IFD (Cherry_LLM) published.

    Raises:
        DataError: the file cannot be read, or a record is not a review; says which record, and what it lacks.
    """
    with reading(path):
        if not path.is_file():
            raise DataError(f"no file `{path}`")
    found = []
    for number, row in enumerate(sniff(path).rows(), 1):
        try:
            found.append(review_of(row, number))
        except ValueError as error:
            raise DataError(f"{row.where}, record {number}: {error}", hint=hint_of(row.record)) from None
    if not found:
        raise DataError(f"`{path}` holds no reviews")
    most, times = Counter(review.item for review in found).most_common(1)[0]
    if times > 1:
        raise DataError(f"`{path}` holds {times} reviews of the prompt `{most}`", hint="each prompt is counted once")
    return found


def hint_of(record: Any) -> str | None:
    """Name the layouts that can be read, for a record that is of neither."""
    known = isinstance(record, Mapping) and any(name in record for name in (*OWN, *CHERRY))
    return None if known else "it must come from `tithe judge compare`, or be a review file of Cherry_LLM"


def review_of(row: Row, number: int) -> Review:
    """Read one record of either layout.

    Raises:
        ValueError: says what is wrong with the record.
    """
    if row.fault is not None:
        raise ValueError(row.fault)
    record = row.record
    if not isinstance(record, Mapping):
        raise ValueError("it is not an object")
    if any(name in record for name in CHERRY):
        demand_fields(record, CHERRY)
        # The first number belongs to the answer shown first: `Answer1` in `scores`, `Answer2` in `scores_reverse`.
        given, swapped = (number_pair(record[name], name) for name in CHERRY)
        return Review(f"record {number}", cherry_scores(given), cherry_scores(swapped, swap=True))
    demand_fields(record, OWN)
    item = record["item"]
    if not isinstance(item, str):
        raise ValueError("`item` is not a text")
    given_scores, swapped_scores = (own_scores(record[name], name) for name in ("given", "swapped"))
    return Review(item, given_scores, swapped_scores, record.get("same") is True)


def demand_fields(record: Mapping[str, Any], names: tuple[str, ...]) -> None:
    """Check that a record has these fields.

    Raises:
        ValueError: one is missing.
    """
    missing = [name for name in names if name not in record]
    if missing:
        there = ", ".join(f"`{str(name)[:40]}`" for name in [*record][:8]) or "nothing"
        raise ValueError(f"`{missing[0]}` is missing: there is {there}")


def own_scores(value: Any, name: str) -> ReviewScores | Problem:
    """Read scores as we write them: `{"a": 8, "b": 6}`, or `{"problem": "why"}`."""
    if isinstance(value, Mapping) and isinstance(value.get("problem"), str):
        return Problem(value["problem"])
    if isinstance(value, Mapping) and number(value.get("a")) and number(value.get("b")):
        return ReviewScores(float(value["a"]), float(value["b"]))
    raise ValueError(f"`{name}` holds neither the numbers `a` and `b` nor a `problem`")


def number_pair(value: Any, name: str) -> tuple[float, float]:
    """Read two numbers, from a list or from the text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"`{name}` is `{value[:40]}`, it must be two numbers") from None
    if isinstance(value, list) and len(value) == 2 and all(map(number, value)):
        return float(value[0]), float(value[1])
    raise ValueError(f"`{name}` is `{str(value)[:40]}`, it must be two numbers")


def cherry_scores(scores: tuple[float, float], swap: bool = False) -> ReviewScores | Problem:
    """Return scores of Cherry_LLM; FastChat's scripts, on which it builds, mark a reply without scores by -1."""
    if min(scores) < 0:
        return Problem(f"scores of {scores[0]:g} and {scores[1]:g}, which mark a reply without scores")
    return ReviewScores(*(scores[::-1] if swap else scores))


def number(value: Any) -> bool:
    """Return whether a value is a number that a float can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max

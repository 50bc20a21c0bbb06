"""Two reviews a prompt, one in each order -> win, tie, loss or no verdict -> one number with its interval."""

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
from tithe.data.packed import reading
from tithe.data.sniff import sniff
from tithe.errors import DataError, SettingsError
from tithe.lab.evaluate.measured import Measured
from tithe.records import Problem

LEVEL = 0.95
WORDS = {1: "win", 0: "tie", -1: "loss"}


@dataclass(frozen=True, slots=True)
class Scored:
    """What one review gives to each side, wherever it was shown."""

    a: float
    b: float

    @property
    def sign(self) -> int:
        return (self.a > self.b) - (self.a < self.b)


@dataclass(frozen=True, slots=True)
class Review:
    """Both reviews of one prompt.

    Args:
        item: the prompt's name, the same in every comparison.
        given: A shown first.
        swapped: B shown first.
        same: both answers are the same text; nobody was asked.
    """

    item: str
    given: Scored | Problem
    swapped: Scored | Problem
    same: bool = False

    @property
    def value(self) -> int | Problem:
        """+1 A wins, -1 it loses, 0 neither: the sign of the sum of both signs, so that orders in conflict are a tie.

        Li et al. 2024, arXiv 2308.12032, section 4; a review that is missing makes no tie.
        """
        for one in (self.given, self.swapped):
            if isinstance(one, Problem):
                return one
        assert isinstance(self.given, Scored) and isinstance(self.swapped, Scored)
        total = self.given.sign + self.swapped.sign
        return (total > 0) - (total < 0)


@dataclass(frozen=True)
class Tally:
    """How often A wins.

    Args:
        win: prompts.
        tie: prompts.
        loss: prompts.
        no_verdict: prompts that a review is missing of, in none of the numbers.
        why: reason -> prompts without a verdict.
        orders: how the two orders go together: `agree`, `first` (twice for the one shown first), `second`, `else`.
        level: of the interval.
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
        """Between 0 and 2, 1 is as good as the other; None where nothing was judged."""
        return win_rate(self.win, self.tie, self.loss) if self.n else None

    @property
    def interval(self) -> dict[str, Any] | None:
        """Of the win rate."""
        if not self.n:
            return None
        low, high = score_interval(self.win, self.tie, self.loss, self.level)
        return {"low": 1 + low, "high": 1 + high, "level": self.level, "method": METHOD}

    def as_dict(self) -> dict[str, Any]:
        numbers = {"win": self.win, "tie": self.tie, "loss": self.loss, "no_verdict": self.no_verdict, "n": self.n}
        more = {"no_verdict_reasons": dict(self.why), "orders": dict(self.orders)}
        return numbers | {"win_rate": self.win_rate, "interval": self.interval} | more


def tally(reviews: Sequence[Review], level: float = LEVEL) -> Tally:
    """Count."""
    values = [review.value for review in reviews]
    counts = Counter(value for value in values if not isinstance(value, Problem))
    why = Counter(value.reason for value in values if isinstance(value, Problem))
    orders = Counter(order_of(review) for review in reviews if not isinstance(review.value, Problem))
    return Tally(counts[1], counts[0], counts[-1], why.total(), dict(why.most_common()), dict(orders), level)


def order_of(review: Review) -> str:
    """How the two orders go together."""
    assert isinstance(review.given, Scored) and isinstance(review.swapped, Scored)
    signs = (review.given.sign, review.swapped.sign)
    if signs[0] == signs[1]:
        return "agree"
    return {(1, -1): "first", (-1, 1): "second"}.get(signs, "else")


def judge_measured(reviews: Sequence[Review], name: str, about: Mapping[str, Any] | None = None) -> Measured:
    """Per prompt +1, 0 or -1 for A, or why there is no verdict.

    Args:
        reviews: each prompt once.
        name: of the prompt set: the metric is `judge <name>`.
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
    """1 + (wins - losses) / all: 1 is as good as the other, 2 wins always, 0 never.

    As in Jiang et al. 2026, arXiv 2511.07074, and Li et al. 2024, arXiv 2308.12032.

    Raises:
        SettingsError: a negative count, or nothing was judged.
    """
    if min(wins, ties, losses) < 0 or wins + ties + losses == 0:
        raise SettingsError(f"no win rate of {wins} wins, {ties} ties and {losses} losses")
    return 1 + (wins - losses) / (wins + ties + losses)


METHOD = "score interval of a difference of paired proportions (Tango 1998)"


def score_interval(wins: int, ties: int, losses: int, level: float = 0.95) -> tuple[float, float]:
    """Confidence limits of (wins - losses) / all, between -1 and 1.

    An item is +1, 0 or -1, so that wins and losses are dependent: their difference has the distribution of the
    discordant pairs of a McNemar table. The limits are the differences that a score test at `1 - level` does not
    refuse (Wilson's idea); with 80 of 80 wins they still have a width, which a bootstrap's do not.

    Paper:    Tango 1998, Equivalence test and confidence interval for the difference in proportions for the
              paired-sample design, Statistics in Medicine 17, 891-908
    Formula:  (W - L - n d)^2 = z^2 n (2 q + d (1 - d)), solved for d on both sides of (W - L) / n, where q is the
              likeliest share of losses if the difference were d

    Args:
        wins: items of +1.
        ties: items of 0.
        losses: items of -1.
        level: of confidence, between 0 and 1.

    Raises:
        SettingsError: a level that is none, or nothing was counted.
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    n = wins + ties + losses
    if min(wins, ties, losses) < 0 or n == 0:
        raise SettingsError(f"no interval of {wins} wins, {ties} ties and {losses} losses")
    if not 0 < level < 1:
        raise SettingsError(f"a confidence level of {level} cannot be", hint="for example 0.95")
    z2 = float(norm.isf((1 - level) / 2)) ** 2

    def beyond(d: float, more: int, fewer: int) -> float:
        """Above 0 where the score test refuses the difference d."""
        q = share_of_losses(d, more, fewer, n)
        return (more - fewer - n * d) ** 2 - z2 * n * (2 * q + d * (1 - d))

    def upper(more: int, fewer: int) -> float:
        at = (more - fewer) / n
        if more == n:
            return 1.0
        # At the estimate itself the difference is 0, also with nothing but ties: the root sought lies above it.
        return float(brentq(beyond, at + 1e-9, 1.0, args=(more, fewer), xtol=1e-12))

    return -upper(losses, wins), upper(wins, losses)


def share_of_losses(d: float, wins: int, losses: int, n: int) -> float:
    """The likeliest share of losses among n items, if that of wins were greater by d: the root of a quadratic."""
    b = (2 * n - wins + losses) * d - wins - losses
    return (sqrt(max(0.0, b * b + 8 * n * losses * d * (1 - d))) - b) / (4 * n)


OWN, CHERRY = ("item", "given", "swapped"), ("scores", "scores_reverse")


def read_reviews(path: Path) -> list[Review]:
    """Both reviews of every prompt.

    Raises:
        DataError: the file cannot be read, or a record is no review: which, and what it lacks.
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
    known = isinstance(record, Mapping) and any(name in record for name in (*OWN, *CHERRY))
    return None if known else "read are what `tithe judge compare` writes, and the review files of Cherry_LLM"


def review_of(row: Row, number: int) -> Review:
    """One record of either layout.

    Raises:
        ValueError: what is wrong with it.
    """
    if row.fault is not None:
        raise ValueError(row.fault)
    record = row.record
    if not isinstance(record, Mapping):
        raise ValueError("it is no object")
    if any(name in record for name in CHERRY):
        demand(record, CHERRY)
        # In `scores` the first number is that of `Answer1`, in `scores_reverse` that of `Answer2`, which stood first.
        given, swapped = pair(record["scores"], "scores"), pair(record["scores_reverse"], "scores_reverse")
        return Review(f"record {number}", of(given), of(swapped, swap=True))
    demand(record, OWN)
    item = record["item"]
    if not isinstance(item, str):
        raise ValueError("`item` is not a text")
    return Review(item, own(record["given"], "given"), own(record["swapped"], "swapped"), record.get("same") is True)


def demand(record: Mapping[str, Any], names: tuple[str, ...]) -> None:
    missing = [name for name in names if name not in record]
    if missing:
        there = ", ".join(f"`{str(name)[:40]}`" for name in [*record][:8]) or "nothing"
        raise ValueError(f"`{missing[0]}` is missing: there is {there}")


def own(value: Any, name: str) -> Scored | Problem:
    """A review as we write it: `{"a": 8, "b": 6}`, or `{"problem": "why"}`."""
    if isinstance(value, Mapping) and isinstance(value.get("problem"), str):
        return Problem(value["problem"])
    if isinstance(value, Mapping) and number(value.get("a")) and number(value.get("b")):
        return Scored(float(value["a"]), float(value["b"]))
    raise ValueError(f"`{name}` holds neither the numbers `a` and `b` nor a `problem`")


def pair(value: Any, name: str) -> tuple[float, float]:
    """Two numbers, as a list or as the text of one."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError(f"`{name}` is `{value[:40]}`, it must be two numbers") from None
    if isinstance(value, list) and len(value) == 2 and all(map(number, value)):
        return float(value[0]), float(value[1])
    raise ValueError(f"`{name}` is `{str(value)[:40]}`, it must be two numbers")


def of(scores: tuple[float, float], swap: bool = False) -> Scored | Problem:
    """-1 is how FastChat's scripts, and those made of them, mark a reply without scores."""
    if min(scores) < 0:
        return Problem(f"scores of {scores[0]:g} and {scores[1]:g}, which mark a reply without scores")
    return Scored(*(scores[::-1] if swap else scores))


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max

"""What is said of a head; the verdict first."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Interval:
    """A number with its 95 % bootstrap interval over prompts."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Alone:
    """What one number of a response tells without a head.

    Args:
        auc: in the direction that tells the tiers apart better, so at least 0.5.
        higher: whether a higher number means the high tier.
    """

    auc: float
    higher: bool


@dataclass(frozen=True)
class HeadReport:
    """How well a head tells the tiers apart.

    Args:
        high: examples of the high tier; low: of the low one.
        prompts: distinct prompts.
        auc: of the margins.
        length: of the response's tokens alone; nll: of the model's own likelihood alone.
        over_length: AUC of the head minus AUC of length, on the same resamples.
        length_rho: Spearman correlation of margin and length; None where one of them is constant.
        within: mean over prompts with both tiers of the share of (high, low) pairs in order; None without such prompts.
        within_prompts: how many prompts have both tiers.
        brier: mean squared error of the probability; ece: expected calibration error over ten bins.
        slope: of a logistic recalibration of the margins, 1 is calibrated; intercept: 0 is calibrated.
    """

    high: int
    low: int
    prompts: int
    auc: Interval
    length: Alone
    nll: Alone
    over_length: Interval
    length_rho: float | None
    within: float | None
    within_prompts: int
    brier: float
    ece: float
    slope: float
    intercept: float

    @property
    def better_than_length(self) -> bool:
        """The whole interval of the difference is above 0."""
        return self.over_length.low > 0

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"better_than_length": self.better_than_length, **asdict(self)}

    def lines(self) -> list[str]:
        """For a terminal; the verdict first."""
        worse = self.over_length.high < 0
        verdict = "better than" if self.better_than_length else "WORSE than" if worse else "NOT SHOWN TO BE BETTER than"
        longer, likely = ("longer", "shorter")[not self.length.higher], ("less", "more")[not self.nll.higher]
        rho = "undefined, all are equal" if self.length_rho is None else f"{self.length_rho:+.3f}"
        within = "no prompt has both tiers" if self.within is None else f"{self.within:.3f}"
        return [
            f"the head is {verdict} response length: AUC {self.auc.value:.3f}, length alone {self.length.auc:.3f}, "
            f"difference {self.over_length}",
            f"on {self.high + self.low} responses to {self.prompts} prompts: {self.high} high, {self.low} low",
            f"AUC of the head: {self.auc}",
            f"AUC of length alone: {self.length.auc:.3f}, {longer} is high",
            f"AUC of the model's likelihood alone: {self.nll.auc:.3f}, {likely} likely is high",
            f"Spearman correlation of margin and length: {rho}",
            f"AUC within prompts: {within} ({self.within_prompts} prompts with both tiers)",
            f"calibration: Brier score {self.brier:.3f}, expected error {self.ece:.3f}, slope {self.slope:.2f}, "
            f"intercept {self.intercept:+.2f}",
        ]

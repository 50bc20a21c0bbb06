"""How sure a difference of wins and losses is."""

from __future__ import annotations

from math import sqrt

from tithe.errors import SettingsError

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

"""Wins, ties and losses as one number."""

from __future__ import annotations

from tithe.errors import SettingsError


def win_rate(wins: int, ties: int, losses: int) -> float:
    """1 + (wins - losses) / all: 1 is as good as the other, 2 wins always, 0 never.

    As in Jiang et al. 2026, arXiv 2511.07074, and Li et al. 2024, arXiv 2308.12032.

    Raises:
        SettingsError: a negative count, or nothing was judged.
    """
    if min(wins, ties, losses) < 0 or wins + ties + losses == 0:
        raise SettingsError(f"no win rate of {wins} wins, {ties} ties and {losses} losses")
    return 1 + (wins - losses) / (wins + ties + losses)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tithe.errors import SettingsError
from tithe.lab.judge.tally import win_rate

# Jiang et al. 2026, Table 3: wins, ties and losses of 1 % of Alpaca against all of it, LLaMA-7B, five judge sets.
SIZES = {"vicuna": 80, "koala": 180, "wizardlm": 218, "self-instruct": 252, "lima": 300}
MIWV = {
    "vicuna": (39, 16, 25),
    "koala": (76, 52, 52),
    "wizardlm": (97, 62, 59),
    "self-instruct": (100, 81, 71),
    "lima": (136, 74, 90),
}
IFD = {
    "vicuna": (30, 12, 38),
    "koala": (56, 58, 66),
    "wizardlm": (62, 49, 107),
    "self-instruct": (86, 67, 99),
    "lima": (122, 62, 116),
}


@pytest.mark.parametrize("table", [MIWV, IFD], ids=["miwv", "ifd"])
def test_the_papers_tables_add_up(table: dict[str, tuple[int, int, int]]) -> None:
    assert {name: sum(counts) for name, counts in table.items()} == SIZES


def test_by_hand() -> None:
    assert win_rate(39, 16, 25) == 1.175  # 14 more wins than losses, of 80
    assert win_rate(30, 12, 38) == pytest.approx(0.9)
    assert win_rate(1, 0, 0) == 2 and win_rate(0, 0, 7) == 0 and win_rate(0, 3, 0) == win_rate(5, 1, 5) == 1


@pytest.mark.parametrize("name", SIZES)
def test_the_paper_says_miwv_wins_more(name: str) -> None:
    assert win_rate(*MIWV[name]) > win_rate(*IFD[name])


COUNT = st.integers(0, 10_000)


@given(wins=COUNT, ties=COUNT, losses=st.integers(1, 10_000))
def test_the_other_side_sees_the_mirror_image(wins: int, ties: int, losses: int) -> None:
    assert win_rate(wins, ties, losses) + win_rate(losses, ties, wins) == pytest.approx(2)


@pytest.mark.parametrize("counts", [(0, 0, 0), (-1, 2, 3)])
def test_nothing_judged(counts: tuple[int, int, int]) -> None:
    with pytest.raises(SettingsError, match="no win rate"):
        win_rate(*counts)

"""`docs/which.md`: the costs that it names are those that a plan counts, and it has every scorer."""

from __future__ import annotations

import json
import re
from importlib.metadata import distribution
from pathlib import Path

import pytest

import tithe
from tithe import plugins

PAGE = (Path(__file__).resolve().parents[1] / "docs" / "which.md").read_text(encoding="utf-8")
RECORDS = 600


def costs() -> dict[tuple[str, ...], tuple[int, float]]:
    """Scorers of a row of the table of costs -> tokens a record, and times those of `ifd`."""
    table = PAGE.split("\n## What a scorer costs\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| (`[^|]+`) \| [^|]+ \| ([\d,]+) \| ([\d.]+) \|$", table, re.M)
    return {
        tuple(re.findall(r"`([\w,]+)`", names)): (int(tokens.replace(",", "")), float(times))
        for names, tokens, times in rows
    }


def tokens(scorer: str, target: Path) -> int:
    settings = {"target": str(target)} if scorer == "rds" else {}
    counts = tithe.plan("starter", scorer=scorer, model="pocket", **settings).record["counts"]
    assert counts["examples"] == RECORDS
    return round(counts["forward_tokens"] / RECORDS)


@pytest.mark.parametrize("names", [n for n in costs() if not {"wici", "nuggets"} & set(n)], ids=lambda n: n[0])
@pytest.mark.slow
def test_a_scorer_costs_what_the_page_says(names: tuple[str, ...], tmp_path: Path) -> None:
    target = tmp_path / "few.jsonl"
    target.write_text(json.dumps({"instruction": "Say hello.", "output": "Hello."}) + "\n")
    said, times = costs()[names]
    assert {tokens(name, target) for name in names} == {said}
    assert round(said / costs()[("ifd", "superfiltering")][0], 1) == times


@pytest.mark.slow
@pytest.mark.thorough
@pytest.mark.parametrize("name", ["wici", "nuggets"])
def test_the_expensive_ones_do_too(name: str, tmp_path: Path) -> None:
    said, times = costs()[(name,)]
    assert tokens(name, tmp_path) == said and said / costs()[("ifd", "superfiltering")][0] == pytest.approx(
        times, rel=0.01
    )


def test_every_scorer_is_in_all_three_tables() -> None:
    points = distribution("tithe").entry_points.select(group=plugins.SCORERS)
    ours = {point.name for point in points}
    counted = {one for names in costs() for name in names for one in name.split(",")}
    assert ours - counted == {"cpqs"}  # which needs a head, and has a sentence of its own
    favoured = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", PAGE.split("favours\n")[1], re.M))))
    assert ours - favoured == {"random"}

"""How often an experiment's verdict is wrong, and how often it sees an effect: `python benchmarks/verdict.py`.

Simulated experiments go through the comparison that real ones go through: values of every arm, seed and item, paired
differences, the two-way test, Holm over all arms. Under the null at most 5 % may say that some arm is better than
random; with an effect the share that sees it is compared with the power that was computed beforehand.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import numpy as np

from tithe.lab.evaluate.comparison import Comparison, compare, corrected
from tithe.lab.evaluate.measured import Measured
from tithe.lab.evaluate.paired import Spread, power

ITEMS = 300
# Standard deviations of a run, of an arm on an item, and of a run on an item.
WORLDS = {"no scatter": (0.0, 0.3, 0.5), "little": (0.02, 0.3, 0.5), "some": (0.1, 0.3, 0.5), "much": (0.4, 0.3, 0.5)}
UNREAD = ("item_test", "detectable", "items_needed", "seeds_needed")  # what no verdict reads takes most of the time


def values(
    rng: np.random.Generator, kind: str, seeds: int, world: tuple[float, float, float], effect: float
) -> np.ndarray:
    """(seeds, items) of one arm, above what all arms share: normal, heavy-tailed (t of three), or right and wrong."""
    run, taste, rest = world
    if kind == "heavy":
        noise = rng.standard_t(3, (seeds, ITEMS)) / np.sqrt(3) * rest + rng.standard_t(3, ITEMS) / np.sqrt(3) * taste
    else:
        noise = rng.normal(0, rest, (seeds, ITEMS)) + rng.normal(0, taste, ITEMS)
    return effect + rng.normal(0, run, (seeds, 1)) + noise


def experiments(
    times: int, arms: int, seeds: int, kind: str, world: tuple[float, float, float], effect: float
) -> Iterator[list[Comparison]]:
    """Comparisons of so many experiments; the first arm has the effect."""
    names = tuple(map(str, range(ITEMS)))
    rng = np.random.default_rng(0)
    for _ in range(times):
        hard = rng.normal(0, 1, ITEMS)
        made = [hard + values(rng, kind, seeds, world, effect if arm == 0 else 0.0) for arm in range(arms + 1)]
        right = kind == "right"
        made = [(one > 0).astype(float) if right else one for one in made]
        runs = [[Measured("m", "right" if right else "number", "u", True, names, row) for row in one] for one in made]
        yield corrected([compare(runs[i], runs[-1], names=(str(i), "random"), budget="5%") for i in range(arms)])


def null_row(times: int, arms: int, seeds: int, kind: str, world: str) -> dict[str, object]:
    found = list(experiments(times, arms, seeds, kind, WORLDS[world], 0.0))
    better = np.mean([any(one.verdict == "better" for one in ones) for ones in found])
    either = np.mean([any(one.verdict in ("better", "worse") for one in ones) for ones in found])
    row = {"seeds": seeds, "arms": arms, "values": kind, "scatter": world}
    return row | {"says better": round(float(better), 4), "better or worse": round(float(either), 4)}


def power_row(times: int, seeds: int, world: str, shift: float) -> dict[str, object]:
    """One arm, an effect of so many standard errors; a difference of two arms has twice an arm's variances."""
    spread = Spread(seeds, ITEMS, *(2 * s**2 for s in WORLDS[world]))
    effect = shift * np.sqrt(spread.variance())
    found = list(experiments(times, 1, seeds, "normal", WORLDS[world], effect))
    seen = np.mean([ones[0].verdict == "better" for ones in found])
    row = {"seeds": seeds, "scatter": world, "effect": round(float(effect), 4)}
    return row | {"computed": round(power(effect, spread, 0.05), 4), "seen": round(float(seen), 4)}


def table(rows: list[dict[str, object]]) -> str:
    lines = ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
    return "\n".join(lines + ["| " + " | ".join(map(str, row.values())) + " |" for row in rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=2000)
    parser.add_argument("-o", "--output", type=Path, help="JSON file of the numbers")
    given = parser.parse_args()
    began = time.monotonic()
    unread = {name: lambda *_: None for name in UNREAD}
    with (
        patch.multiple("tithe.lab.evaluate.comparison", **unread),
        patch("gc.collect"),
    ):  # statsmodels calls it each time
        nulls = [
            null_row(given.experiments, arms, seeds, kind, world)
            for seeds in (3, 5)
            for arms in (1, 7)
            for kind in ("normal", "heavy", "right")
            for world in WORLDS
            if kind == "normal" or (arms == 7 and seeds == 3)
        ]
        powers = [power_row(given.experiments, s, w, shift) for s in (3, 5) for w in WORLDS for shift in (2.0, 4.0)]
    print(f"No effect: share of {given.experiments:,} experiments that say so of some arm\n\n{table(nulls)}\n")
    print(f"An effect: share of {given.experiments:,} experiments that see it\n\n{table(powers)}")
    if given.output:
        about = {"machine": platform.processor() or platform.machine(), "python": platform.python_version()}
        about |= {"command": "python benchmarks/verdict.py", "experiments": given.experiments, "items": ITEMS}
        about |= {"numpy": np.__version__, "seconds": round(time.monotonic() - began, 1)}
        given.output.write_text(json.dumps(about | {"null": nulls, "power": powers}, indent=2) + "\n")


if __name__ == "__main__":
    main()

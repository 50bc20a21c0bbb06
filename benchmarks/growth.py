"""What grows with a run, in bytes a record: score table, answers, and hashes of what came before; without any model.

    python benchmarks/growth.py --records 10000,100000,1000000

Windows of made-up records and answers go through the objects that a `tithe score --scorer ifd` keeps for its whole
length, as its loop would hand them over. Resident memory is told before the results are written, and then how far it
grows while the score table is.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tithe.data.ids import Occurrences
from tithe.engine.readouts.base import READOUTS
from tithe.engine.store.store import Store
from tithe.planner import Cost
from tithe.run.folder import SCORES, write_table
from tithe.run.table import ScoreTable

WINDOW = 4096


def resident() -> int:
    """Bytes that the process holds, after giving back what it does not use."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def written(table: ScoreTable, path: Path) -> str:
    """Write a score table: by how much the most that the process held was above what it held before."""
    before = resident()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    began = time.monotonic()
    write_table(path, table.parts())
    took = time.monotonic() - began
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    peak = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    return f"{path.stat().st_size / 1e6:.1f} MB written in {took:.1f} s, {(peak - before) / 1e6:.1f} MB more meanwhile"


def window(draw: random.Random, names: Occurrences, first: int) -> tuple[list[str], list[list[bytes]]]:
    """Ids of records, and the keys of their two passes."""
    ids = [names.name(draw.getrandbits(64)) for _ in range(WINDOW)]
    return ids, [[draw.randbytes(16), draw.randbytes(16)] for _ in ids]


class Kept:
    """What a run holds until its end."""

    def __init__(self, folder: Path) -> None:
        self.draw, self.names, self.cost = random.Random(0), Occurrences(), Cost()
        self.table, self.store = ScoreTable(["ifd"]), Store(folder, READOUTS["nll"], "fp32-0")
        self.count = 0

    def add(self) -> None:
        """A window."""
        ids, keys = window(self.draw, self.names, self.count)
        for each in keys:
            self.store.put((key, {"total": self.draw.random(), "tokens": 20, "first": 0.5}) for key in each)
        assert len(self.store.get([key for each in keys for key in each])) == 2 * WINDOW
        passes = [SimpleNamespace(key=key, ids=b"1234", start=1, response_tokens=3) for each in keys for key in each]
        kinds, readouts = ["given", "alone"] * WINDOW, [frozenset(["nll"])] * 2 * WINDOW
        plan: Any = SimpleNamespace(asked=2 * WINDOW, passes=passes, kinds=kinds, readouts=readouts)
        self.cost.add_passes(plan, frozenset(["nll"]))
        for name in ids:
            row = {"id": name, "row": self.count, "turn": 1, "ifd": self.draw.random(), "response_tokens": 300}
            row |= {"nll_given": self.draw.random(), "nll_alone": self.draw.random(), "prompt_tokens": 700}
            self.table.append(row | {"truncated": 0, "shot_tokens_cut": 0}, {}, {})
            self.count += 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="10000,100000,1000000")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        warm = Kept(Path(folder) / "warm")
        warm.add()
        written(warm.table, Path(folder) / SCORES)
        del warm
        before, began = resident(), time.monotonic()
        kept = Kept(Path(folder) / "run")
        for count in map(int, arguments.records.split(",")):
            while kept.count < count:
                kept.add()
            kept.store.flush()
            grown = resident() - before
            each, took = grown / kept.count, time.monotonic() - began
            print(f"{kept.count:,} records: {grown / 1e6:.1f} MB, {each:.0f} bytes each, {took:.0f} s", flush=True)
            print(f"    {SCORES}: {written(kept.table, Path(folder) / SCORES)}", flush=True)


if __name__ == "__main__":
    main()

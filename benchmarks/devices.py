"""Processes against threads on a CPU: the same passes read by one engine with threads, and by one process a core.

    python benchmarks/devices.py --data alpaca.jsonl --records 300 --turns 5

Contenders take turns, each in a process of its own. The clock runs over one reading, after an earlier one by which all
processes had loaded the model. Memory is the most that was held during both, looked at every 50 ms: resident bytes of
each process, and the sum of proportional ones, in which what processes share counts once.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from threading import Event, Thread
from typing import Any

CONTENDERS = {"threads": "cpu", "processes": ""}  # of `processes` the devices: `cpu` for each core


def read(data: Path, records: int, device: str, model: str) -> dict[str, Any]:
    from itertools import islice

    from tithe.engine.readouts.base import READOUTS
    from tithe.report.reporter import Reporter
    from tithe.run.engines import make_engine
    from tithe.run.method import set_up
    from tithe.runners.local import LocalRunner
    from tithe.settings import ScoreSettings

    settings = ScoreSettings(dataset=str(data), model=model, dtype="fp32", device=device)
    setup = set_up(settings)
    runner = LocalRunner(setup.method.scorers, setup.renderer, None, {})
    passes = runner.plan(list(islice(setup.source.dataset, records))).passes
    memory: dict[int, dict[str, int]] = {}
    done = Event()
    watcher = Thread(target=watch, args=(memory, done))
    watcher.start()
    engine = make_engine(settings, setup.source.dataset, setup.model, None, Reporter())
    batches, asked = engine.batches(passes), [[READOUTS["nll"]]] * len(passes)
    for _ in engine.read(passes, batches, asked):
        pass
    while not all(getattr(one, "loaded", True) for one in getattr(engine, "processes", ())):
        list(engine.read(passes[:64], engine.batches(passes[:64]), asked[:64]))
    began = time.perf_counter()
    for _ in engine.read(passes, batches, asked):
        pass
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    engine.close()
    each = [one["rss"] for one in memory.values()]
    tokens = sum(batch.tokens(passes) for batch in batches)
    return {"seconds": seconds, "tokens": tokens, "rss": each, "pss": memory[os.getpid()]["sum"]}


def watch(memory: dict[int, dict[str, int]], done: Event) -> None:
    own = os.getpid()
    while not done.wait(0.05):
        total = 0
        for pid in (own, *map(int, Path(f"/proc/{own}/task/{own}/children").read_text().split())):
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            except OSError:
                continue
            found = {line.split(":")[0]: int(line.split()[1]) for line in lines[1:]}
            total += found["Pss"]
            kept = memory.setdefault(pid, {"rss": 0, "sum": 0})
            kept["rss"] = max(kept["rss"], found["Rss"])
        memory[own]["sum"] = max(memory[own]["sum"], total)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--records", type=int, default=300)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one is not None:
        print(json.dumps(read(given.data, given.records, given.one, given.model)))
        return
    CONTENDERS["processes"] = ",".join(["cpu"] * len(os.sched_getaffinity(0)))
    own = [sys.executable, __file__, "--data", str(given.data), "--records", str(given.records), "--model", given.model]
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for _ in range(given.turns):
        for name, device in CONTENDERS.items():
            out = subprocess.run([*own, "--one", device], check=True, stdout=subprocess.PIPE, text=True).stdout
            found[name].append(json.loads(out.splitlines()[-1]))
            one = found[name][-1]
            each = " + ".join(f"{size / 1024:.0f}" for size in one["rss"])
            print(f"{name}: {one['tokens'] / one['seconds']:,.0f} tokens/s, resident {each} MB", flush=True)
    pairs = zip(found["threads"], found["processes"], strict=True)
    print("seconds, threads / processes:", *(f"{a['seconds'] / b['seconds']:.2f}" for a, b in pairs))
    for name, readings in found.items():
        pss = statistics.median(one["pss"] for one in readings)
        print(f"{name}: {pss / 1024:.0f} MB, what is shared counted once")


if __name__ == "__main__":
    main()

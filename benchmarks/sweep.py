"""One run of several scorers against a run of each, and MIWV with and without reading a shown example once.

    python benchmarks/sweep.py --data alpaca.jsonl --records 2000 --out benchmarks/results/sweep.json

Contenders take turns, each in a process of its own with a run folder of its own, over the same records: `ifd`, `miwv`
and `cpqs` alone; `sweep`, the three together; and `miwv whole`, which reads every pass that shows an example from its
first token on, as `miwv` did before stars. Seconds are of reading: the model is loaded, and the nearest prompts are
found, before the clock starts. The head of CPQS is a probe of random weights. Ratios are taken within a turn. MIWV's
scores of both ways are compared, record by record.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from cpqs import make_heads
from score import machine, make_model

CONTENDERS = {
    "ifd": ("ifd",),
    "miwv": ("miwv",),
    "cpqs": ("cpqs",),
    "sweep": ("ifd", "miwv", "cpqs"),
    "miwv whole": ("miwv",),
}


def child(args: argparse.Namespace) -> None:
    """One contender, as `tithe score` runs it."""
    from tithe.engine import batches
    from tithe.engine.batches import Star
    from tithe.planner import Cost
    from tithe.report.reporter import Reporter
    from tithe.run.engines import EngineCache, EngineLoader
    from tithe.run.method import set_up
    from tithe.run.score import make_runner
    from tithe.run.workbench import RunBench
    from tithe.settings import ScoreSettings

    if args.child == "miwv whole":
        batches.find_stars = lambda passes, single_above=None: (  # type: ignore[assignment]
            [Star((i,)) for i, one in enumerate(passes) if one.shots],
            [i for i, one in enumerate(passes) if not one.shots],
        )
    scorers = CONTENDERS[args.child]
    values = {"dataset": str(args.data), "model": args.model, "scorer": scorers, "dtype": args.dtype}
    values |= {"head": str(args.heads / "probe")} if "cpqs" in scorers else {}
    values |= {"encoder": "tfidf"} if "miwv" in scorers else {}
    setup = set_up(ScoreSettings.of(values | {"workers": args.workers, "truncation": "problem"}))
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        reporter = Reporter()
        load = EngineLoader(EngineCache(reporter), setup.settings, setup.source.dataset, setup.model, place)
        runner = make_runner(setup, place, load, reporter)
        began = time.perf_counter()
        runner.scorers = RunBench(setup, place, runner, Cost(), reporter, place).prepare(setup.method.scorers)
        prepared = time.perf_counter() - began
        assert load().model.forward_path == "packed"
        if "cpqs" in scorers:
            assert load().model.layers
        began = time.perf_counter()
        if setup.method.learns and args.child != "miwv whole":
            runner.read_together(setup.source.examples)
        rows = [row for window in runner.run(setup.source.dataset) for row in window.scores]
        seconds = time.perf_counter() - began
    miwv = [float(v) if isinstance(v := row.get("miwv"), float) else None for row in rows]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out = {"seconds": seconds, "prepare_seconds": prepared, "tokens": runner.work.tokens, "peak_mb": peak}
    print(json.dumps(out | {"passes": runner.work.passes, "miwv": miwv}))


def turn(contender: str, args: argparse.Namespace, scratch: Path, model: str) -> dict[str, object]:
    command = [sys.executable, __file__, "--child", contender, "--model", model, "--dtype", args.dtype]
    command += ["--data", str(scratch / "sample.jsonl"), "--heads", str(scratch), "--workers", str(args.workers)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{contender} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compared(one: list[float | None], other: list[float | None]) -> dict[str, float]:
    """How far MIWV's scores of both ways are apart."""
    assert [v is None for v in one] == [v is None for v in other]
    a, b = (np.array([v for v in values if v is not None]) for values in (one, other))
    return {"records": len(a), "largest": float(np.abs(a - b).max()), "median": float(np.median(np.abs(a - b)))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="records; the first --records are scored")
    parser.add_argument("--model", help="a model; else a Llama with random weights is made")
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--tied", action="store_true", help="one matrix for the embedding and the output head")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--heads", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        lines = args.data.read_text(encoding="utf-8").splitlines()[: args.records]
        (scratch / "sample.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        model = args.model or str(scratch / "model")
        if not args.model:
            make_model(scratch / "model", args.data, args.vocab, args.layers, args.width, args.tied)
        make_heads(scratch, model, args.dtype)
        turns = []
        for number in range(args.runs):
            turns.append({name: turn(name, args, scratch, model) for name in CONTENDERS})
            said = {name: round(float(str(one["seconds"])), 2) for name, one in turns[-1].items()}
            print(f"turn {number + 1}: {said}", file=sys.stderr)
    report = summary(turns) | {"machine": machine(), "command": command(args)}
    text = json.dumps(report, indent=2) + "\n"
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    print(text)


def command(args: argparse.Namespace) -> str:
    made = f"--vocab {args.vocab} --layers {args.layers} --width {args.width}" + (" --tied" if args.tied else "")
    model = f"--model {args.model}" if args.model else made
    flags = f"{model} --dtype {args.dtype} --records {args.records} --workers {args.workers} --runs {args.runs}"
    return f"python benchmarks/sweep.py --data {args.data.name} {flags}"


def summary(turns: list[dict[str, dict[str, object]]]) -> dict[str, object]:
    def of(each: dict[str, dict[str, object]], name: str, what: str = "seconds") -> float:
        return float(str(each[name][what]))

    rows = {
        name: {
            what: statistics.median(of(each, name, what) for each in turns) for what in turns[0][name] if what != "miwv"
        }
        for name in CONTENDERS
    }
    share = [of(each, "sweep") / sum(of(each, name) for name in ("ifd", "miwv", "cpqs")) for each in turns]
    stars = [of(each, "miwv whole") / of(each, "miwv") for each in turns]
    return {
        "contenders": rows,
        "sweep_share_of_three": {"median": statistics.median(share), "turns": share},
        "miwv_times_whole": {"median": statistics.median(stars), "turns": stars},
        "miwv_difference": compared(turns[0]["miwv"]["miwv"], turns[0]["miwv whole"]["miwv"]),  # type: ignore[arg-type]
    }


if __name__ == "__main__":
    main()

"""What a quality head costs beside the forward pass that it reads: tokens per second and peak memory.

    python benchmarks/cpqs.py --data alpaca.jsonl --model pocket --out benchmarks/results/cpqs.json

Contenders take turns, each in a process of its own (so that peak memory is its own), over the same records: the `given`
pass for its likelihoods alone, for a head alone, and for both; and a plain IFD run, which reads two passes. Heads have
random weights of the model's shape: what they say does not matter here. Seconds are of scoring alone, the model loaded.
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

sys.path.insert(0, str(Path(__file__).parent))
from score import machine

CONTENDERS = {
    "likelihoods": ("perplexity",),
    "probe": ("cpqs", "probe"),
    "cnn": ("cpqs", "cnn"),
    "ifd": ("ifd",),
}


def make_heads(folder: Path, model: str, dtype: str) -> None:
    """A probe and a network of random weights over all hidden states of the model."""
    import torch

    from tithe.engine.heads.cnn import CnnHead, ResponseCnn
    from tithe.engine.heads.files import save_head
    from tithe.engine.heads.probe import ProbeHead
    from tithe.lab.heads.settings import HeadSettings
    from tithe.lab.heads.tier_states import HeadModel

    of = HeadModel.open(HeadSettings.of({"dataset": "", "model": model, "dtype": dtype}))
    count, width = of.shape
    torch.manual_seed(0)
    weights = {
        name: w.detach() for name, w in ResponseCnn(count, width, torch.Generator().manual_seed(0)).state_dict().items()
    }
    heads = {
        "cnn": CnnHead.of(weights, tuple(range(count)), count, width),
        "probe": ProbeHead(torch.randn(count, width), torch.tensor(0.0), tuple(range(count)), count, width),
    }
    for name, head in heads.items():
        save_head(folder / name, head, of.card(head, {"report": None}))


def child(args: argparse.Namespace) -> None:
    """One contender, as `tithe score` runs it."""
    from tithe.report.reporter import Reporter
    from tithe.run.engines import make_engine
    from tithe.run.method import set_up
    from tithe.runners.local import LocalRunner
    from tithe.settings import ScoreSettings

    scorer, *head = CONTENDERS[args.child]
    values = {"dataset": str(args.data), "model": args.model, "scorer": (scorer,), "dtype": args.dtype}
    settings = ScoreSettings.of(values | ({"head": str(args.heads / head[0])} if head else {}))
    setup = set_up(settings)
    with tempfile.TemporaryDirectory() as scratch:
        engine = make_engine(settings, setup.source.dataset, setup.model, Path(scratch), Reporter())
        stores = setup.stores(Path(scratch), print)
        runner = LocalRunner(setup.method.scorers, setup.renderer, lambda: engine, stores, readouts=setup.readouts)
        assert engine.model.forward_path
        if head:
            assert engine.model.layers
        began = time.perf_counter()
        scored = sum(len(window.scores) for window in runner.run(setup.source.dataset))
        seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "tokens": runner.work.tokens, "records": scored, "peak_mb": peak}))


def turn(contender: str, args: argparse.Namespace, heads: Path, data: Path) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", contender, "--model", args.model, "--data", str(data)]
    done = subprocess.run(
        [*command, "--heads", str(heads), "--dtype", args.dtype], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{contender} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="records; the first --records are scored")
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--records", type=int, default=1000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--heads", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        make_heads(scratch, args.model, args.dtype)
        head_mb = {name: (scratch / name / "head.safetensors").stat().st_size / 2**20 for name in ("probe", "cnn")}
        lines = args.data.read_text(encoding="utf-8").splitlines()[: args.records]
        (scratch / "sample.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        turns = []
        for number in range(args.runs):
            turns.append({name: turn(name, args, scratch, scratch / "sample.jsonl") for name in CONTENDERS})
            seconds = {name: round(result["seconds"], 2) for name, result in turns[-1].items()}
            print(f"turn {number + 1}: {seconds}", file=sys.stderr)
    rows = {}
    for name in CONTENDERS:
        ratios = [each[name]["seconds"] / each["likelihoods"]["seconds"] for each in turns]
        peaks = [each[name]["peak_mb"] / each["ifd"]["peak_mb"] for each in turns]
        rows[name] = {
            "seconds": statistics.median(each[name]["seconds"] for each in turns),
            "tokens_per_second": statistics.median(each[name]["tokens"] / each[name]["seconds"] for each in turns),
            "times_likelihoods": statistics.median(ratios),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "peak_mb": statistics.median(each[name]["peak_mb"] for each in turns),
            "peak_times_ifd": statistics.median(peaks),
            "head_mb": head_mb.get(name, 0.0),
        }
        print(
            f"  {name:<11} {rows[name]['seconds']:7.2f} s  {rows[name]['tokens_per_second']:8.0f} tokens/s  "
            f"{rows[name]['times_likelihoods']:5.2f} x likelihoods  peak {rows[name]['peak_mb']:5.0f} MB",
            file=sys.stderr,
        )
    flags = f"--model {args.model} --dtype {args.dtype} --records {args.records} --runs {args.runs}"
    report = {"command": f"python benchmarks/cpqs.py {flags}", "machine": machine(), "contenders": rows}
    text = json.dumps(report, indent=2) + "\n"
    if args.out:
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()

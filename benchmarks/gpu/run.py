"""Scoring on a GPU, measured beside what people use instead. `run.sh` says how it is called.

Contenders read the same token ids in one process and take turns as long as time allows. All read the given and the
alone pass of each record (IFD), the loop and the padded batches of a part of the records: their time for all is
reckoned by tokens. Utilisation is the multiplications that a contender's passes need, padding left out and a beginning
that several passes share counted once if it was read once, over time and the fastest square product of the device.
"""

from __future__ import annotations

import argparse
import gc
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(1, str(Path(__file__).resolve().parent.parent))
from contenders import Contender, Sizes, contenders, measure
from engine_paths import compiled_parts, load, packed
from fused import all_ways, compare, other_heads
from job import Job, make_job, work_of
from peak import of_model, squares
from report import Report, differences
from score import machine
from shapes import SHAPES, Shape, build, vocabulary, weigh
from table import table
from where_time_goes import attempted

from tithe.engine.devices import DTYPES, choose_device, choose_dtype, dtype_name
from tithe.engine.forward.attention import Varlen

EXTRAS = ("flash-attn", "liger-kernel", "cut-cross-entropy", "triton")
FIRST_SHARE = 0.4  # of the time, for all models but the last, which is the largest


def device_of(device: torch.device) -> dict[str, Any]:
    there = {name: there for name in EXTRAS if (there := installed(name)) is not None}
    if device.type != "cuda":
        return {"device": device.type, "packages": there}
    about = torch.cuda.get_device_properties(device)
    return {"device": about.name, "memory_gb": about.total_memory / 1e9, "capability": f"{about.major}.{about.minor}",
            "cuda": torch.version.cuda, "packages": there}  # fmt: skip


def installed(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def run_model(shape: Shape, rows: int, job: Job, sizes: Sizes, report: Report, until: float, each: float) -> None:
    """One shape: what it is, how fast its products are, its head, and all contenders in turns."""
    device, dtype, peak = report.device, report.dtype, report.peak
    began = time.perf_counter()
    model = build(shape, rows, device, dtype)
    weights = weigh(model, shape, rows)
    attend = Varlen()
    loaded = load(model, shape.name, device, dtype)
    entry = report.add(weights, {
        "build_seconds": time.perf_counter() - began, "road": loaded.forward_path, "attention": loaded.implementation,
        "fallbacks": loaded.fallbacks, "matmul_tflops": of_model(weights, device, dtype),
    })  # fmt: skip
    assert loaded.head is not None
    heads = all_ways(loaded.head, device)
    entry["head"] = compare(heads, model.get_output_embeddings().weight, peak)
    taken = loaded.head.loss
    entry["loss"] = taken and taken.as_dict()
    report.write()
    with compiled_parts(loaded).on():
        entry["time_goes"] = attempted(packed(loaded, attend), job.passes, sizes.budgets[0])
    report.write()
    everyone = contenders(loaded, attend, other_heads(model, loaded.head, entry["head"]), job, sizes)
    took: dict[str, float] = {}
    exact: dict[int, Any] = {}
    for number, contender in in_turns(everyone, report.turns):
        began = time.perf_counter()
        if report.failed(entry, contender.name):
            continue
        if began + took.get(contender.name, 0.0) > until:
            report.late(entry, contender.name)
            continue
        result, found = measure(contender, loaded, job, min(until, began + each), warm=number == 0)
        took[contender.name] = time.perf_counter() - began - result.get("warm_seconds", 0.0)
        if contender is everyone[0]:
            exact = exact or found
        entry["one_call"] = attend.report()
        report.turn(entry, contender.name, result, differences(found, exact))


def in_turns(everyone: Sequence[Contender], turns: int) -> Iterator[tuple[int, Contender]]:
    """All in each turn, and those that leave the model other than it was when the others have had all theirs."""
    for last in (False, True):
        for number in range(turns):
            yield from ((number, contender) for contender in everyone if contender.last == last)


def main() -> None:
    args = arguments()
    if args.table:
        return print(table(json.loads(args.table.read_text(encoding="utf-8"))))
    from transformers import AutoTokenizer

    began = time.perf_counter()
    device = choose_device(args.device)
    dtype = choose_dtype(args.dtype, device)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    job = make_job(args.data, tokenizer, args.records, args.max_length)
    sizes = Sizes(args.exact_records, args.loop_records, args.batched_records, args.side_records, tuple(args.budgets))
    work = work_of(job.passes)
    report = Report(args.out, device, dtype, args.turns, job.records, work, {
        "command": command(args), "machine": machine() | device_of(device), "dtype": dtype_name(dtype),
        "data": {"file": args.data.name, "tokenizer": args.tokenizer.name, "records": job.records,
                 "left_out": job.left_out, "passes": len(job.passes), "max_length": args.max_length,
                 "tokenise_seconds": job.seconds, **asdict(work)},
    })  # fmt: skip
    report.squares(squares(device, dtype))
    shapes = [shape for shape in SHAPES[args.scale] if args.models is None or shape.name in args.models]
    for number, shape in enumerate(shapes):
        last = number == len(shapes) - 1
        until = began + args.seconds * (1.0 if last else FIRST_SHARE * (number + 1) / (len(shapes) - 1))
        run_model(shape, vocabulary(shape, len(tokenizer)), job, sizes, report, until, args.each)
        gc.collect()
        torch._dynamo.reset()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    report.finish(time.perf_counter() - began)
    print(table(report.data))


def command(args: argparse.Namespace) -> str:
    """What was asked for, without where files lie."""
    words = []
    for name, value in vars(args).items():
        if value is None or name in ("out", "table"):
            continue
        shown = value.name if isinstance(value, Path) else value
        words += [f"--{name.replace('_', '-')}", *map(str, shown if isinstance(shown, list) else [shown])]
    return " ".join(["benchmarks/gpu/run.sh", *words])


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Alpaca JSONL")
    parser.add_argument("--tokenizer", type=Path, help="folder of a tokenizer")
    parser.add_argument("--out", type=Path, help="results, written anew after each contender")
    parser.add_argument("--scale", choices=SHAPES, default="full")
    parser.add_argument("--models", nargs="+", metavar="NAME", help="some of the scale's shapes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto", choices=["auto", *DTYPES])
    parser.add_argument("--records", type=int, default=5000)
    parser.add_argument("--max-length", type=int, default=2048)
    parser.add_argument(
        "--exact-records", type=int, default=32, help="read by the loop in fp32: what all must agree with"
    )
    parser.add_argument("--loop-records", type=int, default=64)
    parser.add_argument("--batched-records", type=int, default=512, help="read in padded batches of 16")
    parser.add_argument("--side-records", type=int, default=1500, help="read at other budgets than the first")
    parser.add_argument("--budgets", type=int, nargs="+", default=[32_768, 16_384, 65_536], metavar="TOKENS")
    parser.add_argument("--turns", type=int, default=3, help="at most")
    parser.add_argument("--seconds", type=float, default=480, help="after which nothing new begins")
    parser.add_argument("--each", type=float, default=75, help="seconds after which the engine stops in the middle")
    parser.add_argument("--table", type=Path, metavar="RESULTS", help="print a table of results and stop")
    args = parser.parse_args()
    if not args.table and not (args.data and args.tokenizer and args.out):
        parser.error("--data, --tokenizer and --out are needed")
    return args


if __name__ == "__main__":
    main()

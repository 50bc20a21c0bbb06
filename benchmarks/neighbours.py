"""Exact nearest neighbours by tithe, by faiss and by a plain loop over blocks in torch, side by side in one run.

    python benchmarks/neighbours.py --data alpaca.jsonl --encoder potion --random 20678x384 --out results.json

Contenders take turns, each in a process of its own (so that peak memory is its own), on the same matrix: the data's
prompts as a model2vec encoder makes vectors of them, and random unit vectors of given sizes. Each finds the nearest
other row of every row. Libraries are loaded and have answered a small search before the clock starts; faiss has its
index built within it. Memory is the peak above what the process held with its data loaded.

`--rows` measures a part of the queries against the whole matrix, and projects the time for all from it and from that
of a single query.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CONTENDERS = ("tithe", "faiss", "torch")
Search = Callable[[np.ndarray, int], np.ndarray]
ALPACA = ("instruction", "input")


def encode(data: Path, encoder: Path, out: Path) -> None:
    """Instruction and input of each record, by a static encoder, to length 1."""
    from model2vec import StaticModel

    records = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    texts = ["\n".join(record[name] for name in ALPACA if record.get(name)) for record in records]
    save(StaticModel.from_pretrained(encoder).encode(texts), out)


def save(vectors: np.ndarray, out: Path) -> None:
    vectors = np.asarray(vectors, dtype=np.float32)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    np.save(out, vectors)


def by_tithe(vectors: np.ndarray, rows: int) -> np.ndarray:
    from tithe.neighbours import nearest

    if rows == len(vectors):
        return nearest(vectors, method="exact", device="cpu").index[:, 0]
    return without_itself(nearest(vectors[:rows], 2, pool=vectors, method="exact", device="cpu").index)


def by_faiss(vectors: np.ndarray, rows: int) -> np.ndarray:
    import faiss

    index = faiss.IndexFlatIP(vectors.shape[1])
    index.add(vectors)
    return without_itself(index.search(vectors[:rows], 2)[1])


def by_torch(vectors: np.ndarray, rows: int) -> np.ndarray:
    import torch

    whole = torch.from_numpy(vectors)
    height = max(1, 2**26 // 4 // len(vectors))  # 64 MiB of products
    found = [
        (whole[start : min(start + height, rows)] @ whole.T).topk(2, 1).indices for start in range(0, rows, height)
    ]
    return without_itself(torch.cat(found).numpy())


def without_itself(two: np.ndarray) -> np.ndarray:
    """The first of two that is not the row itself."""
    return np.where(two[:, 0] == np.arange(len(two)), two[:, 1], two[:, 0])


def memory(name: str) -> float:
    """MB of this process, `VmRSS` now or `VmHWM` at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def child(args: argparse.Namespace) -> None:
    import faiss
    import torch

    torch.set_num_threads(args.threads)
    faiss.omp_set_num_threads(args.threads)
    search = {"tithe": by_tithe, "faiss": by_faiss, "torch": by_torch}[args.child]
    vectors = np.load(args.matrix)
    search(vectors[:500], 500)
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    rows = min(args.rows or len(vectors), len(vectors))
    once = timed(search, vectors, 1)[0] if rows < len(vectors) else 0.0
    seconds, used, found = timed(search, vectors, rows)
    np.save(args.found, found)
    result = {"seconds": seconds, "processor_seconds": used, "peak_mb": memory("VmHWM") - before}
    if rows < len(vectors):
        result |= {"for_one_query": once, "projected_seconds": once + (seconds - once) * len(vectors) / rows}
    print(json.dumps(result))


def timed(search: Search, vectors: np.ndarray, rows: int) -> tuple[float, float, np.ndarray]:
    """Seconds by the clock, seconds of all processors, and what was found."""
    began, used = time.perf_counter(), time.process_time()
    found = search(vectors, rows)
    return time.perf_counter() - began, time.process_time() - used, found


def turn(name: str, matrix: Path, found: Path, args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", name, "--matrix", str(matrix), "--found", str(found)]
    command += ["--threads", str(args.threads), "--rows", str(args.rows or 0)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"OMP_NUM_THREADS": str(args.threads)}
    )
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(matrix: Path, title: str, args: argparse.Namespace, scratch: Path) -> dict[str, object]:
    """Contenders in turn, `runs` times: medians, times of faiss by turn, and where neighbours differ."""
    vectors = np.load(matrix, mmap_mode="r")
    turns: list[dict[str, dict[str, float]]] = []
    for _ in range(args.runs):
        turns.append({name: turn(name, matrix, scratch / f"{name}.npy", args) for name in args.contenders})
    rows = min(args.rows or len(vectors), len(vectors))
    table = {}
    for name in args.contenders:
        each = [one[name] for one in turns]
        table[name] = {key: statistics.median(one[key] for one in each) for key in each[0]}
        table[name]["least_seconds"] = min(one["seconds"] for one in each)
        if "faiss" in args.contenders:
            table[name]["faiss_takes_times"] = statistics.median(
                one["faiss"]["seconds"] / one[name]["seconds"] for one in turns
            )
        table[name] |= agreement(vectors, scratch, name) if name != "tithe" else {}
        print(f"{title:<24} {name:<6} " + "  ".join(f"{key} {value:.4g}" for key, value in table[name].items()))
    return {"matrix": title, "shape": list(vectors.shape), "queries": rows, "contenders": table}


def agreement(vectors: np.ndarray, scratch: Path, name: str) -> dict[str, float]:
    """Neighbours that are tithe's, and how much nearer tithe's are, at least and at most, where they are not."""
    ours, theirs = np.load(scratch / "tithe.npy"), np.load(scratch / f"{name}.npy")
    rows = np.flatnonzero(ours != theirs)
    if not len(rows):
        return {"same": 1.0, "least_gain": 0.0, "most_gain": 0.0}
    query = vectors[rows].astype(np.float64)
    gain = ((vectors[ours[rows]].astype(np.float64) - vectors[theirs[rows]]) * query).sum(1)
    return {"same": 1 - len(rows) / len(ours), "least_gain": float(gain.min()), "most_gain": float(gain.max())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="Alpaca JSONL")
    parser.add_argument("--encoder", type=Path, help="folder of a model2vec encoder")
    parser.add_argument("--random", nargs="*", default=[], metavar="NxDIM", help="sizes of random matrices")
    parser.add_argument("--rows", type=int, help="queries measured, all if not given")
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)  # tithe among them
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--out", type=Path)
    for hidden in ("--child", "--matrix", "--found"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    from score import machine

    results = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        matrix = scratch / "vectors.npy"
        if args.data and args.encoder:
            encode(args.data, args.encoder, matrix)
            results.append(compare(matrix, f"{args.data.stem}, {args.encoder.name}", args, scratch))
        for size in args.random:
            n, dim = map(int, size.split("x"))
            save(np.random.default_rng(0).standard_normal((n, dim), dtype=np.float32), matrix)
            results.append(compare(matrix, f"random {size}", args, scratch))
    report = {"runs": args.runs, "threads": args.threads, "machine": machine(), "results": results}
    if args.out:
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()

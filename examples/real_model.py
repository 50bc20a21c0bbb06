"""Read some of the starter set with a real model: IFD alone, IFD behind the gate, and what one response costs.

    python examples/real_model.py demo MODEL

The folder `demo` holds the selection of `make demo`, whose gate read the whole starter set. MODEL is what `--model`
takes; without it `fetch_model.py` looks for one.
"""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
from fetch_model import find
from tokenizers.decoders import DecodeStream

import tithe
from tithe.engine.model_source import find_model, load_tokenizer

RECORDS, TOP = 60, 12  # 20 prompts of the starter set with three responses each; a fifth of them
COLOURS = ((0.3, "34"), (1.0, "36"), (2.5, "33"), (float("inf"), "31"))  # nats -> ANSI: blue, cyan, yellow, red


def main(demo: Path, model: str) -> None:
    given = ["--limit", RECORDS, "--scorer", "ifd", "--model", model, "--device", "cpu", "--dtype", "fp32"]
    run("select", "starter", *given, "--keep", TOP, "--per-token", "-o", demo / "real.jsonl", "--overwrite")
    folder = demo / "real.tithe"
    records = dict(tithe.load("starter", limit=RECORDS).records())
    table = [row for row in pq.read_table(folder / "scores.parquet").to_pylist() if row["ifd"] is not None]
    ranked = sorted((row for row in table if row["ifd"] <= 1), key=lambda row: -row["ifd"])
    # The gate of the first selection wrote what it dropped without a score.
    first = pq.read_table(demo / "kept.tithe" / "scores.parquet").to_pylist()
    gate = {row["row"]: row["ifd"] is not None for row in first}
    passed = [row for row in ranked if gate[row["row"]]]

    print(f"\nOf {RECORDS} records of the starter set, a third of them damaged, by `{model}`:\n")
    print(f"{'':42}{'good':>6}{'mediocre':>10}{'damaged':>9}")
    show("all", [records[row] for row in records])
    show("dropped by the gate of `pocket`", [records[row] for row in records if not gate[row]])
    show(f"the {TOP} of the highest IFD up to 1", [records[row["row"]] for row in ranked[:TOP]])
    behind = [records[row["row"]] for row in passed[:TOP]]
    show(f"the {len(behind)} of the highest IFD behind the gate", behind)

    best = passed[0] if passed else ranked[0]
    record = records[best["row"]]
    print(f"\nIFD {best['ifd']:.3f} ({record['quality']}): {' '.join(record['instruction'].split())[:90]}")
    print(
        "Loss of each token with the prompt before it: blue below 0.3 nats, cyan below 1, yellow below 2.5, red above."
    )
    print(coloured(folder, best["id"], model))
    run("look", folder, "--overwrite")


def run(*arguments: object) -> None:
    """Run a command of tithe and show it."""
    words = [str(one) for one in arguments]
    print(f"\n$ tithe {' '.join(words)}", flush=True)
    subprocess.run([str(Path(sys.executable).with_name("tithe")), *words], check=True)


def show(what: str, records: list[dict[str, str]]) -> None:
    counts = Counter(record["quality"] for record in records)
    print(f"{what:42}{counts['good']:6}{counts['mediocre']:10}{counts['damaged']:9}")


def coloured(folder: Path, id_: str, model: str) -> str:
    """Return a response with its tokens coloured by their loss; without colours if nobody would see them."""
    rows = pq.read_table(folder / "tokens.parquet").to_pylist()
    ids, losses = next((row["token_ids"], row["nll"]) for row in rows if row["id"] == id_ and row["pass"] == "given")
    backend = load_tokenizer(find_model(model, weights=False)).backend_tokenizer
    stream = DecodeStream(skip_special_tokens=False)
    out = []
    for token, loss in zip(ids, losses, strict=True):
        # Control characters of a response must not reach the terminal.
        text = "".join(one if one.isprintable() or one == "\n" else "?" for one in stream.step(backend, token) or "")
        colour = next(code for most, code in COLOURS if loss < most)
        out.append(f"\x1b[{colour}m{text}\x1b[0m" if sys.stdout.isatty() else f"{text}[{loss:.1f}]")
    return "".join(out)


if __name__ == "__main__":
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) == 3 else find())

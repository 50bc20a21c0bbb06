"""Does a long run stay as small and as busy as a short one: memory and waiting at 10 thousand, 100 thousand, 1 million.

    python benchmarks/long_run.py --records 10000,100000,1000000 --out benchmarks/results/long-run.json
    python benchmarks/long_run.py --data alpaca.jsonl --limit 5000 --model pocket --out FILE

Without data and model the script makes both: short records of words (all different, the same on every machine) and a
Llama of one layer with random weights, so that a million records take minutes. Each length is a `tithe score --scorer
ifd` with a run folder, in a process whose resident memory is looked at while it runs; the waiting is read from its
`run.json`. With `--without-model` the forward passes are left out: how fast all else is, and whether that grows, shows
in a tenth of the time. Results are written after each length, beside those that the file holds of other lengths.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

VERBS = "name list describe explain write compare translate summarise rewrite find count sort give think".split()  # noqa: SIM905
NOUNS = "weather river friend book garden letter engine planet recipe market bridge teacher doctor holiday".split()  # noqa: SIM905
REST = "the a of and with under over red green quiet small old new three seven many some every to from in".split()  # noqa: SIM905
WITHOUT = "--engine-of-no-time"  # first argument of the processes that `--without-model` starts
LOOK = 0.2  # seconds between two looks at the memory
SHARES = (0.1, 0.5, 1.0)  # of the reading, at which memory is told


def write_records(path: Path, count: int) -> None:
    """Instructions of 4 to 9 words, every third with an input, responses of 3 to 30 words."""
    words = [*VERBS, *NOUNS, *REST]
    with path.open("w", encoding="utf-8") as stream:
        for i in range(count):
            state = i * 2_654_435_761 % 2**32
            drawn = itertools.accumulate(
                itertools.repeat(None), lambda x, _: (x * 1_664_525 + 1_013_904_223) % 2**32, initial=state
            )
            text = [words[(x >> 8) % len(words)] for x in itertools.islice(drawn, 46)]
            ask = f"{VERBS[i % len(VERBS)]} {' '.join(text[: 3 + i % 6])} {i}"
            record = {"instruction": ask, "input": " ".join(text[10:15]) if i % 3 == 0 else ""}
            record["output"] = " ".join(text[15 : 18 + state % 28])
            stream.write(json.dumps(record) + "\n")


def make_model(folder: Path, data: Path, width: int) -> None:
    """A Llama of one layer and a byte-level BPE of 1,000 tokens trained on the first records."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    with data.open(encoding="utf-8") as lines:
        texts = [" ".join(json.loads(line).values()) for line in itertools.islice(lines, 2_000)]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1_000, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    fast = PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>", model_max_length=512)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def resident(pid: int) -> float | None:
    """MB that a process and its children hold, as far as they are there."""
    found = 0.0
    for one in [pid, *children(pid)]:
        try:
            pages = int(Path(f"/proc/{one}/statm").read_text().split()[1])
        except (OSError, IndexError):
            continue
        found += pages * os.sysconf("SC_PAGESIZE") / 1e6
    return found or None


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += [int(child) for child in task.read_text().split()]
        except OSError:
            continue
    return found


def watched(command: list[str], environment: dict[str, str]) -> tuple[float, list[tuple[float, float]]]:
    """Run it; seconds, and (Unix time, MB) now and then.

    Raises:
        SystemExit: it failed.
    """
    began, looks = time.monotonic(), list[tuple[float, float]]()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=said)
        while process.poll() is None:
            held = resident(process.pid)
            if held is not None:
                looks.append((time.time(), held))
            time.sleep(LOOK)
        if process.returncode:
            said.seek(0)
            raise SystemExit(said.read())
    return time.monotonic() - began, looks


def measure(data: Path, model: str, folder: Path, arguments: argparse.Namespace, limit: int | None) -> dict[str, Any]:
    """One run."""
    run = folder / "run"
    program = [__file__, WITHOUT] if arguments.without_model else ["-m", "tithe.cli"]
    command = [sys.executable, *program, "score", str(data), "--scorer", "ifd", "--model", model]
    command += ["--dtype", "fp32", "--run-dir", str(run), "--template", arguments.template]
    command += [] if limit is None else ["--limit", str(limit)]
    command += [] if arguments.device is None else ["--device", arguments.device]
    environment = dict(os.environ)
    if arguments.threads is not None:
        command += ["--workers", str(arguments.threads)]
        environment |= {name: str(arguments.threads) for name in ("OMP_NUM_THREADS", "RAYON_NUM_THREADS")}
    seconds, looks = watched(command, environment)
    record = json.loads((run / "run.json").read_text())
    work, trace = record["work"], record["trace"]
    start, end = trace["start"] + trace["began"][0], trace["start"] + trace["ended"][-1]
    during = [held for at, held in looks if start <= at <= end]
    told = {f"mb_at_{100 * share:.0f}_percent": round(at_share(looks, start, end, share)) for share in SHARES}
    between = [b - a for a, b in zip(trace["ended"], trace["began"][1:], strict=False)]
    return {
        "records": record["counts"]["records"],
        "tokens": work["tokens_read"],
        "seconds": round(seconds, 1),
        "records_per_second": round(record["counts"]["records"] / work["seconds"], 1),
        "reading_seconds": work["reading_seconds"],
        "waited_for_tokens_seconds": work["waited_for_tokens_seconds"],
        "longest_wait_seconds": work["longest_wait_seconds"],
        "between_reads_seconds": round(sum(between), 2),
        **told,
        "peak_mb_while_reading": round(max(during)),
        "peak_mb": round(max(held for _, held in looks)),
        "trace": trace,
    }


def at_share(looks: list[tuple[float, float]], start: float, end: float, share: float) -> float:
    """MB at a share of the reading: the most of the looks within 2 % of it, as a pass comes and goes."""
    at, width = start + share * (end - start), max(2 * LOOK, 0.02 * (end - start))
    return max(held for seconds, held in looks if at - width <= seconds <= min(end, at + width))


def without_model() -> None:
    """`tithe` with an engine whose forward passes take no time: their likelihoods are read off the token ids."""
    import numpy as np

    from tithe.cli.entry import main as tithe
    from tithe.engine.engine import Engine, PassResult

    def run_forward(self: Engine, passes: Any, asked: Any, after: Any) -> Any:
        results = [PassResult(((one.ids[max(1, one.start) :] % 97) / 13).astype(np.float32)) for one in passes]
        return lambda: results

    Engine.run_forward = run_forward
    sys.argv = ["tithe", *sys.argv[2:]]
    tithe()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", default="10000,100000", help="lengths of the records that are made")
    parser.add_argument("--data", help="a file of records instead")
    parser.add_argument("--limit", type=int, help="of `--data`, so many records")
    parser.add_argument("--model", help="a model instead of the one that is made")
    parser.add_argument("--width", type=int, default=32, help="of the model that is made")
    parser.add_argument("--template", default="alpaca")
    parser.add_argument("--device")
    parser.add_argument(
        "--without-model", action="store_true", help="made-up likelihoods: what is left is not the model"
    )
    parser.add_argument("--threads", type=int, help="passes at once, threads of the tokenizer and of products")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    done = json.loads(arguments.out.read_text()) if arguments.out.exists() else {"machine": machine(), "runs": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for count in [arguments.limit] if arguments.data else [int(text) for text in arguments.records.split(",")]:
            place = Path(scratch) / str(count)
            place.mkdir()
            data = Path(arguments.data) if arguments.data else place / "records.jsonl"
            if not arguments.data:
                write_records(data, count)
            model = arguments.model or str(Path(scratch) / "model")
            if not arguments.model and not Path(model).exists():
                make_model(Path(model), data, arguments.width)
            result = measure(data, model, place, arguments, arguments.limit if arguments.data else None)
            model_name = "no model" if arguments.without_model else arguments.model or "one layer"
            name = f"{data.stem if arguments.data else 'made'}, {model_name}, {result['records']}"
            done["runs"][name] = result
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text(json.dumps(done, indent=1) + "\n")
            print(name, {key: value for key, value in result.items() if key != "trace"}, flush=True)


def machine() -> dict[str, Any]:
    import torch

    return {"processor": processor(), "cores": os.cpu_count(), "torch": torch.__version__}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


if __name__ == "__main__":
    without_model() if WITHOUT in sys.argv[1:2] else main()

"""Score one data set with tithe and with a loop as the IFD authors' script runs it, side by side in one run.

    python benchmarks/score.py --data alpaca.jsonl --out benchmarks/results/score.json

Contenders take turns, each in a process of its own (so that peak memory is its own), on the same random-weight model
and the same records. Seconds are of scoring alone: the model is loaded and has answered once before the clock starts.
Ratios are taken within a turn. The loop is restated from its description: one record at a time, fp32, two forward
passes with full logits, and one Python loop over the tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONTENDERS = ("loop", "lean loop", "tithe fp32", "tithe bf16")
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:"
)


def make_model(folder: Path, data: Path, vocabulary: int, layers: int, width: int) -> None:
    """A Llama of random weights with a byte-level BPE trained on the data."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    with data.open(encoding="utf-8") as lines:
        texts = [" ".join(str(value) for value in json.loads(line).values()) for line in lines]
    specials = ["<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=1024
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
    )
    LlamaForCausalLM(config).save_pretrained(folder)


def loop(folder: Path, data: Path, max_length: int, lean: bool) -> dict[str, float]:
    """One record at a time: prompt + response, then header + response; tokens' losses in a Python loop.

    The description does not say whether the loop runs over all tokens and whether the model is asked for its own loss
    besides. `lean` takes the cheaper reading of both: no loss of the model's, and the response's tokens alone.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    records = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]

    def mean_loss(text: str, start: int, limit: int) -> tuple[float, int]:
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=limit).input_ids
        with torch.no_grad():
            logits = model(ids).logits if lean else model(ids, labels=ids).logits
        losses = []
        for i in range(start if lean else 1, ids.shape[1]):
            distribution = torch.log_softmax(logits[0, i - 1], dim=-1)
            losses.append(torch.nn.functional.nll_loss(distribution[None], ids[0, i : i + 1]).item())
        scored = losses if lean else losses[start - 1 :]
        return (sum(scored) / len(scored) if scored else float("nan")), ids.shape[1]

    def one(record: dict[str, str]) -> tuple[float, int]:
        template = PROMPT_WITH_INPUT if record.get("input") else PROMPT
        prompt, header = template.format_map(record), "### Response:"
        asked = len(tokenizer.encode(prompt))
        given, read = mean_loss(prompt + record["output"], asked, max_length)
        direct, more = mean_loss(header + record["output"], len(tokenizer.encode(header)), max_length)
        return given / direct, read + more

    one(records[0])
    began = time.perf_counter()
    results = [one(record) for record in records]
    return {"seconds": time.perf_counter() - began, "tokens": sum(n for _, n in results), "records": len(records)}


def ours(folder: Path, data: Path, max_length: int, dtype: str) -> dict[str, float]:
    """The engine as `tithe score` runs it, model loaded."""
    from tithe.engine.heap import share_one_heap

    share_one_heap()
    import torch

    from tithe.config import ScoreSettings
    from tithe.run.setup import Parts
    from tithe.runners.local import LocalRunner

    settings = ScoreSettings(
        dataset=str(data), model=str(folder), scorer=("ifd",), template="alpaca", max_length=max_length, dtype=dtype,
        alone_header="### Response:",
    )  # fmt: skip
    parts = Parts(settings)
    with tempfile.TemporaryDirectory() as scratch:
        stores = parts.stores(Path(scratch))
        runner = LocalRunner(parts.scorers, parts.renderer, lambda: parts.engine, stores)
        assert parts.engine.model.road == "packed"
        began = time.perf_counter()
        scored = sum(len(window.scores) for window in runner.run(parts.dataset))
        seconds = time.perf_counter() - began
    return {
        "seconds": seconds,
        "tokens": runner.work.tokens,
        "records": scored,
        "threads": torch.get_num_threads(),
        "workers": parts.engine.workers or 0,
    }


def child(args: argparse.Namespace) -> None:
    if args.child.endswith("loop"):
        result = loop(args.model, args.data, args.max_length, lean=args.child == "lean loop")
    else:
        result = ours(args.model, args.data, args.max_length, args.child.split()[1])
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


def turn(contender: str, model: Path, data: Path, max_length: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", contender, "--model", str(model), "--data", str(data)]
    done = subprocess.run(
        [*command, "--max-length", str(max_length)], capture_output=True, text=True, check=False, env=os.environ
    )
    if done.returncode:
        sys.exit(f"{contender} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(args: argparse.Namespace, vocabulary: int, scratch: Path) -> dict[str, object]:
    """All contenders in turn, `runs` times: medians, and ratios to the loop taken turn by turn."""
    model, sample = scratch / f"model-{vocabulary}", scratch / "sample.jsonl"
    make_model(model, args.data, vocabulary, args.layers, args.width)
    turns = []
    for number in range(args.runs):
        turns.append({name: turn(name, model, sample, args.max_length) for name in CONTENDERS})
        seconds = {name: round(result["seconds"], 2) for name, result in turns[-1].items()}
        print(f"vocabulary {vocabulary}, turn {number + 1}: {seconds}", file=sys.stderr)
    rows = {}
    for name in CONTENDERS:
        ratios = [each["loop"]["seconds"] / each[name]["seconds"] for each in turns]
        rows[name] = {
            "seconds": statistics.median(each[name]["seconds"] for each in turns),
            "times_the_loop": statistics.median(ratios),
            "ratios": [round(ratio, 3) for ratio in ratios],
            "peak_mb": statistics.median(each[name]["peak_mb"] for each in turns),
            "tokens": turns[0][name]["tokens"],
        }
        print(
            f"  {name:<11} {rows[name]['seconds']:7.2f} s  {rows[name]['times_the_loop']:5.2f} x the loop  "
            f"peak {rows[name]['peak_mb']:5.0f} MB",
            file=sys.stderr,
        )
    return {"vocabulary": vocabulary, "contenders": rows}


def machine() -> dict[str, object]:
    import torch
    import transformers

    name = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        name = next(
            (x.split(":")[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")), name
        )
    return {
        "processor": name,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "amx": torch.cpu._is_amx_tile_supported(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Alpaca JSONL; the first --records are scored")
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 32000])
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        lines = [
            line for line in args.data.read_text(encoding="utf-8").splitlines() if json.loads(line)["output"].strip()
        ]
        (scratch / "sample.jsonl").write_text("\n".join(lines[: args.records]) + "\n", encoding="utf-8")
        results = [compare(args, vocabulary, scratch) for vocabulary in args.vocab]
    flags = {"records": args.records, "runs": args.runs, "layers": args.layers, "width": args.width}
    command = "python benchmarks/score.py " + " ".join(f"--{name} {value}" for name, value in flags.items())
    report = {"command": command, "machine": machine(), "results": results}
    text = json.dumps(report, indent=2) + "\n"
    if args.out:
        args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()

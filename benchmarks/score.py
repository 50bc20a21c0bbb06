"""Score one data set with tithe, with padded batches, and with a loop as the IFD authors' script runs it.

    python benchmarks/score.py --data alpaca.jsonl --out benchmarks/results/score.json

Contenders take turns, each in a process of its own (so that peak memory is its own), on the same random-weight model,
the same records and the same cores. Seconds are of scoring alone: the model is loaded and has answered once before the
clock starts. Ratios are taken within a turn. The loop is restated from its description: one record at a time, fp32, two
forward passes with full logits, and one Python loop over the tokens. `padded` is what most tools do: batches of 16 in
the order of the file, padded, logits of every position.

Each turn begins with the speed of large matrix products on those cores, in fp32 by the better of the routes that are
true to it, and in bf16. Utilisation is what tithe had to compute (weights times tokens read, the output head times
tokens scored, attention's products) per second, as a share of that.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeAlias

CONTENDERS = ("loop", "lean loop", "padded", "tithe fp32", "tithe bf16")
PADDED = 16
SETTINGS = {"default": "highest", "onednn": "medium"}  # torch's, by route
Turn: TypeAlias = dict[str, dict[str, float]]
PROMPT_WITH_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
PROMPT = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    "\n\n### Instruction:\n{instruction}\n\n### Response:"
)


def make_model(folder: Path, data: Path, vocabulary: int, layers: int, width: int, tied: bool = False) -> int:
    """A Llama of random weights with a byte-level BPE trained on the data; the number of its parameters."""
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
    heads = width // 64 if width % 64 == 0 else width // 48
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 32 * 32,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        tie_word_embeddings=tied,
        max_position_embeddings=1024,
        bos_token_id=0,
        eos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return sum(one.numel() for one in model.parameters())


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


def padded(folder: Path, data: Path, max_length: int) -> dict[str, float]:
    """Batches of sequences as they come, prompt + response and then header + response; cross-entropy of all logits."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = tokenizer.eos_token
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    records = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]

    def mean_losses(prompts: list[str], records: list[dict[str, str]]) -> tuple[list[float], int]:
        texts = [prompt + record["output"] for prompt, record in zip(prompts, records, strict=True)]
        inputs = tokenizer(
            texts, return_tensors="pt", padding=True, padding_side="right", truncation=True, max_length=max_length
        )
        targets = inputs.input_ids.masked_fill(inputs.attention_mask == 0, -100)
        for row, prompt in enumerate(prompts):
            targets[row, : len(tokenizer.encode(prompt))] = -100
        with torch.no_grad():
            logits = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask).logits
        losses = torch.nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), targets[:, 1:], reduction="none")
        counts = (targets[:, 1:] != -100).sum(1)
        return (losses.sum(1) / counts).tolist(), int(inputs.attention_mask.sum())

    def some(records: list[dict[str, str]]) -> int:
        prompts = [(PROMPT_WITH_INPUT if one.get("input") else PROMPT).format_map(one) for one in records]
        (given, read), (direct, more) = (
            mean_losses(prompts, records),
            mean_losses(["### Response:"] * len(records), records),
        )
        assert all(b != 0 for b in direct) and len(given) == len(records)
        return read + more

    some(records[:1])
    began = time.perf_counter()
    tokens = sum(some(records[i : i + PADDED]) for i in range(0, len(records), PADDED))
    return {"seconds": time.perf_counter() - began, "tokens": tokens, "records": len(records)}


def ours(folder: Path, data: Path, max_length: int, dtype: str) -> dict[str, float]:
    """The engine as `tithe score` runs it, model loaded."""
    import torch

    from tithe.engine.measure.machine import metered
    from tithe.engine.measure.shape import attention_flops, model_shape
    from tithe.planner import Cost
    from tithe.report.reporter import Reporter
    from tithe.run.engines import make_engine
    from tithe.run.method import set_up
    from tithe.runners.local import LocalRunner
    from tithe.settings import ScoreSettings

    settings = ScoreSettings(
        dataset=str(data), model=str(folder), scorer=("ifd",), template="alpaca", max_length=max_length, dtype=dtype,
        alone_header="### Response:",
    )  # fmt: skip
    setup = set_up(settings)
    with tempfile.TemporaryDirectory() as scratch:
        engine = make_engine(settings, setup.source.dataset, setup.model, Path(scratch), Reporter())
        stores = setup.stores(Path(scratch), print)
        runner, cost = LocalRunner(setup.method.scorers, setup.renderer, lambda: engine, stores), Cost()
        assert engine.model.forward_path == "packed"
        with metered(engine.model) as meter:
            began = time.perf_counter()
            scored = 0
            for window in runner.run(setup.source.dataset):
                scored += len(window.scores)
                cost.add(window.window, runner.model_readouts)
            seconds = time.perf_counter() - began
    flops = model_shape(setup.model.files).flops(runner.work.tokens, cost.scored)
    flops += attention_flops(setup.model.files.config, meter.keys)
    return {
        "seconds": seconds,
        "tokens": cost.tokens,
        "tokens_read": runner.work.tokens,
        "gflops": flops / seconds / 1e9,
        "records": scored,
        "threads": torch.get_num_threads(),
        "workers": engine.workers or 0,
        "batch_tokens": engine.budget or 0,
    }


def peaks(cores: int, dtypes: Sequence[str]) -> dict[str, float]:
    """GFLOP/s of a large product on all these cores by dtype, fp32 by the better route that is true to it."""
    import torch

    from tithe.engine.measure.cpu_kernels import precision, probe_fp32
    from tithe.engine.measure.matmul import MatmulShape, affordable, measure

    route, device, found = probe_fp32(), torch.device("cpu"), {}
    true = [setting for name, setting in SETTINGS.items() if route.relative_error.get(name, 1.0) <= 1e-6]
    for name, dtype, settings in (("fp32", torch.float32, true), ("bf16", torch.bfloat16, ["highest"])):
        if name not in dtypes:
            continue
        rates = []
        for setting in settings:
            with precision(setting):
                for product in (MatmulShape(1024, 1024, 1024), MatmulShape(1024, 2048, 2048)):
                    product = affordable(product, dtype, device)
                    rates.append(measure(product, dtype, device, threads=cores, seconds=1.0).best)
        found[name] = max(rates)
    return found


def child(args: argparse.Namespace) -> None:
    (cores,) = args.cores
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    name = args.child
    if name == "peaks":
        return print(json.dumps(peaks(cores, args.dtypes)))
    if name.endswith("loop"):
        result = loop(args.model, args.data, args.max_length, lean=name == "lean loop")
    elif name == "padded":
        result = padded(args.model, args.data, args.max_length)
    else:
        result = ours(args.model, args.data, args.max_length, name.split()[1])
    result["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps(result))


def turn(name: str, cores: int, more: Sequence[str]) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", name, "--cores", str(cores), *more]
    threads = {"OMP_NUM_THREADS": str(cores), "MKL_NUM_THREADS": str(cores)}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | threads)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def compare(args: argparse.Namespace, model: Path, sample: Path, cores: int) -> dict[str, object]:
    """All contenders in turn, `runs` times: medians, and ratios to the loop taken turn by turn."""
    more = ["--model", str(model), "--data", str(sample), "--max-length", str(args.max_length)]
    dtypes = [name.split()[1] for name in args.contenders if name.startswith("tithe")]
    turns, ceilings = [], []
    for number in range(args.runs):
        ceilings.append(turn("peaks", cores, [*more, "--dtypes", *dtypes]))
        turns.append({name: turn(name, cores, more) for name in args.contenders})
        seconds = {name: round(result["seconds"], 2) for name, result in turns[-1].items()}
        print(f"{model.name}, {cores} cores, turn {number + 1}: {seconds}, peaks {ceilings[-1]}", file=sys.stderr)
    rows = {name: row(name, turns, ceilings) for name in args.contenders}
    for name, one in rows.items():
        used = f"  {one['utilisation']:.0%} of the peak" if "utilisation" in one else ""
        print(
            f"  {name:<11} {one['seconds']:7.2f} s  {one['times_the_loop']:5.2f} x the loop  "
            f"peak {one['peak_mb']:5.0f} MB{used}",
            file=sys.stderr,
        )
    peak = {name: round(statistics.median(each[name] for each in ceilings), 1) for name in dtypes}
    return {"cores": cores, "peak_gflops": peak, "contenders": rows}


def row(name: str, turns: Sequence[Turn], ceilings: Sequence[dict[str, float]]) -> dict[str, Any]:
    """A contender's medians."""
    own = [each[name] for each in turns]
    found: dict[str, Any] = {
        "seconds": statistics.median(one["seconds"] for one in own),
        "tokens_a_second": round(statistics.median(one["tokens"] / one["seconds"] for one in own)),
        "peak_mb": statistics.median(one["peak_mb"] for one in own),
        "tokens": own[0]["tokens"],
    }
    for other in ("loop", "lean loop"):
        if other in turns[0]:
            ratios = [each[other]["seconds"] / each[name]["seconds"] for each in turns]
            found[f"times_the_{other.replace(' ', '_')}"] = round(statistics.median(ratios), 3)
            found[f"ratios_to_the_{other.replace(' ', '_')}"] = [round(ratio, 3) for ratio in ratios]
    if name.startswith("tithe"):
        dtype = name.split()[1]
        shares = [one["gflops"] / peak[dtype] for one, peak in zip(own, ceilings, strict=True)]
        found["utilisation"] = round(statistics.median(shares), 3)
        found["tokens_read"] = own[0]["tokens_read"]
        found |= {key: [one[key] for one in own] for key in ("workers", "batch_tokens")}  # measured in each turn
    return found


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


def command(data: Path) -> str:
    """As it was given, the data by their name alone."""
    return shlex.join(["python", *(data.name if one == str(data) else one for one in sys.argv)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Alpaca JSONL; the first --records are scored")
    parser.add_argument("--records", type=int, default=500)
    parser.add_argument("--vocab", type=int, nargs="+", default=[8192, 32000])
    parser.add_argument("--cores", type=int, nargs="+", help="numbers of cores to take; all of them if left out")
    parser.add_argument(
        "--contenders", nargs="+", choices=CONTENDERS, help="bf16 only where it is multiplied in hardware"
    )
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--tied", action="store_true", help="one matrix for the embedding and the output head")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--dtypes", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--model", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        return child(args)
    from tithe.engine.devices import cpu_multiplies_bf16
    from tithe.engine.host import cpu_cores

    args.cores = args.cores or [cpu_cores()]
    args.contenders = args.contenders or [n for n in CONTENDERS if n != "tithe bf16" or cpu_multiplies_bf16()]
    if "loop" not in args.contenders:
        parser.error("`loop` is what all are compared with")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        lines = [
            line for line in args.data.read_text(encoding="utf-8").splitlines() if json.loads(line)["output"].strip()
        ]
        (scratch / "sample.jsonl").write_text("\n".join(lines[: args.records]) + "\n", encoding="utf-8")
        for vocabulary in args.vocab:
            model = scratch / f"vocabulary {vocabulary}"
            size = make_model(model, args.data, vocabulary, args.layers, args.width, args.tied)
            for cores in args.cores:
                found = compare(args, model, scratch / "sample.jsonl", cores)
                results.append({"vocabulary": vocabulary, "parameters": size, **found})
                report = {"command": command(args.data), "machine": machine(), "results": results}
                if args.out:  # after each, so that a run that is cut off leaves what it has
                    args.out.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()

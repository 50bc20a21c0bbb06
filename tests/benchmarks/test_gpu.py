"""The benchmark for GPUs, at toy size on a CPU: it runs to its end, and its numbers are what they say they are."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.engine.models import load
from tithe.engine.engine import Engine
from tithe.engine.forward.attention import Varlen
from tithe.records import Pass

GPU = Path(__file__).parents[2] / "benchmarks" / "gpu"
NAMES = (
    "clock",
    "contenders",
    "engine_paths",
    "fused",
    "job",
    "peak",
    "plain",
    "report",
    "run",
    "shapes",
    "table",
    "where_time_goes",
)
# What the machine for it may lack: the benchmark must not load them, and nothing that it loads may need them.
ABSENT = ("pydantic", "datasets", "pyarrow", "trl", "peft", "zstandard", "faiss", "altair", "flash_attn")
RECORDS = [
    {"instruction": "Name three colours.", "input": "", "output": "Red, green and blue are three of them."},
    {"instruction": "Add the numbers.", "input": "12 and 30", "output": "The sum is 42."},
    {
        "instruction": "Thank a friend for the book.",
        "output": "Thank you for the book, I liked the weather in it. " * 3,
    },
    {"instruction": "Say yes.", "input": "", "output": "Yes"},
    {"instruction": "Write a letter.", "input": "about the weather", "output": "Dear friend, the weather is good."},
    {"instruction": "What is the answer?", "input": "", "output": "The answer is forty-two, or green."},
]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The benchmark's files as modules, which are forgotten again."""
    monkeypatch.syspath_prepend(str(GPU))
    yield importlib.import_module
    for name in NAMES:
        sys.modules.pop(name, None)


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As on a machine that lacks what is not needed."""
    (folder / "sitecustomize.py").write_text(f"import sys\nsys.modules.update(dict.fromkeys({ABSENT!r}))\n")
    environment = {**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([GPU / "run.sh", *arguments], capture_output=True, text=True, env=environment, check=False)


def parameters(layers: int, hidden: int, keys: int, wide: int, bias: bool) -> int:
    """Of all but embedding and head, counted by hand."""
    attention = 2 * hidden * hidden + 2 * hidden * keys + (hidden + 2 * keys if bias else 0)
    return layers * (attention + 3 * hidden * wide + 2 * hidden) + hidden


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "tolerance", "models"), [("fp32", 1e-5, ["tiny-qwen2", "tiny-llama"]), ("bf16", 0.05, ["tiny-llama"])]
)
def test_it_runs_and_all_agree(
    tmp_path: Path, model_dir: Path, dtype: str, tolerance: float, models: list[str]
) -> None:
    data, out = tmp_path / "data.jsonl", tmp_path / "results.json"
    data.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    sizes = ["--records", "6", "--exact-records", "5", "--loop-records", "5", "--batched-records", "6"]
    sizes += ["--side-records", "4", "--budgets", "300", "90", "--turns", "2", "--dtype", dtype]
    sizes += ["--seconds", "100000", "--each", "100000", "--models", *models]
    files = ["--data", str(data), "--tokenizer", str(model_dir), "--out", str(out)]
    done = run(tmp_path, "--scale", "tiny", "--device", "cpu", *sizes, *files)
    assert done.returncode == 0, done.stderr
    results = json.loads(out.read_text())
    assert results["finished"] and results["dtype"] == dtype and results["peak_tflops"] > 0
    assert str(tmp_path) not in json.dumps(results["command"])
    lengths = token_counts(model_dir)
    assert results["data"]["tokens"] == sum(n for n, _ in lengths) and results["data"]["records"] == 6
    for entry in results["models"]:
        body = parameters(2, *((56, 8, 96, True) if entry["shape"]["name"] == "tiny-qwen2" else (64, 32, 96, False)))
        assert entry["shape"]["body"] == body
        check(entry, results, lengths, tolerance)
    assert [entry["shape"]["name"] for entry in results["models"]] == models
    if dtype == "fp32":
        again = run(tmp_path, "--table", str(out))
        assert again.returncode == 0 and again.stdout == done.stdout
    assert "| loop | " in done.stdout and "disagrees" not in done.stdout


def token_counts(model_dir: Path) -> list[tuple[int, int]]:
    """Of each pass the tokens, and those that are scored, the alpaca template written out here."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    found = []
    for record in RECORDS:
        with_input = ", paired with an input that provides further context." if record.get("input") else "."
        text = f"Below is an instruction that describes a task{with_input} Write a response that appropriately "
        text += f"completes the request.\n\n### Instruction:\n{record['instruction']}\n\n"
        text += f"### Input:\n{record['input']}\n\n" if record.get("input") else ""
        response = len(tokenizer(record["output"], add_special_tokens=False).input_ids)
        prompt = len(tokenizer(f"{text}### Response:").input_ids)
        found += [(prompt + response, response), (1 + response, response)]
    return found


def check(entry: dict[str, Any], results: dict[str, Any], lengths: list[tuple[int, int]], tolerance: float) -> None:
    shape, run = entry["shape"], entry["contenders"]
    assert len(run) == (10 if results["dtype"] == "bf16" else 9), list(run)
    for name, one in run.items():
        assert len(one["turns"]) == 2 and one["agrees"], (name, one)
        assert one["difference"]["mean"] <= tolerance and one["difference"]["passes"] >= 8, (name, one["difference"])
        passes = lengths[: 2 * one["records"]]
        work = {
            "tokens": sum(n for n, _ in passes),
            "read": sum(n - 1 for n, _ in passes),
            "scored": sum(n for _, n in passes),
            "pairs": sum(sum(range(1, n)) for n, _ in passes),
        }
        if name.startswith("engine"):  # what records have in common may be read once
            assert one["work"]["read"] <= work["read"] and one["work"]["pairs"] <= work["pairs"]
            path = "padded" if "padded" in name else "packed"
            assert one["work"]["read"] > sum(n for _, n in passes) and one["notes"]["road"] == path
            work |= {key: one["work"][key] for key in ("read", "pairs")}
        assert one["work"] == work, name
        products = shape["body"] * work["read"] + shape["vocabulary"] * shape["hidden"] * work["scored"]
        products += 2 * shape["layers"] * shape["hidden"] * work["pairs"]
        seconds = sum(one["turns"]) / 2
        assert math.isclose(one["utilisation"], 2e-12 * products / seconds / results["peak_tflops"], rel_tol=1e-9)
        whole = seconds * results["data"]["tokens"] / work["tokens"] * 52_002 / 6
        assert math.isclose(one["projected_seconds"], whole, rel_tol=1e-9)
        assert math.isclose(one["times_the_loop"], run["loop"]["projected_seconds"] / whole, rel_tol=1e-9)
    assert {one["taken"] for one in entry["one_call"]} == {"one call a segment"}
    assert entry["time_goes"]["longest"] and entry["time_goes"]["batches"] > 0, entry["time_goes"]
    head = entry["head"]
    assert head["liger-kernel"] == {"not_run": "`liger_kernel` is not installed"}
    for name in ("head as it is", "compiled, 32 rows", "compiled, tiles of 64"):
        assert head[name]["largest_difference"] < (1e-4 if results["dtype"] == "fp32" else 0.1), (name, head[name])


def fake(dtype: torch.dtype = torch.float32) -> Any:
    model = torch.nn.Linear(4, 4).to(dtype)
    model.set_attn_implementation = lambda name: None  # type: ignore[assignment]
    return SimpleNamespace(model=model, device=torch.device("cpu"), dtype=dtype)


@pytest.mark.parametrize(
    ("error", "said"),
    [(torch.OutOfMemoryError("CUDA out of memory"), "out of memory"), (ValueError("no head"), "ValueError: no head")],
)
def test_a_failure_is_noted_and_keeps_what_was_measured(gpu: Any, tmp_path: Path, error: Exception, said: str) -> None:
    contenders, job, report = gpu("contenders"), gpu("job"), gpu("report")
    passes = [Pass(np.arange(n, dtype=np.int32), 2) for n in (5, 4)]
    whole = job.Job(passes, 0, 0.0)

    def fails(passes: Any, until: float) -> Any:
        raise error

    def works(passes: Any, until: float) -> Any:
        return {i: np.ones(len(one.ids) - 2, dtype=np.float32) for i, one in enumerate(passes)}, [0, 0], {}

    kept = report.Report(tmp_path / "out.json", torch.device("cpu"), torch.float32, 1, 1, job.work_of(passes), {})
    kept.squares({"2 x 2 x 2": 1.0})
    entry = kept.add({"name": "toy", "body": 10, "head": 20, "hidden": 4, "layers": 1}, {})
    exact: dict[int, Any] = {}
    for name, reading in (("loop", works), ("broken", fails), ("other", works)):
        contender = contenders.Contender(name, 1, 1, reading, "sdpa")
        result, found = contenders.measure(contender, fake(), whole, math.inf, warm=False)
        exact = exact or found
        kept.turn(entry, name, result, report.differences(found, exact))
    written = json.loads((tmp_path / "out.json").read_text())["models"][0]["contenders"]
    assert written["broken"] == {"failed": said}
    assert written["other"]["agrees"] and written["other"]["work"] == {"tokens": 9, "read": 7, "scored": 5, "pairs": 16}
    assert kept.failed(entry, "broken") and not kept.failed(entry, "other")


@pytest.mark.slow
def test_contenders_agree_and_leave_the_model_as_it_was(gpu: Any, model_dir: Path) -> None:
    contenders, fused, job = gpu("contenders"), gpu("fused"), gpu("job")
    sizes = contenders.Sizes(exact=2, loop=2, batched=2, side=2, budgets=(300,))
    passes = [Pass(np.arange(n, dtype=np.int32) + 3, 2) for n in (9, 4, 12, 5)]
    loaded, found = load(model_dir), {}
    heads = fused.other_heads(loaded.model, loaded.head, {name: {} for name in fused.LIBRARIES})
    for one in contenders.contenders(loaded, Varlen(), heads, job.Job(passes, 0, 0.0), sizes):
        result, nll = contenders.measure(one, loaded, job.Job(passes, 0, 0.0), math.inf, warm=False)
        assert "failed" not in result, (one.name, result)
        found[one.name] = np.concatenate([nll[i] for i in range(4)])
        assert np.abs(found[one.name] - found["loop"]).max() < 1e-5, one.name
    assert {"engine, 300 tokens", "engine, head as it is, 300 tokens", "engine, padded rows, 300 tokens"} <= set(found)
    assert not any("forward" in vars(part) for part in loaded.model.modules())  # compiled parts are out again


def test_all_that_is_begun_before_time_is_up_is_counted(
    gpu: Any, model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that is begun ahead takes its time, so it has to be among what was read."""
    paths, begun = gpu("engine_paths"), list[int]()
    loaded, passes = load(model_dir), [Pass(np.arange(9, dtype=np.int32) + 3 + i, 2) for i in range(8)]

    class Ahead(Engine):
        def read_one_ahead(self, passes: Any, batches: Any, asked: Any) -> Any:
            """As on a GPU."""
            present = None
            for batch in batches:
                begun.extend(batch.index)
                coming = batch, self.start_batch(passes, batch, asked)()
                if present is not None:
                    yield present
                present = coming
            yield present

    monkeypatch.setattr(paths, "Engine", lambda *given, **more: Ahead(*given, **more, workers=1))
    monkeypatch.setattr(paths, "perf_counter", lambda: len(begun))
    for until, batches in ((-1, 1), (1, 1), (2, 2), (4, 3), (99, 4)):
        begun.clear()
        found, common, notes = paths.run_engine(loaded, passes, 20, until)
        assert notes["batches"] == 4 and sorted(found) == sorted(begun) and len(found) == 2 * batches
        assert len(common) == 8


def test_what_changes_the_model_comes_last(gpu: Any, model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With an fp8 product of a CPU's in place of a GPU's."""
    contenders, job, run = gpu("contenders"), gpu("job"), gpu("run")
    monkeypatch.setattr(contenders, "multiplies_fp8", lambda device: True)
    passes = [Pass(np.arange(n, dtype=np.int32) + 3, 2) for n in (9, 4, 12, 5)]
    loaded = load(model_dir, "bf16")
    sizes = contenders.Sizes(exact=2, loop=2, batched=2, side=2, budgets=(300,))
    everyone = contenders.contenders(loaded, Varlen(), {}, job.Job(passes, 0, 0.0), sizes)
    names = [(number, one.name) for number, one in run.in_turns(everyone, 2)]
    assert names[-2:] == [(0, "engine, fp8 weights, 300 tokens"), (1, "engine, fp8 weights, 300 tokens")]
    assert len(names) == 2 * len(everyone) and names[0] == (0, "loop, fp32")


def test_what_is_off_disagrees(gpu: Any) -> None:
    report = gpu("report")
    exact = {0: np.array([1.0, 2.0]), 1: np.array([3.0]), 2: np.array([])}
    assert report.differences({0: np.array([1.5, 2.0]), 1: np.array([3.0]), 2: np.array([])}, exact) == {
        "mean": 0.25, "token": 0.5, "passes": 2
    }  # fmt: skip
    assert report.differences({0: np.array([1.0])}, exact)["mean"] == math.inf
    assert report.differences({7: np.array([1.0])}, exact) == {}


def test_the_weights_come_back_from_float32(gpu: Any) -> None:
    contenders, loaded = gpu("contenders"), fake(torch.bfloat16)
    before = loaded.model.weight.clone()
    with contextlib.suppress(KeyError), contenders.in_float32(loaded.model):
        assert loaded.model.weight.dtype == torch.float32 and torch.equal(loaded.model.weight, before.float())
        raise KeyError
    assert loaded.model.weight.dtype == torch.bfloat16 and torch.equal(loaded.model.weight, before)


def test_shared_tokens_are_read_once(gpu: Any) -> None:
    passes = [Pass(np.arange(6, dtype=np.int32), 3), Pass(np.arange(8, dtype=np.int32), 3)]
    work = gpu("job").work_of(passes, [0, 2])
    # 5 and 7 tokens are read, the second's first two stand in the first: its others see 3, 4, 5, 6 and 7.
    assert (work.tokens, work.read, work.scored, work.pairs) == (14, 10, 8, 15 + 25)


def test_another_head_can_be_asked_while_it_is_made(gpu: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU a head tries kernels against itself as soon as it has its matrix."""
    from tithe.engine.forward.output_head import OutputHead

    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = LlamaConfig(**sizes, num_attention_heads=2)
    asked: list[torch.Tensor] = []

    def try_kernels(self: OutputHead, _: Any) -> None:
        asked.append(self.nll(torch.ones(3, 16), torch.zeros(3, dtype=torch.long)))

    monkeypatch.setattr(OutputHead, "plain_matrix", try_kernels)
    gpu("fused").OtherHead(LlamaForCausalLM(config), lambda hidden, weight, targets: targets + 7)
    assert [one.tolist() for one in asked] == [[7, 7, 7]]

"""Compiled parts are found by structure, used in one model only, and removed again if they are wrong."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.engine.models import CONFIGS, load, plain, random_passes, run, save, twin, worst
from tithe.data.dataset import open_dataset
from tithe.data.hub import HubData
from tithe.engine.engine import Engine
from tithe.engine.measure import fused
from tithe.engine.measure.fused import WORTH, find_parts, fuse, why_not_compilable, why_not_worth_compiling
from tithe.errors import SettingsError
from tithe.run.engines import about, check_compile, engine_record, engine_sentence, may_be_large, wants_compiled
from tithe.settings import ScoreSettings

Family = Callable[[str], Path]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
# Counted by hand, of two layers: norms before attention and MLP, the last one, and those of queries and keys.
PARTS = {
    "llama": {"norms": 5, "MLPs": 2, "rotations": 2},
    "qwen3": {"norms": 9, "MLPs": 2, "rotations": 2},
    "gemma2": {"norms": 9, "MLPs": 2, "rotations": 2},
    "phi3": {"norms": 5, "MLPs": 2, "rotations": 2},
    "gpt2": {"MLPs": 2},  # torch's own layer norms are one kernel already, and its positions are not rotated
    "gpt-neox": {"MLPs": 2, "rotations": 2},
    "mixtral": {"norms": 5, "rotations": 2},  # experts are chosen by the data
    "bloom": {},
}


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def counted(model: Any) -> dict[str, int]:
    kinds = [kind for kind, _ in find_parts(model)]
    return {kind: kinds.count(kind) for kind in kinds}


@pytest.mark.parametrize("name", PARTS)
def test_parts_are_found_by_what_they_are(name: str) -> None:
    assert counted(transformers.AutoModelForCausalLM.from_config(CONFIGS[name]())) == PARTS[name]


SLOWER = [pytest.param(name, marks=pytest.mark.slow) for name in ("gemma2", "qwen3", "gpt2", "gpt-neox", "mixtral")]


@pytest.mark.parametrize("name", ["llama", *SLOWER])
def test_the_numbers_are_the_models_own(family: Family, name: str) -> None:
    """Parts are traced, not compiled, which would take a minute per model."""
    loaded, passes, model = load(family(name)), random_passes(12), plain(family(name))
    found = fuse(loaded, backend="eager")
    assert found.why_not is None and found.parts == PARTS[name] and loaded.fused is found
    assert found.off is not None and found.off < 1e-4
    wanted = [twin(model, pass_) for pass_ in passes]
    for budget in (30, 10_000):
        assert worst(run(Engine(loaded, budget=budget, workers=1), passes), wanted) < 1e-5


def counting(calls: list[int]) -> Callable[..., Any]:
    """Return a backend that runs what was traced, and counts it."""

    def backend(graph: Any, inputs: Any) -> Any:
        def called(*given: Any) -> Any:
            calls.append(1)
            return graph.forward(*given)

        return called

    return backend


def test_they_are_in_one_model_alone_and_come_out_again(family: Family) -> None:
    calls: list[int] = []
    loaded, other, passes = load(family("llama")), load(family("llama")), random_passes(5)
    found = fuse(loaded, backend=counting(calls))  # type: ignore[arg-type]
    assert found.why_not is None
    calls.clear()
    other.nll(passes[:3])
    assert calls == []
    loaded.nll(passes[:3])
    assert len(calls) == sum(PARTS["llama"].values())  # every part of every layer
    found.take_out()
    calls.clear()
    loaded.nll(passes[:3])
    assert calls == [] and found.parts == {}
    assert not any("forward" in vars(part) for part in loaded.model.modules())


def test_what_others_have_hooked_into_is_left_alone(family: Family) -> None:
    model = plain(family("llama"))
    norm = model.model.norm
    norm.forward = norm.forward
    assert counted(model)["norms"] == PARTS["llama"]["norms"] - 1


def wrong(graph: Any, inputs: Any) -> Any:
    return lambda *given: tuple(x * 1.3 if isinstance(x, torch.Tensor) else x for x in graph.forward(*given))


def fails(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no kernel for this\nand more")


@pytest.mark.parametrize(("backend", "reason"), [(wrong, "off by "), (fails, "BackendCompilerFailed: ")])
def test_untrue_or_failing_parts_are_taken_out_and_said(family: Family, backend: Any, reason: str) -> None:
    loaded, passes = load(family("llama")), random_passes(5)
    found = fuse(loaded, backend=backend)
    assert found.why_not is not None and found.why_not.startswith(reason) and "\n" not in found.why_not
    assert found.parts == {} and not any("forward" in vars(part) for part in loaded.model.modules())
    record, sentence = engine_record(Engine(loaded))["compiled"], engine_sentence(Engine(loaded))
    assert record["why_not"] == found.why_not and f"nothing compiled ({found.why_not})" in sentence
    wanted = [twin(plain(family("llama")), pass_) for pass_ in passes]
    assert worst(run(Engine(loaded, workers=1), passes), wanted) < 1e-5


@pytest.mark.parametrize("awaits", [False, True])
def test_of_a_model_that_awaits_fp8_parts_are_compiled_as_they_are_then(
    awaits: bool, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, said = list[str](), list[str]()
    fused = SimpleNamespace(words=lambda: "norms compiled", as_dict=dict)
    fp8 = SimpleNamespace(words=lambda: "fp8: 3 layers", as_dict=dict)
    loaded, passes = load(family("llama")), random_passes(4)

    def take(model: Any, passes: Any, batches: Any, *, budget: int, compiled: bool) -> Any:
        assert compiled and budget == 100
        done.append("fp8")
        model.fused = fused
        return fp8

    monkeypatch.setattr("tithe.engine.engine.fuse", lambda model: done.append("fuse"))
    monkeypatch.setattr("tithe.engine.measure.fp8_error.take_fp8", take)
    loaded.awaits_fp8 = awaits
    engine = Engine(loaded, budget=100, workers=1, compiled=True, say=said.append)
    assert done == ([] if awaits else ["fuse"])
    for _ in range(2):
        run(engine, passes)
    assert done == (["fp8"] if awaits else ["fuse"])
    assert said == (["fp8: 3 layers", "fp8: norms compiled"] if awaits else [])


def test_compiled_parts_stay_as_they_are(family: Family) -> None:
    """Two engines of one model: else compiled parts would be compiled again and could not be removed."""
    loaded = load(family("llama"))
    found = fuse(loaded, backend="eager")
    assert found.parts == PARTS["llama"] and fuse(loaded, backend="eager") is found
    refused = load(family("llama"))
    found = fuse(refused, backend="eager", wrong=lambda: "too far")
    assert fuse(refused, backend="eager") is found and found.parts == {}  # not tried again by other means


def test_what_is_said_to_be_wrong_is_taken_out(family: Family) -> None:
    loaded, seen = load(family("llama")), list[bool]()

    def wrong() -> str:
        seen.append(any("forward" in vars(part) for part in loaded.model.modules()))
        return "too far"

    found = fuse(loaded, backend="eager", wrong=wrong)
    assert (found.why_not, found.parts, found.off, seen) == ("too far", {}, None, [True])
    assert not any("forward" in vars(part) for part in loaded.model.modules())


def test_a_model_without_such_parts(family: Family) -> None:
    loaded = load(family("bloom"))
    assert fuse(loaded).why_not == "the model has no such parts"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own compiler
@pytest.mark.skipif(why_not_compilable(CPU) is not None, reason="no C++ compiler")
def test_compiled_on_this_processor(family: Family) -> None:
    loaded, passes, model = load(family("llama")), random_passes(12), plain(family("llama"))
    found = fuse(loaded)
    assert found.why_not is None, found
    wanted = [twin(model, pass_) for pass_ in passes]
    for budget in (30, 10_000):
        assert worst(run(Engine(loaded, budget=budget, workers=2), passes), wanted) < 1e-5


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # of torch's own compiler
@pytest.mark.skipif(why_not_compilable(CPU) is not None, reason="no C++ compiler")
@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_compiled_parts_round_where_torch_does(name: str, tmp_path: Path) -> None:
    """In bf16 these models are nats from fp32; without inductor's options, compiled ones were nats from others."""
    config = CONFIGS[name]()
    config.hidden_size, config.head_dim = 256, 64
    folder = save(tmp_path / name, config)
    loaded, exact = load(folder, "bf16"), load(folder, "fp32")
    off = max(float(np.abs(a - b).max()) for a, b in zip(fused.readings(exact), fused.readings(loaded), strict=True))
    found = fuse(loaded)
    assert found.why_not is None and found.off is not None and found.off < 0.1 * off, (found, off)


def test_where_it_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "find_spec", lambda name: None)
    assert why_not_worth_compiling(CPU, 10**10, 10**9) == "it pays on a GPU alone"
    assert why_not_worth_compiling(CUDA, 10**10, None) == "how much is to be read is not known"
    assert why_not_worth_compiling(CUDA, 10**6, 10**6) == "a job of 2.0e+12 operations does not repay it"
    assert why_not_worth_compiling(CUDA, 10**10, 10**9) == "`triton` is not installed"
    monkeypatch.setattr(fused, "find_spec", lambda name: name)
    assert WORTH < 2 * 10**10 * 10**9 and why_not_worth_compiling(CUDA, 10**10, 10**9) is None


def test_without_a_compiler_it_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder
    from torch._inductor.exc import InvalidCxxCompiler

    def none() -> str:
        raise InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    asked = ScoreSettings(dataset="d.jsonl", compile="on", device="cpu")
    with pytest.raises(SettingsError, match="nothing can be compiled for `cpu`: there is no C\\+\\+ compiler"):
        check_compile(asked, CPU)
    check_compile(ScoreSettings(dataset="d.jsonl", device="cpu"), CPU)


def test_yaml_reads_on_and_off_as_truths() -> None:
    assert [ScoreSettings.of({"dataset": "d", "compile": value}).compile for value in (True, False, "auto")] == [
        "on", "off", "auto"
    ]  # fmt: skip
    with pytest.raises(SettingsError, match="`compile` cannot be `always`"):
        ScoreSettings.of({"dataset": "d", "compile": "always"})


def test_a_run_goes_on_as_it_began(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fused, "find_spec", lambda name: name)
    data = tmp_path / "data.jsonl"
    data.write_text("x" * 40_000)
    dataset: Any = SimpleNamespace(source=str(data), limit=None)
    assert about(dataset) == 20_000

    def begin(place: str, parameters: float, device: torch.device = CUDA, compile: str = "auto") -> bool:
        settings = ScoreSettings.of({"dataset": str(data), "compile": compile})
        return wants_compiled(settings, device, lambda: int(parameters), dataset, tmp_path / place, "compile")

    large = 2 * WORTH / 20_000
    assert begin("a", large) and begin("a", 10)
    assert not begin("b", 10) and not begin("b", large)
    assert begin("b", large, compile="on") and not begin("a", large, compile="off")
    assert not begin("c", large, CPU) and not (tmp_path / "c").exists()
    assert begin("c", 10, CPU, "on") and begin("c", 10, CPU)


def test_how_much_a_run_reads_is_guessed_by_files_hub_and_limit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    row = {"instruction": "i" * 100, "output": "o" * 300}
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for _ in range(100)))
    size = data.stat().st_size
    assert about(open_dataset(data)) == 2 * size // 4
    assert about(open_dataset(data, limit=10)) == 2 * 10 * 400 // 4  # not of the whole file
    assert about(open_dataset(data, limit=1000)) == 2 * size // 4
    packed = tmp_path / "data.jsonl.gz"
    packed.write_bytes(gzip.compress(data.read_bytes()))
    assert about(open_dataset(packed)) == 2 * 3 * packed.stat().st_size // 4
    for sizes, wanted in (({"train.parquet": 600, "train.jsonl": 90}, 2 * (3 * 600 + 90) // 4), ({}, None)):
        monkeypatch.setattr(HubData, "sizes", lambda _, sizes=sizes: sizes)
        hub: Any = SimpleNamespace(source="owner/name", origin=HubData("owner/name", "train", None), limit=None)
        assert about(hub) == wanted


def test_loss_kernels_are_tried_where_a_job_may_repay_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(HubData, "sizes", lambda _: {})
    (tmp_path / "data.jsonl").write_text("x")
    here: Any = SimpleNamespace(source=str(tmp_path / "data.jsonl"), limit=None)
    there: Any = SimpleNamespace(source="owner/name", origin=HubData("owner/name", "train", None), limit=None)
    auto, off = (ScoreSettings.of({"dataset": "data", "compile": word}) for word in ("auto", "off"))
    assert may_be_large(auto, CUDA, there) and not may_be_large(auto, CUDA, here) and not may_be_large(off, CUDA, there)
    assert may_be_large(off, CPU, here)  # nothing is tried there, and nothing is to be held back

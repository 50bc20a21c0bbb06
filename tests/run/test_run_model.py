"""A resumed run does what it chose when it began."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.e2e.command import records, write_jsonl
from tithe.engine import devices, engine, loading
from tithe.engine.measure import layout
from tithe.engine.measure.memory import MemoryBudget
from tithe.engine.workers.multi_device import MultiDeviceEngine
from tithe.errors import StoreError
from tithe.report.reporter import Reporter
from tithe.run.engines import engine_record, engine_sentence, make_engine
from tithe.run.method import set_up
from tithe.run.run_model import ROUTE, choice, chosen_number, chosen_word, keep_choice, read_choices
from tithe.run.score import score
from tithe.settings import ScoreSettings


def loaded(settings: dict[str, Any], place: Path) -> Any:
    """Make the engine of a run whose answers are kept in a folder."""
    setup = set_up(ScoreSettings.of(settings))
    return make_engine(setup.settings, setup.source.dataset, setup.model, place, Reporter())


def test_choices_stand_side_by_side_and_the_first_stays(tmp_path: Path) -> None:
    assert choice(tmp_path, "a") is None and choice(None, "a") is None
    keep_choice(None, "a", 1)
    for name, value in (("a", 1), ("b", "on"), ("a", 2)):
        keep_choice(tmp_path, name, value)
    assert read_choices(tmp_path / "answers" / "choices.json") == {"a": 1, "b": "on"}
    assert (chosen_number(tmp_path, "a"), chosen_word(tmp_path, "b", ("on", "off"))) == (1, "on")


@pytest.mark.parametrize("value", [0, -5, 2.5, "many", True, [1]])
def test_what_is_no_number_is_named(tmp_path: Path, value: Any) -> None:
    keep_choice(tmp_path, "batch_tokens_cuda", value)
    with pytest.raises(StoreError, match="`batch_tokens_cuda` cannot be") as caught:
        chosen_number(tmp_path, "batch_tokens_cuda")
    assert "delete it" in str(caught.value.hint)


def test_a_flipped_bit_never_gives_another_choice(tmp_path: Path) -> None:
    keep_choice(tmp_path, "workers_cpu", 4)
    path = tmp_path / "answers" / "choices.json"
    raw, refused = path.read_bytes(), 0
    for bit in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            assert read_choices(path) == {"workers_cpu": 4}  # white space, perhaps
        except StoreError:
            refused += 1
    assert refused > 0.8 * len(raw) * 8


def test_choices_of_an_earlier_version_have_no_checksum(tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    path = tmp_path / "answers" / "choices.json"
    path.write_text('{"a": 1}')
    keep_choice(tmp_path, "b", 2)
    assert read_choices(path) == {"a": 1, "b": 2} and "checksum" in json.loads(path.read_text())


@pytest.mark.parametrize("text", ["{", "[1]", "null", '"x"', "[" * 100_000, "\xff"])
def test_a_damaged_file_is_an_error_and_is_left_alone(tmp_path: Path, text: str) -> None:
    (tmp_path / "answers").mkdir()
    path = tmp_path / "answers" / "choices.json"
    path.write_text(text)
    for call in (lambda: choice(tmp_path, "a"), lambda: keep_choice(tmp_path, "a", 1)):
        with pytest.raises(StoreError, match="damaged"):
            call()
    assert path.read_text() == text


def test_the_budget_of_a_gpu_is_the_runs(monkeypatch: pytest.MonkeyPatch, model_dir: Path, tmp_path: Path) -> None:
    """Free memory differs between calls; the batches stay those with which the run began."""
    data, load = write_jsonl(tmp_path / "data.jsonl", records(5)), loading.load_model
    found = [MemoryBudget(4096, 10, 1, 2.0), MemoryBudget(8192, 20, 1, 2.0), MemoryBudget(2048)]
    monkeypatch.setattr(engine, "find_memory_budget", lambda loaded, most: found.pop(0))

    def elsewhere(*args: Any, **given: Any) -> Any:
        return replace(load(*args, **{**given, "device": "cpu"}), device=torch.device("cuda"))

    monkeypatch.setattr(loading, "load_model", elsewhere)

    def begun(place: Path, **given: Any) -> Any:
        return loaded({"dataset": str(data), "model": str(model_dir), "dtype": "fp32", **given}, place)

    first = begun(tmp_path / "run")
    assert first.budget == 4096 and ", 4,096 tokens a batch" in engine_sentence(first)
    assert engine_record(first)["room"] == {"budget": 4096, "free": 10, "fixed": 1, "per_token": 2.0}
    assert begun(tmp_path / "run", batch_tokens=77).budget == 77
    again = begun(tmp_path / "run")
    assert again.budget == 4096 and again.memory_budget is None and len(found) == 2
    assert begun(tmp_path / "other").budget == 8192
    assert begun(tmp_path / "run", dtype="bf16").budget == 2048  # another model, to which the other's says nothing


@pytest.mark.slow
def test_the_layout_of_a_cpu_is_the_runs(monkeypatch: pytest.MonkeyPatch, model_dir: Path, tmp_path: Path) -> None:
    """A measured number is kept for later runs; a number that the user gives is used once and not kept."""
    data, spoken = write_jsonl(tmp_path / "data.jsonl", records(5)), list[str]()
    monkeypatch.setattr(layout, "SMALL", 0)
    monkeypatch.setattr(engine, "cpu_cores", lambda: 4)
    monkeypatch.setattr(engine, "threads_allowed", lambda: 4)

    def large_packs(
        _: layout.GatedMlp, layouts: Sequence[layout.Layout], rounds: int
    ) -> dict[layout.Layout, list[float]]:
        spoken.append(f"{len(layouts)} layouts")
        return {one: [float(one.tokens * one.threads)] * rounds for one in layouts}

    monkeypatch.setattr(layout, "timed", large_packs)

    def begun(place: str, **given: Any) -> Any:
        return loaded({"dataset": str(data), "model": str(model_dir), "dtype": "fp32", **given}, tmp_path / place)

    def kept_by(place: str) -> dict[str, Any]:
        found = read_choices(tmp_path / place / "answers" / "choices.json")
        return {name: value for name, value in found.items() if name != ROUTE}  # some processors have two of it

    first = begun("run")
    assert (first.workers, first.threads, first.budget) == (1, 4, 2048) and spoken == ["4 layouts", "3 layouts"]
    assert engine_record(first)["layout"]["why"] == "8.00 times as fast as 4 x 1 threads, 1,024 tokens"
    spoken.clear()
    assert (again := begun("run")).budget == 2048 and again.workers == 1 and again.threads == 4 and not spoken
    assert begun("run", workers=2).workers == 2 and begun("run", batch_tokens=77).budget == 77
    begun("given", batch_tokens=77)
    (own,) = {name.removeprefix("workers_cpu_") for name in kept_by("given") if name.startswith("workers_")}
    assert kept_by("given") == {f"workers_cpu_{own}": 1, f"threads_cpu_{own}": 4} and own.startswith("fp32-")
    monkeypatch.setattr(MultiDeviceEngine, "measured", True)
    begun("several", device="cpu,cpu").close()
    # How many are at once in each process is no word about one alone.
    assert kept_by("several") == {f"batch_tokens_cpu_{own}": 1024}


def test_the_dtype_of_a_cpu_is_the_runs(monkeypatch: pytest.MonkeyPatch, model_dir: Path, tmp_path: Path) -> None:
    """On a CPU, speed decides `auto`: if a busy machine measures otherwise later, nothing is computed again."""
    data, fastest = write_jsonl(tmp_path / "data.jsonl", records(5)), [torch.bfloat16]
    for room in (devices, loading):
        monkeypatch.setattr(
            room, "choose_dtype", lambda wanted, device: fastest[0] if wanted == "auto" else devices.WEIGHTS[wanted]
        )

    def scored(place: Path, **given: Any) -> tuple[str, int, list[str]]:
        said = list[str]()
        settings = ScoreSettings.of({"dataset": str(data), "model": str(model_dir), "device": "cpu", **given})
        record = score(settings, folder=place, reporter=Told(said)).record
        return (
            record["model"]["dtype"],
            record["work"]["passes_computed"],
            [one for one in said if "as this run" in one],
        )

    assert scored(tmp_path / "run") == ("bf16", 10, [])
    fastest[0] = torch.float32
    note = "note: bf16, as this run began; measured anew, `--dtype auto` takes fp32, and `--dtype fp32` computes all "
    assert scored(tmp_path / "run") == ("bf16", 0, [note + "passes again"])
    assert scored(tmp_path / "run", dtype="fp32") == ("fp32", 10, [])
    assert scored(tmp_path / "run") == ("bf16", 0, [note + "passes again"])
    assert scored(tmp_path / "other") == ("fp32", 10, [])
    fastest[0] = torch.bfloat16
    (tmp_path / "other" / "answers" / "choices.json").unlink()  # as earlier versions left it
    assert scored(tmp_path / "other")[:2] == ("fp32", 0)


class Told(Reporter):
    def __init__(self, said: list[str]) -> None:
        self.said = said

    def say(self, text: str) -> None:
        self.said.append(text)

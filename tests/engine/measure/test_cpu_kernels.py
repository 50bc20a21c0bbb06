"""fp32 on a CPU: oneDNN only if it is faster and accurate; a resumed run keeps what it began with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import tithe
from tests.e2e.command import records, write_jsonl
from tithe.engine import devices
from tithe.engine.devices import choose_dtype
from tithe.engine.loading import load_model
from tithe.engine.measure import cpu_kernels
from tithe.engine.measure.cpu_kernels import Fp32Route, HalfSpeed, choose, probe_half, put_back, take_fastest_fp32
from tithe.engine.model_source import find_model
from tithe.errors import StoreError
from tithe.report.reporter import Reporter
from tithe.run.engines import describe_fp32_kernels
from tithe.run.score import score
from tithe.settings import ScoreSettings

CPU = torch.device("cpu")
TRUE = {"default": 2e-7, "onednn": 4e-7}
CPU, BF16 = torch.device("cpu"), torch.bfloat16


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Reset torch's setting and the cached measurement, which are global."""
    put_back()
    cpu_kernels.probe_fp32.cache_clear()
    yield
    put_back()
    cpu_kernels.probe_fp32.cache_clear()
    assert torch.get_float32_matmul_precision() == "highest"


def test_the_faster_and_true_one_is_taken() -> None:
    assert choose({"default": 100.0, "onednn": 210.0}, TRUE).name == "onednn"
    assert choose({"default": 100.0, "onednn": 110.0}, TRUE).name == "onednn"
    assert choose({"default": 100.0, "onednn": 109.0}, TRUE).name == "default"
    assert "1.09 times" in choose({"default": 100.0, "onednn": 109.0}, TRUE).why


def test_one_that_rounds_to_bf16_is_not_taken_however_fast() -> None:
    """Pretend to be on a processor with AMX."""
    route = choose({"default": 100.0, "onednn": 900.0}, {"default": 2e-7, "onednn": 2.9e-3})
    assert route.name == "default" and "2.9e-03" in route.why


def rounding(monkeypatch: pytest.MonkeyPatch, error: float, seconds: float) -> None:
    """Fake a machine on which `medium` has this error, and takes this share of the default's time."""
    medium = lambda: torch.get_float32_matmul_precision() == "medium"  # noqa: E731
    monkeypatch.setattr(cpu_kernels, "relative_error", lambda *_: error if medium() else 2e-7)
    monkeypatch.setattr(cpu_kernels.torch, "equal", lambda *_: False)
    monkeypatch.setattr(cpu_kernels, "timed", lambda *_: {"default": 100.0, "onednn": 100.0 / seconds})


@pytest.mark.parametrize(
    ("error", "seconds", "taken"), [(3e-7, 0.5, "medium"), (3e-3, 0.5, "highest"), (3e-7, 0.95, "highest")]
)
def test_torch_is_set_to_what_was_found(
    monkeypatch: pytest.MonkeyPatch, error: float, seconds: float, taken: str
) -> None:
    rounding(monkeypatch, error, seconds)
    route = take_fastest_fp32(CPU)
    assert route is not None and torch.get_float32_matmul_precision() == taken
    assert (route.name == "onednn") == (taken == "medium")


def test_this_machine() -> None:
    """Whichever route is chosen, it is accurate, and torch is set accordingly."""
    route = take_fastest_fp32(CPU)
    assert route is not None and route.is_true(route.name)
    assert torch.get_float32_matmul_precision() == {"default": "highest", "onednn": "medium"}[route.name]
    assert take_fastest_fp32(CPU) == route


def test_routes_that_give_the_same_bits_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_kernels.torch, "equal", lambda *_: True)
    route = take_fastest_fp32(CPU, "onednn")
    assert route is not None and route.name == "default" and not route.gflops and "same bits" in route.why


def test_a_setting_of_the_callers_is_left_alone() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        route = take_fastest_fp32(CPU)
        assert torch.get_float32_matmul_precision() == "high"
        assert route is not None and route.name == "default" and "`high`" in route.why
    finally:
        torch.set_float32_matmul_precision("highest")


def test_for_a_gpu_it_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the same setting would round to TF32."""
    rounding(monkeypatch, 3e-7, 0.5)
    take_fastest_fp32(CPU)
    assert torch.get_float32_matmul_precision() == "medium"
    assert take_fastest_fp32(torch.device("cuda")) is None
    assert torch.get_float32_matmul_precision() == "highest"


def test_for_a_model_in_another_dtype_it_is_taken_back(monkeypatch: pytest.MonkeyPatch, model_dir: Path) -> None:
    """The head multiplies in fp32, and gives the same bits whichever model the process had before."""
    rounding(monkeypatch, 3e-7, 0.5)
    found = {}
    for dtype in ("fp32", "bf16", "fp32"):
        load_model(find_model(str(model_dir)), device="cpu", dtype=dtype)
        found[dtype] = torch.get_float32_matmul_precision()
    assert found == {"fp32": "medium", "bf16": "highest"}


def test_an_earlier_part_of_a_run_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    rounding(monkeypatch, 3e-7, 0.5)
    kept = take_fastest_fp32(CPU, "default")
    assert kept is not None and kept.name == "default" and torch.get_float32_matmul_precision() == "highest"
    assert take_fastest_fp32(CPU, "onednn").name == "onednn"  # type: ignore[union-attr]


def test_but_not_where_it_is_not_true(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the run folder came from another machine."""
    rounding(monkeypatch, 3e-3, 0.5)
    route = take_fastest_fp32(CPU, "onednn")
    assert route is not None and route.name == "default" and torch.get_float32_matmul_precision() == "highest"


def test_a_run_that_goes_on_takes_the_route_with_which_it_began(
    monkeypatch: pytest.MonkeyPatch, model_dir: Path, tmp_path: Path
) -> None:
    data, folder = write_jsonl(tmp_path / "data.jsonl", records(12)), tmp_path / "d.tithe"
    given = {"scorer": "ifd", "model": str(model_dir), "dtype": "fp32", "device": "cpu", "run_dir": folder}
    rounding(monkeypatch, 3e-7, 0.5)
    first = tithe.score(data, limit=6, **given).record["engine"]["fp32"]
    assert first["name"] == "onednn"
    cpu_kernels.probe_fp32.cache_clear()
    put_back()
    rounding(monkeypatch, 3e-7, 0.99)  # now the same measurement says otherwise
    assert tithe.score(data, **given).record["engine"]["fp32"]["name"] == "onednn"
    assert json.loads((folder / "answers" / "choices.json").read_text())["fp32_route"] == "onednn"
    other = tithe.score(data, **{**given, "run_dir": tmp_path / "new.tithe"})
    assert other.record["engine"]["fp32"]["name"] == "default"


@pytest.mark.parametrize("text", ["{", "[]", '{"fp32_route": "mkl"}'])
def test_a_damaged_note_is_an_error(model_dir: Path, tmp_path: Path, text: str) -> None:
    data, folder = write_jsonl(tmp_path / "data.jsonl", records(3)), tmp_path / "d.tithe"
    (folder / "answers").mkdir(parents=True)
    (folder / "answers" / "choices.json").write_text(text)
    with pytest.raises(StoreError, match="choices") as caught:
        tithe.score(data, scorer="ifd", model=str(model_dir), dtype="fp32", device="cpu", run_dir=folder)
    assert "delete it" in str(caught.value.hint)


def test_it_is_said_where_it_is_not_torch_as_it_comes() -> None:
    assert describe_fp32_kernels(Fp32Route("default", "", {}, TRUE)) == ""
    assert describe_fp32_kernels(choose({"default": 100.0, "onednn": 210.0}, TRUE)).startswith(
        " by oneDNN (2.10 times as fast"
    )
    assert "not true fp32" in describe_fp32_kernels(Fp32Route("default", "set before", {}, {"default": 3e-3}))


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    probe_half.cache_clear()
    yield
    probe_half.cache_clear()


def machine(monkeypatch: pytest.MonkeyPatch, times: float, error: float = 2e-3) -> None:
    """Fake a CPU that claims to multiply bf16, at so many times the speed of fp32."""
    monkeypatch.setattr(devices, "cpu_multiplies_bf16", lambda: True)
    monkeypatch.setattr(cpu_kernels, "clocked", lambda left, *_: 0.1 / times if left.dtype == BF16 else 0.1)
    monkeypatch.setattr(cpu_kernels, "relative_error", lambda *_: error)


@pytest.mark.parametrize(("times", "error", "taken"), [
    (2.0, 2e-3, BF16),
    (1.05, 2e-3, torch.float32),  # kernels that convert and multiply in fp32
    (0.01, 2e-3, torch.float32),  # no kernels at all
    (4.0, 0.2, torch.float32),
])  # fmt: skip
def test_auto_takes_what_was_measured(
    monkeypatch: pytest.MonkeyPatch, times: float, error: float, taken: torch.dtype
) -> None:
    machine(monkeypatch, times, error)
    assert choose_dtype("auto", CPU) is taken and choose_dtype("bf16", CPU) is BF16


def test_without_the_instructions_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    machine(monkeypatch, 2.0)
    monkeypatch.setattr(devices, "cpu_multiplies_bf16", lambda: False)
    monkeypatch.setattr(devices, "probe_half", lambda _: pytest.fail("measured"))
    assert choose_dtype("auto", CPU) is torch.float32


def test_a_slow_product_is_timed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[torch.dtype] = []

    def clocked(left: torch.Tensor, *_: object) -> float:
        rounds.append(left.dtype)
        return 3.0 if left.dtype == BF16 else 0.1

    monkeypatch.setattr(cpu_kernels, "clocked", clocked)
    assert probe_half(BF16).times == pytest.approx(1 / 30) and rounds.count(BF16) == 1


def test_here_products_are_those_of_the_dtype() -> None:
    for dtype in (BF16, torch.float16):
        found = probe_half(dtype)
        assert found.times > 0 and 1e-5 < found.relative_error <= found.limit


def test_who_asks_for_what_is_slow_is_told(monkeypatch: pytest.MonkeyPatch, model_dir: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", records(4))
    slow = (
        "note: bf16 multiplies 0.013 times as fast as fp32 on this CPU, and rounds: `--dtype fp32` loses nothing by it"
    )
    for times, wanted in ((0.013, [slow]), (2.0, [])):
        said = list[str]()

        class Heard(Reporter):
            def say(self, text: str, said: list[str] = said) -> None:
                said.append(text)

        monkeypatch.setattr(cpu_kernels, "probe_half", lambda _, times=times: HalfSpeed(times, 2e-3, 1e-2))
        settings = ScoreSettings(dataset=str(data), model=str(model_dir), device="cpu", dtype="bf16")
        done = score(settings, folder=tmp_path / str(times), reporter=Heard())
        assert done.record["engine"]["dtype"] == "bfloat16"
        assert [line for line in said if line.startswith("note: bf16")] == wanted

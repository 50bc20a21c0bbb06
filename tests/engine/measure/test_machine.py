"""Matmul peaks: every dtype, route and number of threads is measured, and each number is work over time."""

from __future__ import annotations

import statistics
import threading

import numpy as np
import pytest
import torch

from tithe.engine.measure import machine, matmul
from tithe.engine.measure.cpu_kernels import Fp32Route, put_back
from tithe.engine.measure.machine import Machine, Peak, measure_machine, products_of
from tithe.engine.measure.matmul import MatmulShape, Speed, affordable, measure, relative_error
from tithe.errors import ModelError

CPU = torch.device("cpu")
SMALL = MatmulShape(8, 32, 16)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make measurements take milliseconds; their numbers mean nothing."""
    monkeypatch.setattr(matmul, "ROUND", 1e-5)
    monkeypatch.setattr(machine, "SECONDS", 1e-4)
    monkeypatch.setattr(machine, "CPU_SQUARE", 32)


@pytest.mark.parametrize("threads", [1, 3])
def test_a_speed_is_work_over_time(quick: None, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """With a clock that advances a second per call of a thread, a round of all threads takes a second."""
    ticks = threading.local()

    def clock() -> float:
        ticks.now = getattr(ticks, "now", 0.0) + 1.0
        return float(ticks.now)

    monkeypatch.setattr(matmul.time, "perf_counter", clock)
    monkeypatch.setattr(matmul, "ROUND", 4.0)  # 4 products of a second each
    speed = measure(SMALL, torch.float32, CPU, threads=threads)
    wanted = 2 * 8 * 32 * 16 * 4 * threads / 1e9
    assert speed.best == pytest.approx(wanted) and speed.median == pytest.approx(wanted)


def test_the_best_and_the_median_of_the_rounds(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    walls = iter([1.0, 1.0, 4.0, 2.0, 8.0, 5.0, 3.0])  # two to find out how often, then five rounds
    monkeypatch.setattr(matmul, "clocked", lambda *_: next(walls))
    speed = measure(SMALL, torch.float32, CPU, seconds=1e-9)
    assert speed.best == pytest.approx(SMALL.flops / 2 / 1e9)
    assert speed.median == pytest.approx(SMALL.flops / statistics.median([4, 2, 8, 5, 3]) / 1e9)


def test_torch_has_its_threads_back(quick: None) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        measure(SMALL, torch.float32, CPU, threads=2)
        affordable(SMALL, torch.float32, CPU)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_one_thread_that_fails_does_not_leave_the_others_waiting(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = matmul.operands, iter(range(100))

    def failing(*given: object) -> object:
        if threading.current_thread() is not threading.main_thread() and next(calls) == 1:
            raise MemoryError("no room")
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(matmul, "operands", failing)
    with pytest.raises((MemoryError, threading.BrokenBarrierError)):
        measure(SMALL, torch.float32, CPU, threads=2)


def test_a_product_that_takes_too_long_is_made_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 1 GFLOP/s within 0.2 s: 2 x 1024^3 takes 2.1 s, half of each side 0.27 s, a quarter 0.03 s."""
    monkeypatch.setattr(matmul, "seconds_of", lambda product, *_: product.flops / 1e9)
    assert affordable(MatmulShape(1024, 1024, 1024), torch.float32, CPU) == MatmulShape(256, 256, 256)
    assert affordable(SMALL, torch.float32, CPU) == SMALL


def test_a_relative_error_is_that_of_the_whole_product() -> None:
    """Compare with numpy in float64, from the same matrices rounded to bf16 by hand."""
    left, right = matmul.operands(SMALL, torch.float32, CPU)
    assert relative_error(SMALL, torch.float32, CPU) < 1e-6
    found = relative_error(SMALL, torch.bfloat16, CPU)
    a, b = (rounded(one.numpy()) for one in (left, right))
    exact = a.astype(np.float64) @ b.astype(np.float64)
    wanted = np.linalg.norm(rounded(exact.astype(np.float32)) - exact) / np.linalg.norm(exact)
    assert found == pytest.approx(wanted, rel=0.2) and 1e-3 < found < 4e-3


def rounded(values: np.ndarray) -> np.ndarray:
    """Round to bf16's 8 bits, ties to even."""
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


def test_every_dtype_is_measured_alone_and_on_all_cores(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    put_back()  # a model that was loaded earlier in this process may have taken faster kernels
    monkeypatch.setattr(machine, "cpu_cores", lambda: 2)
    found = measure_machine(CPU, [SMALL])
    rows = [peak.as_dict() for peak in found.peaks if peak.route in (None, "default")]
    assert {(row["dtype"], row["threads"]) for row in rows} == {
        (d, n) for d in ("fp32", "bf16", "fp16") for n in (1, 2)
    }
    assert all(row["gflops"] >= row["gflops_median"] >= 0 for row in rows)
    assert {row["route"] for row in rows if row["dtype"] == "fp32"} == {"default"}
    assert found.threads == 2 and torch.get_float32_matmul_precision() == "highest"


def test_both_routes_are_measured_where_there_are_two(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def noted(product: MatmulShape, dtype: torch.dtype, device: torch.device, *, threads: int, seconds: float) -> Speed:
        if dtype == torch.float32:
            seen.append(torch.get_float32_matmul_precision())
        return Speed(product, dtype, threads, 1.0, 1.0)

    two = Fp32Route("default", "", {"default": 1.0, "onednn": 1.0}, {"default": 1e-7, "onednn": 1e-7})
    monkeypatch.setattr(machine, "probe_fp32", lambda: two)
    monkeypatch.setattr(machine, "measure", noted)
    found = measure_machine(CPU, [])
    assert sorted(set(seen)) == ["highest", "medium"]
    assert {peak.route for peak in found.peaks} == {None, "default", "onednn"}


def test_a_route_that_is_not_true_is_no_peak() -> None:
    def peak(rate: float, route: str, threads: int = 1) -> Peak:
        return Peak(Speed(SMALL, torch.float32, threads, rate, rate), route)  # type: ignore[arg-type]

    peaks = [peak(100, "default"), peak(500, "onednn"), peak(150, "default", 2)]
    route = Fp32Route("default", "", {}, {"default": 2e-7, "onednn": 3e-3})
    assert Machine(CPU, 2, peaks, route).best(torch.float32, 1).best == 100
    assert Machine(CPU, 2, peaks, route).best(torch.float32, 2).best == 150
    true = Fp32Route("default", "", {}, {"default": 2e-7, "onednn": 3e-7})
    assert Machine(CPU, 2, peaks, true).best(torch.float32, 1).best == 500


def test_shapes_come_from_the_config() -> None:
    assert products_of({"hidden_size": 64, "intermediate_size": 200}, 1024) == [MatmulShape(1024, 64, 200)]
    assert products_of({"n_embd": 32}, 512) == [MatmulShape(512, 32, 128)]
    assert products_of({"text_config": {"hidden_size": 16, "intermediate_size": 48}}, 8) == [MatmulShape(8, 16, 48)]
    with pytest.raises(ModelError, match="hidden_size"):
        products_of({}, 8)

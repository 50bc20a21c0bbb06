"""16 bits on a CPU: `auto` takes bf16 where it is multiplied fast and true; who asks for it elsewhere is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.e2e.command import records, write_jsonl
from tithe.config import ScoreSettings
from tithe.engine import devices
from tithe.engine.devices import choose_dtype
from tithe.engine.measure import cpu_kernels
from tithe.engine.measure.cpu_kernels import HalfSpeed, probe_half
from tithe.run.score import score
from tithe.run.talk import Talk

CPU, BF16 = torch.device("cpu"), torch.bfloat16


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    probe_half.cache_clear()
    yield
    probe_half.cache_clear()


def machine(monkeypatch: pytest.MonkeyPatch, times: float, error: float = 2e-3) -> None:
    """One that says it multiplies bf16, at so many times the speed of fp32."""
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

        class Heard(Talk):
            def say(self, text: str, said: list[str] = said) -> None:
                said.append(text)

        monkeypatch.setattr(cpu_kernels, "probe_half", lambda _, times=times: HalfSpeed(times, 2e-3, 1e-2))
        settings = ScoreSettings(dataset=str(data), model=str(model_dir), device="cpu", dtype="bf16")
        done = score(settings, folder=tmp_path / str(times), talk=Heard())
        assert done.record["engine"]["dtype"] == "bfloat16"
        assert [line for line in said if line.startswith("note: bf16")] == wanted

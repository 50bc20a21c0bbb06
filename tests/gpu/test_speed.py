"""A bench on a CUDA device: peaks by the device's own clock, memory of the device, batches of its size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tithe
from tests.e2e.command import records, write_jsonl
from tithe.engine.measure.machine import measure_machine
from tithe.engine.measure.matmul import MatmulShape

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning"),  # of torch's own compiler
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]


def test_peaks_of_all_dtypes() -> None:
    found = measure_machine(torch.device("cuda"), [MatmulShape(4096, 1024, 4096)])
    rates = {dtype: found.best(dtype, 1).best for dtype in (torch.float32, torch.bfloat16)}
    assert rates[torch.bfloat16] > rates[torch.float32] > 100
    assert found.threads == 1 and found.fp32 is None


def test_a_bench(model_dir: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", records(60))
    record = tithe.bench(data, scorer="ifd", model=str(model_dir), device="cuda", limit=20).record
    assert record["engine"]["workers"] == 1 and record["speed"]["tokens_per_second_median"] > 0
    whole = record["whole"]
    assert whole["peak_bytes"] >= whole["weight_bytes"]
    beside = max(whole["read_seconds"], whole["tokenise_seconds"], whole["score_seconds"])
    assert whole["scores_overlapped"] and whole["seconds"] == pytest.approx(whole["load_seconds"] + beside, abs=0.03)
    assert record["machine"]["device"] == torch.cuda.get_device_name(0)

"""Where the time of the engine's batches goes, kernel by kernel."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from clock import wait
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from tithe.engine.engine import Engine
from tithe.engine.loaded_model import LoadedModel
from tithe.records import Pass

BATCHES = 3
MOST = 15  # kernels that are named


def where_time_goes(loaded: LoadedModel, passes: Sequence[Pass], budget: int) -> dict[str, Any]:
    """Of a few batches from the middle: milliseconds by kernel, and the share of the time that the device was busy.

    On a CPU the same by operation. The profiler itself takes time: shares count here, not seconds.
    """
    on_gpu = loaded.device.type == "cuda"
    engine = Engine(loaded, budget=budget, workers=1)
    batches = engine.batches(passes)
    middle = batches[len(batches) // 2 :][:BATCHES]
    list(engine.run(passes, middle))
    wait(loaded.device)
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as seen:
        began = time.perf_counter()
        list(engine.run(passes, middle))
        wait(loaded.device)
        wall = (time.perf_counter() - began) * 1e3
    kind = DeviceType.CUDA if on_gpu else DeviceType.CPU
    taken = "self_device_time_total" if on_gpu else "self_cpu_time_total"  # microseconds
    rows = [
        (getattr(one, taken) / 1e3, one)
        for one in seen.key_averages()
        if one.device_type == kind and not getattr(one, "is_user_annotation", False)  # a span around other kernels
    ]
    rows.sort(key=lambda row: -row[0])
    busy = sum(ms for ms, _ in rows)
    named = [{"name": one.key[:100], "ms": ms, "share": ms / busy, "calls": one.count} for ms, one in rows[:MOST]]
    return {"batches": len(middle), "wall_ms": wall, "busy_ms": busy, "busy": busy / wall, "longest": named}


def attempted(loaded: LoadedModel, passes: Sequence[Pass], budget: int) -> dict[str, Any]:
    try:
        loaded.model.set_attn_implementation(loaded.implementation)
        return where_time_goes(loaded, passes, budget)
    except Exception as error:  # profilers want rights and libraries that not every machine has
        return {"failed": f"{type(error).__name__}: {str(error)[:300]}"}

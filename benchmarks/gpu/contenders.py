"""Who takes part, and what one of them took for its passes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from clock import forget_peak, peak_gb, wait
from job import Job, work_of
from plain import batched, loop
from road import compiled_parts, packed, padded, run_engine

from tithe.engine.model import LoadedModel
from tithe.engine.output_head import Head
from tithe.engine.varlen import Varlen
from tithe.records import Pass

# Token NLLs by pass, tokens of each pass that were read in another one, notes.
Outcome = tuple[dict[int, np.ndarray], list[int], dict[str, Any]]
Run = Callable[[Sequence[Pass], float], Outcome]


@dataclass(frozen=True)
class Contender:
    """Args: `records` of the job are read, `warm` passes before the clock starts; `attention` is set in the model."""

    name: str
    records: int
    warm: int
    run: Run
    attention: str
    around: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)


@dataclass(frozen=True)
class Sizes:
    """Records that the slow ones read, and token budgets of the engine, the one that reads all records first."""

    exact: int
    loop: int
    batched: int
    side: int
    budgets: tuple[int, ...]


def contenders(loaded: LoadedModel, attend: Varlen, other: Head | None, job: Job, sizes: Sizes) -> list[Contender]:
    """In the order in which they run: should time run out, the last are missing."""
    model, device = loaded.model, loaded.device
    by_loop, in_rows = plainly(partial(loop, model), device), partial(batched, model)
    found = [Contender("loop", sizes.loop, 4, by_loop, "sdpa")]
    if loaded.dtype != torch.float32:
        found.insert(0, Contender("loop, fp32", sizes.exact, 2, by_loop, "sdpa", partial(in_float32, model)))
    for name, by_length in (("padded, in order", False), ("padded, by length", True)):
        run = plainly(partial(in_rows, by_length=by_length), device)
        found.append(Contender(name, sizes.batched, 64, run, "sdpa"))
    one_call, compiled = packed(loaded, attend), compiled_parts(loaded)
    more = [("engine, one call a pack, compiled parts, other head", replace(one_call, head=other), compiled.on)]
    for budget in sizes.budgets:
        records = job.records if budget == sizes.budgets[0] else min(job.records, sizes.side)
        for name, engine, around in (
            ("engine as it is", loaded, nullcontext),
            # What the probe took is not measured twice.
            ("engine, one call a pack", one_call, nullcontext)
            if loaded.attend is None
            else ("engine, padded rows", padded(loaded), nullcontext),
            ("engine, one call a pack, compiled parts", one_call, compiled.on),
            *(more if other is not None else []),
        ):
            run = partial(engine_run, engine, budget)
            title = f"{name}, {budget} tokens"
            found.append(Contender(title, records, 600, run, engine.implementation or "sdpa", around))
    slow = packed(loaded, None)
    run = partial(engine_run, slow, sizes.budgets[0])
    title = f"engine, one call a segment, {sizes.budgets[0]} tokens"
    return [*found, Contender(title, min(job.records, sizes.side), 100, run, slow.implementation or "sdpa")]


def engine_run(loaded: LoadedModel, budget: int, passes: Sequence[Pass], until: float) -> Outcome:
    return run_engine(loaded, passes, budget, until)


def plainly(read: Callable[[Sequence[Pass], torch.device], list[np.ndarray]], device: torch.device) -> Run:
    def run(passes: Sequence[Pass], _until: float) -> Outcome:
        return dict(enumerate(read(passes, device))), [0] * len(passes), {}

    return run


@contextmanager
def in_float32(model: Any) -> Iterator[None]:
    """The same weights in float32, and back without a loss; buffers stay as they are."""
    originals = [(parameter, parameter.dtype) for parameter in model.parameters()]
    try:
        for parameter, _ in originals:
            parameter.data = parameter.data.float()
        yield
    finally:
        for parameter, dtype in originals:
            parameter.data = parameter.data.to(dtype)


def measure(
    contender: Contender, loaded: LoadedModel, job: Job, until: float, *, warm: bool
) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    """Seconds, work and memory of one turn, and the token NLLs; of a failure, what it said."""
    try:
        return turn(contender, loaded, job, until, warm)
    except torch.OutOfMemoryError:
        failed = "out of memory"
    except Exception as error:  # whatever a contender's kernels raise: the others go on
        failed = f"{type(error).__name__}: {str(error)[:300]}"
    try:
        forget_peak(loaded.device)  # the traceback, and with it what it held, is gone
    except RuntimeError as error:  # after an illegal access nothing runs on the device any more
        raise SystemExit(f"{contender.name} left the device unusable: {failed}; {error}") from error
    return {"failed": failed}, {}


def turn(
    contender: Contender, loaded: LoadedModel, job: Job, until: float, warm: bool
) -> tuple[dict[str, Any], dict[int, np.ndarray]]:
    device, passes = loaded.device, job.first(contender.records)
    loaded.model.set_attn_implementation(contender.attention)
    with contender.around():
        began = time.perf_counter()
        if warm:
            contender.run(passes[: contender.warm], math.inf)
            wait(device)
        warmed = time.perf_counter() - began
        forget_peak(device)
        began = time.perf_counter()
        found, common, notes = contender.run(passes, until)
        wait(device)
        seconds = time.perf_counter() - began
        memory = peak_gb(device)
    read = sorted(found)
    work = work_of([passes[i] for i in read], [common[i] for i in read])
    notes |= {"stopped": f"time was up after {len(read)} of {len(passes)} passes"} if len(read) < len(passes) else {}
    result = {"seconds": seconds, "warm_seconds": warmed, "records": contender.records, "passes": len(read)}
    return result | {"work": asdict(work), "peak_gb": memory, "notes": notes}, found

"""Who takes part, and what one of them took for its passes."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from clock import forget_peak, peak_gb, wait
from engine_paths import compiled_parts, packed, padded, run_engine
from job import Job, work_of
from plain import batched, loop

from tithe.engine.devices import multiplies_fp8
from tithe.engine.forward.attention import Varlen
from tithe.engine.forward.output_head import OutputHead
from tithe.engine.loaded_model import LoadedModel
from tithe.records import Pass

# Token NLLs by pass, tokens of each pass that were read in another one, notes.
Outcome = tuple[dict[int, np.ndarray], list[int], dict[str, Any]]
Run = Callable[[Sequence[Pass], float], Outcome]


@dataclass(frozen=True)
class Contender:
    """Args: `records` of the job are read, `warm` passes before the clock starts; `attention` is set in the model.

    One that is `last` leaves the model other than it was: it has its turns after all the others have had theirs.
    """

    name: str
    records: int
    warm: int
    run: Run
    attention: str
    around: Callable[[], AbstractContextManager[None]] = field(default=nullcontext)
    last: bool = False


@dataclass(frozen=True)
class Sizes:
    """Records that the slow ones read, and token budgets of the engine, the one that reads all records first."""

    exact: int
    loop: int
    batched: int
    side: int
    budgets: tuple[int, ...]


def contenders(
    loaded: LoadedModel, attend: Varlen, heads: Mapping[str, OutputHead], job: Job, sizes: Sizes
) -> list[Contender]:
    """In the order in which they run: should time run out, the last are missing."""
    model, device, (usual, *budgets) = loaded.model, loaded.device, sizes.budgets
    by_loop, in_rows = plainly(partial(loop, model), device), partial(batched, model)
    found = [Contender("loop", sizes.loop, 4, by_loop, "sdpa")]
    if loaded.dtype != torch.float32:
        found.insert(0, Contender("loop, fp32", sizes.exact, 2, by_loop, "sdpa", partial(in_float32, model)))
    one_call, compiled, side = packed(loaded, attend), compiled_parts(loaded).on, min(job.records, sizes.side)
    found.append(engine("engine", one_call, usual, job.records, compiled))
    for name, by_length in (("padded, in order", False), ("padded, by length", True)):
        run = plainly(partial(in_rows, by_length=by_length), device)
        found.append(Contender(name, sizes.batched, 64, run, "sdpa"))
    found += [
        *(engine("engine", one_call, budget, side, compiled) for budget in budgets),
        engine("engine, parts not compiled", one_call, usual, side),
        *(
            engine(f"engine, {name}", replace(one_call, head=head), usual, side, compiled)
            for name, head in heads.items()
        ),
        engine("engine, padded rows", padded(loaded), usual, side),
        engine("engine, one call a segment", packed(loaded, None), usual, min(side, sizes.loop)),
    ]
    if multiplies_fp8(device):
        found.append(fp8(loaded, attend, usual, side))
    return found


def engine(
    name: str,
    loaded: LoadedModel,
    budget: int,
    records: int,
    around: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Contender:
    run = partial(engine_run, loaded, budget)
    return Contender(f"{name}, {budget} tokens", records, 600, run, loaded.implementation or "sdpa", around)


def fp8(loaded: LoadedModel, attend: Varlen, budget: int, records: int) -> Contender:
    """Weights in fp8, from the first turn on."""
    model = replace(packed(loaded, attend), awaits_fp8=True)

    def run(passes: Sequence[Pass], until: float) -> Outcome:
        found, common, notes = run_engine(model, passes, budget, until, compiled=True)
        assert model.fp8 is not None and model.fused is not None
        return found, common, {**notes, "fp8": model.fp8.as_dict(), "compiled": model.fused.as_dict()}

    title = f"engine, fp8 weights, {budget} tokens"
    return Contender(title, records, 600, run, model.implementation or "sdpa", last=True)


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

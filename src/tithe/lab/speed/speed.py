"""Measure how fast a run would be on this machine: tokens per second, utilisation, time and memory of the whole job."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.errors import DataError, ModelError, SettingsError
from tithe.extras import versions
from tithe.lab.speed.forecast import BenchResult, SampleSpeed, WholeJob, tokenising_processes
from tithe.lab.speed.sample import Sample, compared_states, prepare_scorers, spread, working_shape
from tithe.lab.speed.settings import BenchSettings
from tithe.records import BadRow, Example
from tithe.report.reporter import Reporter
from tithe.run.engines import EngineCache, engine_record
from tithe.run.method import Setup, set_up
from tithe.run.score import plan

if TYPE_CHECKING:
    from tithe.engine.engine import Engine
    from tithe.engine.measure.machine import Machine

FIRST = 8  # records read before the sample: they compile kernels and show how long it will take


def bench(settings: BenchSettings, reporter: Reporter | None = None) -> BenchResult:
    """Count the whole data set, load the model, and read a sample of it several times.

    Raises:
        SettingsError: no scorer reads a model, or the run would be refused.
        DataError: no example of the data set can be read.
    """
    reporter = reporter or Reporter()
    check_settings(settings)
    setup = set_up(settings.job)
    if not setup.needs_model:
        raise SettingsError(
            f"{', '.join(setup.method.scorers)} reads no model: there is nothing to measure",
            hint="`--scorer ifd` reads one",
        )
    if (states := compared_states(setup)) is not None:
        raise SettingsError(
            f"{', '.join(setup.method.scorers)} reads {states}, which a sample cannot measure: they are learned first",
            hint="`--scorer ifd` or `perplexity`; `tithe plan` counts the passes of each",
        )
    job, grown = plan_job(settings, reporter)  # before the model is loaded: it measures memory
    engines = EngineCache(reporter, several=False)
    with tempfile.TemporaryDirectory(prefix="tithe-bench-") as scratch:
        items = draw_sample(setup, job["counts"]["records"], settings.limit)
        engine, loading = load_engine(setup, engines, Path(scratch))
        sample = Sample(setup, prepare_scorers(setup, items), items, Path(scratch), working_shape(engine), engine)
        reporter.say("measuring: matrix products of this machine")
        machine = measured_machine(engine, setup)
        sample, warming = cut_sample(sample, settings)
        reporter.say(f"measuring: {len(sample.items):,} records, read {settings.repeats} times")
        readings = [sample.read() for _ in range(settings.repeats)]
        tokenising = [sample.tokenise() for _ in range(settings.repeats)]
    peak = machine.best(engine.model.dtype, machine.threads)
    speed = SampleSpeed(readings, peak.best)
    whole = whole_job(job, sample, speed, tokenising, loading + warming)
    held = max(one.peak_bytes for one in readings)
    if machine.device.type == "cpu":  # the plan of the whole job is in the same memory
        held += grown
    record = describe(setup, job, machine, engine) | {
        "peak": {
            "gflops": round(peak.best, 1),
            "gflops_median": round(peak.median, 1),
            "threads": peak.threads,
            "product": str(peak.product),
        },
        "sample": {
            "records": sample.records,
            "of": job["counts"]["records"],
            "tokens": speed.middle.tokens,
            "repeats": len(readings),
        },
        "speed": speed.as_dict(),
        "whole": {
            **whole.as_dict(),
            "peak_bytes": held,
            "weight_bytes": sum(w.numel() * w.element_size() for w in engine.model.model.parameters()),
        },
    }
    assert engine.budget is not None and engine.workers is not None
    record["notes"] = [*notes(setup, settings, job), *speed.doubts(engine.budget, engine.workers)]
    return BenchResult(record)


def whole_job(
    job: dict[str, Any], sample: Sample, speed: SampleSpeed, tokenising: Sequence[tuple[float, int]], load: float
) -> WholeJob:
    """Forecast the seconds of the whole job.

    Args:
        job: record of its plan.
        sample: that was read.
        speed: of the sample.
        tokenising: seconds and tokens of each planning of the sample.
        load: seconds until the engine reads at full speed.
    """
    # Per planned token, as the plan of the whole job counts them: what passes share is then in the rate.
    planned = [one.planned / one.seconds for one in speed.readings]
    rate, tokens = statistics.median(planned), job["counts"]["forward_tokens"]
    thread = tokens / statistics.median(count / seconds for seconds, count in tokenising)
    device = sample.engine.model.device.type
    score = statistics.median(one.score_seconds for one in speed.readings)
    return WholeJob(
        load=load,
        tokens=tokens,
        rates=(min(planned), rate, max(planned)),
        thread=thread,
        processes=tokenising_processes(thread, tokens / rate, device, sample.setup.renderer),
        score=score * (job["counts"]["records"] / sample.records),
        overlapped=device != "cpu",
    )


def check_settings(settings: BenchSettings) -> None:
    """Refuse settings that a run supports and a bench does not.

    Raises:
        SettingsError: naming the setting.
    """
    if settings.dtype == "fp8":
        raise SettingsError(
            "a bench compares a model with the matmul peak of its dtype, and has none for `fp8`", hint="`--dtype bf16`"
        )
    if settings.warmup:
        raise SettingsError(
            "`warmup` trains the model before it scores, and a bench trains nothing", hint="leave it out"
        )


def plan_job(settings: BenchSettings, reporter: Reporter) -> tuple[dict[str, Any], int]:
    """Plan the whole job; return the record, and the bytes by which the process grew."""
    import torch

    from tithe.engine.measure.memory import held, peak_memory

    cpu = torch.device("cpu")
    before = held(cpu)
    with peak_memory(cpu) as memory:
        job = plan(settings.job, reporter).record
    return job, max(0, (memory.bytes or 0) - before)


def draw_sample(setup: Setup, records: int, limit: int) -> list[Example | BadRow]:
    """Return records spread evenly over the data set, at most `limit`."""
    wanted = set(spread(records, limit))
    found = [item for item in setup.source.dataset if item.row in wanted]
    if not any(isinstance(item, Example) for item in found):
        raise DataError(
            f"none of {len(wanted):,} records of `{setup.settings.dataset}` can be read", hint="a larger `--limit`"
        )
    return found


def load_engine(setup: Setup, engines: EngineCache, place: Path) -> tuple[Engine, float]:
    """Make the engine; return it and the seconds it took, which include the fingerprint of the weights."""
    began = time.perf_counter()
    engine = engines.get(setup.settings, setup.source.dataset, setup.model, place)
    return engine, time.perf_counter() - began


def measured_machine(engine: Engine, setup: Setup) -> Machine:
    """Measure the machine's peaks for the model's matrix shapes; for a square if its config does not give them."""
    from tithe.engine.measure.machine import measure_machine, products_of

    products = []
    with suppress(ModelError):
        products = products_of(setup.model.files.config, engine.budget or 1)
    return measure_machine(engine.model.device, products)


def cut_sample(sample: Sample, settings: BenchSettings) -> tuple[Sample, float]:
    """Cut the sample down to what can be read in the time for one reading.

    Returns:
        The sample, and the seconds of warming up: by how much a first reading takes longer than a second one.
    """
    few = sample.part(FIRST / len(sample.items))
    first = few.read()
    reading = few.read()
    if not reading.tokens:
        raise DataError(
            f"no forward pass could be made from {len(few.items):,} records of `{sample.setup.settings.dataset}`",
            hint="`tithe plan` lists the reasons",
        )
    whole = reading.seconds * len(sample.items) / len(few.items)
    enough = sample if whole <= settings.seconds else sample.part(settings.seconds / whole)
    return enough, max(0.0, first.seconds - reading.seconds)


def describe(setup: Setup, job: dict[str, Any], machine: Machine, engine: Engine) -> dict[str, Any]:
    """Return the facts about job, engine and machine, for the record."""
    import torch

    cuda = machine.device.type == "cuda"
    return {
        "settings": job["settings"],
        "versions": versions(),
        "dataset": job["dataset"],
        "model": job["model"],
        "counts": job["counts"],
        "engine": engine_record(engine),
        "machine": {
            "device": torch.cuda.get_device_name(machine.device) if cuda else str(machine.device),
            "cores": machine.cores,
            "matmul": [peak.as_dict() for peak in machine.peaks],
            "fp32": None if machine.fp32 is None else machine.fp32.as_dict(),
        },
        "encoders": setup.method.encoder_specs,
    }


def notes(setup: Setup, settings: BenchSettings, job: dict[str, Any]) -> list[str]:
    """Return notes on what the numbers leave out."""
    found = []
    records = job["counts"]["records"]
    if records < settings.limit:
        found.append(f"the data set has {records:,} records, fewer than the {settings.limit:,} of a sample")
    if setup.method.encoder_specs:
        found.append(
            f"the times exclude vectors of prompts ({', '.join(setup.method.encoder_specs)}), which are computed first"
        )
    return found

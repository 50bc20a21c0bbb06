"""Estimate how long a planned run takes here, from a few records that are read as the run would read them."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tithe.errors import TitheError
from tithe.lab.speed.forecast import SampleSpeed
from tithe.lab.speed.sample import Sample, compared_states, prepare_scorers, working_shape
from tithe.lab.speed.speed import draw_sample, load_engine, whole_job
from tithe.report.reporter import Reporter
from tithe.run.engines import EngineCache, torch_name
from tithe.run.method import Setup, set_up
from tithe.settings import ScoreSettings

RECORDS = 32  # of the sample, spread over the data set
FIRST = 4  # records read before it: they compile kernels and show how long the sample takes
SECONDS = 2.0  # about how long one reading of the sample may take
LARGEST = 8e9  # bytes of weights in bf16: loading more takes longer than a plan may
MEASURE = "`tithe bench` measures it"


def time_plan(planned: Setup, job: Mapping[str, Any], reporter: Reporter) -> dict[str, Any]:
    """Load the model, read a few records, and return the seconds of the whole run.

    Args:
        planned: the planned run; its weights may be missing.
        job: record of the plan.
        reporter: gets a message while the model is read.

    Returns:
        The forecast of a bench, with the sample's size, device and dtype; or `not_measured`, the reason.
    """
    reason = why_not(planned, job)
    if reason is not None:
        return {"not_measured": reason}
    reporter.say("measuring: a few records are read, to say how long the run takes; `--no-time` leaves that out")
    try:
        return measured(planned.settings, dict(job))
    except TitheError as error:  # the plan is good all the same
        return {"not_measured": f"the model could not be read: {error}"}


def why_not(planned: Setup, job: Mapping[str, Any]) -> str | None:
    """Return why the model is not read in a plan; None if it is."""
    if not planned.needs_model:
        return f"{', '.join(planned.method.scorers)} reads no model"
    files, weights = planned.model.files, job["cost"]["weight_bytes"]["bf16"]
    adapter = None if files.adapter is None else files.adapter / "adapter_model.safetensors"
    if files.held is None and (not files.weights or (adapter is not None and not adapter.is_file())):
        return f"the weights of `{files.name}` are not on this machine; `tithe bench` fetches and times them"
    if files.held is None and weights > LARGEST:
        return f"the weights of `{files.name}` take {weights / 1e9:.1f} GB in bf16; {MEASURE}"
    if (states := compared_states(planned)) is not None:
        return f"{states} compares states with what the run learns first; `tithe bench --scorer ifd` times the model"
    if planned.settings.dtype == "fp8":
        return f"the run begins with some passes in bf16, to see what fp8 changes; {MEASURE}"
    if not job["counts"]["forward_tokens"]:
        return "there is nothing to read"
    return None


def measured(settings: ScoreSettings, job: dict[str, Any]) -> dict[str, Any]:
    """Read the sample twice, and forecast the whole run."""
    setup, engines = set_up(settings.model_copy(update={"per_token": False})), EngineCache(several=False)
    with tempfile.TemporaryDirectory(prefix="tithe-plan-") as scratch:
        items = draw_sample(setup, job["counts"]["records"], RECORDS)
        try:
            engine, loading = load_engine(setup, engines, Path(scratch))
            sample = Sample(setup, prepare_scorers(setup, items), items, Path(scratch), working_shape(engine), engine)
            few = sample.part(FIRST / len(items))
            first, second = few.read(), few.read()
            whole = second.seconds * len(items) / len(few.items)
            sample = sample if whole <= SECONDS else sample.part(max(SECONDS / whole, FIRST / len(items)))
            readings = [sample.read() for _ in range(2)]
            tokenising = [sample.tokenise() for _ in range(2)]
        finally:
            engines.close()
    if not all(one.tokens and one.seconds for one in readings):
        return {"not_measured": f"none of {len(sample.items)} records that were tried has a forward pass"}
    # Only ratios of the readings are used here, not the peak of the machine.
    forecast = whole_job(
        job, sample, SampleSpeed(readings, peak=1.0), tokenising, loading + first.seconds - second.seconds
    )
    model = engine.model
    return forecast.as_dict() | {
        "tokens_per_second": round(forecast.rates[1], 1),
        "sample_records": sample.records,
        "device": str(model.device),
        "dtype": torch_name(setup.model.weights_dtype),
        "without_encoders": setup.method.encoder_specs,
    }

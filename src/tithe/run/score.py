"""Plan and score a dataset."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from tithe.config import ScoreSettings
from tithe.planner import Cost, Window, window_size, windows, without_numbers
from tithe.records import Ask
from tithe.run.account import Account, account
from tithe.run.bench import Bench
from tithe.run.describe import engine_record, torch_name
from tithe.run.folder import (
    DROPPED,
    RECORD,
    SCORES,
    TOKENS,
    check_places,
    check_scores_file,
    inputs_of,
    run_folder,
    sweep,
    write_json,
    write_table,
)
from tithe.run.passed_on import check_passed_on
from tithe.run.remarks import remark
from tithe.run.results import PlanResult, ScoreResult
from tithe.run.setup import Parts, residual
from tithe.run.table import Table
from tithe.run.talk import Talk
from tithe.run.tokens import TokenFile
from tithe.run.warmup import check_warmup, warm_up_first
from tithe.runners.local import LocalRunner
from tithe.runners.tokenising import Tokenisers

PLANNED_BUDGET = 1024  # tokens a batch on a CPU; larger ones have more in common


def plan(settings: ScoreSettings, talk: Talk | None = None) -> PlanResult:
    """Count what a run would read, in bounded memory and without loading a model.

    Raises:
        TitheError: what would stop the run, as far as it can be known without the model.
    """
    from tithe.engine.measure.shape import BYTES, model_shape

    talk = talk or Talk()
    parts = Parts(settings, weights=False)
    watch, cost, needs, shared = parts.watch, Cost(), parts.needs_model, 0
    runner = LocalRunner(parts.scorers, parts.renderer, None, {}, settings.per_token, readouts=parts.readouts)
    if parts.learns:
        runner.scorers = parts.standins(parts.examples, lambda asks: plan_asks(runner, asks, cost))
    if settings.warmup:
        talk.say("note: the model's training by `warmup` is not in these numbers")
    for note in parts.notes:
        talk.say(note)
    expect(parts, talk, "counting")
    try:
        for chunk in runner.chunks(parts.dataset):
            window = runner.plan(chunk)
            cost.add(window, runner.model_readouts)
            shared += common_tokens(window, runner.model_readouts, settings.batch_tokens)
            talk.progress(len(chunk), cost.tokens)
    finally:
        talk.done()
    watch.check()
    record = {**parts.describe(), "counts": cost.as_dict(), "shared_tokens": shared}
    record["estimated"] = cost.passes["shown"] > 0
    if needs:
        shape = model_shape(parts.source)
        record["model"] |= {"parameters": shape.parameters, "parameters_exact": shape.exact}
        record["cost"] = {
            "forward_flops": shape.flops(cost.tokens, cost.scored),
            "weight_bytes": {dtype: shape.memory(dtype) for dtype in BYTES},
        }
    return PlanResult(record)


def common_tokens(window: Window, model_readouts: frozenset[str], budget: int | None) -> int:
    """Tokens of a window's passes that an engine which packs them does not read again: common beginnings."""
    from tithe.engine.batches.batching import make_batches

    passes = [one for one, readouts in zip(window.passes, window.readouts, strict=True) if readouts & model_readouts]
    return sum(batch.saved for batch in make_batches(passes, budget=budget or PLANNED_BUDGET, share=True))


def plan_asks(runner: LocalRunner, asks: Sequence[Mapping[str, Ask]], cost: Cost) -> None:
    """Count what a scorer will read while it prepares."""
    for chunk in windows(asks, window_size(max(map(len, asks), default=0))):
        cost.add_passes(runner.plan_asks(chunk), runner.model_readouts)


def score(
    settings: ScoreSettings,
    *,
    folder: Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    talk: Talk | None = None,
) -> ScoreResult:
    """Score every example, reusing what the run folder already holds.

    Args:
        settings: what and how.
        folder: the run folder; None keeps nothing.
        output: where the score table goes besides the run folder.
        overwrite: replace `output` if it is there.
        talk: who listens.

    Raises:
        TitheError: whatever stops the run; what was scored before is in the run folder.
    """
    if output is not None:
        check_scores_file(output)
    check_places(output, overwrite, settings.dataset, folder, inputs_of(settings), scores=True)
    parts = Parts(settings)
    check_passed_on(settings, list(parts.scorers.values()))
    parts.check(folder)
    check_warmup(parts, folder)
    talk = talk or Talk()
    with closing(parts), run_folder(folder) as place, account(folder, talk, parts.basics) as told:
        warm_up_first(parts, folder, talk)
        result = score_in(place, parts, talk, folder=folder, told=told)
        result.record.update(told.finished())
        told.record = lambda: result.record
        if folder is not None:
            (folder / DROPPED).unlink(missing_ok=True)  # of a selection that was here before
            write_table(folder / SCORES, result.grown.parts())
            write_json(folder / RECORD, result.record)
        if output is not None:  # last: where it is, everything is
            sweep(output)
            write_table(output, result.grown.parts())
    return result


def score_in(
    place: Path,
    parts: Parts,
    talk: Talk,
    *,
    folder: Path | None = None,
    extra: Sequence[str] = (),
    told: Account | None = None,
) -> ScoreResult:
    """Score in a folder that is open; writes answers there and nothing else.

    Args:
        place: where answers are kept meanwhile.
        parts: what the run is made of.
        talk: who listens.
        folder: the run folder to name in the result, None for a scratch one.
        extra: columns of the input to carry along for a selector.
        told: learns how to tell what was done so far.
    """
    began, settings = time.monotonic(), parts.settings
    watch, parts.talk = parts.watch, talk
    assert parts.readouts and (not parts.needs_model or parts.dtype)  # what is odd is noted when they are made
    for note in parts.notes:
        talk.say(note)
    with ExitStack() as stack:
        runner = make_runner(parts, place, talk)
        stack.callback(flush, runner)  # what was read is kept, whatever ends the reading
        if runner.tokenisers is not None:
            stack.callback(runner.tokenisers.stop)
        table, cost = Table(list(parts.scorers), extra, parts.score_columns[len(parts.scorers) :]), Cost()
        if told is not None:
            told.record = lambda: record_so_far(parts, runner, cost, time.monotonic() - began)
            told.stored = lambda: sum(map(len, runner.stores.values()))
        bench = Bench(parts, place, runner, cost)
        runner.scorers = bench.prepare(parts.scorers)
        tokens = stack.enter_context(TokenFile(place / TOKENS)) if settings.per_token else None
        if parts.learns:  # else no scorer knows any example but the one it is asked about
            read_together(parts, runner, talk)
        expect(parts, talk, "scoring")
        try:
            with closing(runner.run(parts.dataset)) as windows:
                for scored in windows:
                    table.add(scored)
                    cost.add(scored.window, runner.model_readouts)
                    if tokens is not None:
                        tokens.add(scored)
        finally:
            talk.done()
        flush(runner)
        watch.check()
        for name in parts.residualised:
            table.residualise(name, residual(name))
    if not settings.per_token:
        (place / TOKENS).unlink(missing_ok=True)  # of an earlier run
    record = make_record(parts, runner, cost, table, time.monotonic() - began)
    record["learned"] = bench.facts  # a selector's vectors are noted in it later
    remark(parts.scorers, table, bench)
    return ScoreResult(parts.dataset, record, folder, table, watch, bench.tables, bench.vectors)


def flush(runner: LocalRunner) -> None:
    """Write answers that are not yet on disk."""
    for store in runner.stores.values():
        store.flush()


def read_together(parts: Parts, runner: LocalRunner, talk: Talk) -> None:
    """Read examples that show each other first, where they are too many for one window."""
    try:
        runner.read_together(parts.examples, lambda: begin_together(parts, talk))
    finally:
        talk.done()


def begin_together(parts: Parts, talk: Talk) -> None:
    talk.phase("reading what shows each other")
    talk.expect(len(parts.examples))


def make_runner(parts: Parts, folder: Path, talk: Talk) -> LocalRunner:
    """The runner of a run, its scorers not yet prepared."""
    runner = LocalRunner(
        parts.scorers,
        parts.renderer,
        (lambda: parts.engine) if parts.needs_model else None,
        parts.stores(folder),
        per_token=parts.settings.per_token,
        readouts=parts.readouts,
    )
    if parts.needs_model:
        remote = parts.settings.trust_remote_code
        runner.tokenisers = Tokenisers(parts.source, parts.renderer, remote, talk.say)
        runner.overlapped = parts.devices[0].type != "cpu"
    runner.progress = lambda examples: talk.progress(examples, runner.work.tokens)
    return runner


def expect(parts: Parts, talk: Talk, what: str) -> None:
    """Count the records for the progress bar, where that costs no download."""
    talk.phase(what)
    local = Path(parts.dataset.source).exists()
    talk.expect(sum(1 for _ in parts.dataset.rows()) if local else None)


def all_problems(cost: Cost, table: Table) -> dict[str, int]:
    """Reason -> how many examples: what the passes showed, and what only the scorers knew."""
    found: Counter[str] = Counter()
    for row in sorted({row for one in table.reasons.values() for row in one.said}):
        if table.columns["id"].mask.has(row):
            reasons = (one.at(row) for one in table.reasons.values())
            found.update({without_numbers(reason) for reason in reasons if reason is not None})
    return dict(found | cost.problems)  # the greater of both: they tell of the same examples


def make_record(parts: Parts, runner: LocalRunner, cost: Cost, table: Table, seconds: float) -> dict[str, Any]:
    record = record_so_far(parts, runner, cost, seconds)
    record["counts"] |= {
        "scored": {name: table.columns[name].mask.there for name in parts.scorers},
        "without_score": {name: table.without_score(name) for name in parts.scorers},
        "problems": all_problems(cost, table),
    }
    return record


def record_so_far(parts: Parts, runner: LocalRunner, cost: Cost, seconds: float) -> dict[str, Any]:
    """Return the record of a run at any moment: what it is made of, and what it has done."""
    work, record = runner.work, parts.describe()
    record["counts"] = cost.as_dict()
    record["work"] = {
        "passes_computed": work.passes,
        "passes_reused": work.reused,
        "passes_out_of_memory": work.failed,
        "tokens_read": work.tokens,
        "seconds": round(seconds, 2),
        "reading_seconds": round(work.seconds, 2),
        "waited_for_tokens_seconds": round(work.waited, 2),
        "longest_wait_seconds": round(runner.trace.worst, 2),
        "tokens_per_second": round(work.tokens / work.seconds, 1) if work.seconds else None,
    }
    if runner.trace.spans:
        record["trace"] = runner.trace.as_dict()
    if runner.tokenisers is not None and runner.tokenisers.count:
        record["tokenising"] = runner.tokenisers.as_dict()
    record["engine"] = {"loaded": "engine" in parts.__dict__}
    if record["engine"]["loaded"]:
        record["engine"] |= engine_record(parts.engine)
    elif parts.needs_model:  # everything was found: what would have read it
        record["engine"] |= {"devices": [str(one) for one in parts.devices], "dtype": torch_name(parts.dtype)}
    return record

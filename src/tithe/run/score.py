"""Plan and score a data set: the library calls behind `tithe plan` and `tithe score`."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe import plugins
from tithe.errors import SettingsError
from tithe.planner import Cost, Window, window_size, windows, without_details
from tithe.records import Ask
from tithe.report.reporter import Reporter
from tithe.run.engines import EngineCache, EngineLoader, engine_record, torch_name
from tithe.run.folder import (
    DROPPED,
    RECORD,
    SCORES,
    TOKENS,
    RecordWriter,
    check_places,
    inputs_of,
    recorded_run,
    remove_partial_files,
    run_folder,
    write_json,
    write_table,
)
from tithe.run.method import Method, Setup, basic_record, residual_name, set_up
from tithe.run.plan_example import rendered_example
from tithe.run.results import PlanResult, ScoreResult
from tithe.run.score_files import check_scores_file, write_scores
from tithe.run.table import ScoreTable, TokenFile
from tithe.run.workbench import RunBench, note_reply_mass
from tithe.runners.local import LocalRunner
from tithe.runners.tokenising import Tokenisers
from tithe.settings import ScoreSettings, check_inherited

if TYPE_CHECKING:
    from tithe.engine.engine import Engine

PLANNED_BUDGET = 1024  # tokens per batch, as on a CPU; larger batches share more


def plan(settings: ScoreSettings, reporter: Reporter | None = None, *, timed: bool = False) -> PlanResult:
    """Count what a run would read, in bounded memory, and show its first example.

    Args:
        settings: of the run.
        reporter: prints progress and notes.
        timed: also load the model, if its weights are here, and read a few records, to say how long the run takes.

    Raises:
        TitheError: the run would fail; covers all that can be checked without the model.
    """
    from tithe.engine.measure.shape import BYTES, model_shape

    reporter = reporter or Reporter()
    setup = set_up(settings, weights=False)
    cost, shared = Cost(), 0
    runner = LocalRunner(setup.method.scorers, setup.renderer, None, {}, settings.per_token, readouts=setup.readouts)
    if setup.method.learns:
        runner.scorers = setup.method.stubs(
            setup.source.examples, setup.pools, lambda asks: count_asks(runner, asks, cost)
        )
    if settings.warmup:
        reporter.say("note: the model's training by `warmup` is not in these numbers")
    for note in setup.notes:
        reporter.say(note)
    begin_phase(setup, reporter, "counting")
    try:
        for chunk in runner.chunks(setup.source.dataset):
            window = runner.plan(chunk)
            cost.add(window, runner.model_readouts)
            shared += common_tokens(window, runner.model_readouts, settings.batch_tokens)
            reporter.progress(len(chunk), cost.tokens)
    finally:
        reporter.done()
    setup.source.input_check.check()
    record = {**setup.describe(), "counts": cost.as_dict(), "shared_tokens": shared}
    record["estimated"] = cost.passes["shown"] > 0
    if setup.needs_model:
        shape = model_shape(setup.model.files)
        record["model"] |= {"parameters": shape.parameters, "parameters_exact": shape.exact}
        record["cost"] = {
            "forward_flops": shape.flops(cost.tokens, cost.scored),
            "weight_bytes": {dtype: shape.memory(dtype) for dtype in BYTES},
        }
    record["example"] = rendered_example(setup)
    record["time"] = plugins.step("time")(setup, record, reporter) if timed else {}
    return PlanResult(record)


def common_tokens(window: Window, model_readouts: frozenset[str], budget: int | None) -> int:
    """Count the prefix tokens that a packing engine reads once instead of once per pass."""
    from tithe.engine.batches import make_batches

    passes = [one for one, readouts in zip(window.passes, window.readouts, strict=True) if readouts & model_readouts]
    return sum(batch.saved for batch in make_batches(passes, budget=budget or PLANNED_BUDGET, share=True))


def count_asks(runner: LocalRunner, asks: Sequence[Mapping[str, Ask]], cost: Cost) -> None:
    """Add to the cost what a scorer reads while it prepares."""
    for chunk in windows(asks, window_size(max(map(len, asks), default=0))):
        cost.add_passes(runner.plan_asks(chunk), runner.model_readouts)


def score(
    settings: ScoreSettings,
    *,
    folder: Path | None = None,
    output: Path | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> ScoreResult:
    """Score every example, reusing the answers that the run folder already holds.

    Args:
        settings: what to score, and how.
        folder: the run folder; None keeps nothing.
        output: a second place for the score table, besides the run folder.
        overwrite: replace `output` if it exists.
        reporter: prints progress and notes.

    Raises:
        TitheError: the run cannot go on; answers so far stay in the run folder.
    """
    if output is not None:
        check_scores_file(output)
    check_places(output, overwrite, settings.dataset, folder, inputs_of(settings), scores=True)
    method = Method.of(settings)
    check_inherited(settings, list(method.scorers.values()))
    setup = set_up(settings, method=method, folder=folder)
    check_warmup(setup, folder)
    reporter = reporter or Reporter()
    with (
        run_folder(folder) as place,
        recorded_run(folder, reporter, lambda: basic_record(settings)) as writer,
        closing(EngineCache(reporter)) as engines,
    ):
        setup = warm_up(setup, folder, reporter)
        result = Scoring(setup, engines, reporter, place, writer).run(folder)
        result.record.update(writer.finished())
        writer.record = lambda: result.record
        if folder is not None:
            (folder / DROPPED).unlink(missing_ok=True)  # from an earlier selection in this folder
            write_table(folder / SCORES, result.score_table.parts())
            write_json(folder / RECORD, result.record)
        if output is not None:  # the output comes last: once it exists, the run folder is complete
            remove_partial_files(output)
            write_scores(output, result.score_table.parts())
    return result


def check_warmup(setup: Setup, folder: Path | None) -> None:
    """Check the setting `warmup` before the run folder is made.

    Raises:
        SettingsError: no scorer reads a model, or there is no run folder.
    """
    if not setup.settings.warmup:
        return
    if not setup.needs_model:
        raise SettingsError(
            f"`warmup` trains a model, and {', '.join(setup.method.scorers)} reads none", hint="leave it out"
        )
    if folder is None:
        raise SettingsError("`warmup` needs a run folder for the model that it trains", hint="give `run_dir`")


def warm_up(setup: Setup, folder: Path | None, reporter: Reporter) -> Setup:
    """Train the model first if `warmup` is set, and return the setup with the trained model.

    The training is a part of the lab, which the core must not import: it is found by its entry point.

    Raises:
        SettingsError: the model has been warmed up already.
    """
    return setup.with_trained_model(plugins.step("warmup")(setup, folder, reporter)) if setup.settings.warmup else setup


@dataclass
class Scoring:
    """One scoring of a data set; writes only answers and the scorers' tables.

    Args:
        setup: data, method and model.
        engines: loads the model when the first pass is not stored.
        reporter: prints progress and notes.
        place: folder for the scorers' tables.
        writer: writes the run record if the run stops early; None keeps no record.
        answers_in: folder of the stored answers; `place` by default.
        extra: input columns to carry along for a selector.
        earlier: readouts that an earlier stage has read of all `given` passes.
    """

    setup: Setup
    engines: EngineCache
    reporter: Reporter
    place: Path
    writer: RecordWriter | None = None
    answers_in: Path | None = None
    extra: Sequence[str] = ()
    earlier: frozenset[str] = frozenset()
    cost: Cost = field(default_factory=Cost, init=False)
    began: float = field(default_factory=time.monotonic, init=False)
    load: EngineLoader = field(init=False)
    runner: LocalRunner = field(init=False)
    bench: RunBench = field(init=False)

    def __post_init__(self) -> None:
        answers_in, setup = self.answers_in or self.place, self.setup
        self.load = EngineLoader(self.engines, setup.settings, setup.source.dataset, setup.model, answers_in)
        self.runner = make_runner(setup, answers_in, self.load, self.reporter)
        self.runner.earlier = self.earlier
        self.bench = RunBench(self.setup, self.place, self.runner, self.cost, self.reporter, answers_in)

    def run(self, folder: Path | None = None) -> ScoreResult:
        """Score every example.

        Args:
            folder: the run folder to name in the result; None for a temporary one.
        """
        setup, method, runner, reporter = self.setup, self.setup.method, self.runner, self.reporter
        for note in setup.notes:
            reporter.say(note)
        with ExitStack() as stack:
            stack.callback(self.flush)  # keep every answer, however the reading ends
            if runner.tokenisers is not None:
                stack.callback(runner.tokenisers.stop)
            if self.writer is not None:
                self.writer.record = self.record_so_far
                self.writer.stored = lambda: sum(map(len, runner.stores.values()))
            runner.scorers = self.bench.prepare(method.scorers)
            tokens = stack.enter_context(TokenFile(self.place / TOKENS)) if setup.settings.per_token else None
            if method.learns:  # otherwise no pass contains another example, and the order does not matter
                self.read_together()
            table = self.score_windows(tokens)
        setup.source.input_check.check()
        for name in method.residualised:
            table.residualise(name, residual_name(name))
        if not setup.settings.per_token:
            (self.place / TOKENS).unlink(missing_ok=True)  # from an earlier run
        record = self.record(table)
        record["learned"] = self.bench.facts  # shared on purpose: a selector that embeds later adds to it
        note_reply_mass(method.scorers, table, self.bench)
        return ScoreResult(
            setup.source.dataset, record, folder, table, setup.source.input_check, self.bench.tables, self.bench.vectors
        )

    def score_windows(self, tokens: TokenFile | None) -> ScoreTable:
        """Read and score window by window; return the score table."""
        setup, method, reporter = self.setup, self.setup.method, self.reporter
        table = ScoreTable(
            list(method.scorers), self.extra, method.score_columns[len(method.scorers) :], method.text_columns
        )
        begin_phase(setup, reporter, "scoring")
        try:
            with closing(self.runner.run(setup.source.dataset)) as windows:
                for scored in windows:
                    table.add(scored)
                    self.cost.add(scored.window, self.runner.model_readouts)
                    if tokens is not None:
                        tokens.add(scored)
        finally:
            reporter.done()
        self.flush()
        return table

    def flush(self) -> None:
        """Write the answers that are not on disk yet."""
        for store in self.runner.stores.values():
            store.flush()

    def read_together(self) -> None:
        """If there are several windows, first read the examples that show each other, next to each other."""
        examples = self.setup.source.examples

        def begin() -> None:
            self.reporter.phase("reading what shows each other")
            self.reporter.expect(len(examples))

        try:
            self.runner.read_together(examples, begin)
        finally:
            self.reporter.done()

    def record(self, table: ScoreTable) -> dict[str, Any]:
        """Return the record of a finished scoring."""
        record, names = self.record_so_far(), self.setup.method.scorers
        record["counts"] |= {
            "scored": {name: table.scored(name) for name in names},
            "without_score": {name: table.without_score(name) for name in names},
            "problems": count_problems(self.cost, table),
        }
        return record

    def record_so_far(self) -> dict[str, Any]:
        """Return the record of the scoring so far: its setup, counts and work."""
        runner, work, record = self.runner, self.runner.work, self.setup.describe()
        record["counts"] = self.cost.as_dict()
        record["work"] = {
            "passes_computed": work.passes,
            "passes_reused": work.reused,
            "passes_out_of_memory": work.failed,
            "tokens_read": work.tokens,
            "seconds": round(time.monotonic() - self.began, 2),
            "reading_seconds": round(work.seconds, 2),
            "waited_for_tokens_seconds": round(work.waited, 2),
            "longest_wait_seconds": round(runner.trace.worst, 2),
            "tokens_per_second": round(work.tokens / work.seconds, 1) if work.seconds else None,
        }
        if runner.trace.spans:
            record["trace"] = runner.trace.as_dict()
        if runner.tokenisers is not None and runner.tokenisers.count:
            record["tokenising"] = runner.tokenisers.as_dict()
        engine, model = self.load.engine, self.setup.model
        record["engine"] = {"loaded": engine is not None}
        if engine is not None:
            record["engine"] |= engine_record(engine)
        elif self.setup.needs_model:  # all answers were stored: record what would have read them
            record["engine"] |= {
                "devices": [str(one) for one in model.devices],
                "dtype": torch_name(model.weights_dtype),
            }
        return record


def make_runner(setup: Setup, answers_in: Path, load: Callable[[], Engine], reporter: Reporter) -> LocalRunner:
    """Make the runner of a run; its scorers are not prepared yet.

    Args:
        setup: data, method and model.
        answers_in: folder of the stored answers.
        load: loads the model when the first pass is not stored.
        reporter: prints progress and notes.
    """
    s, model = setup.settings, setup.model
    runner = LocalRunner(
        setup.method.scorers,
        setup.renderer,
        load if setup.needs_model else None,
        setup.stores(answers_in, reporter.say),
        per_token=s.per_token,
        readouts=setup.readouts,
    )
    if setup.needs_model:
        if model.files.held is None:  # processes would need the tokenizer's files
            runner.tokenisers = Tokenisers(model.files, setup.renderer, s.trust_remote_code, reporter.say)
        runner.overlapped = model.devices[0].type != "cpu"
    runner.progress = lambda examples: reporter.progress(examples, runner.work.tokens)
    return runner


def begin_phase(setup: Setup, reporter: Reporter, what: str) -> None:
    """Begin a phase that reads all records; report how many there are if the files tell."""
    reporter.phase(what)
    count, exact = setup.source.size()
    if count is None or exact:
        reporter.expect(count)
    else:
        reporter.expect(count, about=True)


def count_problems(cost: Cost, table: ScoreTable) -> dict[str, int]:
    """Count examples by problem: reason -> examples, for problems of passes and of scorers."""
    found: Counter[str] = Counter()
    examples = set(table.example_rows().tolist())
    for row in sorted(examples & set().union(*table.reasons.values())):
        reasons = (said[row] for said in table.reasons.values() if row in said)
        found.update({without_details(reason) for reason in reasons})
    return dict(found | cost.problems)  # the union keeps the larger count: both counters see the same examples

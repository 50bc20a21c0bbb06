"""Plan and score a data set."""

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
from tithe.planner import Cost, Window, window_size, windows, without_numbers
from tithe.records import Ask
from tithe.report.reporter import Reporter
from tithe.run.bench import Bench, remark
from tithe.run.engines import Engines, Loader, engine_record, torch_name
from tithe.run.folder import (
    DROPPED,
    RECORD,
    SCORES,
    TOKENS,
    Account,
    account,
    check_places,
    check_scores_file,
    inputs_of,
    run_folder,
    sweep,
    write_json,
    write_table,
)
from tithe.run.method import Method, Setup, residual, set_up
from tithe.run.results import PlanResult, ScoreResult
from tithe.run.table import Table, TokenFile
from tithe.runners.local import LocalRunner
from tithe.runners.tokenising import Tokenisers
from tithe.settings import ScoreSettings, check_inherited

if TYPE_CHECKING:
    from tithe.engine.engine import Engine

PLANNED_BUDGET = 1024  # tokens a batch on a CPU; larger ones have more in common


def plan(settings: ScoreSettings, reporter: Reporter | None = None) -> PlanResult:
    """Count what a run would read, in bounded memory and without loading a model.

    Raises:
        TitheError: what would stop the run, as far as it can be known without the model.
    """
    from tithe.engine.measure.shape import BYTES, model_shape

    reporter = reporter or Reporter()
    setup = set_up(settings, weights=False)
    cost, shared = Cost(), 0
    runner = LocalRunner(setup.method.scorers, setup.renderer, None, {}, settings.per_token, readouts=setup.readouts)
    if setup.method.learns:
        runner.scorers = setup.method.stubs(
            setup.source.examples, setup.pools, lambda asks: plan_asks(runner, asks, cost)
        )
    if settings.warmup:
        reporter.say("note: the model's training by `warmup` is not in these numbers")
    for note in setup.notes:
        reporter.say(note)
    expect(setup, reporter, "counting")
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
    return PlanResult(record)


def common_tokens(window: Window, model_readouts: frozenset[str], budget: int | None) -> int:
    """Count tokens of a window's passes that an engine which packs them does not read again: common beginnings."""
    from tithe.engine.batches import make_batches

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
    reporter: Reporter | None = None,
) -> ScoreResult:
    """Score every example, reusing what the run folder already holds.

    Args:
        settings: what and how.
        folder: the run folder; None keeps nothing.
        output: where the score table goes besides the run folder.
        overwrite: replace `output` if it is there.
        reporter: who listens.

    Raises:
        TitheError: whatever stops the run; what was scored before is in the run folder.
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
        account(folder, reporter, setup.basics) as told,
        closing(Engines(reporter)) as engines,
    ):
        setup = warmed_up(setup, folder, reporter)
        result = Scoring(setup, engines, reporter, place, told).run(folder)
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


def check_warmup(setup: Setup, folder: Path | None) -> None:
    """Raise what can be known to be wrong with a warm-up before the run folder is made.

    Raises:
        SettingsError: no scorer reads a model, or there is no run folder.
    """
    if not setup.settings.warmup:
        return
    if not setup.needs_model:
        raise SettingsError(
            f"`warmup` is given, and no model is read: not by {', '.join(setup.method.scorers)}", hint="leave it out"
        )
    if folder is None:
        raise SettingsError(
            "`warmup` trains a model, which is kept in the run folder, and there is none", hint="give `run_dir`"
        )


def warmed_up(setup: Setup, folder: Path | None, reporter: Reporter) -> Setup:
    """Return the setup with a model that was trained first, where that is wanted.

    What trains it stands above the run and is found by its name.

    Raises:
        SettingsError: the model has been warmed up already.
    """
    return setup.warm(plugins.step("warmup")(setup, folder, reporter)) if setup.settings.warmup else setup


@dataclass
class Scoring:
    """The scoring of one source by one method; writes answers and the scorers' tables, and nothing else.

    Args:
        setup: what the run is made of.
        engines: load the model when the first pass has to be read.
        reporter: who listens.
        place: the folder that takes the scorers' tables.
        told: learns how to tell what was done so far; None where nobody asks.
        answers_in: the folder that keeps answers; `place` where there is but one stage.
        extra: columns of the input to carry along for a selector.
    """

    setup: Setup
    engines: Engines
    reporter: Reporter
    place: Path
    told: Account | None = None
    answers_in: Path | None = None
    extra: Sequence[str] = ()
    cost: Cost = field(default_factory=Cost, init=False)
    began: float = field(default_factory=time.monotonic, init=False)
    load: Loader = field(init=False)
    runner: LocalRunner = field(init=False)
    bench: Bench = field(init=False)

    def __post_init__(self) -> None:
        answers_in, setup = self.answers_in or self.place, self.setup
        self.load = Loader(self.engines, setup.settings, setup.source.dataset, setup.model, answers_in)
        self.runner = make_runner(setup, answers_in, self.load, self.reporter)
        self.bench = Bench(self.setup, self.place, self.runner, self.cost, self.reporter, answers_in)

    def run(self, folder: Path | None = None) -> ScoreResult:
        """Score every example.

        Args:
            folder: the run folder to name in the result, None for a scratch one.
        """
        setup, method, runner, reporter = self.setup, self.setup.method, self.runner, self.reporter
        for note in setup.notes:
            reporter.say(note)
        with ExitStack() as stack:
            stack.callback(self.flush)  # what was read is kept, whatever ends the reading
            if runner.tokenisers is not None:
                stack.callback(runner.tokenisers.stop)
            if self.told is not None:
                self.told.record = self.record_so_far
                self.told.stored = lambda: sum(map(len, runner.stores.values()))
            runner.scorers = self.bench.prepare(method.scorers)
            tokens = stack.enter_context(TokenFile(self.place / TOKENS)) if setup.settings.per_token else None
            if method.learns:  # else no scorer knows any example but the one it is asked about
                self.read_together()
            table = self.scored(tokens)
        setup.source.input_check.check()
        for name in method.residualised:
            table.residualise(name, residual(name))
        if not setup.settings.per_token:
            (self.place / TOKENS).unlink(missing_ok=True)  # of an earlier run
        record = self.record(table)
        record["learned"] = self.bench.facts  # a selector's vectors are noted in it later
        remark(method.scorers, table, self.bench)
        return ScoreResult(
            setup.source.dataset, record, folder, table, setup.source.input_check, self.bench.tables, self.bench.vectors
        )

    def scored(self, tokens: TokenFile | None) -> Table:
        """Read and score window by window."""
        setup, method, reporter = self.setup, self.setup.method, self.reporter
        table = Table(list(method.scorers), self.extra, method.score_columns[len(method.scorers) :])
        expect(setup, reporter, "scoring")
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
        """Write answers that are not yet on disk."""
        for store in self.runner.stores.values():
            store.flush()

    def read_together(self) -> None:
        """Read examples that show each other first, where they are too many for one window."""
        examples = self.setup.source.examples

        def begin() -> None:
            self.reporter.phase("reading what shows each other")
            self.reporter.expect(len(examples))

        try:
            self.runner.read_together(examples, begin)
        finally:
            self.reporter.done()

    def record(self, table: Table) -> dict[str, Any]:
        """Return the record of a finished scoring."""
        record, names = self.record_so_far(), self.setup.method.scorers
        record["counts"] |= {
            "scored": {name: table.scored(name) for name in names},
            "without_score": {name: table.without_score(name) for name in names},
            "problems": all_problems(self.cost, table),
        }
        return record

    def record_so_far(self) -> dict[str, Any]:
        """Return the record of a scoring at any moment: what it is made of, and what it has done."""
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
        elif self.setup.needs_model:  # everything was found: what would have read it
            record["engine"] |= {
                "devices": [str(one) for one in model.devices],
                "dtype": torch_name(model.weights_dtype),
            }
        return record


def make_runner(setup: Setup, answers_in: Path, load: Callable[[], Engine], reporter: Reporter) -> LocalRunner:
    """Make the runner of a run, its scorers not yet prepared.

    Args:
        setup: of the run.
        answers_in: the folder that keeps answers.
        load: loads the model when the first pass has to be read.
        reporter: who listens.
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
        runner.tokenisers = Tokenisers(model.files, setup.renderer, s.trust_remote_code, reporter.say)
        runner.overlapped = model.devices[0].type != "cpu"
    runner.progress = lambda examples: reporter.progress(examples, runner.work.tokens)
    return runner


def expect(setup: Setup, reporter: Reporter, what: str) -> None:
    """Begin a phase that goes through all records, and say how many they are, where the files tell it."""
    reporter.phase(what)
    count, exact = setup.source.size()
    if count is None or exact:
        reporter.expect(count)
    else:
        reporter.expect(count, about=True)


def all_problems(cost: Cost, table: Table) -> dict[str, int]:
    """Return reason -> how many examples: what the passes showed, and what only the scorers knew."""
    found: Counter[str] = Counter()
    examples = set(table.there().tolist())
    for row in sorted(examples & set().union(*table.reasons.values())):
        reasons = (said[row] for said in table.reasons.values() if row in said)
        found.update({without_numbers(reason) for reason in reasons})
    return dict(found | cost.problems)  # the greater of both: they tell of the same examples

"""Commands of the core: select, score, plan, and the listings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tithe.cli.app import Json, Output, Overwrite, RunDir, Usage, app, print_json
from tithe.cli.from_settings import Takes

NO_DATA = {"dataset": ("no data set is given", "`tithe select data.jsonl ...`; `starter` is bundled")}
# Settings that a single record does not take.
RUNNING = "warmup shard batch_tokens workers compile per_token residualise strict"
NO_RECORD = {"row id": ("no record is given", "`--row 0` is the first one")}
# Settings that a plan does not take, as it computes no scores.
COMPUTING = "warmup answers shard compile per_token seed"


@app.command()
@Takes("tithe.settings:SelectSettings", argument="dataset", several=True, needs=NO_DATA)
def select(
    settings: Any,
    output: Output = None,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
    push_to_hub: Annotated[
        str | None, typer.Option(metavar="ORG/NAME", help="Push the selection to the hub, with a dataset card.")
    ] = None,
    public: Annotated[bool, typer.Option("--public", help="Let everybody see what is pushed.")] = False,
    with_dropped: Annotated[bool, typer.Option("--with-dropped", help="Push the dropped records too.")] = False,
    license: Annotated[str | None, typer.Option(help="Licence of the source, for the dataset card.")] = None,
    as_json: Json = False,
) -> None:
    """Score a data set and keep the best part of it."""
    from tithe import run
    from tithe.report.terminal import TerminalReporter
    from tithe.run.summaries import show_selected

    output, folder = places(output, run_dir, settings.dataset, "kept.jsonl")
    target = None
    if push_to_hub is not None:
        from tithe.publish.push import PushTarget
        from tithe.publish.repository import Repository

        target = PushTarget(Repository(push_to_hub, private=not public), with_dropped, license)
        target.check(TerminalReporter())  # a token that may not write is found before hours of reading
    elif public or with_dropped or license is not None:
        raise Usage("`--public`, `--with-dropped` and `--license` go with a push", hint="`--push-to-hub ORG/NAME`")
    result = run.select(settings, folder=folder, output=output, overwrite=overwrite, reporter=TerminalReporter())
    show_selected(result, output, folder)
    print_json(result.record, as_json)
    if target is not None:
        from tithe.publish.push import push

        reporter = TerminalReporter()
        reporter.say(f"pushed: {push(folder, target, reporter=reporter)}")


@app.command()
@Takes("tithe.settings:ScoreSettings", argument="dataset", several=True, needs=NO_DATA)
def score(
    settings: Any, output: Output = None, run_dir: RunDir = None, overwrite: Overwrite = False, as_json: Json = False
) -> None:
    """Score every example of a data set."""
    from tithe import run
    from tithe.report.terminal import TerminalReporter
    from tithe.run.summaries import show_scores

    output, folder = places(output, run_dir, settings.dataset, "scores.parquet")
    result = run.score(settings, folder=folder, output=output, overwrite=overwrite, reporter=TerminalReporter())
    show_scores(result, output, folder)
    print_json(result.record, as_json)


@app.command()
@Takes("tithe.settings:ScoreSettings", argument="dataset", several=True, without=COMPUTING, needs=NO_DATA)
def plan(
    settings: Any,
    timed: Annotated[
        bool,
        typer.Option(
            "--time/--no-time", help="Read a few records, if the model's weights are here, to say how long a run takes."
        ),
    ] = True,
    as_json: Json = False,
) -> None:
    """Count passes, tokens, cost and time, and show one example as the model reads it."""
    from tithe import run
    from tithe.report.terminal import TerminalReporter
    from tithe.run.summaries import show_plan

    result = run.plan(settings, reporter=TerminalReporter(), timed=timed)
    show_plan(result)
    print_json(result.record, as_json)


@app.command()
def look(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of `select` or `score`.")],
    output: Output = None,
    tokens: Annotated[
        int | None,
        typer.Option(help="Show every token's loss for this many records; without `--per-token` the model reads them."),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Write a run as one page to look at: scores, texts, reasons, tokens."""
    from tithe import look as page
    from tithe.report.terminal import TerminalReporter

    made = page.look(folder, output, tokens=tokens, overwrite=overwrite, reporter=TerminalReporter())
    print(f"look: {made}")
    if open_it:
        typer.launch(str(made.path))


@app.command("show")
@Takes("tithe.settings:ScoreSettings", argument="dataset", without=RUNNING, needs=NO_DATA | NO_RECORD)
def show_one(
    settings: Any,
    row: Annotated[int | None, typer.Option(help="Index of the record, from 0.")] = None,
    id: Annotated[str | None, typer.Option(help="Id of the example, as in `scores.parquet`.")] = None,
    turn: Annotated[int | None, typer.Option(help="Which response of a dialogue, by the index of its message.")] = None,
    losses: Annotated[bool, typer.Option("--losses/--no-losses", help="Read losses with the model's weights.")] = True,
    colour: Annotated[str, typer.Option(help="Colour tokens by: difference, given or alone.")] = "difference",
    tokens: Annotated[bool, typer.Option("--tokens", help="List every scored token with its losses.")] = False,
    as_json: Json = False,
) -> None:
    """Show one record as the model reads it: template, tokens, what is cut, losses, scores."""
    from tithe.look.find_record import Wanted
    from tithe.look.record_text import print_record
    from tithe.look.show_record import show
    from tithe.report.terminal import SafeConsole, TerminalReporter

    if colour not in ("difference", "given", "alone"):
        raise Usage(f"tokens cannot be coloured by `{colour}`", hint="by `difference`, `given` or `alone`")
    found = show(settings, Wanted(row, id, turn), losses=losses, reporter=TerminalReporter())
    if not as_json:
        print_record(found, SafeConsole(highlight=False), colour=colour, every_token=tokens)
    print_json(found.record, as_json)


@app.command("compare")
def compare_runs(
    runs: Annotated[
        list[str], typer.Argument(metavar="RUN...", help="Run folders; `RUN:SCORER` names one ranking of a run.")
    ],
    scorer: Annotated[
        list[str] | None, typer.Option("--scorer", "-s", help="Compare only this scorer; may be repeated.")
    ] = None,
    within: Annotated[str | None, typer.Option(help="Compare within each value of this column, too.")] = None,
    differ: Annotated[int, typer.Option(help="How many of the records that differ most are listed.")] = 10,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write a page, such as compare.html.")
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Compare rankings of runs: by scorer, model or setting."""
    from tithe.look.compare_runs import compare
    from tithe.look.comparison_text import print_comparison
    from tithe.report.terminal import SafeConsole, TerminalReporter

    if open_it and output is None:
        raise Usage("`--open` has no page to open", hint="give the page's place: `-o compare.html`")
    names = [name.strip() for given in scorer or () for name in given.split(",") if name.strip()]
    reporter = TerminalReporter()
    how: dict[str, Any] = {"within": within, "differ": differ, "overwrite": overwrite}
    found = compare(runs, scorers=names, output=output, reporter=reporter, **how)
    if not as_json:
        print_comparison(found, SafeConsole(highlight=False))
    if output is not None:
        reporter.say(f"compare: {output}")
    if open_it:
        typer.launch(str(output))
    print_json(found.record, as_json)


@app.command()
@Takes(
    "tithe.inspect.settings:CheckSettings",
    argument="dataset",
    several=True,
    without="strict dtype device",
    needs={"dataset": ("no data set is given", "`tithe check data.jsonl`; `starter` is bundled")},
)
def check(
    settings: Any,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Report to write: .html, .md or .json (for `--baseline`).")
    ] = None,
    overwrite: Overwrite = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the report to stdout as Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Look a data set over: bad rows, duplicates, truncation, contamination, lengths, languages."""
    from tithe.inspect.check_report import show_check
    from tithe.inspect.checking import check, check_output, demand_passed
    from tithe.report.terminal import TerminalReporter

    if markdown and as_json:
        raise Usage("`--markdown` and `--json` both print to stdout", hint="give one; `-o` writes another")
    check_output(settings, output, overwrite)
    result = check(settings, TerminalReporter())
    show_check(result.record)
    if output is not None:
        result.write(output, overwrite=overwrite)
        TerminalReporter().say(f"written: {output}")
    if markdown:
        print(result.markdown())
    print_json(result.record, as_json)
    demand_passed(result)


def places(output: Path | None, run_dir: Path | None, dataset: str, example: str) -> tuple[Path | None, Path]:
    """Return where the result and the run folder go.

    Raises:
        Usage: neither is given.
    """
    from tithe.run.folder import default_folder

    if run_dir is not None:
        return output, run_dir
    if output is None:
        stem = Path(dataset).name.partition(".")[0]
        raise Usage("no place for the result is given", hint=f"`-o {stem}-{example}`, or `--run-dir`")
    return output, default_folder(output)


Listing = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def scorers(as_json: Listing = False) -> None:
    """List the scorers: what a high value says, unit, what is read."""
    show("scorer_rows", as_json)


@app.command()
def selectors(as_json: Listing = False) -> None:
    """List the selectors and their settings."""
    show("selector_rows", as_json)


@app.command()
def templates(as_json: Listing = False) -> None:
    """List the templates by name."""
    show("template_rows", as_json)


@app.command()
def doctor(as_json: Listing = False) -> None:
    """Say what this machine and installation can do."""
    show("doctor_rows", as_json)


def show(rows: str, as_json: bool) -> None:
    """Print a listing, given by the name of its function in `listings`, which is slow to import."""
    from tithe.cli import listings
    from tithe.report.terminal import show_list

    show_list(getattr(listings, rows)(), as_json)

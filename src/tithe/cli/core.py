"""Commands of the core: select, score, plan, and the listings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tithe.cli.app import Json, Output, Overwrite, RunDir, Usage, app, print_json
from tithe.cli.from_settings import Takes

NO_DATA = {"dataset": ("no data set is given", "`tithe select data.jsonl ...`; `starter` is bundled")}
# Settings that a plan does not take, as it computes nothing.
COMPUTING = "warmup answers dtype device shard batch_tokens workers compile per_token seed"


@app.command()
@Takes("tithe.settings:SelectSettings", argument="dataset", needs=NO_DATA)
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
@Takes("tithe.settings:ScoreSettings", argument="dataset", needs=NO_DATA)
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
@Takes("tithe.settings:ScoreSettings", argument="dataset", without=COMPUTING, needs=NO_DATA)
def plan(settings: Any, as_json: Json = False) -> None:
    """Count passes, tokens and cost; needs only the model's tokenizer."""
    from tithe import run
    from tithe.report.terminal import TerminalReporter
    from tithe.run.summaries import show_plan

    result = run.plan(settings, reporter=TerminalReporter())
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

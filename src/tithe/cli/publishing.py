"""Commands that publish a selection: its card, a folder that `datasets` opens, a repository on the hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tithe.cli.app import Overwrite, app

Run = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of `select`.")]
License = Annotated[
    str | None, typer.Option(help="Licence of the source, e.g. `apache-2.0`; a source on the hub names its own.")
]
WithDropped = Annotated[bool, typer.Option("--with-dropped", help="Add the dropped records, each with its reason.")]
Public = Annotated[bool, typer.Option("--public", help="Let everybody see the repository.")]


@app.command()
def card(
    run: Run,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for card and records, which `load_dataset` opens.")
    ] = None,
    with_dropped: WithDropped = False,
    license: License = None,
    overwrite: Overwrite = False,
) -> None:
    """Print the dataset card of a selection, or write it with the records as a folder that `load_dataset` opens."""
    from tithe.printable import printable
    from tithe.publish.dataset_folder import card_of, open_selection, write_folder
    from tithe.report.terminal import TerminalReporter

    found, reporter = open_selection(run), TerminalReporter()
    if output is None:
        print(printable(card_of(found, license=license, reporter=reporter).rstrip("\n"), keep="\n"))
        return
    made = write_folder(
        found, output, with_dropped=with_dropped, license=license, overwrite=overwrite, reporter=reporter
    )
    reporter.say(f"written: {made}")


@app.command()
def push(
    run: Run,
    name: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Repository on the hub; made if it is not there.")],
    public: Public = False,
    with_dropped: WithDropped = False,
    license: License = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the card and data of a repository that tithe did not write.")
    ] = False,
) -> None:
    """Push a finished selection to the Hugging Face hub, with a dataset card; private by default."""
    from tithe.publish.push import PushTarget
    from tithe.publish.push import push as carry_out
    from tithe.publish.repository import Repository
    from tithe.report.terminal import TerminalReporter

    reporter = TerminalReporter()
    target = PushTarget(Repository(name, not public, overwrite), with_dropped, license)
    reporter.say(f"pushed: {carry_out(run, target, reporter=reporter)}")

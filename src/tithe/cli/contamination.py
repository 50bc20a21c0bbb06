"""The command that looks for evaluation sets in a data set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tithe.cli.app import Usage, app, print_json
from tithe.cli.options import Format, Output, Overwrite


@app.command()
def contamination(
    data: Annotated[str, typer.Argument(metavar="DATA", help="File, folder or hub id; `starter` is bundled.")],
    against: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Evaluation file of any shape; may be repeated.")
    ] = None,
    ngram: Annotated[int, typer.Option(help="Words in a row that count as shared.")] = 13,
    output: Output = None,
    overwrite: Overwrite = False,
    format: Format = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers to stdout.")] = False,
) -> None:
    """Say what a data set shares with evaluation sets, word for word."""
    if not against:
        raise Usage("no evaluation file is given", hint="`--against FILE`, more than once for several")
    from tithe.lab.contamination_report import report, show_contamination
    from tithe.report.terminal import Screen

    result = report(data, against, n=ngram, format=format or "auto", output=output, overwrite=overwrite, talk=Screen())
    show_contamination(result)
    print_json(result.record, as_json)

"""What there is: scorers, selectors, templates, this machine."""

from __future__ import annotations

from tithe.cli.app import app
from tithe.cli.options import Listing


@app.command()
def scorers(as_json: Listing = False) -> None:
    """List the scorers: what a high value says, unit, what is read."""
    from tithe.cli.listings import scorer_rows
    from tithe.report.terminal import show_list

    show_list(scorer_rows(), as_json)


@app.command()
def selectors(as_json: Listing = False) -> None:
    """List the selectors and their settings."""
    from tithe.cli.listings import selector_rows
    from tithe.report.terminal import show_list

    show_list(selector_rows(), as_json)


@app.command()
def templates(as_json: Listing = False) -> None:
    """List the templates by name."""
    from tithe.cli.listings import template_rows
    from tithe.report.terminal import show_list

    show_list(template_rows(), as_json)


@app.command()
def doctor(as_json: Listing = False) -> None:
    """Say what this machine and installation can do."""
    from tithe.cli.listings import doctor_rows
    from tithe.report.terminal import show_list

    show_list(doctor_rows(), as_json)

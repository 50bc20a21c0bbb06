"""What there is: scorers, selectors, templates, this machine."""

from __future__ import annotations

from tithe.cli.app import app
from tithe.cli.options import Listing


@app.command()
def scorers(as_json: Listing = False) -> None:
    """List the scorers: what a high value says, unit, what is read."""
    from tithe.run.screen import show_list
    from tithe.run.shelf import scorer_rows

    show_list(scorer_rows(), as_json)


@app.command()
def selectors(as_json: Listing = False) -> None:
    """List the selectors and their settings."""
    from tithe.run.screen import show_list
    from tithe.run.shelf import selector_rows

    show_list(selector_rows(), as_json)


@app.command()
def templates(as_json: Listing = False) -> None:
    """List the templates by name."""
    from tithe.run.screen import show_list
    from tithe.run.shelf import template_rows

    show_list(template_rows(), as_json)


@app.command()
def doctor(as_json: Listing = False) -> None:
    """Say what this machine and installation can do."""
    from tithe.run.screen import show_list
    from tithe.run.shelf import doctor_rows

    show_list(doctor_rows(), as_json)

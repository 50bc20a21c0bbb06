"""Altair charts as PNG and SVG."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from tithe.data.outfile import atomic
from tithe.errors import MissingExtraError
from tithe.extras import install_hint


def library(name: str) -> Any:
    """A package of the extra `report`.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        raise MissingExtraError(f"a plot needs the package `{name}`", hint=install_hint("report")) from None


def svg(chart: Any) -> str:
    """The drawing as an SVG element."""
    return str(library("vl_convert").vegalite_to_svg(json.dumps(chart.to_dict())))


def write_png(chart: Any, path: Path) -> None:
    """The drawing as a file, twice as large as on a page; replaces one that is there."""
    with atomic(path, overwrite=True) as stream:
        stream.write(library("vl_convert").vegalite_to_png(json.dumps(chart.to_dict()), scale=2))

"""Write the page of a run: one file that opens anywhere, with nothing to fetch."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from tithe.data.outfile import atomic
from tithe.errors import SettingsError
from tithe.look.finished_run import FinishedRun
from tithe.look.page_data import Page, gather, shown_places
from tithe.look.token_losses import TokenLosses
from tithe.report.reporter import Reporter
from tithe.run.folder import check_places, inputs_of
from tithe.run.results import ScoreResult, SelectResult

PARTS = Path(__file__).parent
USUAL = "look.html"
MOST_TOKENS = 2000  # records whose tokens are shown if the run kept them


@dataclass(frozen=True)
class Looked:
    """A page that was written.

    Args:
        path: where it is.
        records: how many are on it.
        of: how many examples the run has.
        tokens: for how many of them the losses of tokens are shown.
        size: bytes of the page.
    """

    path: Path
    records: int
    of: int
    tokens: int
    size: int

    def __str__(self) -> str:
        some = f"{self.records:,}" if self.records == self.of else f"{self.records:,} of {self.of:,}"
        tokens = f", tokens of {self.tokens:,}" if self.tokens else ""
        return f"{self.path} ({some} examples{tokens}, {self.size / 1e6:.1f} MB)"


def look(
    run: Path | str | ScoreResult | SelectResult,
    output: Path | str | None = None,
    *,
    tokens: int | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> Looked:
    """Write the page of a finished run.

    Args:
        run: the run folder; from Python also the result of a run with a `run_dir`.
        output: the page; `look.html` in the run folder by default.
        tokens: for how many records the loss of every token is shown, the kept ones first. None shows what the run
            has kept (`--per-token`). What it has not kept is read with its model.
        overwrite: replace a page that is there.
        reporter: prints progress.

    Raises:
        TitheError: it is no finished run, its data set has changed, or the page cannot be written.
    """
    reporter = reporter or Reporter()
    if tokens is not None and tokens < 0:
        raise SettingsError(f"the tokens of a number of records are shown, not of {tokens}")
    opened = open_run(run)
    path = Path(output) if output else opened.folder / USUAL
    check_places(path, overwrite or output is None, opened.settings.dataset, opened.folder, inputs_of(opened.settings))
    places = shown_places(opened)
    count = tokens if tokens is not None else (MOST_TOKENS if opened.keeps_tokens else 0)
    losses = TokenLosses.of(opened, places.first(count), reporter)
    page = gather(opened, places, losses)
    text = render(page)
    with atomic(path, overwrite=True) as stream:
        stream.write(text)
    return Looked(path, page.records, page.of, page.tokens, len(text))


def open_run(run: Path | str | ScoreResult | SelectResult) -> FinishedRun:
    """Open a run by its folder, or by its result, which also has its data.

    Raises:
        StoreError: it is no finished run.
        SettingsError: the run kept no folder.
    """
    if isinstance(run, str | Path):
        return FinishedRun.open(Path(run))
    scored = run.scored if isinstance(run, SelectResult) else run
    if scored.folder is None:
        raise SettingsError("this result has no run folder", hint="run it with `run_dir=...`")
    return FinishedRun.open(scored.folder, scored.dataset)


def render(page: Page) -> bytes:
    """Return the page as HTML."""
    return render_data(page.data, page.data["title"], "page")


def render_data(data: Mapping[str, Any], title: str, name: str) -> bytes:
    """Return data and the frame of this name as HTML.

    The page's policy lets only our own script run; the data is compressed, and never markup.
    """
    made = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")
    packed = base64.b64encode(gzip.compress(made, 9, mtime=0)).decode()
    script = "".join((PARTS / part).read_text("utf-8") for part in ("parts.js", f"{name}.js"))
    style, frame = ((PARTS / part).read_text("utf-8") for part in ("page.css", f"{name}.html"))
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return (
        environment.from_string(frame)
        .render(
            title=re.sub(r"\s+", " ", title),
            style=source_hash(style),
            script=source_hash(script),
            css=Markup(style),
            js=Markup(script),
            data=packed,
        )
        .encode("utf-8", "replace")
    )


def source_hash(text: str) -> str:
    """Return the hash by which a content security policy admits an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"

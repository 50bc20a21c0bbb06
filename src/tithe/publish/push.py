"""Push a finished selection to the hub: check first, write a folder, upload it as one commit."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

from tithe.publish.card import check_license
from tithe.publish.dataset_folder import open_selection, write_folder
from tithe.publish.repository import Repository
from tithe.report.reporter import Reporter


@dataclass(frozen=True)
class PushTarget:
    """Where and how a selection is published.

    Args:
        repository: on the hub.
        with_dropped: push the dropped records too.
        license: of the source; None takes that of a source on the hub.
    """

    repository: Repository
    with_dropped: bool = False
    license: str | None = None

    def __post_init__(self) -> None:
        check_license(self.license)

    def check(self, reporter: Reporter) -> None:
        """Check token and repository, and say what is noteworthy.

        Raises:
            TitheError: a push would fail.
        """
        if note := self.repository.check():
            reporter.say(note)


@dataclass(frozen=True)
class Pushed:
    """A selection on the hub.

    Args:
        url: of its repository.
        kept: records.
        dropped: records; None if they were not pushed.
        private: whether it was made, or stays, private.
    """

    url: str
    kept: int
    dropped: int | None
    private: bool

    def __str__(self) -> str:
        dropped = "" if self.dropped is None else f" and {self.dropped:,} dropped"
        return f"{self.url} ({'private' if self.private else 'public'}, {self.kept:,} kept{dropped} records)"


def push(folder: Path, target: PushTarget, *, reporter: Reporter | None = None) -> Pushed:
    """Push a run to the hub.

    Args:
        folder: the run folder.
        target: where to.
        reporter: gets notes.

    Raises:
        TitheError: there is no such run, its data set has changed, or the hub refuses it.
    """
    reporter = reporter or Reporter()
    run = open_selection(folder)
    target.check(reporter)
    with tempfile.TemporaryDirectory(prefix="tithe-") as scratch:
        made = write_folder(
            run,
            Path(scratch) / "data-set",
            with_dropped=target.with_dropped,
            license=target.license,
            reporter=reporter,
        )
        url = target.repository.push(made.path, f"{made.facts.kept:,} records selected with tithe")
    return Pushed(url, made.facts.kept, made.facts.dropped, target.repository.private)

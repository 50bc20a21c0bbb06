"""What became of a run, in its record: `run.json`, `tune.json` and the others are there however the run ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tithe.errors import StoreError, TitheError
from tithe.foreign import read_json
from tithe.run.folder import RECORD, write_json
from tithe.run.talk import Talk

OUTCOME, BEFORE = "outcome", "last_finished"
FINISHED, INTERRUPTED, FAILED, RUNNING = "finished", "interrupted", "failed", "running"


@dataclass
class Account:
    """Of one run.

    Args:
        folder: where the record is; None keeps none, and may be replaced once the run has made the folder its own.
        talk: who listens; it knows whether it could be heard.
        record: makes the record of what was done so far; replaced as more is known.
        name: of the record's file.
        stores: what the run keeps to go on from, in the plural; None where it keeps nothing.
        before: the record of the last run that finished here.
        stored: counts what is stored.
    """

    folder: Path | None
    talk: Talk
    record: Callable[[], dict[str, Any]]
    name: str = RECORD
    stores: str | None = "answers"
    before: dict[str, Any] | None = None
    stored: Callable[[], int] = field(default=lambda: 0)

    def begin(self, folder: Path) -> None:
        """Keep the record in a folder from now on, which the run has found to be its own."""
        self.folder, self.before = folder, last_finished(folder / self.name)

    def finished(self) -> dict[str, Any]:
        """Return the entry of a run that came to its end."""
        return {OUTCOME: {"status": FINISHED} | self.unheard()}

    def running(self) -> dict[str, Any]:
        """Return the entry of a run that has not ended; it stays where the process is killed."""
        return {OUTCOME: {"status": RUNNING}}

    def unheard(self) -> dict[str, Any]:
        return {} if self.talk.trouble is None else {"log": self.talk.trouble}

    def broken_off(self, error: BaseException) -> dict[str, Any]:
        """Return what is to be said of a run that did not come to its end, and of all that it did."""
        try:
            made = self.record()
        except Exception as wrong:  # the run's own error is what counts, and is raised after this
            made = {"record_incomplete": f"{type(wrong).__name__}: {wrong}"}
        unexpected = {} if isinstance(error, TitheError | KeyboardInterrupt) else {"unexpected": type(error).__name__}
        why: dict[str, Any]
        if isinstance(error, KeyboardInterrupt):
            why = {"status": INTERRUPTED, "by": str(error) or "KeyboardInterrupt"}
        else:
            why = {"status": FAILED, "error": str(error), "hint": getattr(error, "hint", None)} | unexpected
        stored = {} if self.stores is None else {f"{self.stores}_stored": self.stored()}
        return made | {OUTCOME: why | stored | self.unheard()}

    def write_broken_off(self, error: BaseException) -> None:
        """Write the record of a run that did not come to its end, and say what it keeps if it was interrupted.

        The record of the last run that finished here stays in it: results of that run may still be in the folder.
        """
        if self.folder is None:
            return
        made = self.broken_off(error)
        if isinstance(error, KeyboardInterrupt) and self.stores and (n := made[OUTCOME][f"{self.stores}_stored"]):
            what = f"1 {self.stores.removesuffix('s')} is" if n == 1 else f"{n:,} {self.stores} are"
            self.talk.say(f"{what} stored in `{self.folder}`: run the same command again to go on")
        try:
            write_json(self.folder / self.name, made | ({} if self.before is None else {BEFORE: self.before}))
        except TitheError as full:  # a full disk, perhaps the very reason
            self.talk.say(f"note: {full}")


@contextmanager
def account(
    folder: Path | None,
    talk: Talk,
    record: Callable[[], dict[str, Any]],
    *,
    name: str = RECORD,
    stores: str | None = "answers",
) -> Iterator[Account]:
    """Write the record of a run that is interrupted or fails; the run itself writes that of one which finishes.

    Args:
        folder: where the record goes, open; None keeps no record.
        talk: is told what is stored, where the run is interrupted.
        record: see `Account`.
        name: of the record's file.
        stores: see `Account`.
    """
    told = Account(None, talk, record, name, stores)
    if folder is not None:
        told.begin(folder)
    try:
        yield told
    except BaseException as error:
        told.write_broken_off(error)
        raise


def has_finished(record: Mapping[str, Any]) -> bool:
    """Return whether a record is of a run that came to its end; those of before there were outcomes all are."""
    outcome = record.get(OUTCOME)
    return not isinstance(outcome, Mapping) or outcome.get("status") == FINISHED


def last_finished(path: Path) -> dict[str, Any] | None:
    """Return the record of the last run that came to its end, or None."""
    try:
        found: Any = read_json(path, StoreError, "it is written anew")
    except StoreError:  # none, or what a foreign hand made of it
        return None
    if not has_finished(found):
        found = found.get(BEFORE)
    return found if isinstance(found, dict) else None


def is_broken_off(path: Path) -> bool:
    """Return whether a file is the record of a run that did not come to its end, and of none that did."""
    try:
        found = read_json(path, StoreError, "")
    except StoreError:
        return False
    return not has_finished(found) and not isinstance(found.get(BEFORE), dict)

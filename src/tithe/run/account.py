"""What became of a run, in its record: `run.json` is there however the run ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tithe.errors import StoreError, TitheError
from tithe.foreign import read_json
from tithe.run.folder import RECORD, write_json
from tithe.run.talk import Talk

OUTCOME, BEFORE = "outcome", "last_finished"
FINISHED, INTERRUPTED, FAILED = "finished", "interrupted", "failed"


@dataclass
class Account:
    """Of one run.

    Args:
        folder: the run folder; None keeps no record.
        talk: who listens; it knows whether it could be heard.
        record: makes the record of what was done so far; replaced as more is known.
        stored: counts the answers that are on disk.
    """

    folder: Path | None
    talk: Talk
    record: Callable[[], dict[str, Any]]
    stored: Callable[[], int] = field(default=lambda: 0)

    def finished(self) -> dict[str, Any]:
        """Return the entry of a run that came to its end."""
        return {OUTCOME: {"status": FINISHED} | self.unheard()}

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
        return made | {OUTCOME: why | {"answers_stored": self.stored()} | self.unheard()}


@contextmanager
def account(folder: Path | None, talk: Talk, record: Callable[[], dict[str, Any]]) -> Iterator[Account]:
    """Write the record of a run that is interrupted or fails; the run itself writes that of one which finishes.

    The record of the last run that finished here stays in it: results of that run may still be in the folder.

    Args:
        folder: the run folder, open; None keeps no record.
        talk: is told how many answers are stored, where the run is interrupted.
        record: see `Account`.
    """
    told = Account(folder, talk, record)
    before = None if folder is None else last_finished(folder / RECORD)
    try:
        yield told
    except BaseException as error:
        if folder is not None:
            made = told.broken_off(error)
            if isinstance(error, KeyboardInterrupt) and (stored := made[OUTCOME]["answers_stored"]):
                talk.say(f"{stored:,} answers are stored in `{folder}`: run the same command again to go on")
            try:
                write_json(folder / RECORD, made | ({} if before is None else {BEFORE: before}))
            except TitheError as full:  # a full disk, perhaps the very reason
                talk.say(f"note: {full}")
        raise


def last_finished(path: Path) -> dict[str, Any] | None:
    """Return the record of the last run that came to its end, or None."""
    try:
        found: Any = read_json(path, StoreError, "it is written anew")
    except StoreError:  # none, or what a foreign hand made of it
        return None
    outcome = found.get(OUTCOME)
    if isinstance(outcome, dict) and outcome.get("status") != FINISHED:
        found = found.get(BEFORE)
    return found if isinstance(found, dict) else None

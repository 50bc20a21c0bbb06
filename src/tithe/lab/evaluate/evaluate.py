"""Measure a model: held-out likelihood, lm-eval's tasks; each metric is kept when it is done and not computed twice."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tithe.engine.sources import find_model
from tithe.extras import versions
from tithe.lab.evaluate.files import RECORD, Kept, read_kept, record_of, write_kept
from tithe.lab.evaluate.measured import Measured
from tithe.lab.evaluate.pieces import Piece, pieces_of
from tithe.lab.evaluate.settings import EvaluateSettings
from tithe.report.reporter import Talk
from tithe.run.folder import account, run_folder


@dataclass(frozen=True, repr=False)
class EvaluateResult:
    """What a model is worth.

    Args:
        measured: one for each metric that was asked for, in the order of `holdout`, then `tasks`.
        record: the record, as in `evaluation.json`.
        folder: where it lies, with `items.parquet`.
        notes: what a person should know of the numbers.
    """

    measured: list[Measured]
    record: dict[str, Any]
    folder: Path
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(f"{one.metric}: {one.mean:.4g} {one.unit}, {len(one.items):,} items" for one in self.measured)


def evaluate(settings: EvaluateSettings, folder: Path, *, talk: Talk | None = None) -> EvaluateResult:
    """Measure a model by all that the settings name.

    Args:
        settings: which model, by what.
        folder: where `evaluation.json` and `items.parquet` go; what it holds of the same is used again.
        talk: who listens.

    Raises:
        TitheError: whatever stops it; metrics that were done before are in the folder.
    """
    from tithe.engine.devices import choose_device

    talk, began = talk or Talk(), time.monotonic()
    if settings.device != "auto":
        choose_device(settings.device)  # what is not there is refused before anything is looked up
    source = find_model(settings.model)
    pieces = pieces_of(settings, source, talk)
    model = {"name": source.name, "folder": str(source.folder), "revision": source.revision}
    base = {"settings": settings.model_dump(mode="json"), "model": model, "versions": versions()}
    with run_folder(folder, "-o") as place:
        there = read_kept(place)
        kept = still_true(place, there, pieces, talk)
        on_disk = list(kept.values())
        # What was measured otherwise stays, with its record, until what replaces it can be measured.
        ours = place if len(kept) == len(there) else None
        with account(ours, talk, lambda: record_of(base, on_disk), name=RECORD, stores="metrics") as told:
            told.stored = lambda: sum(len(one.measured) for one in on_disk)
            missing = [one for one in pieces if one.name not in kept]
            for piece in missing:
                piece.check()
            told.folder = place
            if missing:
                write_kept(place, base | told.running(), on_disk, fewer=True)
            for piece in missing:
                talk.say(f"measuring `{piece.name}`")
                found, notes = piece.measure()
                kept[piece.name] = Kept(piece.name, piece.key, dict(piece.depends), found, notes)
                write_kept(place, base | told.running(), kept.values())
                on_disk.append(kept[piece.name])
            now = [one.name for one in missing]
            work = {"computed": now, "reused": [one.name for one in pieces if one.name not in now]}
            record = {**base, "work": {**work, "seconds": round(time.monotonic() - began, 2)}, **told.finished()}
            record = write_kept(place, record, kept.values())
    own = [kept[one.name] for one in pieces]
    measured = [one for piece in own for one in piece.measured]
    return EvaluateResult(measured, record, folder, [note for piece in own for note in piece.notes])


def still_true(place: Path, there: Sequence[Kept], pieces: Sequence[Piece], talk: Talk) -> dict[str, Kept]:
    """What the folder holds of this model, less what would now come out otherwise."""
    kept = {one.name: one for one in there}
    keys = {one.name: one.key for one in pieces}
    for name, one in list(kept.items()):
        if one.depends.get("model") != pieces[0].depends["model"]:
            talk.say(f"note: `{place}` holds `{name}` of another model; it is replaced")
        elif keys.get(name, one.key) != one.key:
            talk.say(f"note: `{place}` holds `{name}` by other settings, data or versions; it is measured again")
        else:
            continue
        del kept[name]
    return kept

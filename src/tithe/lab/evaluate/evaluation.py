"""Measure a model: held-out likelihood, lm-eval's tasks; each metric is kept when it is done and not computed twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.engine.model_source import TEXT_FILES, ModelSource, content_hash, find_model, fingerprint
from tithe.extras import versions
from tithe.lab.evaluate.files import RECORD, Kept, read_kept, record_of, write_kept
from tithe.lab.evaluate.holdout import READ, holdout_setup, measure_holdout
from tithe.lab.evaluate.measured import Measured
from tithe.lab.evaluate.settings import EvaluateSettings
from tithe.report.reporter import Reporter
from tithe.run.folder import account, run_folder

if TYPE_CHECKING:
    from tithe.lab.evaluate.harness import Harness
    from tithe.lab.evaluate.tasks import Asked, Built


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


def evaluate(settings: EvaluateSettings, folder: Path, *, reporter: Reporter | None = None) -> EvaluateResult:
    """Measure a model by all that the settings name.

    Args:
        settings: which model, by what.
        folder: where `evaluation.json` and `items.parquet` go; what it holds of the same is used again.
        reporter: who listens.

    Raises:
        TitheError: whatever stops it; metrics that were done before are in the folder.
    """
    from tithe.engine.devices import choose_device

    reporter, began = reporter or Reporter(), time.monotonic()
    if settings.device != "auto":
        choose_device(settings.device)  # what is not there is refused before anything is looked up
    source = find_model(settings.model)
    pieces = pieces_of(settings, source, reporter)
    model = {"name": source.name, "folder": str(source.folder), "revision": source.revision}
    base = {"settings": settings.model_dump(mode="json"), "model": model, "versions": versions()}
    with run_folder(folder, "-o") as place:
        there = read_kept(place)
        kept = still_true(place, there, pieces, reporter)
        on_disk = list(kept.values())
        # What was measured otherwise stays, with its record, until what replaces it can be measured.
        ours = place if len(kept) == len(there) else None
        with account(ours, reporter, lambda: record_of(base, on_disk), name=RECORD, stores="metrics") as told:
            told.stored = lambda: sum(len(one.measured) for one in on_disk)
            missing = [one for one in pieces if one.name not in kept]
            for piece in missing:
                piece.check()
            told.folder = place
            if missing:
                write_kept(place, base | told.running(), on_disk, fewer=True)
            for piece in missing:
                reporter.say(f"measuring `{piece.name}`")
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


def still_true(place: Path, there: Sequence[Kept], pieces: Sequence[Piece], reporter: Reporter) -> dict[str, Kept]:
    """What the folder holds of this model, less what would now come out otherwise."""
    kept = {one.name: one for one in there}
    keys = {one.name: one.key for one in pieces}
    for name, one in list(kept.items()):
        if one.depends.get("model") != pieces[0].depends["model"]:
            reporter.say(f"note: `{place}` holds `{name}` of another model; it is replaced")
        elif keys.get(name, one.key) != one.key:
            reporter.say(f"note: `{place}` holds `{name}` by other settings, data or versions; it is measured again")
        else:
            continue
        del kept[name]
    return kept


HOLDOUT = "holdout"
Values = tuple[list[Measured], list[str]]


@dataclass(frozen=True)
class Piece:
    """Something that is measured in one go.

    Args:
        name: `holdout`, or a task's name.
        depends: all that its values depend on; where that is the same, they are.
        check: raises what can be known to be wrong before any weights are loaded.
        measure: its metrics, and what a person should know of them.
    """

    name: str
    depends: Mapping[str, Any]
    check: Callable[[], None]
    measure: Callable[[], Values]

    @property
    def key(self) -> str:
        text = json.dumps(self.depends, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def pieces_of(settings: EvaluateSettings, source: ModelSource, reporter: Reporter) -> list[Piece]:
    """All that is to be measured; loads no model and no task's data.

    Raises:
        TitheError: a task that is not there or not allowed, a file or model that cannot be read.
    """
    asked = tasks_of(settings)
    both = {"model": identity(source), "versions": versions()}
    found = [] if settings.holdout is None else [holdout_piece(settings, settings.holdout, both, reporter)]
    return found + task_pieces(asked, settings, source, both, reporter)


def tasks_of(settings: EvaluateSettings) -> list[Asked]:
    """What the names of the tasks stand for."""
    if not settings.tasks:
        return []
    from tithe.lab.evaluate.tasks import resolve

    return resolve(settings.tasks, allow_code=settings.allow_code_execution)


def identity(source: ModelSource) -> dict[str, str]:
    """The weights, and the tokenizer and other text files beside them."""
    state = hashlib.blake2b(digest_size=8)
    for file in sorted({file for pattern in TEXT_FILES for file in source.folder.glob(pattern)}):
        state.update(file.name.encode(errors="surrogateescape") + content_hash(file))
    return {"fingerprint": fingerprint(source), "files": state.hexdigest()}


def holdout_piece(settings: EvaluateSettings, path: str, both: Mapping[str, Any], reporter: Reporter) -> Piece:
    """The likelihood of held-out responses."""
    from tithe.engine.devices import choose_device
    from tithe.engine.engine import NUMERICS

    setup = holdout_setup(settings, path, settings.holdout_group)
    depends = {
        **both,
        "dataset": setup.source.input_check.digest,
        "format": setup.source.dataset.format,
        "template": setup.renderer.describe(),
        "group": settings.holdout_group,
        "device": str(choose_device(settings.device)),
        "dtype": setup.model.weights_dtype,
        "numerics": NUMERICS,
        "settings": {name: getattr(settings, name) for name in READ if name not in ("model", "device", "dtype")},
    }

    def measure() -> Values:
        return [measure_holdout(settings, path, group=settings.holdout_group, reporter=reporter)], []

    return Piece(HOLDOUT, depends, lambda: None, measure)


def task_pieces(
    asked: list[Asked], settings: EvaluateSettings, source: ModelSource, both: Mapping[str, Any], reporter: Reporter
) -> list[Piece]:
    """lm-eval's tasks, one piece a name; they share the model."""
    if not asked:
        return []
    from tithe.lab.evaluate.harness import Harness, Recipe

    recipe = Recipe(settings.limit, settings.batch_size, settings.seed, settings.apply_chat_template)
    harness = Harness(source, settings.device, settings.dtype, recipe, settings.trust_remote_code)
    return [TaskPiece(one, harness, settings, both, reporter).piece() for one in asked]


@dataclass
class TaskPiece:
    """One name of `tasks`, its data read when it is checked and let go when it is done."""

    asked: Asked
    harness: Harness
    settings: EvaluateSettings
    both: Mapping[str, Any]
    reporter: Reporter
    built: list[Built] = field(default_factory=list)

    def piece(self) -> Piece:
        depends = {
            **self.both,
            "task": self.asked.name,
            "lm_eval": version("lm-eval"),
            "files": self.asked.digests(),
            "where": self.harness.where,
            "settings": {
                name: getattr(self.settings, name)
                for name in ("num_fewshot", "limit", "batch_size", "max_new_tokens", "seed", "apply_chat_template")
            },
        }
        return Piece(self.asked.name, depends, self.check, self.measure)

    def check(self) -> None:
        from tithe.lab.evaluate.tasks import build

        s = self.settings
        for leaf in self.asked.leaves:
            if s.num_fewshot is not None and leaf.shots(s.num_fewshot) != s.num_fewshot:
                self.reporter.say(f"note: `{leaf.name}` never has worked examples; `num_fewshot` does not apply to it")
            self.built.append(build(leaf, shots=s.num_fewshot, seed=s.seed, max_new_tokens=s.max_new_tokens))
        self.harness.check(self.built)

    def measure(self) -> Values:
        done = self.harness.run(self.asked, self.built)
        self.built.clear()
        return done.measured, done.notes

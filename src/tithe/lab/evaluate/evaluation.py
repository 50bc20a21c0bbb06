"""Measure a model: held-out likelihood and lm-eval's tasks. Each result is stored when it is done, and used again."""

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
from tithe.lab.evaluate.holdout import READ, holdout_setup, measure_holdout
from tithe.lab.evaluate.measured import RECORD, Measured, StoredPiece, read_pieces, record_of, write_pieces
from tithe.lab.evaluate.settings import EvaluateSettings
from tithe.lab.evaluate.tasks import Asked, Built, build, resolve
from tithe.report.reporter import Reporter
from tithe.run.folder import recorded_run, run_folder
from tithe.run.run_model import say_dequantised

if TYPE_CHECKING:
    from tithe.lab.evaluate.harness import Harness


@dataclass(frozen=True, repr=False)
class EvaluateResult:
    """Result of an evaluation.

    Args:
        measured: all requested metrics, those of `holdout` first, then those of `tasks`.
        record: content of `evaluation.json`.
        folder: where `evaluation.json` and `items.parquet` are.
        notes: what a reader of the numbers should know.
    """

    measured: list[Measured]
    record: dict[str, Any]
    folder: Path
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return "\n".join(f"{one.metric}: {one.mean:.4g} {one.unit}, {len(one.items):,} items" for one in self.measured)


def evaluate(settings: EvaluateSettings, folder: Path, *, reporter: Reporter | None = None) -> EvaluateResult:
    """Measure a model by everything that the settings name.

    Args:
        settings: the model, and what to measure it by.
        folder: where `evaluation.json` and `items.parquet` go; results of the same model and settings that it holds
            already are used again.
        reporter: receives progress and messages.

    Raises:
        TitheError: anything that stops the evaluation; metrics measured until then are in the folder.
    """
    from tithe.engine.devices import choose_device

    reporter, began = reporter or Reporter(), time.monotonic()
    if settings.device != "auto":
        choose_device(settings.device)  # refuse a missing device before the model is looked up
    source = find_model(settings.model)
    say_dequantised(source, reporter)
    pieces = pieces_of(settings, source, reporter)
    model = {"name": source.name, "folder": str(source.place), "revision": source.revision}
    base = {"settings": settings.model_dump(mode="json"), "model": model, "versions": versions()}
    with run_folder(folder, "-o") as place:
        there = read_pieces(place)
        kept = still_valid(place, there, pieces, reporter)
        on_disk = list(kept.values())
        # Outdated results stay in the folder until everything is checked that may stop their replacement. Until then a
        # failure must not overwrite their record either, so the record writer has no folder.
        ours = place if len(kept) == len(there) else None
        with recorded_run(ours, reporter, lambda: record_of(base, on_disk), name=RECORD, stores="metrics") as keeper:
            keeper.stored = lambda: sum(len(one.measured) for one in on_disk)
            missing = [one for one in pieces if one.name not in kept]
            for piece in missing:
                piece.check()
            keeper.folder = place
            if missing:
                write_pieces(place, base | keeper.running(), on_disk, fewer=True)
            for piece in missing:
                reporter.say(f"measuring `{piece.name}`")
                found, notes = piece.measure()
                kept[piece.name] = StoredPiece(piece.name, piece.key, dict(piece.depends), found, notes)
                write_pieces(place, base | keeper.running(), kept.values())
                on_disk.append(kept[piece.name])
            now = [one.name for one in missing]
            work = {"computed": now, "reused": [one.name for one in pieces if one.name not in now]}
            record = {**base, "work": {**work, "seconds": round(time.monotonic() - began, 2)}, **keeper.finished()}
            record = write_pieces(place, record, kept.values())
    own = [kept[one.name] for one in pieces]
    measured = [one for piece in own for one in piece.measured]
    return EvaluateResult(measured, record, folder, [note for piece in own for note in piece.notes])


def still_valid(
    place: Path, there: Sequence[StoredPiece], pieces: Sequence[Piece], reporter: Reporter
) -> dict[str, StoredPiece]:
    """Return the stored pieces that can be used again, by name, and say why the others cannot."""
    kept = {one.name: one for one in there}
    keys = {one.name: one.key for one in pieces}
    for name, one in list(kept.items()):
        if one.depends.get("model") != pieces[0].depends["model"]:
            reporter.say(f"note: `{place}` holds `{name}` of another model; it is replaced")
        elif keys.get(name, one.key) != one.key:
            reporter.say(
                f"note: `{place}` holds `{name}` measured with other settings, data or versions; it is measured again"
            )
        else:
            continue
        del kept[name]
    return kept


HOLDOUT = "holdout"
Values = tuple[list[Measured], list[str]]


@dataclass(frozen=True)
class Piece:
    """Metrics to be measured together.

    Args:
        name: `holdout`, or a task's name.
        depends: everything the values depend on; stored values are used again if it is unchanged.
        check: raises every error that can be found before weights are loaded.
        measure: returns the metrics and their notes.
    """

    name: str
    depends: Mapping[str, Any]
    check: Callable[[], None]
    measure: Callable[[], Values]

    @property
    def key(self) -> str:
        """Return a hash of everything the values depend on."""
        text = json.dumps(self.depends, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def pieces_of(settings: EvaluateSettings, source: ModelSource, reporter: Reporter) -> list[Piece]:
    """Return everything that is to be measured, without loading a model or a task's data.

    Raises:
        TitheError: a task is unknown or not allowed, or a file or model cannot be read.
    """
    asked = resolve(settings.tasks, allow_code=settings.allow_code_execution) if settings.tasks else []
    both = {"model": model_identity(source), "versions": versions()}
    found = [] if settings.holdout is None else [holdout_piece(settings, settings.holdout, both, reporter)]
    return found + task_pieces(asked, settings, source, both, reporter)


def model_identity(source: ModelSource) -> dict[str, str]:
    """Return hashes of the weights, and of the tokenizer and other text files beside them."""
    state = hashlib.blake2b(digest_size=8)
    beside = () if source.gguf is not None else TEXT_FILES  # a GGUF file holds its own tokenizer
    for file in sorted({file for pattern in beside for file in source.folder.glob(pattern)}):
        state.update(file.name.encode(errors="surrogateescape") + content_hash(file))
    return {"fingerprint": fingerprint(source), "files": state.hexdigest()}


def holdout_piece(settings: EvaluateSettings, path: str, both: Mapping[str, Any], reporter: Reporter) -> Piece:
    """Return the piece that measures the likelihood of held-out responses."""
    from tithe.engine.devices import choose_device
    from tithe.engine.engine import NUMERICS

    setup = holdout_setup(settings, path, settings.holdout_group, settings.columns)
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
        return [
            measure_holdout(settings, path, group=settings.holdout_group, columns=settings.columns, reporter=reporter)
        ], []

    return Piece(HOLDOUT, depends, lambda: None, measure)


def task_pieces(
    asked: list[Asked], settings: EvaluateSettings, source: ModelSource, both: Mapping[str, Any], reporter: Reporter
) -> list[Piece]:
    """Return one piece for each name in `tasks`; they share one loaded model."""
    if not asked:
        return []
    from tithe.lab.evaluate.harness import Harness, TaskSettings

    how = TaskSettings(settings.limit, settings.seed, settings.batch_size, settings.apply_chat_template)
    harness = Harness(source, settings.device, settings.dtype, how, settings.trust_remote_code)
    return [TaskPiece(one, harness, settings, both, reporter).piece() for one in asked]


@dataclass
class TaskPiece:
    """Measure one name of `tasks`. Its data are read by `check` and freed by `measure`."""

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
        s = self.settings
        for leaf in self.asked.leaves:
            if s.num_fewshot is not None and leaf.shots(s.num_fewshot) != s.num_fewshot:
                self.reporter.say(f"note: `{leaf.name}` never has worked examples; `num_fewshot` does not apply to it")
            self.built.append(build(leaf, shots=s.num_fewshot, seed=s.seed, max_new_tokens=s.max_new_tokens))
        self.harness.check(self.built)

    def measure(self) -> Values:
        done = self.harness.run(self.asked, self.built)
        self.built.clear()
        return done

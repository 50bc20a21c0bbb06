"""Measure a model: held-out likelihood, lm-eval's tasks; each metric is kept when it is done and not computed twice."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tithe.engine.sources import TEXT_FILES, ModelSource, content_hash, find_model, fingerprint
from tithe.evaluate.measured import Measured
from tithe.run.describe import versions
from tithe.run.evaluate_settings import EvaluateSettings
from tithe.run.evaluation_file import Kept, read_kept, write_kept
from tithe.run.folder import run_folder
from tithe.run.holdout import READ, holdout_parts, measure_holdout
from tithe.run.talk import Talk

HOLDOUT = "holdout"


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
    measure: Callable[[], tuple[list[Measured], list[str]]]

    @property
    def key(self) -> str:
        text = json.dumps(self.depends, sort_keys=True, default=str)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


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
    talk, began = talk or Talk(), time.monotonic()
    source = find_model(settings.model)
    pieces = pieces_of(settings, source, talk)
    with run_folder(folder, "-o") as place:
        kept = {one.name: one for one in read_kept(place)}
        here = {one.name: kept[one.name] for one in pieces if one.name in kept and kept[one.name].key == one.key}
        missing = [one for one in pieces if one.name not in here]
        for piece in missing:
            piece.check()
        model = {"name": source.name, "folder": str(source.folder), "revision": source.revision}
        base = {"settings": settings.model_dump(mode="json"), "model": model, "versions": versions()}
        for name in kept.keys() - here.keys():
            if kept[name].depends.get("model") != pieces[0].depends["model"]:
                talk.say(f"note: `{place}` holds `{name}` of another model, which is replaced")
                del kept[name]
        for piece in missing:
            kept.pop(piece.name, None)
        if missing:
            write_kept(place, base, kept.values())
        for piece in missing:
            talk.say(f"measuring `{piece.name}`")
            found, notes = piece.measure()
            kept[piece.name] = Kept(piece.name, piece.key, dict(piece.depends), found, notes)
            write_kept(place, base, kept.values())
        work = {"computed": [one.name for one in missing], "reused": list(here), "seconds": time.monotonic() - began}
        record = write_kept(place, {**base, "work": work}, kept.values())
    own = [kept[one.name] for one in pieces]
    return EvaluateResult(
        [one for piece in own for one in piece.measured],
        record,
        folder,
        [note for piece in own for note in piece.notes],
    )


def pieces_of(settings: EvaluateSettings, source: ModelSource, talk: Talk) -> list[Piece]:
    """All that is to be measured; loads no model and no task's data.

    Raises:
        TitheError: a task that is not there or not allowed, a file or model that cannot be read.
    """
    both = {"model": identity(source), "versions": versions()}
    found = [] if settings.holdout is None else [holdout_piece(settings, settings.holdout, both, talk)]
    return found + task_pieces(settings, source, both, talk)


def identity(source: ModelSource) -> dict[str, str]:
    """The weights, and the tokenizer and other text files beside them."""
    state = hashlib.blake2b(digest_size=8)
    for file in sorted({file for pattern in TEXT_FILES for file in source.folder.glob(pattern)}):
        state.update(file.name.encode() + content_hash(file))
    return {"fingerprint": fingerprint(source), "files": state.hexdigest()}


def holdout_piece(settings: EvaluateSettings, path: str, both: Mapping[str, Any], talk: Talk) -> Piece:
    """The likelihood of held-out responses."""
    from tithe.engine.engine import NUMERICS
    from tithe.engine.model import choose_device

    parts = holdout_parts(settings, path, settings.holdout_group)
    depends = {
        **both,
        "dataset": parts.watch.digest,
        "format": parts.dataset.format,
        "template": parts.renderer.describe(),
        "group": settings.holdout_group,
        "device": str(choose_device(settings.device)),
        "dtype": parts.dtype,
        "numerics": NUMERICS,
        "settings": {name: getattr(settings, name) for name in READ if name not in ("model", "device", "dtype")},
    }

    def measure() -> tuple[list[Measured], list[str]]:
        return [measure_holdout(settings, path, group=settings.holdout_group, talk=talk)], []

    return Piece(HOLDOUT, depends, lambda: None, measure)


def task_pieces(settings: EvaluateSettings, source: ModelSource, both: Mapping[str, Any], talk: Talk) -> list[Piece]:
    """lm-eval's tasks, one piece a name; they share the model."""
    if not settings.tasks:
        return []
    from tithe.evaluate.tasks import resolve

    asked = resolve(settings.tasks, allow_code=settings.allow_code_execution)
    from tithe.evaluate.harness import Harness, Recipe

    recipe = Recipe(settings.limit, settings.batch_size, settings.seed, settings.apply_chat_template)
    harness = Harness(source, settings.device, settings.dtype, recipe, settings.trust_remote_code)
    return [TaskPiece(one, harness, settings, both, talk).piece() for one in asked]


@dataclass
class TaskPiece:
    """One name of `tasks`, its data read when it is checked and let go when it is done."""

    asked: Any
    harness: Any
    settings: EvaluateSettings
    both: Mapping[str, Any]
    talk: Talk
    built: list[Any] = field(default_factory=list)

    def piece(self) -> Piece:
        from importlib.metadata import version

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
        from tithe.evaluate.tasks import build

        s = self.settings
        for leaf in self.asked.leaves:
            if s.num_fewshot is not None and leaf.shots(s.num_fewshot) != s.num_fewshot:
                self.talk.say(
                    f"note: `{leaf.name}` is never shown worked examples; `--num-fewshot` does not apply to it"
                )
            self.built.append(build(leaf, shots=s.num_fewshot, seed=s.seed, max_new_tokens=s.max_new_tokens))
        self.harness.check(self.built)

    def measure(self) -> tuple[list[Measured], list[str]]:
        done = self.harness.run(self.asked, self.built)
        self.built.clear()
        return done.measured, done.notes

"""Heads: trained on tiers, read in from the paper's own network, and judged on tiers."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tithe.data.outfile import check_writable
from tithe.engine.heads.base import chosen_layers
from tithe.engine.heads.files import CARD, import_cnn, save_head
from tithe.errors import SettingsError
from tithe.extras import versions
from tithe.lab.heads.fit import Fit, check_settings, sides_of
from tithe.lab.heads.head_report import (
    PROMPTS,
    counts_of,
    demand_judgeable,
    draw,
    in_both,
    judged,
    prompts_of,
    unseen,
)
from tithe.lab.heads.head_run import HeadModel, HeadRun
from tithe.lab.heads.settings import HeadSettings
from tithe.lab.heads.tier_data import read_tiers
from tithe.lab.heads.tier_states import TierStates
from tithe.report.reporter import Reporter, say_notes
from tithe.run.folder import recorded_run, run_folder, write_json, write_table
from tithe.run.method import Facts

if TYPE_CHECKING:
    from tithe.lab.heads.head_judgement import HeadReport

REPORT, HELD_OUT = "report.json", "held_out.parquet"


@dataclass(frozen=True)
class HeadResult:
    """A head, and what is known of it.

    Args:
        folder: where it lies; None where it was only judged.
        record: settings, counts, training facts, and the report where one was made.
        report: on prompts that the head never saw.
    """

    folder: Path | None
    record: dict[str, Any] = field(repr=False)
    report: HeadReport | None = field(default=None, repr=False)

    def __str__(self) -> str:
        unknown = "nothing is known of how well it tells tiers apart: `tithe head evaluate` judges it on some"
        lines = self.report.lines() if self.report else [unknown]
        return "\n".join([*lines, *([f"head: {self.folder}"] if self.folder else [])])


def train_head(
    settings: HeadSettings, folder: Path, *, overwrite: bool = False, reporter: Reporter | None = None
) -> HeadResult:
    """Train a head on tiers, and judge it on prompts that it never saw.

    Args:
        settings: the tiers, the model, and how to train.
        folder: where the head goes: its card and weights, `report.json`, `held_out.parquet` (margin and tier of every
            response it was judged on), `prompts.parquet` (which prompts it was trained on), `layers.svg` and `.png`.
        overwrite: replace a head that is there.
        reporter: who listens.

    Raises:
        TitheError: whatever stops it; an old head in the folder stays as it was.
    """
    check_writable(folder / CARD, overwrite)
    began, reporter = time.monotonic(), reporter or Reporter()
    check_settings(settings)
    run = HeadRun.open(HeadModel.open(settings), reporter)
    tiers = read_tiers(run.source.dataset, settings)
    demand_judgeable(tiers, sides_of(tiers, settings)["test"])  # said before the model is loaded
    twins = in_both(tiers)
    if twins:
        reporter.say(f"note: {twins:,} of {len(tiers):,} responses stand in both tiers, to the same prompt")
    base = {
        "kind": settings.kind,
        "settings": settings.model_dump(mode="json"),
        "versions": versions(("torch", "transformers", "scikit-learn", "numpy")),
        "dataset": run.source.input_check.describe(),
    }
    with (
        run_folder(folder, "-o") as place,
        recorded_run(folder, reporter, lambda: base, name=REPORT, stores=None) as told,
    ):
        states = TierStates.of(run, tiers)
        counts = counts_of(states, {})
        say_notes(reporter, run.source.dataset, counts)
        told.record = lambda: base | {"counts": counts}
        fit = Fit(settings, run, states)
        head, facts = fit.probe() if settings.kind == "probe" else fit.cnn()
        report, held_out = judged(states, head, fit.sides["test"], settings)
        training = {
            **base,
            "counts": counts_of(states, fit.sides) | {"in_both_tiers": twins},
            "fit": facts,
            "layer_aucs": {str(layer): auc for layer, auc in fit.layer_aucs.items()},
            "report": report.as_dict() if report else None,
            "seconds": round(time.monotonic() - began, 1),
        }
        run.source.input_check.check()
        write_table(place / PROMPTS, prompts_of(states.tiers, fit.sides))
        write_table(place / HELD_OUT, held_out)
        draw(place, fit.layer_aucs, report, reporter)
        card = save_head(place, head, run.of.card(head, training), overwrite=overwrite)
        record = {"head": str(folder), "fingerprint": card.fingerprint, "layers": list(head.layers), **training}
        record |= told.finished()
        write_json(place / REPORT, record)
    return HeadResult(folder, record, report)


def evaluate_head(head: Path, settings: HeadSettings, *, reporter: Reporter | None = None) -> HeadResult:
    """Judge a head on tiers of another source.

    Raises:
        DataError: it was trained on some of these prompts, unless they are to be left out.
        ModelError: it belongs to another model.
    """
    from tithe.engine.readouts.head_readout import HeadReadout, check_head

    reporter, of = reporter or Reporter(), HeadModel.open(settings)
    readout, needs = HeadReadout(head), Facts(of.model, of.renderer)
    check_head(readout, str(head), needs)
    run = HeadRun.open(of, reporter)
    tiers = unseen(read_tiers(run.source.dataset, settings), readout, settings)
    demand_judgeable(tiers, np.arange(len(tiers)))
    for note in needs.notes:
        reporter.say(note)
    states = TierStates.of(run, tiers)
    say_notes(reporter, run.source.dataset, counts_of(states, {}))
    states.likelihoods()
    report, _ = judged(states, readout.head(), np.arange(len(states.tiers)), settings)
    assert report is not None
    run.source.input_check.check()
    record = {
        "head": str(head),
        "fingerprint": readout.card.fingerprint,
        "model": of.describe(),
        "settings": settings.model_dump(mode="json"),
        "versions": versions(("torch", "transformers", "scikit-learn", "numpy")),
        "dataset": run.source.input_check.describe(),
        "counts": counts_of(states, {}),
        "report": report.as_dict(),
    }
    return HeadResult(None, record, report)


def import_head(
    weights: Path, settings: HeadSettings, folder: Path, *, overwrite: bool = False, reporter: Reporter | None = None
) -> HeadResult:
    """A head from a network that was trained with the CPQS authors' scripts.

    Nothing is known of how well it tells tiers apart, until `evaluate_head` is asked.
    """
    if settings.kind != "cnn":
        raise SettingsError(f"a `{settings.kind}` cannot be imported", hint="`--kind cnn` is the authors' network")
    check_writable(folder / CARD, overwrite)
    of = HeadModel.open(settings)
    count, width = of.shape
    head = import_cnn(weights, count=count, width=width, layers=chosen_layers(settings.layers or "all", count))
    training = {"kind": "cnn", "imported": str(weights), "versions": versions(("torch",)), "report": None}
    with run_folder(folder, "-o") as place:
        card = save_head(place, head, of.card(head, training), overwrite=overwrite)
    record = {"head": str(folder), "fingerprint": card.fingerprint, "layers": list(head.layers), **training}
    return HeadResult(folder, record)

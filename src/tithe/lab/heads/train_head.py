"""Train a head on tiers, import one from the CPQS authors' network, and judge a head on tiers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tithe.data.outfile import check_writable
from tithe.engine.heads.base import chosen_layers
from tithe.engine.heads.files import CARD, import_cnn, save_head
from tithe.errors import DataError, MissingExtraError, SettingsError
from tithe.extras import versions
from tithe.lab.curve import layer_chart, write_chart
from tithe.lab.heads.head_judgement import HeadReport, judge_rows
from tithe.lab.heads.settings import HeadSettings
from tithe.lab.heads.tier_data import (
    PROMPTS,
    SIDE_NAMES,
    Rows,
    Tiers,
    count_in_both,
    demand_disjoint,
    demand_judgeable,
    read_tiers,
    split_by_prompt,
    unseen_tiers,
)
from tithe.lab.heads.tier_states import HeadModel, HeadRun, TierStates
from tithe.printable import counted
from tithe.report.reporter import Reporter, say_notes
from tithe.report.terminal import console, say
from tithe.run.folder import recorded_run, run_folder, write_json, write_table
from tithe.run.method import Facts

if TYPE_CHECKING:
    import pyarrow as pa

    from tithe.engine.heads.base import StateHead

REPORT, HELD_OUT = "report.json", "held_out.parquet"
PLOTS = ("layers.svg", "layers.png")
SOME = 2000  # responses for AUC by layer beside a network
CNN_ONLY = ("num_train_epochs", "learning_rate", "per_device_train_batch_size")
SPLIT_ONLY = ("validation_share", "test_share")


@dataclass(frozen=True)
class HeadResult:
    """A head and its report.

    Args:
        folder: that holds it; None if it was only judged.
        record: settings, counts, training facts, and the report if there is one.
        report: on prompts that the head never saw.
    """

    folder: Path | None
    record: dict[str, Any] = field(repr=False)
    report: HeadReport | None = field(default=None, repr=False)

    def __str__(self) -> str:
        unknown = (
            "it is unknown how well this head tells tiers apart: `tithe head evaluate` judges it on labelled responses"
        )
        lines = self.report.lines() if self.report else [unknown]
        return "\n".join([*lines, *([f"head: {self.folder}"] if self.folder else [])])


def train_head(
    settings: HeadSettings, folder: Path, *, overwrite: bool = False, reporter: Reporter | None = None
) -> HeadResult:
    """Train a head on tiers, and judge it on prompts that it never saw.

    Args:
        settings: the tiers, the model, and how to train.
        folder: for the head: its card and weights, `report.json`, `held_out.parquet` (margin and tier of every
            response it was judged on), `prompts.parquet` (which prompts it was trained on), `layers.svg` and `.png`.
        overwrite: replace a head that is there.
        reporter: gets messages and progress.

    Raises:
        TitheError: training failed; an old head in the folder stays as it was.
    """
    check_writable(folder / CARD, overwrite)
    began, reporter = time.monotonic(), reporter or Reporter()
    check_settings(settings)
    run = HeadRun.open(HeadModel.open(settings), reporter)
    tiers = read_tiers(run.source.dataset, settings)
    demand_judgeable(tiers, sides_of(tiers, settings)["test"])  # fail before the model is loaded
    twins = count_in_both(tiers)
    if twins:
        reporter.say(f"note: {twins:,} of {len(tiers):,} responses are in both tiers, with the same prompt")
    base = {"kind": settings.kind, **inputs_record(run)}
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
        report, held_out = judge_rows(states, head, fit.sides["test"], settings)
        training = {
            **base,
            "counts": counts_of(states, fit.sides) | {"in_both_tiers": twins},
            "fit": facts,
            "layer_aucs": {str(layer): auc for layer, auc in fit.layer_aucs.items()},
            "report": report.as_dict() if report else None,
            "seconds": round(time.monotonic() - began, 1),
        }
        run.source.input_check.check()  # the data must not have changed meanwhile
        write_table(place / PROMPTS, prompt_table(states.tiers, fit.sides))
        write_table(place / HELD_OUT, held_out)
        draw_layers(place, fit.layer_aucs, report, reporter)
        card = save_head(place, head, run.of.card(head, training), overwrite=overwrite)
        record = {"head": str(folder), "fingerprint": card.fingerprint, "layers": list(head.layers), **training}
        record |= told.finished()
        write_json(place / REPORT, record)
    return HeadResult(folder, record, report)


def evaluate_head(head: Path, settings: HeadSettings, *, reporter: Reporter | None = None) -> HeadResult:
    """Judge a head on other tiers.

    Raises:
        DataError: it was trained on some of these prompts, and `drop_seen` is not set.
        ModelError: it belongs to another model.
    """
    from tithe.engine.readouts.head_readout import HeadReadout, check_head

    reporter, of = reporter or Reporter(), HeadModel.open(settings)
    readout, needs = HeadReadout(head), Facts(of.model, of.renderer)
    check_head(readout, str(head), needs)
    run = HeadRun.open(of, reporter)
    tiers = unseen_tiers(read_tiers(run.source.dataset, settings), readout, settings)
    demand_judgeable(tiers, np.arange(len(tiers)))
    for note in needs.notes:
        reporter.say(note)
    states = TierStates.of(run, tiers)
    say_notes(reporter, run.source.dataset, counts_of(states, {}))
    states.likelihoods()
    report, _ = judge_rows(states, readout.head(), np.arange(len(states.tiers)), settings)
    assert report is not None
    run.source.input_check.check()
    record = {
        "head": str(head),
        "fingerprint": readout.card.fingerprint,
        "model": of.describe(),
        **inputs_record(run),
        "counts": counts_of(states, {}),
        "report": report.as_dict(),
    }
    return HeadResult(None, record, report)


def inputs_record(run: HeadRun) -> dict[str, Any]:
    """Return the settings, versions and data set for a record."""
    return {
        "settings": run.of.settings.model_dump(mode="json"),
        "versions": versions(("torch", "transformers", "scikit-learn", "numpy")),
        "dataset": run.source.input_check.describe(),
    }


def import_head(
    weights: Path, settings: HeadSettings, folder: Path, *, overwrite: bool = False, reporter: Reporter | None = None
) -> HeadResult:
    """Import a head from a network that was trained with the CPQS authors' scripts.

    How well it separates tiers is unknown until `evaluate_head` judges it.
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


@dataclass
class Fit:
    """One training of a head.

    Attributes:
        sides: side -> places of its responses.
        layer_aucs: AUC of each hidden state by itself, if it was measured.
    """

    settings: HeadSettings
    run: HeadRun
    states: TierStates
    sides: dict[str, Rows] = field(init=False)
    layer_aucs: Mapping[int, float] = field(default_factory=dict, init=False)

    def probe(self) -> tuple[StateHead, dict[str, Any]]:
        """Train the linear head, on the validation side too: it chooses by cross-validation."""
        from tithe.lab.heads.fit_probe import fit_probe

        means, s = self.states.means(), self.settings  # (responses, hidden states, width)
        tiers = self.states.tiers
        self.sides = sides_of(tiers, s)
        rows = np.sort(np.concatenate([self.sides["train"], self.sides["validation"]]))
        self.run.reporter.say(f"cross-validation over {means.shape[1]} hidden states of {len(rows):,} responses")
        fit = fit_probe(means[rows], tiers.labels[rows], tiers.prompts[rows], layers=s.layers, seed=s.seed)
        self.layer_aucs = fit.layer_aucs
        return fit.head, {name: fact for name, fact in fit.as_dict().items() if name != "layer_aucs"}

    def cnn(self) -> tuple[StateHead, dict[str, Any]]:
        """Train the paper's network."""
        from tithe.lab.heads.fit_cnn import fit_cnn

        self.states.likelihoods()  # also leaves out responses that cannot be read, before the split
        s, run, tiers = self.settings, self.run, self.states.tiers
        self.sides = sides_of(tiers, s)
        self.layer_aucs = self.by_layer()
        model = run.load().model
        count, width = model.layers.count, run.of.shape[1]
        layers = chosen_layers(s.layers or "all", count)
        run.reporter.phase("training the head")
        run.reporter.expect(len(self.sides["train"]) * s.num_train_epochs)
        try:
            fit = fit_cnn(
                lambda places: self.states.states(places, layers),
                tiers.labels,
                self.sides["train"],
                self.sides["validation"],
                count=count,
                width=width,
                layers=layers,
                epochs=s.num_train_epochs,
                seed=s.seed,
                device=model.device,
                learning_rate=s.learning_rate,
                batch=s.per_device_train_batch_size,
                progress=lambda step, steps, loss: run.reporter.progress(s.per_device_train_batch_size, 0),
            )
        finally:
            run.reporter.done()
        return fit.head, fit.as_dict()

    def by_layer(self) -> dict[int, float]:
        """Return the AUC of each hidden state by itself on part of the training side, for the plot beside a network."""
        from tithe.lab.heads.fit_probe import layer_aucs

        rows, tiers = self.sides["train"], self.states.tiers
        if len(rows) > SOME:
            rows = np.sort(np.random.default_rng(self.settings.seed).choice(rows, SOME, replace=False))
        places, means = self.states.some_means(rows.tolist())
        try:
            return layer_aucs(means, tiers.labels[places], tiers.prompts[places], seed=self.settings.seed)
        except DataError as error:  # the head does not need it
            self.run.reporter.say(f"note: no AUC by layer: {error}")
            return {}


def sides_of(tiers: Tiers, settings: HeadSettings) -> dict[str, Rows]:
    """Return the places of each side; all responses to a prompt are on one side.

    Raises:
        DataError: the data's own split has a prompt on two sides, or no training side.
        SettingsError: the shares leave nothing to train on.
    """
    if tiers.sides is not None:
        sides = {name: np.flatnonzero(tiers.sides == name) for name in SIDE_NAMES}
        demand_disjoint(tiers.prompts, sides)
        if not len(sides["train"]):
            raise DataError(f"the column `{settings.split_column}` puts no response on the side `train`")
        return sides
    shares = (1 - settings.validation_share - settings.test_share, settings.validation_share, settings.test_share)
    if shares[0] <= 0:
        raise SettingsError(
            f"nothing is left to train on: {settings.validation_share:g} of the prompts for validation and "
            f"{settings.test_share:g} for the test"
        )
    return split_by_prompt(tiers.prompts, shares=shares, names=SIDE_NAMES, seed=settings.seed)


def check_settings(settings: HeadSettings) -> None:
    """Refuse settings that have no effect here.

    Raises:
        SettingsError: naming the setting, and the one that makes it useless.
    """
    given = settings.model_fields_set
    pairs = [(name, "`kind` is `probe`") for name in CNN_ONLY if settings.kind == "probe"]
    pairs += [(name, "`split_column` names the side of each prompt") for name in SPLIT_ONLY if settings.split_column]
    for name, why in pairs:
        if name in given and getattr(settings, name) != HeadSettings.model_fields[name].default:
            raise SettingsError(f"`{name}` is given, and {why}: nothing reads it", hint="leave one of the two out")
    both = set(settings.high_tier) & set(settings.low_tier)
    if both:
        raise SettingsError(f"`{min(both)}` names both the high and the low tier")


def counts_of(states: TierStates, sides: Mapping[str, Rows]) -> dict[str, Any]:
    tiers = states.tiers
    out: dict[str, Any] = {
        "responses": len(tiers),
        "high": int(tiers.labels.sum()),
        "low": int(len(tiers) - tiers.labels.sum()),
        "prompts": len(set(tiers.prompts.tolist())),
        "left_out": dict(tiers.left_out),
        "truncated_responses": sum(pass_.cut_response > 0 for pass_ in states.passes),
        "truncated_prompts": sum(pass_.cut_prompt > 0 for pass_ in states.passes),
        "records": tiers.read.records,
        "notes": tiers.read.as_dict()["notes"],
        **states.remarks.as_dict(),
    }
    return out | {f"{name}_responses": len(rows) for name, rows in sides.items()}


def prompt_table(tiers: Tiers, sides: Mapping[str, Rows]) -> pa.Table:
    """Return a table of prompts, as hashes, with their side."""
    import pyarrow as pa

    found = {prompt: side for side, rows in sides.items() for prompt in tiers.prompts[rows].tolist()}
    return pa.table({"prompt": list(found), "side": list(found.values())})


def draw_layers(folder: Path, aucs: Mapping[int, float], report: HeadReport | None, reporter: Reporter) -> None:
    """Draw AUC by layer as SVG and PNG if the extra is installed; the report has the numbers anyway."""
    if not aucs:
        return
    try:
        chart = layer_chart(aucs, report.length.auc if report else None)
        for name in PLOTS:
            write_chart(chart, folder / name, overwrite=True)
    except MissingExtraError as error:
        reporter.say(f"note: no plot of the layers: {error}; {error.hint}")


def show_head(result: HeadResult) -> None:
    """Print counts, the report of a head, and its folder."""
    out, counts = console(), result.record.get("counts", {})
    for reason, n in counts.get("left_out", {}).items():
        say(out, f"responses left out, {n:,}: {reason}")
    if counts.get("truncated_responses") or counts.get("truncated_prompts"):
        say(
            out,
            f"cut at max length: {counted(counts['truncated_responses'], 'response')}, "
            f"{counted(counts['truncated_prompts'], 'prompt')}",
        )
    if "train_responses" in counts:
        sides = ", ".join(f"{counts[f'{name}_responses']:,} {name}" for name in ("train", "validation", "test"))
        say(out, f"{counted(counts['responses'], 'response')} to {counted(counts['prompts'], 'prompt')}: {sides}")
    for line in str(result).splitlines():
        say(out, line)

"""Heads: trained on tiers, read in from the paper's own network, and judged on tiers."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tithe.config import HeadSettings
from tithe.data.outfile import check_writable
from tithe.engine.shape import size
from tithe.engine.sources import ModelSource
from tithe.errors import DataError, MissingExtraError, ModelError, SettingsError
from tithe.heads.base import chosen_layers
from tithe.heads.card import CARD, HeadCard
from tithe.heads.files import import_cnn, save_head
from tithe.run.describe import versions
from tithe.run.folder import run_folder, write_json, write_table
from tithe.run.setup import Parts
from tithe.run.talk import Talk
from tithe.run.tier_data import Tiers, read_tiers
from tithe.run.tier_states import TierStates

if TYPE_CHECKING:
    import pyarrow as pa

    from tithe.engine.head_readout import HeadReadout
    from tithe.heads.base import StateHead
    from tithe.heads.report import HeadReport

REPORT, HELD_OUT, PROMPTS, PLOTS = "report.json", "held_out.parquet", "prompts.parquet", ("layers.svg", "layers.png")
SOME = 2000  # responses, of which AUC by layer is found where a network is trained
SIDES = ("train", "validation", "test")
OF_A_CNN = ("num_train_epochs", "learning_rate", "per_device_train_batch_size")
OF_CHANCE = ("validation_share", "test_share")
Rows = npt.NDArray[np.int64]


class HeadParts(Parts):
    """The parts of a run that reads hidden states of labelled responses."""

    @property
    def asked(self) -> set[str]:
        """Likelihoods, to hold a head against."""
        return {"nll"}

    @cached_property
    def source(self) -> ModelSource:
        if self.settings.model is None:
            raise SettingsError("whose hidden states are read is not said", hint="give the model: `--model`")
        return super().source

    @property
    def shape(self) -> tuple[int, int]:
        """How many hidden states the model has, and how wide they are, by its config."""
        config = self.source.config
        config = config.get("text_config") or config
        return size(config, "num_hidden_layers", "n_layer") + 1, size(config, "hidden_size", "n_embd", "d_model")

    def card(self, head: StateHead, training: Mapping[str, Any]) -> HeadCard:
        model = {"name": self.source.name, "fingerprint": self.fingerprint, "dtype": self.dtype}
        return HeadCard.of(head, model=model, rendering=self.renderer.describe(), training=training)


@dataclass(frozen=True)
class HeadResult:
    """A head, and what is known of it.

    Args:
        folder: where it lies; None where it was only judged.
        record: settings, counts, training facts, and the report where one was made.
        report: on prompts that the head never saw.
    """

    folder: Path | None
    record: dict[str, Any]
    report: HeadReport | None = field(default=None, repr=False)

    def __str__(self) -> str:
        unknown = "nothing is known of how well it tells tiers apart: `tithe head evaluate` judges it on some"
        lines = self.report.lines() if self.report else [unknown]
        return "\n".join([*lines, *([f"head: {self.folder}"] if self.folder else [])])


def train_head(
    settings: HeadSettings, folder: Path, *, overwrite: bool = False, talk: Talk | None = None
) -> HeadResult:
    """Train a head on tiers, and judge it on prompts that it never saw.

    Args:
        settings: the tiers, the model, and how to train.
        folder: where the head goes: its card and weights, `report.json`, `held_out.parquet` (margin and tier of every
            response it was judged on), `prompts.parquet` (which prompts it was trained on), `layers.svg` and `.png`.
        overwrite: replace a head that is there.
        talk: who listens.

    Raises:
        TitheError: whatever stops it; an old head in the folder stays as it was.
    """
    check_writable(folder / CARD, overwrite)
    began, parts = time.monotonic(), HeadParts(settings)
    parts.talk = talk or Talk()
    check_settings(settings)
    assert parts.dtype and parts.renderer and parts.watch
    tiers = read_tiers(parts.dataset, settings)
    demand_judgeable(tiers, sides_of(tiers, settings)["test"])  # said before the model is loaded
    twins = in_both(tiers)
    if twins:
        parts.talk.say(f"note: {twins:,} of {len(tiers):,} responses stand in both tiers, to the same prompt")
    with run_folder(folder, "-o") as place:
        states = TierStates.of(parts, tiers)
        fit = Fit(settings, parts, states)
        head, facts = fit.probe() if settings.kind == "probe" else fit.cnn()
        report, held_out = judged(states, head, fit.sides["test"], settings)
        training = {
            "kind": settings.kind,
            "settings": settings.model_dump(mode="json"),
            "versions": versions(("torch", "transformers", "scikit-learn", "numpy")),
            "dataset": {"source": settings.dataset, "digest": parts.watch.digest},
            "counts": counts_of(states, fit.sides) | {"in_both_tiers": twins},
            "fit": facts,
            "layer_aucs": {str(layer): auc for layer, auc in fit.layer_aucs.items()},
            "report": report.as_dict() if report else None,
            "seconds": round(time.monotonic() - began, 1),
        }
        parts.watch.check()
        write_table(place / PROMPTS, prompts_of(states.tiers, fit.sides))
        write_table(place / HELD_OUT, held_out)
        draw(place, fit.layer_aucs, report, parts.talk)
        card = save_head(place, head, parts.card(head, training), overwrite=overwrite)
        record = {"head": str(folder), "fingerprint": card.fingerprint, "layers": list(head.layers), **training}
        write_json(place / REPORT, record)
    return HeadResult(folder, record, report)


def evaluate_head(head: Path, settings: HeadSettings, *, talk: Talk | None = None) -> HeadResult:
    """Judge a head on tiers of another source.

    Raises:
        DataError: it was trained on some of these prompts, unless they are to be left out.
        ModelError: it belongs to another model.
    """
    from tithe.engine.head_readout import HeadReadout
    from tithe.run.readouts import check_head

    parts = HeadParts(settings)
    parts.talk = talk or Talk()
    readout = HeadReadout(head)
    check_head(readout, str(head), parts)
    assert parts.watch
    tiers = unseen(read_tiers(parts.dataset, settings), readout, settings)
    demand_judgeable(tiers, np.arange(len(tiers)))
    for note in parts.notes:
        parts.talk.say(note)
    states = TierStates.of(parts, tiers)
    states.likelihoods()
    report, _ = judged(states, readout.head(), np.arange(len(states.tiers)), settings)
    assert report is not None
    parts.watch.check()
    record = {
        "head": str(head),
        "fingerprint": readout.card.fingerprint,
        "model": {"name": parts.source.name, "fingerprint": parts.fingerprint, "dtype": parts.dtype},
        "settings": settings.model_dump(mode="json"),
        "versions": versions(("torch", "transformers", "scikit-learn", "numpy")),
        "dataset": {"source": settings.dataset, "digest": parts.watch.digest},
        "counts": counts_of(states, {}),
        "report": report.as_dict(),
    }
    return HeadResult(None, record, report)


def import_head(
    weights: Path, settings: HeadSettings, folder: Path, *, overwrite: bool = False, talk: Talk | None = None
) -> HeadResult:
    """A head from a network that was trained with the CPQS authors' scripts.

    Nothing is known of how well it tells tiers apart, until `evaluate_head` is asked.
    """
    if settings.kind != "cnn":
        raise SettingsError(f"a `{settings.kind}` cannot be imported", hint="`--kind cnn` is the authors' network")
    check_writable(folder / CARD, overwrite)
    parts = HeadParts(settings)
    count, width = parts.shape
    head = import_cnn(weights, count=count, width=width, layers=chosen_layers(settings.layers or "all", count))
    training = {"kind": "cnn", "imported": str(weights), "versions": versions(("torch",)), "report": None}
    with run_folder(folder, "-o") as place:
        card = save_head(place, head, parts.card(head, training), overwrite=overwrite)
    record = {"head": str(folder), "fingerprint": card.fingerprint, "layers": list(head.layers), **training}
    return HeadResult(folder, record)


@dataclass
class Fit:
    """One training.

    Attributes:
        sides: places of the prompts' responses on each side.
        layer_aucs: of each hidden state, where that was looked at.
    """

    settings: HeadSettings
    parts: HeadParts
    states: TierStates
    sides: dict[str, Rows] = field(init=False)
    layer_aucs: Mapping[int, float] = field(default_factory=dict, init=False)

    def probe(self) -> tuple[StateHead, dict[str, Any]]:
        """The linear head; it takes the validation side too, since it chooses by cross-validation."""
        from tithe.heads.fit_probe import fit_probe

        means, s = self.states.means(), self.settings
        tiers = self.states.tiers
        self.sides = sides_of(tiers, s)
        rows = np.sort(np.concatenate([self.sides["train"], self.sides["validation"]]))
        self.parts.talk.say(f"cross-validation over {means.shape[1]} hidden states of {len(rows):,} responses")
        fit = fit_probe(means[rows], tiers.labels[rows], tiers.prompts[rows], layers=s.layers, seed=s.seed)
        self.layer_aucs = fit.layer_aucs
        return fit.head, {name: fact for name, fact in fit.as_dict().items() if name != "layer_aucs"}

    def cnn(self) -> tuple[StateHead, dict[str, Any]]:
        """The paper's network."""
        from tithe.heads.fit_cnn import fit_cnn

        self.states.likelihoods()
        s, parts, tiers = self.settings, self.parts, self.states.tiers
        self.sides = sides_of(tiers, s)
        self.layer_aucs = self.by_layer()
        model = parts.engine.model
        count, width = model.layers.count, parts.shape[1]
        layers = chosen_layers(s.layers or "all", count)
        parts.talk.expect(len(self.sides["train"]) * s.num_train_epochs)
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
                progress=lambda step, steps, loss: parts.talk.progress(s.per_device_train_batch_size, 0),
            )
        finally:
            parts.talk.done()
        return fit.head, fit.as_dict()

    def by_layer(self) -> dict[int, float]:
        """AUC of each hidden state by itself, on some of the training side: a network says nothing of that."""
        from tithe.heads.fit_probe import layer_aucs

        rows, tiers = self.sides["train"], self.states.tiers
        if len(rows) > SOME:
            rows = np.sort(np.random.default_rng(self.settings.seed).choice(rows, SOME, replace=False))
        places, means = self.states.some_means(rows.tolist())
        try:
            return layer_aucs(means, tiers.labels[places], tiers.prompts[places], seed=self.settings.seed)
        except DataError as error:  # the head can do without
            self.parts.talk.say(f"note: no AUC by layer: {error}")
            return {}


def sides_of(tiers: Tiers, settings: HeadSettings) -> dict[str, Rows]:
    """Places on each side; a prompt is on one alone.

    Raises:
        DataError: the data's own split has a prompt on two sides, or a side that is needed is empty.
    """
    from tithe.heads.split import demand_disjoint, split_by_prompt

    if tiers.sides is not None:
        sides = {name: np.flatnonzero(tiers.sides == name) for name in SIDES}
        demand_disjoint(tiers.prompts, sides)
        if not len(sides["train"]):
            raise DataError(f"no response is on the side `train` by the column `{settings.split_column}`")
        return sides
    shares = (1 - settings.validation_share - settings.test_share, settings.validation_share, settings.test_share)
    if shares[0] <= 0:
        raise SettingsError(
            f"nothing is left to train on: {settings.validation_share:g} of the prompts for validation and "
            f"{settings.test_share:g} for the test"
        )
    return split_by_prompt(tiers.prompts, shares=shares, names=SIDES, seed=settings.seed)


def unseen(tiers: Tiers, readout: HeadReadout, settings: HeadSettings) -> Tiers:
    """Responses to prompts that a head was not trained on.

    Raises:
        ModelError: which these are is not to be read.
        DataError: there are such prompts, and they are not to be left out; or there are no others.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    head = readout.folder
    if "imported" in readout.card.training:
        return tiers  # what it has seen is not known here
    try:
        with pq.ParquetFile(head / PROMPTS) as file:
            table = file.read()
        seen_as = dict(zip(table["prompt"].to_pylist(), table["side"].to_pylist(), strict=True))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ModelError(
            f"`{head / PROMPTS}` cannot be read, so it is not known which prompts the head was trained on: "
            f"{str(error).splitlines()[0]}",
            hint="copy the whole folder of the head, or train anew",
        ) from None
    seen = {prompt for prompt, side in seen_as.items() if side != "test"}
    there = [i for i, prompt in enumerate(tiers.prompts.tolist()) if prompt not in seen]
    gone = len(tiers) - len(there)
    if gone and not settings.drop_seen:
        raise DataError(
            f"the head `{head}` was trained on the prompts of {gone:,} of these {len(tiers):,} responses: "
            "what it says of them proves nothing",
            hint="`--drop-seen` leaves them out; `held_out.parquet` has the report of those it never saw",
        )
    return tiers.only(there, {"the head was trained on its prompt": gone} if gone else {})


def check_settings(settings: HeadSettings) -> None:
    """Refuse settings that nothing would read.

    Raises:
        SettingsError: naming both.
    """
    given = settings.model_fields_set
    pairs = [(name, "`kind` is `probe`") for name in OF_A_CNN if settings.kind == "probe"]
    pairs += [(name, "`split_column` says where prompts stand") for name in OF_CHANCE if settings.split_column]
    for name, why in pairs:
        if name in given and getattr(settings, name) != HeadSettings.model_fields[name].default:
            raise SettingsError(f"`{name}` is given, and {why}: nothing reads it", hint="leave one of the two out")
    both = set(settings.high_tier) & set(settings.low_tier)
    if both:
        raise SettingsError(f"`{min(both)}` is given as a name of the high tier and of the low one")


def demand_judgeable(tiers: Tiers, rows: Rows) -> None:
    """Refuse a side that is too small to be judged by, before anything is trained."""
    from tithe.heads.judge import LEAST

    for label, tier in ((1, "high"), (0, "low")) if len(rows) else ():
        there = len(set(tiers.prompts[rows][tiers.labels[rows] == label].tolist()))
        if there < LEAST:
            raise DataError(
                f"a head is judged by at least {LEAST} prompts with a {tier} response, and there "
                f"{'is' if there == 1 else 'are'} {there} on the test side",
                hint="label more prompts, or give a larger `--test-share`; 0 takes no report",
            )


def in_both(tiers: Tiers) -> int:
    """How many responses stand, to the same prompt, in both tiers."""
    texts = [(prompt, one.response.content) for prompt, one in zip(tiers.prompts.tolist(), tiers.examples, strict=True)]
    high, low = ({texts[i] for i in np.flatnonzero(tiers.labels == label).tolist()} for label in (1, 0))
    return sum(text in high and text in low for text in texts)


def judged(
    states: TierStates, head: StateHead, rows: Rows, settings: HeadSettings
) -> tuple[HeadReport | None, pa.Table]:
    """The report of a head on some responses, and what it said of each."""
    import pyarrow as pa

    from tithe.heads.judge import judge

    margins = states.margins(head, rows.tolist())
    tiers, lengths, nlls = states.tiers, states.lengths[rows], states.nlls[rows]
    table = pa.table(
        {
            "id": [tiers.examples[i].id for i in rows.tolist()],
            "prompt": tiers.prompts[rows].tolist(),
            "tier": ["high" if label else "low" for label in tiers.labels[rows]],
            "margin": margins,
            "nll_given": nlls,
            "response_tokens": lengths,
        }
    )
    there = ~(np.isnan(margins) | np.isnan(nlls))
    if not len(rows):
        return None, table
    at = rows[there]
    report = judge(
        margins[there],
        tiers.labels[at],
        tiers.prompts[at],
        lengths[there],
        nlls[there],
        seed=settings.seed,
        resamples=settings.resamples,
    )
    return report, table


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
    }
    return out | {f"{name}_responses": len(rows) for name, rows in sides.items()}


def prompts_of(tiers: Tiers, sides: Mapping[str, Rows]) -> pa.Table:
    """Which prompts were on which side: prompts as hashes."""
    import pyarrow as pa

    found = {prompt: side for side, rows in sides.items() for prompt in tiers.prompts[rows].tolist()}
    return pa.table({"prompt": list(found), "side": list(found.values())})


def draw(folder: Path, aucs: Mapping[int, float], report: HeadReport | None, talk: Talk) -> None:
    """AUC by layer as SVG and PNG, where the extra is installed; the numbers are in the report anyway."""
    from tithe.heads.plot import plot_layers

    if not aucs:
        return
    try:
        for name in PLOTS:
            plot_layers(aucs, folder / name, length=report.length.auc if report else None, overwrite=True)
    except MissingExtraError as error:
        talk.say(f"note: no plot of the layers: {error}; {error.hint}")

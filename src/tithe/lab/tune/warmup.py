"""Warm a model up before it scores, by itself or inside a run: choose examples, and train on them for one epoch.

Paper: Li et al. 2024, From Quantity to Quality, arXiv 2308.12032, section 2.1 and the ablations of section 4.
The untrained model gives vectors and perplexities of the prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tithe.data.export import write_records
from tithe.errors import DataError, ModelError, SettingsError
from tithe.lab.tune.files import CHOSEN, DONE, TuneResult, read_if_there
from tithe.lab.tune.processes import is_main, wait
from tithe.lab.tune.settings import WarmupSettings
from tithe.lab.tune.train import demand_packages
from tithe.lab.tune.train_rows import TrainRows
from tithe.lab.tune.training import Training, multiplies_bf16, open_training
from tithe.lab.tune.tune import carry_out
from tithe.neighbours.clusters import Clusters, kmeans
from tithe.records import Example, FloatArray, Pass, Problem
from tithe.report.reporter import Reporter
from tithe.run.folder import has_finished, write_json
from tithe.settings import ScoreSettings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tithe.engine.engine import Engine
    from tithe.run.method import Setup

RECORDS = "chosen.jsonl"
FOLDER = "warmup"  # in a run folder
TAKEN = ("dataset", "format", "turns", "split", "limit", "strict", "model", "template", "bos", "seed")
Places = npt.NDArray[np.int64]
LOW, HIGH = 25, 75  # percentiles of a cluster's prompt perplexities between which its examples are taken


@dataclass(frozen=True)
class WarmupChoice:
    """The examples of a warm-up.

    Args:
        chosen: id, row and turn of each; also its cluster and its prompt's perplexity, if these were computed.
        facts: how they were chosen, and from how many.
    """

    chosen: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]

    def places(self) -> dict[int, list[int]]:
        """Return the chosen turns of each row."""
        found: dict[int, list[int]] = {}
        for one in self.chosen:
            found.setdefault(one["row"], []).append(one["turn"])
        return found

    def as_dict(self) -> dict[str, Any]:
        return {"chosen": [dict(one) for one in self.chosen], "facts": dict(self.facts)}


def choose_examples(training: Training[WarmupSettings], rows: TrainRows, reporter: Reporter) -> WarmupChoice:
    """Choose among the examples that can be trained on.

    Raises:
        DataError: a prompt is too short to have a perplexity.
    """
    s, names = training.settings, {row.id for row in rows.rows}
    dataset = training.source.dataset
    # Columns are not needed here, and may be large.
    examples = [replace(one, columns={}) for one in dataset if isinstance(one, Example) and one.id in names]
    facts: dict[str, Any] = {"candidates": len(examples), "records": s.records, "choose": s.choose, "seed": s.seed}
    if s.choose == "random":
        taken = choose_random(len(examples), s.records, s.seed)
        facts["how"] = "drawn by chance"
        return WarmupChoice([example_facts(examples[i]) for i in taken], facts)
    reader = PromptReader.load(training)
    vectors, encoder = reader.vectors(examples)
    clusters = kmeans(vectors, s.clusters, s.seed)
    facts |= {
        "encoder": encoder,
        "kmeans": {"clusters": len(clusters), "asked": s.clusters, "n_init": 1, "init": "k-means++", "seed": s.seed},
    }
    if s.choose == "distance":
        taken, more = choose_nearest(clusters, vectors, s.each), {}
        facts["how"] = f"of {len(clusters)} clusters up to {s.each} each, nearest to the centre"
    else:
        perplexities = reader.perplexities(examples, reporter)
        taken, more = choose_middling(clusters.labels, perplexities, s.each), {"perplexity": perplexities}
        facts["how"] = f"of {len(clusters)} clusters up to {s.each} each, of middling perplexity"
    told = {"cluster": clusters.labels, **more}
    return WarmupChoice(
        [example_facts(examples[i]) | {name: column[i].item() for name, column in told.items()} for i in taken], facts
    )


def example_facts(example: Example) -> dict[str, Any]:
    return {"id": example.id, "row": example.row, "turn": example.turn}


@dataclass(frozen=True)
class PromptReader:
    """Computes vectors and perplexities of prompts with the untrained model.

    Args:
        training: that the prompts are chosen for.
        engine: with the model loaded.
        dtype: of its weights.
    """

    training: Training[WarmupSettings]
    engine: Engine
    dtype: str

    @classmethod
    def load(cls, training: Training[WarmupSettings]) -> PromptReader:
        """Load the model, on a CPU always in fp32: then all CPUs choose the same examples."""
        from tithe.engine.engine import Engine
        from tithe.engine.loading import load_model

        s, device = training.settings, training.device
        dtype = "fp32" if device.type == "cpu" else "bf16" if multiplies_bf16(device) else "fp16"
        files = training.model.files
        model = load_model(files, device=s.device, dtype=dtype, trust_remote_code=s.trust_remote_code)
        return cls(training, Engine(model), dtype)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.training.model.tokenizer

    @property
    def fingerprint(self) -> str:
        return self.training.model.fingerprint

    @property
    def window(self) -> int | None:
        return self.training.model.window

    def vectors(self, examples: Sequence[Example]) -> tuple[npt.NDArray[np.float32], dict[str, Any]]:
        """Return unit vectors of the prompts (examples, width), and how they were made."""
        from tithe.neighbours.encoders import make_encoder
        from tithe.neighbours.vectors import embed

        s = self.training.settings
        made = make_encoder(s.encoder, own=self, corpus=examples, device=s.device, seed=s.seed)
        found = embed(examples, made)
        return found.vectors, {**made.describe(), **found.counts}

    def perplexities(self, examples: Sequence[Example], reporter: Reporter) -> FloatArray:
        """Return each templated prompt's perplexity (examples,): exp of the mean NLL of its tokens after the first.

        Raises:
            DataError: a prompt has only one token.
            ModelError: a prompt does not fit into memory.
        """
        encoded = self.training.renderer.encode(examples)
        passes = [self.prompt(one, got) for one, got in zip(examples, encoded, strict=True)]
        found = np.full(len(passes), np.nan)
        reporter.phase("warm-up, choosing records")
        reporter.expect(len(passes))
        tokens = 0
        try:
            for batch, results in self.engine.run(passes, self.engine.batches(passes)):
                for place, nlls in zip(batch.index, results, strict=True):
                    if isinstance(nlls, Problem):
                        raise ModelError(f"{nlls.reason}: a prompt of {len(passes[place].ids)} tokens")
                    found[place] = np.exp(nlls.astype(np.float64).mean())
                    tokens += len(passes[place].ids)
                reporter.progress(len(batch.index), tokens)
        finally:
            reporter.done()
        return found

    def prompt(self, example: Example, encoded: Any) -> Pass:
        """Return the prompt as a pass of its own, cut at the end if it is too long."""
        assert not isinstance(encoded, Problem), "only examples with a row are read"
        ids = np.concatenate([encoded.lead, encoded.prompt])[: self.training.asked.max_length]
        if len(ids) < 2:
            raise DataError(
                f"{example.where or example.id}: the prompt has {len(ids)} token, and so no perplexity",
                hint="`--choose distance` or `random` looks at none",
            )
        return Pass(ids, 1)


def choose_middling(labels: Places, perplexities: FloatArray, each: int) -> Places:
    """Choose from every cluster examples of middling prompt perplexity, spread evenly over the data set.

    A cluster with fewer than `each` examples is taken whole. In a larger one, the candidates are the examples whose
    prompt perplexity is between the cluster's 25th and 75th percentile, inclusive. Of `m` candidates, in the order of
    the data set, every `m // each`-th is taken, at most `each`; if `m < each`, all are.

    Args:
        labels: (examples,) cluster of each.
        perplexities: (examples,) of each prompt.
        each: most examples of a cluster.

    Returns:
        Places of the chosen examples, ascending.
    """
    chosen = []
    for cluster in np.unique(labels):
        members = np.flatnonzero(labels == cluster)
        if len(members) >= each:
            low, high = np.percentile(perplexities[members], [LOW, HIGH])
            members = members[(perplexities[members] >= low) & (perplexities[members] <= high)]
        chosen.append(members[:: max(1, len(members) // each)][:each])
    return np.sort(np.concatenate(chosen))


def choose_nearest(clusters: Clusters, vectors: npt.NDArray[np.float32], each: int) -> Places:
    """Return the places of the examples nearest to the centre of each cluster, ascending; ties keep data set order."""
    chosen = []
    for cluster, centre in enumerate(clusters.centres):
        members = np.flatnonzero(clusters.labels == cluster)
        apart = ((vectors[members].astype(np.float64) - centre) ** 2).sum(axis=1)  # squared distance: (members,)
        chosen.append(members[np.argsort(apart, kind="stable")[:each]])
    return np.sort(np.concatenate(chosen))


def choose_random(examples: int, records: int, seed: int) -> Places:
    """Draw places at random, ascending; all of them if there are no more than `records`."""
    drawn = np.random.default_rng(seed).permutation(examples)
    return np.sort(drawn[:records])


def warm_up(
    settings: WarmupSettings, output: Path, *, overwrite: bool = False, reporter: Reporter | None = None
) -> TuneResult:
    """Train a model for one epoch on a few examples of the data set that it will score.

    Args:
        settings: of the choice and the training.
        output: folder of the model, with `chosen.jsonl`, the records it was trained on. It is resumed or reused as in
            `tune`.
        overwrite: choose and train anew.
        reporter: gets messages and progress.

    Raises:
        TitheError: the warm-up failed.
    """
    demand_packages()
    training = open_warmup(settings)
    return train_chosen(training, identity(training), output, overwrite=overwrite, reporter=reporter or Reporter())


def open_warmup(settings: WarmupSettings) -> Training[WarmupSettings]:
    """Find and check all parts of a warm-up.

    Raises:
        TitheError: a part is missing, or the model was warmed up before.
    """
    training = open_training(settings)
    files = training.model.files
    if files.gguf is None and is_warmed(files.adapter or files.folder):
        raise SettingsError(
            f"the model `{files.name}` was warmed up already",
            hint="score with it as it is, or give the model it was made of",
        )
    return training


def identity(training: Training[WarmupSettings]) -> dict[str, Any]:
    """Return everything that identifies a warm-up."""
    s = training.settings
    return training.identity() | {name: getattr(s, name) for name in ("records", "choose", "clusters", "encoder")}


def train_chosen(
    training: Training[WarmupSettings], own: dict[str, Any], output: Path, *, overwrite: bool, reporter: Reporter
) -> TuneResult:
    """Choose and train in a folder, or return the warm-up that finished there."""
    chooser = partial(choose_in, training, own, overwrite, reporter)
    return carry_out(training, own, output, overwrite=overwrite, reporter=reporter, choose=chooser)


def choose_in(
    training: Training[WarmupSettings],
    own: dict[str, Any],
    overwrite: bool,
    reporter: Reporter,
    rows: TrainRows,
    place: Path,
) -> tuple[TrainRows, Mapping[str, Any]]:
    """Choose the examples, or read the choice of an interrupted run.

    Returns:
        Their rows, and facts for the record.
    """
    file = place / CHOSEN
    if is_main():
        there = None if overwrite else read_if_there(file)
        if there is None or there.get("identity") != own:
            choice = choose_examples(training, rows, reporter)
            write_records(training.source.dataset, choice.places(), place / RECORDS, overwrite=True)
            write_json(file, {"identity": own, **choice.as_dict()})
    wait()  # for the main process, which chooses for all
    told = read_if_there(file)
    assert told is not None
    made = WarmupChoice(told["chosen"], told["facts"])
    facts = made.facts
    reporter.say(f"{len(made.chosen):,} of {facts['candidates']:,} examples for the warm-up: {facts['how']}")
    return rows.only({one["id"] for one in made.chosen}), {"warmup": {**facts, "chosen": list(made.chosen)}}


def is_warmed(folder: Path) -> bool:
    """Return whether a folder holds a model made by `warm_up`."""
    record = read_if_there(folder / DONE)
    return record is not None and has_finished(record) and "warmup" in record


def warm_up_for_run(setup: Setup, folder: Path | None, reporter: Reporter) -> dict[str, Any]:
    """Train the model that a run scores with, or reuse the one in the run folder (`--warmup`).

    Its folder is named by a digest of everything that the training depends on.

    Returns:
        Facts about the warm-up for the run record.

    Raises:
        SettingsError: the model was warmed up before.
    """
    assert folder is not None
    demand_packages()
    training = open_warmup(settings_of_run(setup.settings, setup.model.first_device))
    own = identity(training)
    name = hashlib.blake2b(json.dumps(own, sort_keys=True).encode(), digest_size=8).hexdigest()
    reporter.say("warm-up: the model is trained briefly before it scores")
    made = train_chosen(training, own, folder / FOLDER / name, overwrite=False, reporter=reporter)
    reporter.say(f"scoring with the warmed-up model in `{made.folder}`")
    record, model = made.record, training.model
    return {
        "folder": str(made.folder),
        "base": {"name": model.name, "fingerprint": model.fingerprint},
        "dataset_digest": record["dataset"]["digest"],
        "records": record["counts"]["trained_on"],
        "chosen": {name: value for name, value in record["warmup"].items() if name != "chosen"},
        "recipe_digest": record["recipe_digest"],
        "steps": record["steps"],
        "losses": [record["losses"][0], record["losses"][-1]],
        "seconds": record["seconds"],
    }


def settings_of_run(settings: ScoreSettings, device: str) -> WarmupSettings:
    """Return the settings of a run's warm-up: data and rendering from the run, the rest from the paper."""
    values: dict[str, Any] = {name: getattr(settings, name) for name in TAKEN}
    values |= {"trust_remote_code": settings.trust_remote_code, "device": device}
    if settings.max_length is not None:
        values["max_length"] = settings.max_length
    return WarmupSettings.of(values)

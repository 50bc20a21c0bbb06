"""Choose the examples of a warm-up: IFD's first phase, in which a model is trained briefly before it scores.

Paper: Li et al. 2024, From Quantity to Quality, arXiv 2308.12032, section 2.1 and the ablations of section 4.
The model itself gives vectors and perplexities of the prompts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tithe.errors import DataError, ModelError
from tithe.lab.tune.settings import WarmupSettings
from tithe.lab.tune.train_rows import TrainRows
from tithe.lab.tune.training import Training, multiplies_bf16
from tithe.neighbours.clusters import Clusters
from tithe.records import Example, FloatArray, Pass, Problem
from tithe.report.reporter import Reporter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tithe.engine.engine import Engine

Places = npt.NDArray[np.int64]
LOW, HIGH = 25, 75  # percentiles of a cluster's prompt perplexities between which its examples are taken


@dataclass(frozen=True)
class WarmupChoice:
    """Examples that were chosen.

    Args:
        chosen: id, row, turn of each, and where the model read them its cluster and the perplexity of its prompt.
        facts: how it was done, and of how many.
    """

    chosen: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]

    def places(self) -> dict[int, list[int]]:
        """Return row -> chosen turns."""
        found: dict[int, list[int]] = {}
        for one in self.chosen:
            found.setdefault(one["row"], []).append(one["turn"])
        return found

    def as_dict(self) -> dict[str, Any]:
        return {"chosen": [dict(one) for one in self.chosen], "facts": dict(self.facts)}


def choose(training: Training[WarmupSettings], rows: TrainRows, reporter: Reporter) -> WarmupChoice:
    """Choose among the examples that can be trained on.

    Raises:
        DataError: a prompt has no perplexity.
    """
    s, names = training.settings, {row.id for row in rows.rows}
    dataset = training.source.dataset
    examples = [replace(one, columns={}) for one in dataset if isinstance(one, Example) and one.id in names]
    facts: dict[str, Any] = {"candidates": len(examples), "records": s.records, "choose": s.choose, "seed": s.seed}
    if s.choose == "random":
        taken = at_random(len(examples), s.records, s.seed)
        facts["how"] = "drawn by chance"
        return WarmupChoice([named(examples[i]) for i in taken], facts)
    from tithe.neighbours.clusters import kmeans

    reader = PromptReader.load(training)
    vectors, encoder = reader.vectors(examples)
    clusters = kmeans(vectors, s.clusters, s.seed)
    facts |= {
        "encoder": encoder,
        "kmeans": {"clusters": len(clusters), "asked": s.clusters, "n_init": 1, "init": "k-means++", "seed": s.seed},
    }
    if s.choose == "distance":
        taken, more = nearest(clusters, vectors, s.each), {}
        facts["how"] = f"of {len(clusters)} clusters up to {s.each} each, nearest to the centre"
    else:
        perplexities = reader.perplexities(examples, reporter)
        taken, more = middle(clusters.labels, perplexities, s.each), {"perplexity": perplexities}
        facts["how"] = f"of {len(clusters)} clusters up to {s.each} each, of middling perplexity"
    told = {"cluster": clusters.labels, **more}
    return WarmupChoice(
        [named(examples[i]) | {name: column[i].item() for name, column in told.items()} for i in taken], facts
    )


def named(example: Example) -> dict[str, Any]:
    return {"id": example.id, "row": example.row, "turn": example.turn}


@dataclass(frozen=True)
class PromptReader:
    """The model before it is trained: gives vectors and perplexities of prompts.

    Args:
        training: in which the prompts will be used.
        engine: with the model loaded.
        dtype: of its weights.
    """

    training: Training[WarmupSettings]
    engine: Engine
    dtype: str

    @classmethod
    def load(cls, training: Training[WarmupSettings]) -> PromptReader:
        """Load the model, on a CPU always in fp32: the choice is then the same on all of them."""
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
        """Return (examples, width) unit vectors of the prompts, and how they were made."""
        from tithe.neighbours.encoders import make_encoder
        from tithe.neighbours.vectors import embed

        s = self.training.settings
        made = make_encoder(s.encoder, own=self, corpus=examples, device=s.device, seed=s.seed)
        found = embed(examples, made)
        return found.vectors, {**made.describe(), **found.counts}

    def perplexities(self, examples: Sequence[Example], reporter: Reporter) -> FloatArray:
        """Return (examples,) exp of the mean NLL of each prompt's tokens after the first, in its template.

        Raises:
            DataError: a prompt has but one token.
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
        """Return the prompt as a sequence of its own, its first tokens where it is too long."""
        assert not isinstance(encoded, Problem), "rows have it"
        ids = np.concatenate([encoded.lead, encoded.prompt])[: self.training.asked.max_length]
        if len(ids) < 2:
            raise DataError(
                f"{example.where or example.id}: the prompt has {len(ids)} token, and so no perplexity",
                hint="`--choose distance` or `random` looks at none",
            )
        return Pass(ids, 1)


def middle(labels: Places, perplexities: FloatArray, each: int) -> Places:
    """Take from every cluster some whose prompts are neither easy nor hard, spread evenly over the data set.

    A cluster of fewer than `each` is taken whole. Of a larger one those count whose prompt's perplexity lies between
    the cluster's 25th and 75th percentile, both included, in the order of the data set; if there are `m` of them, every
    `m // each`-th is taken, `each` at most; fewer than `each` are all taken.

    Args:
        labels: (examples,) cluster of each.
        perplexities: (examples,) of each prompt.
        each: how many of a cluster, at most.

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


def nearest(clusters: Clusters, vectors: npt.NDArray[np.float32], each: int) -> Places:
    """Take from every cluster those nearest to its centre, ties in the order of the data set; places ascending."""
    chosen = []
    for cluster, centre in enumerate(clusters.centres):
        members = np.flatnonzero(clusters.labels == cluster)
        apart = ((vectors[members].astype(np.float64) - centre) ** 2).sum(axis=1)
        chosen.append(members[np.argsort(apart, kind="stable")[:each]])
    return np.sort(np.concatenate(chosen))


def at_random(examples: int, records: int, seed: int) -> Places:
    """Draw so many places by chance; all where there are no more. Ascending."""
    drawn = np.random.default_rng(seed).permutation(examples)
    return np.sort(drawn[:records])

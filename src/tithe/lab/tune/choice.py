"""The choice of examples for a model's brief experience: vectors and perplexities of prompts, by the model itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tithe.errors import DataError, ModelError
from tithe.records import Example, FloatArray, Pass, Problem
from tithe.run.talk import Talk

if TYPE_CHECKING:
    from tithe.engine.engine import Engine
    from tithe.lab.tune.rows import TrainRows
    from tithe.lab.tune.warming import WarmupParts


@dataclass(frozen=True)
class Choice:
    """Examples that were chosen.

    Args:
        chosen: id, row, turn of each, and where they were looked at its cluster and the perplexity of its prompt.
        facts: how it was done, and of how many.
    """

    chosen: Sequence[Mapping[str, Any]]
    facts: Mapping[str, Any]

    def places(self) -> dict[int, list[int]]:
        """Row -> chosen turns."""
        found: dict[int, list[int]] = {}
        for one in self.chosen:
            found.setdefault(one["row"], []).append(one["turn"])
        return found

    def as_dict(self) -> dict[str, Any]:
        return {"chosen": [dict(one) for one in self.chosen], "facts": dict(self.facts)}


def choose(parts: WarmupParts, rows: TrainRows, talk: Talk) -> Choice:
    """Choose among the examples that can be trained on.

    Raises:
        DataError: there is none whose prompt can be judged.
    """
    from tithe.lab.tune.warmup import at_random, middle, nearest

    s, names = parts.settings, {row.id for row in rows.rows}
    examples = [replace(one, columns={}) for one in parts.dataset if isinstance(one, Example) and one.id in names]
    facts: dict[str, Any] = {"candidates": len(examples), "records": s.records, "choose": s.choose, "seed": s.seed}
    if s.choose == "random":
        taken = at_random(len(examples), s.records, s.seed)
        facts["how"] = "drawn by chance"
        return Choice([named(examples[i]) for i in taken], facts)
    from tithe.neighbours.kmeans import kmeans

    eyes = Eyes(parts, talk)
    vectors = eyes.vectors(examples)
    clusters = kmeans(vectors, s.clusters, s.seed)
    facts |= {
        "encoder": eyes.facts,
        "kmeans": {"clusters": len(clusters), "asked": s.clusters, "n_init": 1, "init": "k-means++", "seed": s.seed},
    }
    if s.choose == "distance":
        taken, more = nearest(clusters, vectors, s.each), {}
        facts["how"] = f"of {len(clusters)} clusters up to {s.each} each, nearest to the centre"
    else:
        perplexities = eyes.perplexities(examples)
        taken, more = middle(clusters.labels, perplexities, s.each), {"perplexity": perplexities}
        facts["how"] = f"of {len(clusters)} clusters up to {s.each} each, of middling perplexity"
    told = {"cluster": clusters.labels, **more}
    return Choice(
        [named(examples[i]) | {name: column[i].item() for name, column in told.items()} for i in taken], facts
    )


def named(example: Example) -> dict[str, Any]:
    return {"id": example.id, "row": example.row, "turn": example.turn}


class Eyes:
    """The model, as it looks at prompts before it is trained.

    Args:
        parts: of the training.
        talk: who listens.
    """

    def __init__(self, parts: WarmupParts, talk: Talk) -> None:
        from tithe.engine.engine import Engine
        from tithe.engine.loading import load_model
        from tithe.engine.sources import context_window

        s = parts.settings
        self.parts, self.talk, self.facts = parts, talk, dict[str, Any]()
        self.tokenizer, self.fingerprint = parts.tokenizer, parts.fingerprint
        self.window = context_window(parts.source, parts.tokenizer)
        loaded = load_model(parts.source, device=s.device, dtype=self.dtype, trust_remote_code=s.trust_remote_code)
        self.engine: Engine = Engine(loaded)

    @property
    def dtype(self) -> str:
        """fp32 on a CPU, whatever it multiplies fast: the choice is the same on all of them."""
        return "fp32" if self.parts.device.type == "cpu" else "bf16" if self.parts.multiplies_bf16 else "fp16"

    def vectors(self, examples: Sequence[Example]) -> np.ndarray[Any, np.dtype[np.float32]]:
        """(examples, width) unit vectors of the prompts."""
        from tithe.neighbours.encoders import make_encoder
        from tithe.neighbours.vectors import embed

        s = self.parts.settings
        made = make_encoder(s.encoder, own=self, corpus=examples, device=s.device, seed=s.seed)
        found = embed(examples, made)
        self.facts = {**made.describe(), **found.counts}
        return found.vectors

    def perplexities(self, examples: Sequence[Example]) -> FloatArray:
        """(examples,) exp of the mean NLL of each prompt's tokens after the first, in its template.

        Raises:
            DataError: a prompt has but one token.
            ModelError: a prompt does not fit into memory.
        """
        passes = [self.prompt(one, got) for one, got in zip(examples, self.encoded(examples), strict=True)]
        found = np.full(len(passes), np.nan)
        self.talk.phase("warm-up, choosing records")
        self.talk.expect(len(passes))
        tokens = 0
        try:
            for batch, results in self.engine.run(passes, self.engine.batches(passes)):
                for place, nlls in zip(batch.index, results, strict=True):
                    if isinstance(nlls, Problem):
                        raise ModelError(f"{nlls.reason}: a prompt of {len(passes[place].ids)} tokens")
                    found[place] = np.exp(nlls.astype(np.float64).mean())
                    tokens += len(passes[place].ids)
                self.talk.progress(len(batch.index), tokens)
        finally:
            self.talk.done()
        return found

    def encoded(self, examples: Sequence[Example]) -> list[Any]:
        return self.parts.renderer.encode(examples)

    def prompt(self, example: Example, encoded: Any) -> Pass:
        """The prompt as a sequence of its own, its first tokens where it is too long."""
        assert not isinstance(encoded, Problem), "rows have it"
        ids = np.concatenate([encoded.lead, encoded.prompt])[: self.parts.asked.max_length]
        if len(ids) < 2:
            raise DataError(
                f"{example.where or example.id}: the prompt has {len(ids)} token, and so no perplexity",
                hint="`--choose distance` or `random` looks at none",
            )
        return Pass(ids, 1)

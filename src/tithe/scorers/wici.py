"""Weighted in-context influence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt

from tithe.errors import DataError, SettingsError
from tithe.records import Answer, Ask, Example, Nll, Problem
from tithe.scorers.base import (
    LEARNED,
    NOTHING_SCORED,
    Scorer,
    Workbench,
    alone,
    finite,
    given,
    nll,
    same_tokens,
    shown,
)
from tithe.scorers.shots import note_search

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Probe:
    """A record that another one may help when it is shown before it.

    Args:
        example: the record.
        given: the likelihood of its response with its prompt.
        alone: the likelihood of its response without the prompt.
        distance: 1 - cosine of its prompt and the other's.
    """

    example: Example
    given: Nll
    alone: Nll
    distance: float


@dataclass(frozen=True)
class WICI(Scorer):
    """High: as a worked example, this record helps the model with hard records that are similar.

    Paper:    weighted in-context influence, arXiv 2604.25132
    Formula:  sum over probes b of w_b * ICI(a -> b), ICI(a -> b) = IFD(b) - IFD(b | a shown),
              w_b = (1 - cos(a, b)) / (2 * number of probes); IFD(b | a shown) is the mean negative log-likelihood of
              b's response with a shown before its prompt, over that of the response alone
    Reads:    given and alone of all records in preparation, to find the hard ones; then 5 passes for each record, over
              its probes' responses with the record shown
    Range:    any number, weighted difference of ratios; above 0 the record helps
    Differs:  `terms=positive` follows the authors' code: negative influence counts as 0, and records of IFD above 1 are
              no probes. Their code then walks down the ranking and skips what has a cosine of 0.9 or more with
              something kept: that is the selector `deita`. A probe so long that this record does not fit before it is
              left out of the sum and of the number of probes.

    Args:
        near: how many records with the nearest prompts to choose probes from.
        probes: how many clusters k-means makes of these; the hardest record of each, of highest IFD, is a probe.
        terms: `all` as in the formula, or `positive`.
        encoder: what embeds prompts.
        seed: of k-means.
    """

    name: ClassVar[str] = "wici"
    unit: ClassVar[str] = "weighted difference of ratios"
    reads: ClassVar[str] = "given, alone, shown: nll"
    whole_response: ClassVar[bool] = True
    partial: ClassVar[bool] = True

    near: int = 32
    probes: int = 5
    terms: Literal["all", "positive"] = "all"
    encoder: str = "self"
    seed: int = 0
    found: Mapping[str, Sequence[Probe]] | None = field(default=None, metadata=LEARNED, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= self.probes <= self.near:
            raise SettingsError(f"`wici` needs 1 <= probes <= near, not {self.probes} and {self.near}")
        if self.terms not in ("all", "positive"):
            raise SettingsError(f"`terms` is `all` or `positive`, not `{self.terms}`")

    def prepare(self, bench: Workbench) -> Self:
        from tithe.neighbours import nearest  # imported here as it is slow to load, and listing scorers must be quick

        examples = bench.examples
        read = bench.answers([{"given": Ask(given(e), "nll"), "alone": Ask(alone(e), "nll")} for e in examples])
        hard = np.array([difficulty_of(answers) for answers in read])
        able = np.flatnonzero(np.isfinite(hard) & ((hard <= 1) | (self.terms == "all")))
        if len(able) < 2:
            raise DataError(
                f"`wici` needs other records to help, and of {len(examples)} only {len(able)} can be probes",
                hint="a probe has an IFD, with `terms=positive` one of at most 1",
            )
        vectors = bench.embed(examples, self.encoder)
        # One more than needed, as the record itself may be among them.
        near = nearest(vectors, min(self.near + 1, len(able)), pool=vectors[able])
        note_search(bench, near)
        found: dict[str, list[Probe]] = {}
        for i, example in enumerate(examples):
            places = [k for k, j in enumerate(near.index[i].tolist()) if j >= 0 and able[j] != i][: self.near]
            rows, cosines = able[near.index[i, places]], near.similarity[i, places]
            chosen = self.hardest(vectors[rows], hard[rows])  # places in `rows`, the nearest first
            found[example.id] = [
                Probe(examples[j], nll(read[j], "given"), nll(read[j], "alone"), 1 - float(cosines[k]))
                for k, j in ((k, int(rows[k])) for k in chosen)
            ]
        bench.note("records_that_can_be_probes", len(able))
        bench.keep("probes", table(found))
        return replace(self, found=found)

    def hardest(self, vectors: npt.NDArray[np.float32], hard: Floats) -> list[int]:
        """Return the place of the highest IFD in each cluster, ties by the nearest prompt."""
        if len(hard) <= self.probes:
            return list(range(len(hard)))
        from tithe.neighbours import kmeans

        labels = kmeans(vectors, self.probes, seed=self.seed).labels
        order = np.argsort(-hard, kind="stable")
        first: dict[int, int] = {}
        for place in order.tolist():
            first.setdefault(int(labels[place]), place)
        return sorted(first.values())

    def asks(self, example: Example) -> dict[str, Ask]:
        assert self.found is not None, "prepare comes first"
        return {f"probe{i}": Ask(shown(b.example, [example]), "nll") for i, b in enumerate(self.found[example.id])}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        assert self.found is not None, "prepare comes first"
        terms = []
        for i, b in enumerate(self.found[example.id]):
            if f"probe{i}" not in answers:
                continue
            before, after = difficulty(b.given, b.alone), difficulty(nll(answers, f"probe{i}"), b.alone)
            if isinstance(before, float) and isinstance(after, float):
                influence = before - after  # ICI(a -> b) = IFD(b) - IFD(b | a shown)
                terms.append(b.distance / 2 * (influence if self.terms == "all" else max(influence, 0.0)))
        if not terms:
            return NOTHING_SCORED if answers else Problem("no other record can be a probe")
        return finite(sum(terms) / len(terms), "wici")  # sum of w_b * ICI, w_b = (1 - cos) / (2 * number of probes)


def difficulty(conditioned: Nll, direct: Nll) -> float | Problem:
    """Return the IFD, over the same response tokens in both passes."""
    conditioned, direct = same_tokens(conditioned, direct)
    if conditioned.tokens == 0 or direct.tokens == 0 or direct.mean == 0.0:
        return NOTHING_SCORED
    return finite(conditioned.mean / direct.mean, "ifd")


def difficulty_of(answers: Mapping[str, Answer | Problem]) -> float:
    """Return a record's IFD, or NaN if it has none."""
    conditioned, direct = answers["given"], answers["alone"]
    if not isinstance(conditioned, Nll) or not isinstance(direct, Nll):
        return float("nan")
    found = difficulty(conditioned, direct)
    return found if isinstance(found, float) else float("nan")


def table(found: Mapping[str, Sequence[Probe]]) -> dict[str, Any]:
    """Make the table `probes`: one row per record and probe."""
    rows = [(id_, b) for id_, probes in found.items() for b in probes]
    return {
        "id": [id_ for id_, _ in rows],
        "probe": [b.example.id for _, b in rows],
        "similarity": np.array([1 - b.distance for _, b in rows], dtype=np.float32),
    }

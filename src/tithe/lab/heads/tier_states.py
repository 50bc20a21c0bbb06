"""What the model shows of labelled responses: mean states, whole states for a batch, likelihoods, and margins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tithe.data.counts import RemarkCounts
from tithe.engine.readouts.base import READOUTS, Readout
from tithe.errors import DataError
from tithe.lab.heads.head_run import HeadRun
from tithe.lab.heads.tier_data import Tiers, counted
from tithe.planner import plan_window, windows
from tithe.records import Ask, Pass, Problem
from tithe.scorers.base import given

if TYPE_CHECKING:
    import torch

    from tithe.engine.engine import PassResult
    from tithe.engine.heads.base import StateHead

NLL = READOUTS["nll"]
TOGETHER = 1024  # responses between two reports of progress


@dataclass
class TierStates:
    """Reads the responses of a data set of tiers.

    Args:
        run: model, engine, renderer, listener.
        tiers: those that have a pass; the others are counted in `tiers.left_out`.
        passes: their `given` passes.
        remarks: what was odd in rendering them.
    """

    run: HeadRun
    tiers: Tiers
    passes: Sequence[Pass]
    remarks: RemarkCounts = field(default_factory=RemarkCounts)
    nlls: npt.NDArray[np.float64] = field(init=False)

    @classmethod
    def of(cls, run: HeadRun, tiers: Tiers) -> TierStates:
        """Tokenise; what has no pass is left out with its reason."""
        made, remarks = list[Pass | Problem](), RemarkCounts()
        for chunk in windows(tiers.examples):
            asks = [[{"given": Ask(given(example), "nll")}] for example in chunk]
            window = plan_window(chunk, asks, run.of.renderer)
            made += window.given
            for one in window.remarks:
                remarks.add(one)
        there = [i for i, one in enumerate(made) if isinstance(one, Pass)]
        why = counted(one.reason for one in made if isinstance(one, Problem))
        if not there:
            raise DataError(
                f"none of {len(made):,} responses can be read at max length {run.of.max_length}: {min(why)}",
                hint="`--max-length` and `--template` decide what fits",
            )
        return cls(run, tiers.only(there, why), [one for one in made if isinstance(one, Pass)], remarks)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """(responses,) tokens."""
        return np.array([pass_.response_tokens for pass_ in self.passes], dtype=np.int64)

    def means(self) -> npt.NDArray[np.float32]:
        """(responses, hidden states, dim), and their likelihoods on the way; what cannot be read is left out."""
        from tithe.engine.readouts.collect import MeanStates

        readout = MeanStates()
        results = self.read(range(len(self.passes)), [NLL, readout])
        return self.kept(results, [one if isinstance(one, Problem) else one.found[readout.name] for one in results])

    def some_means(self, places: Sequence[int]) -> tuple[list[int], npt.NDArray[np.float32]]:
        """Which of these can be read, and their mean states: (places, hidden states, dim)."""
        from tithe.engine.readouts.collect import MeanStates

        readout = MeanStates()
        found = [None if isinstance(one, Problem) else one.found[readout.name] for one in self.read(places, [readout])]
        there = [(place, one) for place, one in zip(places, found, strict=True) if isinstance(one, np.ndarray)]
        return [place for place, _ in there], np.stack([one for _, one in there])

    def likelihoods(self) -> None:
        """Likelihoods alone, for a head that reads states batch by batch."""
        results = self.read(range(len(self.passes)), [NLL])
        self.kept(results, [one if isinstance(one, Problem) else np.empty(0, np.float32) for one in results])

    def kept(
        self, results: Sequence[PassResult | Problem], found: Sequence[npt.NDArray[np.float32] | Problem]
    ) -> npt.NDArray[np.float32]:
        """Stack what was found, and leave the rest out of tiers, passes and likelihoods."""
        there = [i for i, one in enumerate(found) if not isinstance(one, Problem)]
        why = [one.reason for one in found if isinstance(one, Problem)]
        if not there:
            raise DataError(f"none of {len(found)} responses can be read: {why[0]}")
        self.tiers = self.tiers.only(there, counted(why))
        self.passes = [self.passes[i] for i in there]
        self.nlls = np.array([mean_nll(results[i]) for i in there])
        return np.stack([np.asarray(found[i]) for i in there])

    def states(self, places: Sequence[int], layers: Sequence[int]) -> list[torch.Tensor]:
        """(layers, tokens, dim) float32 of some responses, on the model's device.

        Raises:
            DataError: one of them cannot be read.
        """
        from tithe.engine.readouts.collect import AllStates

        readout = AllStates(layers)
        found = []
        for place, one in zip(places, self.read(places, [readout], quiet=True), strict=True):
            states = one if isinstance(one, Problem) else one.found[readout.name]
            if isinstance(states, Problem):
                raise DataError(f"{self.tiers.examples[place].where}: {states.reason}")
            found.append(states)
        return found

    def margins(self, head: StateHead, places: Sequence[int]) -> npt.NDArray[np.float64]:
        """What a head says of some responses, by the way that scoring takes; NaN where it says nothing."""
        from tithe.engine.readouts.head_readout import MarginReadout

        readout = MarginReadout(head, "head")
        results = self.read(places, [readout])
        found = (None if isinstance(one, Problem) else one.found[readout.name] for one in results)
        return np.array([float(one) if isinstance(one, float) else np.nan for one in found])

    def read(
        self, places: Sequence[int] | range, readouts: Sequence[Readout], *, quiet: bool = False
    ) -> list[PassResult | Problem]:
        """One result per place, in order."""
        reporter = self.run.reporter
        found: list[PassResult | Problem] = []
        if not quiet:
            reporter.phase("reading hidden states")
            reporter.expect(len(places))
        tokens = 0
        try:
            for chunk in windows(places, TOGETHER):
                passes = [self.passes[i] for i in chunk]
                found += self.together(passes, readouts)
                tokens += sum(len(pass_.ids) for pass_ in passes)
                if not quiet:
                    reporter.progress(len(chunk), tokens)
        finally:
            if not quiet:
                reporter.done()
        return found

    def together(self, passes: Sequence[Pass], readouts: Sequence[Readout]) -> Iterator[PassResult | Problem]:
        engine = self.run.load()
        found: dict[int, PassResult | Problem] = {}
        for batch, results in engine.read(passes, engine.batches(passes), [readouts] * len(passes)):
            found |= zip(batch.index, results, strict=True)
        return (found[i] for i in range(len(passes)))


def mean_nll(one: PassResult | Problem) -> float:
    """Nats per token; NaN where no token has context."""
    return float(one.nll.mean(dtype=np.float64)) if not isinstance(one, Problem) and len(one.nll) else float("nan")

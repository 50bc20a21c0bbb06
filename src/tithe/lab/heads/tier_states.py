"""Read labelled responses with a model: mean hidden states, whole states, likelihoods, and a head's margins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt

from tithe.data.counts import RemarkCounts
from tithe.data.render import Renderer
from tithe.engine.heads.files import HeadCard
from tithe.engine.measure.shape import size
from tithe.engine.readouts.base import READOUTS, Readout
from tithe.errors import DataError, SettingsError, demand
from tithe.lab.heads.settings import HeadSettings
from tithe.lab.heads.tier_data import Tiers, count_reasons
from tithe.planner import plan_window, windows
from tithe.records import Ask, Pass, Problem
from tithe.report.reporter import Reporter
from tithe.run.engines import EngineCache, EngineLoader
from tithe.run.method import Method
from tithe.run.run_model import RunModel, longest_pass, open_model, open_renderer
from tithe.run.source import DataSource
from tithe.scorers.base import given

if TYPE_CHECKING:
    import torch

    from tithe.engine.engine import PassResult
    from tithe.engine.heads.base import StateHead

NLL = READOUTS["nll"]
TOGETHER = 1024  # responses between two reports of progress


@dataclass(frozen=True)
class HeadModel:
    """The model that a head reads.

    Args:
        settings: of the training.
        model: its files.
        renderer: that turns responses into tokens.
    """

    settings: HeadSettings
    model: RunModel
    renderer: Renderer

    @classmethod
    def open(cls, settings: HeadSettings) -> Self:
        """Open the model's files, without its weights.

        Raises:
            TitheError: no model is given, or it cannot read the responses.
        """
        if settings.warmup:
            raise SettingsError("a head takes no `warmup`: it reads the model without a warm-up", hint="leave it out")
        if settings.model is None:
            raise SettingsError(
                "no model given", hint="`--model` takes a folder or a hub id: its hidden states are read"
            )
        model = open_model(settings)
        demand(model.weights_dtype)
        return cls(settings, model, open_renderer(settings, model, whole_response=Method.of(settings).whole_response))

    @property
    def shape(self) -> tuple[int, int]:
        """Number and width of the model's hidden states, from its config; the embedding output is the first."""
        config = self.model.files.config
        config = config.get("text_config") or config  # of a multimodal model
        return size(config, "num_hidden_layers", "n_layer") + 1, size(config, "hidden_size", "n_embd", "d_model")

    @property
    def max_length(self) -> int:
        """Most tokens of a prompt with its response."""
        return longest_pass(self.settings.max_length, self.model)

    def describe(self) -> dict[str, Any]:
        """Return the model's name, fingerprint and dtype, for records."""
        return {"name": self.model.name, "fingerprint": self.model.fingerprint, "dtype": self.model.weights_dtype}

    def card(self, head: StateHead, training: Mapping[str, Any]) -> HeadCard:
        """Return the card of a head of this model."""
        return HeadCard.of(head, model=self.describe(), rendering=self.renderer.describe(), training=training)


@dataclass(frozen=True)
class HeadRun:
    """The inputs of a head's training or judgement.

    Args:
        of: the model.
        source: the data set of tiers.
        load: loads the engine.
        reporter: gets messages and progress.
    """

    of: HeadModel
    source: DataSource
    load: EngineLoader
    reporter: Reporter

    @classmethod
    def open(cls, of: HeadModel, reporter: Reporter) -> Self:
        """Open the data set; the engine is loaded at its first use."""
        source, engines = DataSource.open(of.settings), EngineCache(reporter, several=False)
        return cls(of, source, EngineLoader(engines, of.settings, source.dataset, of.model, None), reporter)


@dataclass
class TierStates:
    """Reads hidden states and likelihoods of the responses.

    Args:
        run: model, engine, renderer, reporter.
        tiers: responses that have a pass; the others are counted in `tiers.left_out`.
        passes: their `given` passes.
        remarks: counts of oddities in rendering.
    """

    run: HeadRun
    tiers: Tiers
    passes: Sequence[Pass]
    remarks: RemarkCounts = field(default_factory=RemarkCounts)
    nlls: npt.NDArray[np.float64] = field(init=False)

    @classmethod
    def of(cls, run: HeadRun, tiers: Tiers) -> TierStates:
        """Tokenise the responses; those without a pass are left out with their reason."""
        made, remarks = list[Pass | Problem](), RemarkCounts()
        for chunk in windows(tiers.examples):
            asks = [[{"given": Ask(given(example), "nll")}] for example in chunk]
            window = plan_window(chunk, asks, run.of.renderer)
            made += window.given
            for one in window.remarks:
                remarks.add(one)
        there = [i for i, one in enumerate(made) if isinstance(one, Pass)]
        why = count_reasons(one.reason for one in made if isinstance(one, Problem))
        if not there:
            raise DataError(
                f"none of {len(made):,} responses can be read at max length {run.of.max_length}: {min(why)}",
                hint="`--max-length` and `--template` decide what fits",
            )
        return cls(run, tiers.only(there, why), [one for one in made if isinstance(one, Pass)], remarks)

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Response tokens: (responses,)."""
        return np.array([pass_.response_tokens for pass_ in self.passes], dtype=np.int64)

    def means(self) -> npt.NDArray[np.float32]:
        """Return mean states (responses, hidden states, dim), and keep the likelihoods.

        Responses that cannot be read are left out.
        """
        from tithe.engine.readouts.collect import MeanStates

        readout = MeanStates()
        results = self.read(range(len(self.passes)), [NLL, readout])
        return self.stack_readable(
            results, [one if isinstance(one, Problem) else one.found[readout.name] for one in results]
        )

    def some_means(self, places: Sequence[int]) -> tuple[list[int], npt.NDArray[np.float32]]:
        """Return which of these can be read, and their mean states (places, hidden states, dim)."""
        from tithe.engine.readouts.collect import MeanStates

        readout = MeanStates()
        found = [None if isinstance(one, Problem) else one.found[readout.name] for one in self.read(places, [readout])]
        there = [(place, one) for place, one in zip(places, found, strict=True) if isinstance(one, np.ndarray)]
        return [place for place, _ in there], np.stack([one for _, one in there])

    def likelihoods(self) -> None:
        """Compute likelihoods only, for a head that reads states batch by batch."""
        results = self.read(range(len(self.passes)), [NLL])
        self.stack_readable(results, [one if isinstance(one, Problem) else np.empty(0, np.float32) for one in results])

    def stack_readable(
        self, results: Sequence[PassResult | Problem], found: Sequence[npt.NDArray[np.float32] | Problem]
    ) -> npt.NDArray[np.float32]:
        """Stack the results, and leave failed responses out of tiers, passes and likelihoods."""
        there = [i for i, one in enumerate(found) if not isinstance(one, Problem)]
        why = [one.reason for one in found if isinstance(one, Problem)]
        if not there:
            raise DataError(f"none of {len(found)} responses can be read: {why[0]}")
        self.tiers = self.tiers.only(there, count_reasons(why))
        self.passes = [self.passes[i] for i in there]
        self.nlls = np.array([mean_nll(results[i]) for i in there])
        return np.stack([np.asarray(found[i]) for i in there])

    def states(self, places: Sequence[int], layers: Sequence[int]) -> list[torch.Tensor]:
        """Return the states of some responses, (layers, tokens, dim) float32 each, on the model's device.

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
        """Return a head's margins of some responses, computed as in scoring; NaN for those it cannot read."""
        from tithe.engine.readouts.head_readout import MarginReadout

        readout = MarginReadout(head, "head")
        results = self.read(places, [readout])
        found = (None if isinstance(one, Problem) else one.found[readout.name] for one in results)
        return np.array([float(one) if isinstance(one, float) else np.nan for one in found])

    def read(
        self, places: Sequence[int] | range, readouts: Sequence[Readout], *, quiet: bool = False
    ) -> list[PassResult | Problem]:
        """Read some responses; one result per place, in order."""
        reporter = self.run.reporter
        found: list[PassResult | Problem] = []
        if not quiet:
            reporter.phase("reading hidden states")
            reporter.expect(len(places))
        tokens = 0
        try:
            for chunk in windows(places, TOGETHER):
                passes = [self.passes[i] for i in chunk]
                found += self.read_chunk(passes, readouts)
                tokens += sum(len(pass_.ids) for pass_ in passes)
                if not quiet:
                    reporter.progress(len(chunk), tokens)
        finally:
            if not quiet:
                reporter.done()
        return found

    def read_chunk(self, passes: Sequence[Pass], readouts: Sequence[Readout]) -> Iterator[PassResult | Problem]:
        """Read passes in the engine's batches, and return the results in the order of the passes."""
        engine = self.run.load()
        found: dict[int, PassResult | Problem] = {}
        for batch, results in engine.read(passes, engine.batches(passes), [readouts] * len(passes)):
            found |= zip(batch.index, results, strict=True)  # batches come longest first
        return (found[i] for i in range(len(passes)))


def mean_nll(one: PassResult | Problem) -> float:
    """Return nats per token; NaN if no token has context."""
    return float(one.nll.mean(dtype=np.float64)) if not isinstance(one, Problem) and len(one.nll) else float("nan")

"""The workbench of a run: the whole data set, its vectors and answers, for scorers that learn before they score."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tithe import plugins
from tithe.errors import OutputError, SettingsError
from tithe.gate.damage import Damage
from tithe.gate.probes import Probes
from tithe.neighbours.encoder import FILE, Encoder
from tithe.neighbours.encoders import make_encoder
from tithe.planner import Cost
from tithe.records import Answer, Ask, Example, Problem
from tithe.report.reporter import Reporter
from tithe.run.engines import DeferredModel
from tithe.run.folder import SCORES, TOKENS, remove_partial_files, write_table
from tithe.run.method import Setup
from tithe.run.source import read_kept
from tithe.run.table import ScoreTable
from tithe.runners.local import LocalRunner
from tithe.scorers.base import Scorer, learns
from tithe.scorers.rated import MASS

if TYPE_CHECKING:
    import pyarrow as pa

LITTLE = 0.5  # probability of all replies together; below it, the model mostly answers something else
MARK = {b"tithe": b"learned"}  # metadata of the files that `keep` writes, to recognise them


@dataclass
class RunBench:
    """Workbench with which scorers prepare, and from which selectors get vectors.

    Args:
        setup: data, method and model.
        place: folder for the scorers' tables.
        runner: answers asks.
        cost: counts the passes.
        reporter: prints progress and notes.
        answers_in: folder of answers and embeddings; in a pipeline, all stages share it.
        encoders: encoders made so far, by spec.
        facts: entries for the run record: `encoders`, and the notes of each scorer.
        tables: tables kept so far, by name.
        who: the scorer that prepares now; empty for a selector.
    """

    setup: Setup
    place: Path
    runner: LocalRunner
    cost: Cost
    reporter: Reporter
    answers_in: Path
    encoders: dict[str, Encoder] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    tables: dict[str, pa.Table] = field(default_factory=dict)
    who: str = ""
    comparing: bool = field(default=False, init=False)

    def prepare(self, scorers: Mapping[str, Scorer]) -> dict[str, Scorer]:
        """Return the scorers, prepared on the data set."""
        ready = {}
        try:
            for name, scorer in scorers.items():
                self.who = name
                ready[name] = scorer.prepare(self) if learns(scorer) else scorer
                self.stop_comparing()
        finally:
            self.stop_comparing()
        self.tidy()
        return ready

    @property
    def examples(self) -> Sequence[Example]:
        return self.setup.source.examples

    # What scorers call is described in `tithe.scorers.base.Workbench`.
    def load(self, path: str, what: str = "shot pool") -> Sequence[Example]:
        found = self.setup.pools.load(path, what)
        self.note(f"{what.replace(' ', '_')}_examples", len(found))
        return found

    def table(self, path: str) -> Mapping[str, Sequence[Any]]:
        return read_kept(path)

    def encoder(self, spec: str) -> Encoder:
        """Return the encoder of a spec, made once."""
        if spec not in self.encoders:
            # The rows of a file of vectors belong to the whole data set, not to a stage's part of it.
            whole, model = spec.strip().startswith(FILE), self.setup.model
            source = self.setup.source.whole if whole else self.setup.source
            examples, rows = source.in_memory
            self.encoders[spec] = make_encoder(
                spec,
                own=DeferredModel(model, self.runner.engine),
                corpus=examples,
                rows=rows,
                device=model.first_device,
                seed=self.setup.settings.seed,
            )
        return self.encoders[spec]

    def embed(self, examples: Sequence[Example], encoder: str) -> npt.NDArray[np.float32]:
        from tithe.neighbours.vectors import embed

        self.stop_comparing()
        made, reporter, before = self.encoder(encoder), self.reporter, -1

        def progress(done: int, total: int) -> None:
            nonlocal before  # -1 until the first call: stored vectors need no phase of their own
            if before < 0:
                reporter.phase(f"embedding prompts with {encoder}")
                reporter.expect(total)
            reporter.progress(done - max(before, 0), 0)
            before = done

        try:
            found = embed(examples, made, self.answers_in, progress)
        finally:
            reporter.done()
        counts = dict(found.counts)  # `found.vectors` is (examples, dims)
        self.facts.setdefault("encoders", {})[encoder] = {**made.describe(), **counts, "dims": found.vectors.shape[1]}
        odd = {name: counts[name] for name in ("cut", "empty", "unknown") if counts.get(name)}
        if odd:
            words = {"cut": "cut to its maximal length", "empty": "without text", "unknown": "without a known word"}
            listed = ", ".join(f"{n:,} {words[name]}" for name, n in odd.items())
            self.say(f"note: prompts for encoder {encoder}: {listed}")
        if self.who:  # a scorer asked for them, and now searches among them
            reporter.phase(f"{self.who}: searching among {len(found.vectors):,} prompts")
            self.comparing = True
        return found.vectors

    def stop_comparing(self) -> None:
        """End the phase in which a scorer searches among vectors."""
        if self.comparing:
            self.comparing = False
            self.reporter.done()

    def answers(self, asks: Sequence[Mapping[str, Ask]]) -> Sequence[Mapping[str, Answer | Problem]]:
        self.stop_comparing()
        found: list[Mapping[str, Answer | Problem]] = []
        self.reporter.phase(f"{self.who}: reading what it compares")
        self.reporter.expect(len(asks))
        try:
            for window, read in self.runner.read(asks):
                self.cost.add_passes(window, self.runner.model_readouts)
                found += read
        finally:
            self.reporter.done()
        return found

    @property
    def made_up(self) -> bool:
        return False

    def damage_kinds(self, names: Sequence[str] = ()) -> Mapping[str, Damage]:
        return plugins.damage_kinds(names)

    def keep_probes(self, probes: Probes) -> None:
        from tithe.engine.readouts.parts import ProbeMargins  # imports torch, which a plan must not

        readout = ProbeMargins(probes, probes.fingerprint)
        self.runner.use_readout("probes", readout, self.setup.open_store(self.answers_in, readout))

    def keep(self, name: str, columns: Mapping[str, Sequence[Any] | npt.NDArray[Any]]) -> None:
        if not re.fullmatch(r"[a-z][a-z0-9_-]*", name) or f"{name}.parquet" in (SCORES, TOKENS):
            raise SettingsError(f"scorer `{self.who}` keeps a table `{name}`, which cannot be a table's name")
        if name in self.tables:
            raise SettingsError(f"two scorers keep a table `{name}`", hint="score with one of them at a time")
        import pyarrow as pa

        path = self.place / f"{name}.parquet"  # may be a user's own file, which must not be lost
        if path.exists() and not is_ours(path):
            raise OutputError(f"`{path}` was not written by a run, and would be replaced", hint="another `--run-dir`")
        self.tables[name] = pa.table(dict(columns)).replace_schema_metadata(MARK)
        remove_partial_files(path)
        write_table(path, self.tables[name])

    def note(self, name: str, value: Any) -> None:
        self.facts.setdefault(self.who, {})[name] = value

    def say(self, text: str) -> None:
        self.reporter.say(text)

    def tidy(self) -> None:
        """Delete the tables of earlier runs."""
        for path in self.place.glob("*.parquet"):
            if path.stem not in self.tables and is_ours(path):
                path.unlink()

    def vectors(self, ids: Sequence[str], encoder: str) -> npt.NDArray[np.float32]:
        """Return the vectors of these examples' prompts, (ids, dim)."""
        by_id = {example.id: example for example in self.examples}
        self.who = ""
        return self.embed([by_id[id_] for id_ in ids], encoder)


def is_ours(path: Path) -> bool:
    """Tell whether `keep` wrote a file."""
    import pyarrow.parquet as pq

    if not path.is_file():  # opening a pipe would wait for ever
        return False
    with suppress(Exception):  # a damaged file may raise anything; it is not ours then
        metadata: Mapping[bytes, bytes] = pq.read_schema(path).metadata or {}
        return metadata.items() >= MARK.items()
    return False


def note_reply_mass(scorers: Mapping[str, Scorer], table: ScoreTable, bench: RunBench) -> None:
    """Record how much probability the replies have that a scorer reads; print a note if it is little."""
    for name, scorer in scorers.items():
        if MASS not in scorer.also:
            continue
        there = [value for value in table.values(f"{name}_{MASS}") if value is not None]
        if not there:
            continue
        bench.who, middle = name, median(there)
        bench.note("median_mass", round(middle, 4))
        if middle < LITTLE:
            bench.say(
                f"note: {name}: the replies that it reads have a median probability of {middle:.2g}: "
                "the model rarely answers with them, so the score means little"
            )

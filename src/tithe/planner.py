"""Asks -> distinct passes: what must be read, once each, and what that will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from typing import Any, TypeAlias

from tithe.data.render import Encoded, Renderer
from tithe.records import Ask, BadRow, Example, Pass, PassKind, PassSpec, Problem

WINDOW = 4096  # examples planned and batched together: enough to sort by length, little enough to hold in memory
Asks: TypeAlias = Mapping[str, Ask]  # one scorer's asks about one example


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the answer to one ask will be: a readout of the window's pass number `index`."""

    readout: str
    index: int


@dataclass(frozen=True)
class Window:
    """Some thousand examples, their distinct passes, and which ask is answered by which.

    Args:
        items: records in input order, bad ones in their places.
        given: per example (bad rows left out) its `given` pass for counts, or why there is none.
        slots: per example and scorer, the asks' names with a slot or a problem.
        passes: distinct passes.
        kinds: per pass its kind.
        readouts: per pass the readouts asked of it.
        asked: asks, before equal passes were joined.
    """

    items: Sequence[Example | BadRow]
    given: Sequence[Pass | Problem]
    slots: Sequence[Sequence[Mapping[str, Slot | Problem]]]
    passes: Sequence[Pass]
    kinds: Sequence[PassKind]
    readouts: Sequence[frozenset[str]]
    asked: int

    @cached_property
    def examples(self) -> list[Example]:
        """The items that are examples: what `given` and `slots` count along."""
        return [item for item in self.items if isinstance(item, Example)]


def windows(items: Iterable[Example | BadRow], size: int = WINDOW) -> Iterator[list[Example | BadRow]]:
    """Cut a stream; the cuts depend on the input alone, so that every run batches alike."""
    stream = iter(items)
    while chunk := list(islice(stream, size)):
        yield chunk


def plan_window(items: Sequence[Example | BadRow], asks: Sequence[Sequence[Asks]], renderer: Renderer) -> Window:
    """Tokenise a window and keep each distinct pass once.

    Args:
        items: examples and bad rows.
        asks: per example (bad rows left out) and scorer.
        renderer: makes the passes.
    """
    examples = [item for item in items if isinstance(item, Example)]
    builder = _Builder(renderer, dict(zip([e.id for e in examples], renderer.encode(examples), strict=True)))
    slots = [[{name: builder.slot(ask) for name, ask in one.items()} for one in each] for each in asks]
    given = [builder.built(PassSpec("given", example)) for example in examples]
    return Window(
        items,
        given,
        slots,
        builder.passes,
        builder.kinds,
        [frozenset(readouts) for readouts in builder.readouts],
        builder.asked,
    )


@dataclass
class _Builder:
    """Joins passes from encoded examples, each distinct one once."""

    renderer: Renderer
    encoded: dict[str, Encoded | Problem]
    passes: list[Pass] = field(default_factory=list)
    kinds: list[PassKind] = field(default_factory=list)
    readouts: list[set[str]] = field(default_factory=list)
    asked: int = 0
    _built: dict[tuple[PassKind, str, tuple[str, ...]], Pass | Problem] = field(default_factory=dict)
    _index: dict[bytes, int] = field(default_factory=dict)

    def slot(self, ask: Ask) -> Slot | Problem:
        self.asked += 1
        made = self.built(ask.spec)
        if isinstance(made, Problem):
            return made
        key = made.key
        if key not in self._index:
            self._index[key] = len(self.passes)
            self.passes.append(made)
            self.kinds.append(ask.spec.kind)
            self.readouts.append(set())
        index = self._index[key]
        self.readouts[index].add(ask.readout)
        return Slot(ask.readout, index)

    def built(self, spec: PassSpec) -> Pass | Problem:
        key = (spec.kind, spec.example.id, tuple(shot.id for shot in spec.shots))
        if key not in self._built:
            self._built[key] = self._build(spec)
        return self._built[key]

    def _build(self, spec: PassSpec) -> Pass | Problem:
        parts = [self._encoded(example) for example in (spec.example, *spec.shots)]
        ready = [part for part in parts if isinstance(part, Encoded)]
        if len(ready) < len(parts):
            return next(part for part in parts if isinstance(part, Problem))
        return self.renderer.build(spec.kind, ready[0], ready[1:])

    def _encoded(self, example: Example) -> Encoded | Problem:
        if example.id not in self.encoded:  # a shot from elsewhere
            self.encoded[example.id] = self.renderer.encode([example])[0]
        return self.encoded[example.id]


@dataclass
class Cost:
    """Running totals of a plan, in bounded memory: 8 bytes a distinct pass.

    Args:
        records: records seen, bad rows included.
        examples: records (or turns) that became examples.
        asked: asks, before equal passes were joined.
        passes: distinct passes with a model readout, by kind.
        tokens: tokens the model reads for them.
        scored: of those, response tokens that go through the output head.
        truncated: examples whose prompt or response is cut, by which of both.
        cut_tokens: response tokens cut.
        longest: tokens of the longest pass.
        problems: reason -> how many examples.
        bad: reason -> how many rows.
    """

    records: int = 0
    examples: int = 0
    asked: int = 0
    passes: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    scored: int = 0
    truncated: Counter[str] = field(default_factory=Counter)
    cut_tokens: int = 0
    longest: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    bad: Counter[str] = field(default_factory=Counter)
    _seen: set[int] = field(default_factory=set, repr=False)
    _last_row: int = -1

    def add(self, window: Window, model_readouts: frozenset[str]) -> None:
        """Count a window; a pass that an earlier window had is not counted again."""
        for item in window.items:
            self.records += item.row != self._last_row
            self._last_row = item.row
            if isinstance(item, BadRow):
                self.bad[item.reason] += 1
        self.examples += len(window.given)
        self.asked += window.asked
        for made in window.given:
            self._add_given(made)
        for pass_, kind, readouts in zip(window.passes, window.kinds, window.readouts, strict=True):
            short = int.from_bytes(pass_.key[:8], "little", signed=True)
            if readouts & model_readouts and short not in self._seen:
                self._seen.add(short)
                self.passes[kind] += 1
                self.tokens += len(pass_.ids) - 1
                self.scored += pass_.response_tokens - (pass_.start == 0)
                self.longest = max(self.longest, len(pass_.ids))

    def _add_given(self, made: Pass | Problem) -> None:
        if isinstance(made, Problem):
            self.problems[without_numbers(made.reason)] += 1
            return
        self.truncated["prompt"] += made.cut_prompt > 0
        self.truncated["response"] += made.cut_response > 0
        self.cut_tokens += made.cut_response

    def as_dict(self) -> dict[str, Any]:
        return {
            "records": self.records,
            "examples": self.examples,
            "bad_rows": dict(self.bad),
            "problems": dict(self.problems),
            "passes_asked": self.asked,
            "passes": dict(self.passes),
            "forward_tokens": self.tokens,
            "scored_tokens": self.scored,
            "longest_pass": self.longest,
            "truncated_prompts": self.truncated["prompt"],
            "truncated_responses": self.truncated["response"],
            "response_tokens_cut": self.cut_tokens,
        }


def without_numbers(reason: str) -> str:
    """A reason without its particulars, so that equal ones are counted together."""
    return reason.partition(":")[0].strip()

"""Asks -> distinct passes: what must be read, once each, and what that will cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

from tithe.data.counts import RecordCounts, RemarkCounts
from tithe.data.ids import Seen, first_half
from tithe.data.render import Encoded, Renderer
from tithe.data.rendered import Remarks
from tithe.records import Ask, BadRow, Example, Pass, PassKind, PassSpec, Problem

WINDOW = 4096  # examples planned and batched together: enough to sort by length, little enough to hold in memory
USUAL_ASKS = 8  # per example, up to which a window is as long as it may be
ID, CUT_SHOTS = attrgetter("id"), attrgetter("cut_shots")
T = TypeVar("T")
NOTHING: Mapping[str, Encoded | Problem] = {}
Asks: TypeAlias = Mapping[str, Ask]  # one scorer's asks about one example


@dataclass(frozen=True, slots=True)
class Slot:
    """Where the answer to one ask will be: a readout of the window's pass number `index`, read for `spec`."""

    readout: str
    index: int
    spec: PassSpec


@dataclass(frozen=True)
class Window:
    """Some thousand examples, their distinct passes, and which ask is answered by which.

    Args:
        items: records in input order, bad ones in their places.
        given: per example (bad rows left out) its `given` pass for counts, or why there is none.
        slots: per example and scorer, the asks' names with a slot or a problem.
        passes: distinct passes.
        keys: per pass its `key`, under which its answers are stored.
        kinds: per pass its kind.
        readouts: per pass the readouts asked of it.
        asked: asks, before equal passes were joined.
        rated: whether nothing but questions about the examples is read, so that it tells nothing of a response that it
            would be cut.
        remarks: per example with a rendering, what was odd in it.
    """

    items: Sequence[Example | BadRow]
    given: Sequence[Pass | Problem]
    slots: Sequence[Sequence[Mapping[str, Slot | Problem]]]
    passes: Sequence[Pass]
    keys: Sequence[bytes]
    kinds: Sequence[PassKind]
    readouts: Sequence[frozenset[str]]
    asked: int
    rated: bool = False
    remarks: Sequence[Remarks] = ()

    @cached_property
    def shot_tokens_cut(self) -> list[int]:
        """Per example the tokens cut from worked examples in its passes."""
        if not any(map(CUT_SHOTS, self.passes)):
            return [0] * len(self.given)
        return [shot_tokens_cut(slots, self.passes) for slots in self.slots]

    @cached_property
    def examples(self) -> list[Example]:
        """The items that are examples: what `given` and `slots` count along."""
        return [item for item in self.items if isinstance(item, Example)]


def windows(items: Iterable[T], size: int = WINDOW) -> Iterator[list[T]]:
    """Cut a stream; the cuts depend on the input and the scorers alone, so that every run batches alike."""
    stream = iter(items)
    while chunk := list(islice(stream, size)):
        yield chunk


def window_size(asks: int) -> int:
    """Examples in a window, where each brings so many asks: scorers that ask much get smaller windows."""
    return max(1, WINDOW * USUAL_ASKS // max(USUAL_ASKS, asks))


def plan_window(
    items: Sequence[Example | BadRow],
    asks: Sequence[Sequence[Asks]],
    renderer: Renderer,
    encoded: Mapping[str, Encoded | Problem] = NOTHING,
) -> Window:
    """Tokenise a window and keep each distinct pass once.

    Args:
        items: examples and bad rows.
        asks: per example (bad rows left out) and scorer.
        renderer: makes the passes.
        encoded: what the renderer makes of some of the examples, by their ids.
    """
    examples = [item for item in items if isinstance(item, Example)]
    specs = [ask.spec for each in asks for named in each for ask in named.values()]
    builder = _Builder(renderer, dict(encoded))
    builder.encode(examples)
    builder.encode(chain.from_iterable(map(members, specs)))
    slots = [[{name: builder.slot(ask) for name, ask in one.items()} for one in each] for each in asks]
    given = [builder.built(PassSpec("given", example)) for example in examples]
    return Window(
        items,
        given,
        slots,
        builder.passes,
        list(builder.index),
        builder.kinds,
        [frozenset(readouts) for readouts in builder.readouts],
        builder.asked,
        {spec.kind for spec in specs} == {"rated"},
        [made.remarks for example in examples if isinstance(made := builder.encoded[example.id], Encoded)],
    )


def members(spec: PassSpec) -> tuple[Example, ...]:
    """All examples whose tokens stand in a pass."""
    return (spec.dialogue, *spec.shots)


@dataclass
class _Builder:
    """Joins passes from encoded examples, each distinct one once."""

    renderer: Renderer
    encoded: dict[str, Encoded | Problem] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)
    kinds: list[PassKind] = field(default_factory=list)
    readouts: list[set[str]] = field(default_factory=list)
    asked: int = 0
    _built: dict[tuple[PassKind, tuple[str, ...]], Pass | Problem] = field(default_factory=dict)
    index: dict[bytes, int] = field(default_factory=dict)  # of each pass by its key, in the order of `passes`

    def encode(self, examples: Iterable[Example]) -> None:
        """Tokenise those that are new, all at once: a call of the tokenizer for each would cost far more."""
        new = {example.id: example for example in examples if example.id not in self.encoded}
        if new:
            self.encoded |= zip(new, self.renderer.encode(list(new.values())), strict=True)

    def slot(self, ask: Ask) -> Slot | Problem:
        self.asked += 1
        made = self.built(ask.spec)
        if isinstance(made, Problem):
            return made
        key = made.key
        if key not in self.index:
            self.index[key] = len(self.passes)
            self.passes.append(made)
            self.kinds.append(ask.spec.kind)
            self.readouts.append(set())
        index = self.index[key]
        self.readouts[index].add(ask.readout)
        return Slot(ask.readout, index, ask.spec)

    def built(self, spec: PassSpec) -> Pass | Problem:
        ids = tuple(map(ID, members(spec)))
        key = spec.kind, ids
        if key not in self._built:
            self._built[key] = self._build(spec.kind, ids)
        return self._built[key]

    def _build(self, kind: PassKind, ids: Sequence[str]) -> Pass | Problem:
        own, *shots = map(self.encoded.__getitem__, ids)
        if isinstance(own, Problem):
            return own
        ready = list[Encoded]()
        for shot in shots:
            if isinstance(shot, Problem):
                return Problem(f"no worked example: {shot.reason}")
            ready.append(shot)
        return self.renderer.build(kind, own, ready)


@dataclass
class Cost(RecordCounts):
    """Running totals of a plan, in 12 to 24 bytes a distinct pass.

    Args:
        asked: asks, before equal passes were joined.
        passes: distinct passes with a model readout, by kind.
        tokens: tokens the model reads for them.
        scored: of those, response tokens that go through the output head.
        truncated: examples of which something is cut, by what: prompt, response or shots.
        cut_tokens: tokens cut of responses.
        cut_shots: tokens cut of worked examples, over all passes with shots.
        longest: tokens of the longest pass.
        problems: reason -> how many examples.
        remarks: what was odd in rendering.
    """

    asked: int = 0
    passes: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    scored: int = 0
    truncated: Counter[str] = field(default_factory=Counter)
    cut_tokens: int = 0
    cut_shots: int = 0
    longest: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    remarks: RemarkCounts = field(default_factory=RemarkCounts)
    _seen: Seen = field(default_factory=Seen, repr=False)

    def add(self, window: Window, model_readouts: frozenset[str]) -> None:
        """Count a window; a pass that an earlier window had is not counted again."""
        for item in window.items:
            self.add_item(item)
        for remarks in () if window.rated else window.remarks:
            self.remarks.add(remarks)
        for made, slots, cut in zip(window.given, window.slots, window.shot_tokens_cut, strict=True):
            self._add_example(made, slots, cut, window.rated)
        self.add_passes(window, model_readouts)

    def add_passes(self, window: Window, model_readouts: frozenset[str]) -> None:
        """Count what is read, and nothing about examples: for passes read before the scores."""
        self.asked += window.asked
        for pass_, key, kind, readouts in zip(window.passes, window.keys, window.kinds, window.readouts, strict=True):
            if readouts & model_readouts and self._seen.add(first_half(key)):
                self.passes[kind] += 1
                self.tokens += len(pass_.ids) - 1
                self.scored += pass_.response_tokens - (pass_.start == 0)
                self.longest = max(self.longest, len(pass_.ids))

    def _add_example(
        self, made: Pass | Problem, slots: Sequence[Mapping[str, Slot | Problem]], cut: int, rated: bool
    ) -> None:
        if isinstance(made, Problem) and not rated:
            self.problems[without_numbers(made.reason)] += 1
            return
        reasons = {slot.reason for named in slots for slot in named.values() if isinstance(slot, Problem)}
        self.problems.update(set(map(without_numbers, reasons)))
        if isinstance(made, Problem) or rated:
            return
        self.truncated["prompt"] += made.cut_prompt > 0
        self.truncated["response"] += made.cut_response > 0
        self.cut_tokens += made.cut_response
        self.truncated["shots"] += cut > 0
        self.cut_shots += cut

    def as_dict(self) -> dict[str, Any]:
        return {
            **super().as_dict(),
            "problems": dict(self.problems),
            "passes_asked": self.asked,
            "passes": dict(self.passes),
            "forward_tokens": self.tokens,
            "scored_tokens": self.scored,
            "longest_pass": self.longest,
            "truncated_prompts": self.truncated["prompt"],
            "truncated_responses": self.truncated["response"],
            "response_tokens_cut": self.cut_tokens,
            "truncated_shots": self.truncated["shots"],
            "shot_tokens_cut": self.cut_shots,
            **self.remarks.as_dict(),
        }


def shot_tokens_cut(slots: Sequence[Mapping[str, Slot | Problem]], passes: Sequence[Pass]) -> int:
    """Count the tokens cut from worked examples in the distinct passes of one example."""
    used = {slot.index for named in slots for slot in named.values() if isinstance(slot, Slot)}
    return sum([passes[index].cut_shots for index in used])


def without_numbers(reason: str) -> str:
    """A reason without its particulars, so that equal ones are counted together."""
    return reason.partition(":")[0].strip()

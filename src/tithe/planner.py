"""Turn asks into distinct passes, each to be read once, and count what they cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

from tithe.data.counts import RecordCounts, RemarkCounts
from tithe.data.ids import HashSet, first_64_bits
from tithe.data.render import EncodedExample, Renderer
from tithe.data.rendered import Remarks
from tithe.records import Ask, BadRow, Example, Pass, PassKind, PassSpec, Problem

WINDOW = 4096  # examples planned and batched together: enough to sort by length, few enough to hold in memory
USUAL_ASKS = 8  # asks per example; with more, a window holds fewer examples
ID, CUT_SHOTS = attrgetter("id"), attrgetter("cut_shots")
T = TypeVar("T")
NO_ENCODINGS: Mapping[str, EncodedExample | Problem] = {}
Asks: TypeAlias = Mapping[str, Ask]  # one scorer's asks about one example


@dataclass(frozen=True, slots=True)
class Slot:
    """Place of the answer to one ask.

    Args:
        readout: name of the readout.
        index: index of the pass in its window.
        spec: the pass in words.
    """

    readout: str
    index: int
    spec: PassSpec


@dataclass(frozen=True)
class Window:
    """Up to 4,096 examples, their distinct passes, and which pass answers which ask.

    Args:
        items: records in input order, including bad rows.
        given: per example (without bad rows) its `given` pass, for counts, or why there is none.
        slots: per example and scorer, name of the ask -> slot or problem.
        passes: distinct passes.
        keys: per pass its `key`, under which its answers are stored.
        kinds: per pass its kind.
        readouts: per pass the readouts asked of it.
        asked: number of asks before equal passes were merged.
        rated: whether all passes are questions about the examples; then cuts of the `given` pass do not matter.
        remarks: per rendered example, what was odd in it.
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
        """Per example, the tokens cut from worked examples in its passes."""
        if not any(map(CUT_SHOTS, self.passes)):
            return [0] * len(self.given)
        return [shot_tokens_cut(slots, self.passes) for slots in self.slots]

    @cached_property
    def examples(self) -> list[Example]:
        """The items that are examples, aligned with `given` and `slots`."""
        return [item for item in self.items if isinstance(item, Example)]


def windows(items: Iterable[T], size: int = WINDOW) -> Iterator[list[T]]:
    """Cut a stream into lists of `size`; every run cuts alike, so that its batches repeat."""
    stream = iter(items)
    while chunk := list(islice(stream, size)):
        yield chunk


def window_size(asks: int) -> int:
    """Return the number of examples in a window; the more asks per example, the fewer."""
    return max(1, WINDOW * USUAL_ASKS // max(USUAL_ASKS, asks))


def plan_window(
    items: Sequence[Example | BadRow],
    asks: Sequence[Sequence[Asks]],
    renderer: Renderer,
    encoded: Mapping[str, EncodedExample | Problem] = NO_ENCODINGS,
) -> Window:
    """Tokenise a window and keep each distinct pass once.

    Args:
        items: examples and bad rows.
        asks: asks per example (without bad rows) and scorer.
        renderer: tokenises examples and builds passes.
        encoded: encodings of examples that are tokenised already, by id.
    """
    examples = [item for item in items if isinstance(item, Example)]
    # Encode the examples first and the shots after them: an example that is also a shot is tokenised once.
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
        [made.remarks for example in examples if isinstance(made := builder.encoded[example.id], EncodedExample)],
    )


def members(spec: PassSpec) -> tuple[Example, ...]:
    """Return all examples with tokens in a pass."""
    return (spec.dialogue, *spec.shots)


@dataclass
class _Builder:
    """Builder of distinct passes from encoded examples."""

    renderer: Renderer
    encoded: dict[str, EncodedExample | Problem] = field(default_factory=dict)
    passes: list[Pass] = field(default_factory=list)
    kinds: list[PassKind] = field(default_factory=list)
    readouts: list[set[str]] = field(default_factory=list)
    asked: int = 0
    _built: dict[tuple[PassKind, tuple[str, ...]], Pass | Problem] = field(default_factory=dict)  # by kind and ids
    index: dict[bytes, int] = field(default_factory=dict)  # of each pass by its key, in the order of `passes`

    def encode(self, examples: Iterable[Example]) -> None:
        """Tokenise the new examples in one call; a call for each would be far slower."""
        new = {example.id: example for example in examples if example.id not in self.encoded}
        if new:
            self.encoded |= zip(new, self.renderer.encode(list(new.values())), strict=True)

    def slot(self, ask: Ask) -> Slot | Problem:
        """Return where an ask will be answered; add its pass unless an equal one exists."""
        self.asked += 1
        made = self.built(ask.spec)
        if isinstance(made, Problem):
            return made
        key = made.key
        # Different specs may give the same token ids, for instance two equal examples: such a pass is read once.
        if key not in self.index:
            self.index[key] = len(self.passes)
            self.passes.append(made)
            self.kinds.append(ask.spec.kind)
            self.readouts.append(set())
        index = self.index[key]
        self.readouts[index].add(ask.readout)
        return Slot(ask.readout, index, ask.spec)

    def built(self, spec: PassSpec) -> Pass | Problem:
        """Return the pass of a spec, built once."""
        ids = tuple(map(ID, members(spec)))
        key = spec.kind, ids
        if key not in self._built:
            self._built[key] = self._build(spec.kind, ids)
        return self._built[key]

    def _build(self, kind: PassKind, ids: Sequence[str]) -> Pass | Problem:
        own, *shots = map(self.encoded.__getitem__, ids)  # in the order of `members`
        if isinstance(own, Problem):
            return own
        ready = list[EncodedExample]()
        for shot in shots:
            if isinstance(shot, Problem):
                return Problem(f"no worked example: {shot.reason}")
            ready.append(shot)
        return self.renderer.build(kind, own, ready)


@dataclass
class Cost(RecordCounts):
    """Running totals of a plan; needs 12 to 24 bytes of memory per distinct pass.

    Args:
        asked: number of asks before equal passes were merged.
        passes: distinct passes that the model reads, by kind.
        tokens: tokens that the model reads.
        scored: response tokens among them, which also go through the output head.
        truncated: examples with a cut, by what is cut: prompt, response or shots.
        cut_tokens: tokens cut from responses.
        cut_shots: tokens cut from worked examples, over all passes with shots.
        longest: tokens of the longest pass.
        problems: reason -> number of examples.
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
    _seen: HashSet = field(default_factory=HashSet, repr=False)

    def add(self, window: Window, model_readouts: frozenset[str]) -> None:
        """Count a window; a pass of an earlier window is not counted again."""
        for item in window.items:
            self.add_item(item)
        for remarks in () if window.rated else window.remarks:
            self.remarks.add(remarks)
        for made, slots, cut in zip(window.given, window.slots, window.shot_tokens_cut, strict=True):
            self._add_example(made, slots, cut, window.rated)
        self.add_passes(window, model_readouts)

    def add_passes(self, window: Window, model_readouts: frozenset[str]) -> None:
        """Count the passes of a window but not its examples; for passes that scorers read while they prepare."""
        self.asked += window.asked
        for pass_, key, kind, readouts in zip(window.passes, window.keys, window.kinds, window.readouts, strict=True):
            # 8 of the 16 bytes tell passes apart, and `_seen` holds every distinct pass of the run.
            if readouts & model_readouts and self._seen.add(first_64_bits(key)):
                self.passes[kind] += 1
                self.tokens += len(pass_.ids) - 1  # the last token predicts nothing, so the model does not read it
                self.scored += pass_.response_tokens - (pass_.start == 0)  # nothing predicts a token at position 0
                self.longest = max(self.longest, len(pass_.ids))

    def _add_example(
        self, made: Pass | Problem, slots: Sequence[Mapping[str, Slot | Problem]], cut: int, rated: bool
    ) -> None:
        # A `given` pass that cannot be made explains all other problems; questions (`rated`) do not use it.
        if isinstance(made, Problem) and not rated:
            self.problems[without_details(made.reason)] += 1
            return
        reasons = {slot.reason for named in slots for slot in named.values() if isinstance(slot, Problem)}
        self.problems.update(set(map(without_details, reasons)))
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
    """Count the tokens cut from worked examples, over the distinct passes of one example."""
    used = {slot.index for named in slots for slot in named.values() if isinstance(slot, Slot)}
    return sum([passes[index].cut_shots for index in used])


def without_details(reason: str) -> str:
    """Return a reason up to its first colon, so that reasons that differ only in numbers are counted together."""
    return reason.partition(":")[0].strip()

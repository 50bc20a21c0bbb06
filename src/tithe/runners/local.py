"""Run a plan on this machine, window by window: the engine reads the passes that the store has no answers for."""

from __future__ import annotations

import hashlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from threading import Event
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from tithe.data.ids import HashSet, first_64_bits
from tithe.data.render import Renderer
from tithe.engine.readouts.base import READOUTS, CountReadout, Readout, View
from tithe.engine.store.store import Store
from tithe.errors import SettingsError, did_you_mean
from tithe.planner import NO_ENCODINGS, Slot, Window, plan_window, window_size, windows
from tithe.records import Answer, Ask, BadRow, Example, Problem
from tithe.runners.order import order_by_shots
from tithe.runners.tokenising import Encodings, Tokenisers
from tithe.runners.trace import Span, Trace, Work
from tithe.scorers.base import Scorer

if TYPE_CHECKING:
    from tithe.engine.engine import Engine, PassResult

T = TypeVar("T")
Answers: TypeAlias = dict[tuple[int, str], Answer | Problem]  # (index of the pass in its window, readout) -> answer
MOST_PREPARED = 100_000  # asks of a scorer that prepares whose passes are remembered
ScoresByName: TypeAlias = dict[str, float | Problem]
MoreByName: TypeAlias = dict[str, float | str]
MODEL_READOUTS = frozenset(name for name, readout in READOUTS.items() if readout.needs_model)


@dataclass
class LocalRunner:
    """Runner that plans, reads and scores a data set in windows of bounded size.

    Args:
        scorers: scorers by name.
        renderer: turns examples into passes.
        engine: returns the engine; called when a pass is not in the store. None if no scorer needs a model.
        stores: stores by readout.
        per_token: keep every token's NLL.
        progress: called with the number of examples just done, which may be a fraction.
        readouts: readouts by the names that scorers use.
        tokenisers: processes that tokenise if one thread is too slow; None leaves all to the thread.
        earlier: readouts that an earlier stage has read of all `given` passes.
        overlapped: score a window while the next one is read; for a model that is not on the CPU.
        work: what was done so far.
    """

    scorers: Mapping[str, Scorer]
    renderer: Renderer
    engine: Callable[[], Engine] | None
    stores: Mapping[str, Store]
    per_token: bool = False
    progress: Callable[[float], None] = lambda _: None
    readouts: Mapping[str, Readout] = field(default_factory=lambda: READOUTS)
    tokenisers: Tokenisers | None = None
    earlier: frozenset[str] = frozenset()
    overlapped: bool = False
    work: Work = field(default_factory=Work)
    trace: Trace = field(default_factory=Trace, init=False)
    _start: float = field(default=0.0, init=False, repr=False)  # of the first plan, monotonic seconds
    _planned: float = field(default=0.0, init=False, repr=False)  # when the current window was planned
    _wait: float = field(default=0.0, init=False, repr=False)  # seconds that the model waited for the current window
    _stopped: Event = field(default_factory=Event, init=False, repr=False)  # set when the reading thread is to stop
    _before: HashSet = field(default_factory=HashSet, init=False, repr=False)  # passes that `read_together` has counted
    _prepared: set[int] = field(default_factory=set, init=False, repr=False)  # (pass, readout) that `read` has read
    _problems: dict[tuple[bytes, str], Problem] = field(
        default_factory=dict, init=False, repr=False
    )  # (pass key, readout) -> why this run could not answer it

    @cached_property
    def model_readouts(self) -> frozenset[str]:
        """Names of the readouts that need the model."""
        return frozenset(name for name, readout in self.readouts.items() if readout.needs_model)

    def use_readout(self, name: str, readout: Readout, store: Store) -> None:
        """From now on answer a name by another readout, which a scorer has made while it prepared."""
        self.readouts, self.stores = {**self.readouts, name: readout}, {**self.stores, name: store}
        vars(self).pop("model_readouts", None)  # found anew at its next use

    def run(self, items: Iterable[Example | BadRow]) -> Generator[ScoredWindow]:
        """Score a stream; yield scored windows in input order."""
        read = ((window, self.answers(window)) for window in self.prefetch_windows(self.planned(self.chunks(items))))
        with closing(read), closing(self.read_while_scoring(read)) as coming:
            for window, answers in coming:
                scores = [self.scores(window, i, answers) for i in range(len(window.given))]
                yield ScoredWindow(window, answers, [one for one, _ in scores], [more for _, more in scores])
        for store in self.stores.values():
            store.flush()

    def read_while_scoring(self, read: Iterator[tuple[Window, Answers]]) -> Generator[tuple[Window, Answers]]:
        """Yield windows with their answers; if `overlapped`, read the next window while this one is scored.

        The first window is always read in this thread: it loads the model, which may take long, and Ctrl-C must reach
        it.
        """
        self._stopped.clear()  # from an earlier run of this runner
        yield from islice(read, 1) if self.overlapped else read
        if self.overlapped:
            yield from prefetch(read, self._stopped.set)

    def read_together(self, examples: Sequence[Example], begin: Callable[[], None] = lambda: None) -> bool:
        """Read the passes of `run` in advance, ordered so that examples that show each other share a window.

        The windows of `run` follow the input order. An example and those that show it as a shot would be far apart
        there, so the prefix that their passes share would be read again each time. All answers are stored here, and
        `run` finds them.

        Args:
            examples: all examples.
            begin: called before the first is read.

        Returns:
            Whether anything was read. A single window needs no reordering, nor does an order that stays the same (each
            example shown first to itself, as in `nuggets`).
        """
        size = self.size(examples)
        if len(examples) <= size:
            return False
        order = order_by_shots(
            [example.id for example in examples], [self.first_shown(example) for example in examples]
        )
        if order == list(range(len(examples))):
            return False
        begin()
        for window in self.prefetch_windows(self.planned(windows((examples[i] for i in order), size))):
            self.answers(window)
            for key in window.keys:
                self._before.add(first_64_bits(key))
        return True

    def prefetch_windows(self, stream: Iterator[Window]) -> Iterator[Window]:
        """Yield planned windows; plan the next one in a thread while the current one is read."""
        if not self._start:
            self._start, self.trace.start = time.monotonic(), time.time()
        first, began = True, 0.0
        with closing(prefetch((*timed, time.monotonic()) for timed in timed(stream))) as coming:
            for window, seconds, self._planned in coming:
                self._wait = 0.0 if first else time.monotonic() - began
                first = False
                yield window
                self.work.planned += seconds  # only for windows that were read, like `work.seconds`
                began = time.monotonic()

    def first_shown(self, example: Example) -> str | None:
        """Return the id of the first worked example that any scorer shows with this one."""
        specs = (ask.spec for scorer in self.scorers.values() for ask in scorer.asks(example).values())
        return next((spec.shots[0].id for spec in specs if spec.shots), None)

    def size(self, items: Iterable[Example | BadRow]) -> int:
        """Return how many examples a window holds, from the number of asks about the first one."""
        first = next((item for item in items if isinstance(item, Example)), None)
        asks = 0 if first is None else sum(len(scorer.asks(first)) for scorer in self.scorers.values())
        return window_size(asks)

    def read(self, asks: Sequence[Mapping[str, Ask]]) -> Iterator[tuple[Window, list[dict[str, Answer | Problem]]]]:
        """Answer the asks of a scorer that prepares; yield each window with its answers."""
        size = window_size(max(map(len, asks), default=0))
        for window in self.prefetch_windows(self.plan_asks(chunk) for chunk in windows(asks, size)):
            answers = self.answers(window)
            if len(asks) <= MOST_PREPARED:
                for key, readouts in zip(window.keys, window.readouts, strict=True):
                    self._prepared |= {place_of(key, readout) for readout in readouts}
            yield window, [resolve_answers(slots, answers) for (slots,) in window.slots]
        for store in self.stores.values():
            store.flush()

    def plan_asks(self, asks: Sequence[Mapping[str, Ask]]) -> Window:
        """Plan a window for the asks of a scorer that prepares."""
        examples = [ask.spec.example for each in asks for ask in list(each.values())[:1]]
        return plan_window(examples, [[self.checked(each, "a scorer")] for each in asks], self.renderer)

    def chunks(self, items: Iterable[Example | BadRow]) -> Iterator[list[Example | BadRow]]:
        """Cut a stream into windows; the asks about its first example decide their size."""
        stream, head = iter(items), list[Example | BadRow]()
        for item in stream:
            head.append(item)
            if isinstance(item, Example):
                break
        return windows(chain(head, stream), self.size(head))

    def planned(self, chunks: Iterable[Sequence[Example | BadRow]]) -> Iterator[Window]:
        """Yield the windows' plans in order; if processes tokenise, give them the next few windows in advance."""
        coming = deque[tuple[Sequence[Example | BadRow], Callable[[], Encodings]]]()
        for chunk in chunks:
            examples = (item for item in chunk if isinstance(item, Example))
            coming.append((chunk, dict if self.tokenisers is None else self.tokenisers.encode(examples)))
            while coming and len(coming) > (0 if self.tokenisers is None else self.tokenisers.ahead):
                items, encoded = coming.popleft()
                yield self.plan(items, encoded())
        for items, encoded in coming:
            yield self.plan(items, encoded())

    def plan(self, items: Sequence[Example | BadRow], encoded: Encodings = NO_ENCODINGS) -> Window:
        """Plan a window: collect all scorers' asks about its examples, and tokenise what is not in `encoded`."""
        asks = [
            [self.checked(scorer.asks(item), f"scorer `{scorer.name}`") for scorer in self.scorers.values()]
            for item in items
            if isinstance(item, Example)
        ]
        return plan_window(items, asks, self.renderer, encoded)

    def checked(self, asks: Mapping[str, Ask], who: str) -> Mapping[str, Ask]:
        """Return the asks, with `nll` replaced by `nll_tokens` under `per_token`.

        Raises:
            SettingsError: a readout is unknown.
        """
        for ask in asks.values():
            if ask.readout not in self.readouts:
                raise SettingsError(
                    f"{who}: unknown readout `{ask.readout}`",
                    hint=did_you_mean(ask.readout, self.readouts),
                )
        if not self.per_token:
            return asks
        return {n: Ask(a.spec, "nll_tokens") if a.readout == "nll" else a for n, a in asks.items()}

    def answers(self, window: Window) -> Answers:
        """Return the answers of a window by pass and readout, from the store or the engine."""
        keys = window.keys  # equal token ids and response spans have equal keys, in every run
        found: Answers = {}
        for readout, store in self.stores.items():
            wanted = [i for i, readouts in enumerate(window.readouts) if readout in readouts]
            stored = store.get([keys[i] for i in wanted])
            found |= {(i, readout): stored[keys[i]] for i in wanted if keys[i] in stored}
        asked = {(i, r) for i, readouts in enumerate(window.readouts) for r in readouts & self.model_readouts}
        if self._problems:  # do not retry in this run what ran out of memory; the next run does
            found |= {(i, r): self._problems[keys[i], r] for i, r in asked if (keys[i], r) in self._problems}
        missing = {i for i, _ in asked - found.keys()}
        # Passes that `read_together` has read a moment ago are in the store, and are not reused ones.
        self.work.reused += sum(first_64_bits(keys[i]) not in self._before for i in {i for i, _ in asked} - missing)
        done = 1.0 if not missing else 0.0
        if missing:
            assert self.engine is not None, "a readout needs a model"
            self.compute(window, missing, found)
        self.progress(done * len(window.items))
        for i, readouts in enumerate(window.readouts):
            if CountReadout.name in readouts:
                found[i, CountReadout.name] = CountReadout.count(window.passes[i])
        return found

    def compute(self, window: Window, missing: set[int], found: Answers) -> None:
        """Run the batches with a missing pass; their other passes are read again, so that each batch stays the same."""
        assert self.engine is not None
        unstored = set().union(*window.readouts) & self.model_readouts - self.stores.keys()
        if unstored:
            raise SettingsError(
                f"the readout `{min(unstored)}` is asked of a later example, but not of the first one",
                hint="a scorer's `asks` must name the same readouts for every example",
            )
        engine = self.engine()
        self.work.waited += self._wait
        if self.tokenisers is not None:
            self.tokenisers.start_if_slow(self.work, engine.model.device.type)
        began = first = time.monotonic()
        read = self.work.tokens
        model_passes = [
            i
            for i, readouts in enumerate(window.readouts)
            if readouts & self.model_readouts and (i in missing or not self.read_before(window, i))
        ]
        passes = [window.passes[i] for i in model_passes]
        batches = [batch for batch in engine.batches(passes) if any([model_passes[i] in missing for i in batch.index])]
        total = sum([len(passes[i].ids) for batch in batches for i in batch.index])
        # Ask for stored readouts too, so that the engine reads the batch exactly as in an uninterrupted run.
        asked = [[self.readouts[r] for r in sorted(window.readouts[i] & self.model_readouts)] for i in model_passes]
        for batch, results in engine.read(passes, batches, asked):
            self.work.passes += len(batch.index)  # counted before storing: a signal may come in between
            rows: dict[str, list[tuple[bytes, dict[str, Any]]]] = defaultdict(list)
            for place, result in zip(batch.index, results, strict=True):
                i = model_passes[place]
                for readout, row in self.apply(window, i, result, found):
                    rows[readout].append((window.keys[i], row))
            for (
                readout,
                answered,
            ) in rows.items():  # whole batches: a resumed run repeats none in part
                self.stores[readout].put(answered)
            tokens = sum([len(passes[i].ids) for i in batch.index])
            self.work.tokens += batch.tokens(passes)
            now = time.monotonic()
            self.work.seconds, began = self.work.seconds + now - began, now
            self.progress(len(window.items) * tokens / total)
            if self._stopped.is_set():
                raise CancelledError
        planned, first, last = (at - self._start for at in (self._planned, first, time.monotonic()))
        self.trace.add(Span(1, len(window.items), self.work.tokens - read, planned, first, last, self._wait))

    def read_before(self, window: Window, i: int) -> bool:
        """Tell whether all that is asked of a pass was read before this sweep began, so that no batch holds it.

        What the sweep itself has stored before it was interrupted does not count: a resumed run cuts the same batches.
        """
        asked = window.readouts[i] & self.model_readouts
        if window.kinds[i] == "given" and asked <= self.earlier:
            return True
        return all(place_of(window.keys[i], readout) in self._prepared for readout in asked)

    def apply(
        self, window: Window, i: int, result: PassResult | Problem, found: Answers
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Answer the open readouts of a pass; yield (readout, row) for the store."""
        if isinstance(result, Problem):
            self.work.failed += 1
            for name in window.readouts[i] & self.model_readouts:
                if (i, name) not in found:
                    found[i, name] = self._problems[window.keys[i], name] = result
            return
        for name in sorted(window.readouts[i] & self.model_readouts):
            if (i, name) in found:
                continue
            readout = self.readouts[name]
            row = readout.read(View(window.passes[i], result.nll, result.found.get(readout.name)))
            if isinstance(row, Problem):
                found[i, name] = self._problems[window.keys[i], name] = row
            else:
                found[i, name] = readout.answer(row)
                yield name, row

    def scores(self, window: Window, i: int, answers: Answers) -> tuple[ScoresByName, MoreByName]:
        """Return every scorer's score or problem for one example, and the scorers' additional columns."""
        example = window.examples[i]
        out, more = ScoresByName(), MoreByName()
        for (name, scorer), slots in zip(self.scorers.items(), window.slots[i], strict=True):
            read = resolve_answers(slots, answers)
            there = {ask: value for ask, value in read.items() if not isinstance(value, Problem)}
            problem = next((value for value in read.values() if isinstance(value, Problem)), None)
            if problem is not None and not (scorer.partial and there):
                out[name] = problem
            else:
                out[name] = scorer.score(example, there)
                more |= {f"{name}_{what}": value for what, value in scorer.more(example, there).items()}
        return out, more


def place_of(key: bytes, readout: str) -> int:
    """Return 64 bits for a readout of a pass."""
    return first_64_bits(hashlib.blake2b(key + readout.encode(), digest_size=8).digest())


def resolve_answers(slots: Mapping[str, Slot | Problem], answers: Answers) -> dict[str, Answer | Problem]:
    """Return the answers by the names of the asks."""
    return {
        ask: slot if isinstance(slot, Problem) else answers[slot.index, slot.readout] for ask, slot in slots.items()
    }


@dataclass(frozen=True)
class ScoredWindow:
    """A window with its answers.

    Args:
        window: the planned window.
        answers: its answers.
        scores: per example, every scorer's score or problem.
        more: per example, the scorers' additional columns.
    """

    window: Window
    answers: Answers
    scores: Sequence[Mapping[str, float | Problem]]
    more: Sequence[Mapping[str, float | str]] = ()


def timed(stream: Iterable[T]) -> Iterator[tuple[T, float]]:
    """Yield each item with the CPU seconds of this thread that it took."""
    began = time.thread_time()
    for item in stream:
        yield item, time.thread_time() - began
        began = time.thread_time()


def prefetch(stream: Iterator[T], stop: Callable[[], object] = lambda: None) -> Generator[T]:
    """Yield the items of a stream, and fetch the next one in a thread meanwhile.

    Args:
        stream: the items.
        stop: called when the consumer stops early, so that the fetch in progress can end soon.
    """
    with ThreadPoolExecutor(1) as pool:
        nothing = object()
        try:
            coming = pool.submit(next, stream, nothing)
            while (item := coming.result()) is not nothing:
                coming = pool.submit(next, stream, nothing)
                yield item  # type: ignore[misc]
        except BaseException:
            stop()
            raise

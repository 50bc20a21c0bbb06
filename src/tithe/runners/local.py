"""The plan carried out on this machine: window by window, what the store does not answer is read by the engine."""

from __future__ import annotations

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

from tithe.data.ids import Seen, first_half
from tithe.data.render import Renderer
from tithe.engine.readouts.base import READOUTS, CountReadout, Readout, View
from tithe.engine.store.store import Store
from tithe.errors import SettingsError, did_you_mean
from tithe.planner import NOTHING, Slot, Window, plan_window, window_size, windows
from tithe.records import Answer, Ask, BadRow, Example, Problem
from tithe.runners.order import together
from tithe.runners.tokenising import Encodings, Tokenisers
from tithe.runners.trace import Span, Trace, Work
from tithe.scorers.base import Scorer

if TYPE_CHECKING:
    from tithe.engine.engine import Engine, PassResult

T = TypeVar("T")
Answers: TypeAlias = dict[tuple[int, str], Answer | Problem]  # (pass of the window, readout)
MODEL_READOUTS = frozenset(name for name, readout in READOUTS.items() if readout.needs_model)


@dataclass
class LocalRunner:
    """Plan, read, score, in windows of bounded size.

    Args:
        scorers: by name.
        renderer: examples to passes.
        engine: makes the engine when the first pass is not in the store; None where no scorer needs a model.
        stores: by readout.
        per_token: keep every token's NLL.
        progress: called with the share of a window that was just done, in examples.
        readouts: by the names under which scorers ask for them.
        tokenisers: processes that tokenise where one thread is too slow; None leaves all to the thread.
        overlapped: score a window while the next one is read; for a model that is not on the CPU.
    """

    scorers: Mapping[str, Scorer]
    renderer: Renderer
    engine: Callable[[], Engine] | None
    stores: Mapping[str, Store]
    per_token: bool = False
    progress: Callable[[float], None] = lambda _: None
    readouts: Mapping[str, Readout] = field(default_factory=lambda: READOUTS)
    tokenisers: Tokenisers | None = None
    overlapped: bool = False
    work: Work = field(default_factory=Work)
    trace: Trace = field(default_factory=Trace, init=False)
    _start: float = field(default=0.0, init=False, repr=False)  # of the first plan
    _planned: float = field(default=0.0, init=False, repr=False)  # when the present window was
    _wait: float = field(default=0.0, init=False, repr=False)  # for the present window
    _stopped: Event = field(default_factory=Event, init=False, repr=False)  # nobody wants what is read in a thread
    _before: Seen = field(default_factory=Seen, init=False, repr=False)  # passes that `read_together` has counted
    _problems: dict[tuple[bytes, str], Problem] = field(
        default_factory=dict, init=False, repr=False
    )  # what it could not answer

    @cached_property
    def model_readouts(self) -> frozenset[str]:
        """Return the names of readouts that need the model; found once, as the readouts do not change."""
        return frozenset(name for name, readout in self.readouts.items() if readout.needs_model)

    def run(self, items: Iterable[Example | BadRow]) -> Generator[Scored]:
        """Score a stream; windows come out in input order."""
        read = ((window, self.answers(window)) for window in self.ahead(self.planned(self.chunks(items))))
        with closing(read), closing(self.meanwhile(read)) as coming:
            for window, answers in coming:
                scores = [self.scores(window, i, answers) for i in range(len(window.given))]
                yield Scored(window, answers, [one for one, _ in scores], [more for _, more in scores])
        for store in self.stores.values():
            store.flush()

    def meanwhile(self, read: Iterator[tuple[Window, Answers]]) -> Generator[tuple[Window, Answers]]:
        """Yield windows that were read; read the next while the present one is scored, where that is free.

        The first is read here, not in a thread: with it the model is loaded, which may take long, and can be stopped.
        """
        self._stopped.clear()
        yield from islice(read, 1) if self.overlapped else read
        if self.overlapped:
            yield from ahead(read, self._stopped.set)

    def read_together(self, examples: Sequence[Example], begin: Callable[[], None] = lambda: None) -> bool:
        """Read what `run` will want of examples that show each other, these next to each other.

        The windows of `run` follow the input's order, where an example and those that show it are far apart, and each
        would be read from its first token on. This answers all that `run` will ask, before it asks.

        Args:
            examples: all of them.
            begin: called before the first is read.

        Returns:
            Whether there was any need; in a single window they meet anyhow, and so they do where each shows itself to
            others (`nuggets`).
        """
        size = self.size(examples)
        if len(examples) <= size:
            return False
        order = together([example.id for example in examples], [self.first_shown(example) for example in examples])
        if order == list(range(len(examples))):
            return False
        begin()
        for window in self.ahead(self.planned(windows((examples[i] for i in order), size))):
            self.answers(window)
            for key in window.keys:
                self._before.add(first_half(key))
        return True

    def ahead(self, stream: Iterator[Window]) -> Iterator[Window]:
        """Yield windows; plan the next one while the present one is read."""
        if not self._start:
            self._start, self.trace.start = time.monotonic(), time.time()
        first, began = True, 0.0
        with closing(ahead((*timed, time.monotonic()) for timed in clocked(stream))) as coming:
            for window, seconds, self._planned in coming:
                self._wait = 0.0 if first else time.monotonic() - began
                first = False
                yield window
                self.work.planned += seconds  # of windows that are read, as `work.seconds`
                began = time.monotonic()

    def first_shown(self, example: Example) -> str | None:
        """Return the id of the first worked example that any scorer shows with this one."""
        specs = (ask.spec for scorer in self.scorers.values() for ask in scorer.asks(example).values())
        return next((spec.shots[0].id for spec in specs if spec.shots), None)

    def size(self, items: Iterable[Example | BadRow]) -> int:
        """Count the examples in a window: as many as the asks about the first one allow."""
        first = next((item for item in items if isinstance(item, Example)), None)
        asks = 0 if first is None else sum(len(scorer.asks(first)) for scorer in self.scorers.values())
        return window_size(asks)

    def read(self, asks: Sequence[Mapping[str, Ask]]) -> Iterator[tuple[Window, list[dict[str, Answer | Problem]]]]:
        """Answer asks that no score hangs on yet: what a scorer reads while it prepares."""
        size = window_size(max(map(len, asks), default=0))
        for window in self.ahead(self.plan_asks(chunk) for chunk in windows(asks, size)):
            answers = self.answers(window)
            yield window, [resolved(slots, answers) for (slots,) in window.slots]
        for store in self.stores.values():
            store.flush()

    def plan_asks(self, asks: Sequence[Mapping[str, Ask]]) -> Window:
        """Plan a window of asks that belong to no scorer's result."""
        examples = [ask.spec.example for each in asks for ask in list(each.values())[:1]]
        return plan_window(examples, [[self.renamed(each, "a scorer")] for each in asks], self.renderer)

    def chunks(self, items: Iterable[Example | BadRow]) -> Iterator[list[Example | BadRow]]:
        """Cut a stream into windows, as long as the asks about its first example allow."""
        stream, head = iter(items), list[Example | BadRow]()
        for item in stream:
            head.append(item)
            if isinstance(item, Example):
                break
        return windows(chain(head, stream), self.size(head))

    def planned(self, chunks: Iterable[Sequence[Example | BadRow]]) -> Iterator[Window]:
        """Yield the windows' plans in order; where processes tokenise, some windows ahead."""
        coming = deque[tuple[Sequence[Example | BadRow], Callable[[], Encodings]]]()
        for chunk in chunks:
            examples = (item for item in chunk if isinstance(item, Example))
            coming.append((chunk, dict if self.tokenisers is None else self.tokenisers.encode(examples)))
            while coming and len(coming) > (0 if self.tokenisers is None else self.tokenisers.ahead):
                items, encoded = coming.popleft()
                yield self.plan(items, encoded())
        for items, encoded in coming:
            yield self.plan(items, encoded())

    def plan(self, items: Sequence[Example | BadRow], encoded: Encodings = NOTHING) -> Window:
        """Ask all scorers about a window's examples, and tokenise what they ask for and is not tokenised yet."""
        asks = [
            [self.renamed(scorer.asks(item), f"scorer `{scorer.name}`") for scorer in self.scorers.values()]
            for item in items
            if isinstance(item, Example)
        ]
        return plan_window(items, asks, self.renderer, encoded)

    def renamed(self, asks: Mapping[str, Ask], who: str) -> Mapping[str, Ask]:
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
        """Return the answer per pass and readout, from the store or from the engine."""
        keys = window.keys
        found: Answers = {}
        for readout, store in self.stores.items():
            wanted = [i for i, readouts in enumerate(window.readouts) if readout in readouts]
            stored = store.get([keys[i] for i in wanted])
            found |= {(i, readout): stored[keys[i]] for i in wanted if keys[i] in stored}
        asked = {(i, r) for i, readouts in enumerate(window.readouts) for r in readouts & self.model_readouts}
        if self._problems:  # what failed a moment ago will not go better now; the next run tries again
            found |= {(i, r): self._problems[keys[i], r] for i, r in asked if (keys[i], r) in self._problems}
        missing = {i for i, _ in asked - found.keys()}
        self.work.reused += sum(first_half(keys[i]) not in self._before for i in {i for i, _ in asked} - missing)
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
        """Run the batches that hold a missing pass; an answered pass in them is read again, to repeat the batch."""
        assert self.engine is not None
        unstored = set().union(*window.readouts) & self.model_readouts - self.stores.keys()
        if unstored:
            raise SettingsError(
                f"the readout `{min(unstored)}` is asked for, but not of the first example",
                hint="a scorer's `asks` must name the same readouts for every example",
            )
        engine = self.engine()
        self.work.waited += self._wait
        if self.tokenisers is not None:
            self.tokenisers.after(self.work, engine.model.device.type)
        began = first = time.monotonic()
        read = self.work.tokens
        model_passes = [i for i, readouts in enumerate(window.readouts) if readouts & self.model_readouts]
        passes = [window.passes[i] for i in model_passes]
        batches = [batch for batch in engine.batches(passes) if any([model_passes[i] in missing for i in batch.index])]
        total = sum([len(passes[i].ids) for batch in batches for i in batch.index])
        # All that is asked, answered or not: what is read of a batch, too, is then the same as in a straight run.
        asked = [[self.readouts[r] for r in sorted(window.readouts[i] & self.model_readouts)] for i in model_passes]
        for batch, results in engine.read(passes, batches, asked):
            self.work.passes += len(batch.index)  # before they are stored: a signal may come in between
            rows: dict[str, list[tuple[bytes, dict[str, Any]]]] = defaultdict(list)
            for place, result in zip(batch.index, results, strict=True):
                i = model_passes[place]
                for readout, row in self.apply(window, i, result, found):
                    rows[readout].append((window.keys[i], row))
            for readout, answered in rows.items():  # a batch at a time: what is on disk is whole batches
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

    def apply(
        self, window: Window, i: int, result: PassResult | Problem, found: Answers
    ) -> Iterator[tuple[str, dict[str, Any]]]:
        """Apply the readouts asked of a pass that have no answer yet; yield what is to be stored."""
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

    def scores(self, window: Window, i: int, answers: Answers) -> tuple[dict[str, float | Problem], dict[str, float]]:
        """Return every scorer's number for one example, and what scorers say besides."""
        example = window.examples[i]
        out, more = dict[str, float | Problem](), dict[str, float]()
        for (name, scorer), slots in zip(self.scorers.items(), window.slots[i], strict=True):
            read = resolved(slots, answers)
            there = {ask: value for ask, value in read.items() if not isinstance(value, Problem)}
            problem = next((value for value in read.values() if isinstance(value, Problem)), None)
            if problem is not None and not (scorer.partial and there):
                out[name] = problem
            else:
                out[name] = scorer.score(example, there)
                more |= {f"{name}_{what}": value for what, value in scorer.more(example, there).items()}
        return out, more


def resolved(slots: Mapping[str, Slot | Problem], answers: Answers) -> dict[str, Answer | Problem]:
    """Return what was answered, by the asks' names."""
    return {
        ask: slot if isinstance(slot, Problem) else answers[slot.index, slot.readout] for ask, slot in slots.items()
    }


@dataclass(frozen=True)
class Scored:
    """A window with its answers and, per example, every scorer's number or problem, and what scorers say besides."""

    window: Window
    answers: Answers
    scores: Sequence[Mapping[str, float | Problem]]
    more: Sequence[Mapping[str, float]] = ()


def clocked(stream: Iterable[T]) -> Iterator[tuple[T, float]]:
    """Yield each item with the processor seconds of this thread that it took."""
    began = time.thread_time()
    for item in stream:
        yield item, time.thread_time() - began
        began = time.thread_time()


def ahead(stream: Iterator[T], stop: Callable[[], object] = lambda: None) -> Generator[T]:
    """Yield the items; make the next one while the present one is worked on.

    Args:
        stream: the items.
        stop: called where no more are wanted, before the one in the making is waited for.
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

"""Run batches of passes through a loaded model and hand each pass to its readouts."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

import torch

from tithe.engine.batches import After, Batch, make_batches
from tithe.engine.devices import dtype_name
from tithe.engine.forward.forward import ReadRequest, TokenNlls
from tithe.engine.forward.states import StateReadout, make_taps
from tithe.engine.host import cpu_cores, give_back, threads_allowed
from tithe.engine.loading import placed
from tithe.engine.measure.fused import fuse
from tithe.engine.measure.layout import LayoutChoice, choose_layout, gated_product
from tithe.engine.measure.memory import MOST, Room, find_room
from tithe.engine.model import LoadedModel
from tithe.engine.readouts.base import READOUTS, Readout
from tithe.engine.sources import demand_embedded
from tithe.errors import demand
from tithe.records import Pass, Problem

T = TypeVar("T")
READS_NLL = attrgetter("reads_nll")
NUMERICS = 1  # raise it when a change moves answers by more than rounding: stored ones are then not met again
OUT_OF_MEMORY = Problem("out of memory at batch size 1")
Asked: TypeAlias = Sequence[Sequence[Readout]]  # per pass the readouts that are asked of it


@dataclass(frozen=True, slots=True)
class Read:
    """What came of one pass.

    Args:
        nll: -log p of each response token that has context; empty where no readout wants it.
        found: by readout of hidden states, what its reader made of them.
    """

    nll: TokenNlls
    found: Mapping[str, Any] = field(default_factory=dict)


Results: TypeAlias = Callable[[], list[Read | Problem]]  # of a batch, one for each pass; called, they are waited for


@dataclass
class Engine:
    """Passes in, token NLLs out, in whichever order they are done.

    Args:
        model: what answers.
        budget: tokens a batch holds; None takes what is fastest on a CPU, or what a GPU has room for. It moves scores
            by rounding alone.
        workers: forward passes under way at once, which on a CPU share the cores out among them; None takes one on a
            GPU and what is fastest on a CPU, most often one a core.
        say: who hears what is found out only when the first passes are there.
        compiled: compile parts of the model; of one that awaits fp8 those that are in fp8 then.
        cores: of a CPU, those that may be used; None for all.
        threads: of each pass on a CPU, where `workers` are given; None shares the cores out.
        most: tokens a batch holds at the most, where a GPU's room is asked for them.

    Attributes:
        halved: how many batches did not fit into memory.
        too_many: tokens of the smallest that did not; as large ones are halved at once from then on.
        layout: what was taken on a CPU, and why.
        room: what the budget was reckoned from, on a GPU where none was given.
    """

    model: LoadedModel
    budget: int | None = None
    workers: int | None = None
    say: Callable[[str], None] | None = None
    compiled: bool = False
    cores: int | None = None
    threads: int | None = None
    most: int = MOST
    halved: int = field(default=0, init=False)
    too_many: float = field(default=math.inf, init=False)
    layout: LayoutChoice | None = field(default=None, init=False)
    room: Room | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.compiled and not self.model.awaits_fp8:
            fuse(self.model)
        self.cores = self.cores or cpu_cores()
        if self.model.device.type == "cpu":
            if not self.model.side_by_side:
                self.workers = 1
            gated = gated_product(self.model) if self.model.road == "packed" else None
            self.layout = choose_layout(
                gated,
                self.cores,
                workers=self.workers,
                threads=self.threads if self.workers else None,
                tokens=self.budget,
                most=threads_allowed(),
            )
            self.workers, self.threads, self.budget = self.layout.workers, self.layout.threads, self.layout.tokens
        elif not self.budget:
            self.room = find_room(self.model, self.most)
            self.budget = self.room.budget
        self.workers = (self.workers or 1) if self.model.side_by_side else 1

    @property
    def measured(self) -> bool:
        """Tell whether the workers or the budget depend on a measurement."""
        return self.room is not None or (self.layout is not None and bool(self.layout.tokens_per_second))

    @property
    def facts(self) -> dict[str, Any]:
        """Return what was found out about how to read the model best, for the run record."""
        model = self.model
        loss = model.head and model.head.loss
        found = {
            "layout": self.layout and self.layout.as_dict(),
            "room": self.room and self.room.as_dict(),
            "keeps": model.keeps,
            "attention_by": model.attend and model.attend.report(),
            "compiled": model.fused and model.fused.as_dict(),
            "fp8": model.fp8 and model.fp8.as_dict(),
            "loss": loss and loss.as_dict(),
        }
        return {name: told for name, told in found.items() if told}

    @property
    def words(self) -> list[str]:
        """Say in a few words what was found out, for the terminal."""
        model = self.model
        batch = [f"{self.budget:,} tokens a batch"] if model.device.type != "cpu" or self.measured else []
        return [
            *([model.attend.words()] if model.attend else []),
            *batch,
            *([model.fused.words()] if model.fused else []),
        ]

    @property
    def devices(self) -> list[str]:
        """Name the devices that read passes."""
        return placed(self.model)

    def alone(self) -> Engine:
        """Return an engine that has the model in this process."""
        return self

    def close(self) -> None:
        """Stop processes that read elsewhere; here there are none."""

    def batches(self, passes: Sequence[Pass]) -> list[Batch]:
        """Group passes into batches; the same passes always give the same batches."""
        assert self.budget is not None
        return make_batches(
            passes,
            budget=1 if self.model.road == "single" else self.budget,
            padded=self.model.road == "padded",
            share=self.model.road == "packed",
            alone_above=self.model.alone_above,
        )

    def run(
        self, passes: Sequence[Pass], batches: Sequence[Batch]
    ) -> Iterator[tuple[Batch, list[TokenNlls | Problem]]]:
        """Read likelihoods alone; yield each batch with one array per pass, in order of completion."""
        for batch, results in self.read(passes, batches, [(READOUTS["nll"],)] * len(passes)):
            yield batch, [one if isinstance(one, Problem) else one.nll for one in results]

    def read(
        self, passes: Sequence[Pass], batches: Sequence[Batch], asked: Asked
    ) -> Iterator[tuple[Batch, list[Read | Problem]]]:
        """Yield each batch with one result per pass of it, in order of completion."""
        assert self.workers is not None
        self.demand_vocabulary(passes, batches)
        self.settle(passes, batches)
        if states_asked(asked):
            demand(self.model.layers)  # found here, before threads read
        with self.own_threads():
            yield from (self.one_ahead if self.workers == 1 else self.side_by_side)(passes, batches, asked)

    @contextmanager
    def own_threads(self) -> Iterator[None]:
        """Use the chosen number of threads per pass on a CPU while this lasts."""
        before = torch.get_num_threads()
        self.take_threads()
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def take_threads(self) -> None:
        """Set the number of threads for what this thread reads from now on."""
        if self.threads:
            torch.set_num_threads(self.threads)

    def side_by_side(
        self, passes: Sequence[Pass], batches: Sequence[Batch], asked: Asked
    ) -> Iterator[tuple[Batch, list[Read | Problem]]]:
        """Read several batches at once, each in a thread."""
        assert self.workers is not None
        waiting = iter(batches)
        under_way: dict[Future[list[Read | Problem]], Batch] = {}
        with ThreadPoolExecutor(self.workers, initializer=self.take_threads) as pool:
            try:
                while True:
                    for batch in waiting:
                        under_way[pool.submit(self.batch, passes, batch, asked)] = batch
                        if len(under_way) > self.workers:
                            break
                    if not under_way:
                        break
                    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield under_way.pop(future), future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def one_ahead(
        self, passes: Sequence[Pass], batches: Sequence[Batch], asked: Asked
    ) -> Iterator[tuple[Batch, list[Read | Problem]]]:
        """Read batches in order; give a GPU the next one before waiting for this one, so that it is never idle."""
        present: tuple[Batch, Results] | None = None
        for batch in batches:
            try:
                coming = self.begin(passes, batch, asked)
            except Exception:
                if present is not None:  # it has been read
                    yield present[0], present[1]()
                raise
            if self.model.device.type != "cuda":  # it has been read by now
                yield batch, coming()
                continue
            if present is not None:
                yield present[0], present[1]()
            present = batch, coming
        if present is not None:
            yield present[0], present[1]()

    def settle(self, passes: Sequence[Pass], batches: Sequence[Batch]) -> None:
        """Put a model that awaits it into fp8 before the first passes are read, and measure its error on some."""
        if not self.model.awaits_fp8 or not batches:
            return
        from tithe.engine.measure.fp8_error import take_fp8

        self.model.fp8 = take_fp8(self.model, passes, batches, budget=self.budget or 1, compiled=self.compiled)
        self.model.awaits_fp8 = False
        said = [self.model.fp8.words()]
        if self.compiled and self.model.fused is not None:
            said.append(f"fp8: {self.model.fused.words()}")
        release(self.model.device)
        if self.say is not None:
            for sentence in said:
                self.say(sentence)

    def batch(self, passes: Sequence[Pass], batch: Batch, asked: Asked) -> list[Read | Problem]:
        """Read one batch and wait for it."""
        return self.begin(passes, batch, asked)()

    def begin(self, passes: Sequence[Pass], batch: Batch, asked: Asked) -> Results:
        """Start one batch; call the result to wait for it. Out of memory halves the batch and goes on.

        Memory runs out, if it does, when a GPU is given its work.
        """
        tokens, single = batch.tokens(passes), len(batch.index) == 1
        if single or tokens < self.too_many:
            some = [passes[i] for i in batch.index], [asked[i] for i in batch.index]
            results = unless_out_of_memory(lambda: self.together(*some, batch.after), self.model.device)
            if results is not None:
                if self.model.device.type == "cpu":
                    give_back()
                return results
            if single:
                return lambda: [OUT_OF_MEMORY]
            self.halved += 1
            self.too_many = min(self.too_many, tokens)
        halves = [result for half in batch.halves() for result in self.batch(passes, half, asked)]
        return lambda: halves

    def together(self, passes: Sequence[Pass], asked: Asked, after: Sequence[After | None]) -> Results:
        """Run one forward pass for all readouts that are asked."""
        likelihoods = [any(map(READS_NLL, each)) for each in asked]
        if not states_asked(asked):
            coming = self.model.begun(self.model.road, passes, after, ReadRequest(likelihoods))
            return lambda: [Read(nll) for nll in coming()]
        reading = self.model.reading
        with torch.inference_mode():
            taps = make_taps(passes, asked, reading)
            wanted = ReadRequest(likelihoods, taps, self.model.layers)
            coming = self.model.begun(self.model.road, passes, after, wanted)
            made = {tap.readout.name: tap.results(dtype_name(self.model.dtype)) for tap in taps}

        def wait() -> list[Read | Problem]:
            found = {name: results() for name, results in made.items()}
            return [
                Read(nll, {name: states[i] for name, states in found.items() if i in states})
                for i, nll in enumerate(coming())
            ]

        return wait

    def demand_vocabulary(self, passes: Sequence[Pass], batches: Sequence[Batch]) -> None:
        """Refuse token ids beyond the embedding."""
        top = max([int(passes[i].ids.max()) for batch in batches for i in batch.index], default=0)
        demand_embedded(self.model.source.name, top, self.model.vocabulary)


def states_asked(asked: Asked) -> list[StateReadout]:
    """Return the readouts of hidden states among all that are asked."""
    return [readout for each in asked for readout in each if isinstance(readout, StateReadout)]


def unless_out_of_memory(read: Callable[[], T], device: torch.device) -> T | None:
    """Call `read`; return None where memory ran out, after freeing what the call held."""
    try:
        return read()
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    release(device)  # outside the handler: the traceback, and with it the batch's activations, is gone
    return None


def is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in text
        for words in ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")
    )


def release(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()

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

from tithe.engine.batches import Batch, SharedPrefix, make_batches
from tithe.engine.devices import dtype_name
from tithe.engine.forward.forward import ReadRequest, TokenNlls
from tithe.engine.forward.states import StateReadout, make_taps
from tithe.engine.host import cpu_cores, threads_allowed, trim_heap
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.loading import holding_devices
from tithe.engine.measure.fused import fuse
from tithe.engine.measure.layout import LayoutChoice, choose_layout, gated_sizes
from tithe.engine.measure.memory import MOST, MemoryBudget, find_memory_budget
from tithe.engine.model_source import demand_known_ids
from tithe.engine.readouts.base import READOUTS, Readout
from tithe.errors import demand
from tithe.records import Pass, Problem

T = TypeVar("T")
READS_NLL = attrgetter("reads_nll")
NUMERICS = 1  # raise it when a change moves answers by more than rounding, so that stored answers are not reused
OUT_OF_MEMORY = Problem("out of memory at batch size 1")
Asked: TypeAlias = Sequence[Sequence[Readout]]  # for each pass, the readouts to compute


@dataclass(frozen=True, slots=True)
class PassResult:
    """The result of one pass.

    Args:
        nll: -log p of each response token that has context; empty if no readout reads it.
        found: what each readout of hidden states computed, by the readout's name.
    """

    nll: TokenNlls
    found: Mapping[str, Any] = field(default_factory=dict)


# Waits for a batch when called, and returns one result per pass.
PendingResults: TypeAlias = Callable[[], list[PassResult | Problem]]


@dataclass
class Engine:
    """A loaded model that reads passes in batches and yields results in order of completion.

    Args:
        model: the model that reads.
        budget: tokens per batch; None takes the fastest on a CPU, or what fits into a GPU's free memory. It changes
            scores by rounding only.
        workers: forward passes that run at once; on a CPU they share its cores. None takes one on a GPU, and the
            fastest number on a CPU, usually one per core.
        say: called with what is only found out when the first passes are read.
        compiled: whether to compile parts of the model; if the model will be put into fp8, its fp8 layers too.
        cores: CPU cores that may be used; None for all.
        threads: CPU threads of each pass if `workers` is given; None divides the cores among the workers.
        most: upper bound on the tokens per batch if the budget is computed from a GPU's free memory.

    Attributes:
        halved: number of batches that did not fit into memory.
        smallest_failed: tokens of the smallest batch that did not fit; larger ones are halved without trying.
        layout: the layout chosen on a CPU, and why.
        memory_budget: how the token budget was computed on a GPU, if none was given.
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
    smallest_failed: float = field(default=math.inf, init=False)
    layout: LayoutChoice | None = field(default=None, init=False)
    memory_budget: MemoryBudget | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.compiled and not self.model.awaits_fp8:
            fuse(self.model)
        self.cores = self.cores or cpu_cores()
        if self.model.device.type == "cpu":
            if not self.model.thread_safe:  # passes would read each other's state
                self.workers = 1
            gated = gated_sizes(self.model) if self.model.forward_path == "packed" else None
            self.layout = choose_layout(
                gated,
                self.cores,
                workers=self.workers,
                threads=self.threads if self.workers else None,
                tokens=self.budget,
                most=threads_allowed(),
            )
            # What the user gave is in the layout unchanged.
            self.workers, self.threads, self.budget = self.layout.workers, self.layout.threads, self.layout.tokens
        elif not self.budget:
            self.memory_budget = find_memory_budget(self.model, self.most)
            self.budget = self.memory_budget.budget
        self.workers = (self.workers or 1) if self.model.thread_safe else 1

    @property
    def measured(self) -> bool:
        """Tell whether the workers or the budget depend on a measurement."""
        return self.memory_budget is not None or (self.layout is not None and bool(self.layout.tokens_per_second))

    @property
    def facts(self) -> dict[str, Any]:
        """Return what was measured and chosen for this model, for the run record."""
        model = self.model
        loss = model.head and model.head.loss
        found = {
            "layout": self.layout and self.layout.as_dict(),
            "room": self.memory_budget and self.memory_budget.as_dict(),
            "keeps": model.keeps,
            "attention_by": model.attend and model.attend.report(),
            "compiled": model.fused and model.fused.as_dict(),
            "fp8": model.fp8 and model.fp8.as_dict(),
            "loss": loss and loss.as_dict(),
        }
        return {name: value for name, value in found.items() if value}

    @property
    def words(self) -> list[str]:
        """Return what was chosen in a few phrases, for the terminal."""
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
        return holding_devices(self.model)

    def in_this_process(self) -> Engine:
        """Return an engine that holds the model in this process."""
        return self

    def close(self) -> None:
        """Stop worker processes; this engine has none."""

    def batches(self, passes: Sequence[Pass]) -> list[Batch]:
        """Group passes into batches; the same passes always give the same batches."""
        assert self.budget is not None
        return make_batches(
            passes,
            budget=1 if self.model.forward_path == "single" else self.budget,
            padded=self.model.forward_path == "padded",
            share=self.model.forward_path == "packed",
            single_above=self.model.single_above,
        )

    def run(
        self, passes: Sequence[Pass], batches: Sequence[Batch]
    ) -> Iterator[tuple[Batch, list[TokenNlls | Problem]]]:
        """Read only likelihoods; yield each batch with one array per pass, in order of completion."""
        for batch, results in self.read(passes, batches, [(READOUTS["nll"],)] * len(passes)):
            yield batch, [one if isinstance(one, Problem) else one.nll for one in results]

    def read(
        self, passes: Sequence[Pass], batches: Sequence[Batch], asked: Asked
    ) -> Iterator[tuple[Batch, list[PassResult | Problem]]]:
        """Yield each batch with one result per pass of it, in order of completion."""
        assert self.workers is not None
        self.demand_vocabulary(passes, batches)
        self.switch_to_fp8(passes, batches)
        if states_asked(asked):
            demand(self.model.layers)  # computed here: threads must not compute it at the same time
        with self.using_threads():
            yield from (self.read_one_ahead if self.workers == 1 else self.read_in_threads)(passes, batches, asked)

    @contextmanager
    def using_threads(self) -> Iterator[None]:
        """Use the chosen number of CPU threads per pass within the `with` block."""
        before = torch.get_num_threads()
        self.set_threads()
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def set_threads(self) -> None:
        """Set the number of CPU threads for passes that the calling thread reads from now on."""
        if self.threads:
            torch.set_num_threads(self.threads)

    def read_in_threads(
        self, passes: Sequence[Pass], batches: Sequence[Batch], asked: Asked
    ) -> Iterator[tuple[Batch, list[PassResult | Problem]]]:
        """Read several batches at once, each in a thread of its own."""
        assert self.workers is not None
        waiting = iter(batches)
        under_way: dict[Future[list[PassResult | Problem]], Batch] = {}
        with ThreadPoolExecutor(self.workers, initializer=self.set_threads) as pool:
            try:
                while True:
                    for batch in waiting:
                        under_way[pool.submit(self.read_batch, passes, batch, asked)] = batch
                        if len(under_way) > self.workers:  # one batch is queued, so that no worker waits
                            break
                    if not under_way:
                        break
                    done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                    for future in done:
                        yield under_way.pop(future), future.result()
            finally:
                pool.shutdown(wait=True, cancel_futures=True)

    def read_one_ahead(
        self, passes: Sequence[Pass], batches: Sequence[Batch], asked: Asked
    ) -> Iterator[tuple[Batch, list[PassResult | Problem]]]:
        """Read batches in order; queue the next one on a GPU before waiting for this one, so that it is never idle."""
        present: tuple[Batch, PendingResults] | None = None
        for batch in batches:
            try:
                coming = self.start_batch(passes, batch, asked)
            except Exception:
                if present is not None:  # the batch before it was read, and its results are kept
                    yield present[0], present[1]()
                raise
            if self.model.device.type != "cuda":  # only CUDA runs asynchronously
                yield batch, coming()
                continue
            if present is not None:
                yield present[0], present[1]()
            present = batch, coming
        if present is not None:
            yield present[0], present[1]()

    def switch_to_fp8(self, passes: Sequence[Pass], batches: Sequence[Batch]) -> None:
        """Convert a model that awaits fp8 before it reads its first passes, and measure the error on some of them."""
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

    def read_batch(self, passes: Sequence[Pass], batch: Batch, asked: Asked) -> list[PassResult | Problem]:
        """Read one batch and wait for its results."""
        return self.start_batch(passes, batch, asked)()

    def start_batch(self, passes: Sequence[Pass], batch: Batch, asked: Asked) -> PendingResults:
        """Start one batch; call the result to wait for it. If memory runs out, halve the batch and go on.

        A GPU allocates when work is queued, so an out-of-memory error is raised here and not while waiting.
        """
        tokens, single = batch.tokens(passes), len(batch.index) == 1
        if single or tokens < self.smallest_failed:  # a single pass cannot be halved, so it is always tried
            some = [passes[i] for i in batch.index], [asked[i] for i in batch.index]
            results = unless_out_of_memory(lambda: self.run_forward(*some, batch.after), self.model.device)
            if results is not None:
                if self.model.device.type == "cpu":  # the batch is done, and its memory free
                    trim_heap()
                return results
            if single:
                return lambda: [OUT_OF_MEMORY]
            self.halved += 1
            self.smallest_failed = min(self.smallest_failed, tokens)
        # Halves are waited for at once, as memory is short.
        halves = [result for half in batch.halves() for result in self.read_batch(passes, half, asked)]
        return lambda: halves

    def run_forward(self, passes: Sequence[Pass], asked: Asked, after: Sequence[SharedPrefix | None]) -> PendingResults:
        """Run one forward pass for all requested readouts."""
        likelihoods = [any(map(READS_NLL, each)) for each in asked]
        if not states_asked(asked):
            coming = self.model.start_reading(self.model.forward_path, passes, after, ReadRequest(likelihoods))
            return lambda: [PassResult(nll) for nll in coming()]
        reading = self.model.reader_context
        with torch.inference_mode():
            taps = make_taps(passes, asked, reading)
            wanted = ReadRequest(likelihoods, taps, self.model.layers)
            coming = self.model.start_reading(self.model.forward_path, passes, after, wanted)
            # Readers queue their work on the device now, before the next batch is given to it.
            made = {tap.readout.name: tap.results(dtype_name(self.model.dtype)) for tap in taps}

        def wait() -> list[PassResult | Problem]:
            found = {name: results() for name, results in made.items()}
            return [
                PassResult(nll, {name: states[i] for name, states in found.items() if i in states})
                for i, nll in enumerate(coming())
            ]

        return wait

    def demand_vocabulary(self, passes: Sequence[Pass], batches: Sequence[Batch]) -> None:
        """Raise if a token id lies beyond the embedding."""
        top = max([int(passes[i].ids.max()) for batch in batches for i in batch.index], default=0)
        demand_known_ids(self.model.source.name, top, self.model.vocabulary)


def states_asked(asked: Asked) -> list[StateReadout]:
    """Return those of the requested readouts that read hidden states."""
    return [readout for each in asked for readout in each if isinstance(readout, StateReadout)]


def unless_out_of_memory(read: Callable[[], T], device: torch.device) -> T | None:
    """Call `read` and return its result; if memory runs out, free what the call held and return None."""
    try:
        return read()
    except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
    release(device)  # outside the handler, where the traceback no longer keeps the batch's activations alive
    return None


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error means too little memory; some torch versions say so only in the text."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(
        words in text
        for words in ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")
    )


def release(device: torch.device) -> None:
    """Free unreferenced tensors and torch's cache on a device."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()

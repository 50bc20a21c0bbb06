"""Processes that tokenise in advance, for a model that reads faster than one thread can tokenise."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

from tithe.data.paper_renderers import CherryRenderer, CpqsRenderer, SuperfilteringRenderer
from tithe.data.render import EncodedExample, Renderer, RenderSettings, TemplateRenderer
from tithe.engine.workers.child_process import ChildProcess
from tithe.engine.workers.worker_process import WorkerFailed
from tithe.errors import TitheError
from tithe.records import Example, Problem

if TYPE_CHECKING:
    from tithe.engine.model_source import ModelSource
    from tithe.runners.trace import Work

RENDERERS = (TemplateRenderer, CherryRenderer, SuperfilteringRenderer, CpqsRenderer)
MOST = 4  # processes; each tokenises about 2,000 short records a second, and four outpace the rest of the planning
PATIENCE = 2.0  # total seconds that the model may wait before the processes start; starting takes as long
# Most seconds of planning in a thread per second of reading on a GPU: the thread holds Python's lock while kernels wait
# to be launched. Measured: half the time lost on a small model.
BESIDE = 0.25
PIECE = 512  # examples per request, so that all processes share a window
AHEAD = 3  # windows handed over in advance
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
Encodings: TypeAlias = Mapping[str, EncodedExample | Problem]  # by the examples' ids


class TokeniserError(TitheError):
    """A tokenising process has failed."""


class TokeniserEndedError(TokeniserError):
    """A tokenising process has ended."""


@dataclass(frozen=True)
class RendererRecipe:
    """All that another process needs to make the same renderer."""

    source: ModelSource
    trust_remote_code: bool
    renderer: type[Any]  # one of `RENDERERS`
    settings: RenderSettings

    def make(self) -> Renderer:
        """Make the renderer from the same files."""
        from tithe.engine.model_source import load_tokenizer

        if not self.trust_remote_code and self.source.gguf is None:  # transformers reads such a file with torch
            hide_torch()
        tokenizer = load_tokenizer(self.source, trust_remote_code=self.trust_remote_code)
        renderer: Renderer = self.renderer(tokenizer, self.settings)
        return renderer


class TokeniserProcess(ChildProcess):
    """A tokenising process. Only one thread may use it at a time."""

    def __init__(self) -> None:
        super().__init__("tithe.runners.tokeniser", QUIET)

    def ask(self, request: RendererRecipe | Sequence[Example]) -> Any:
        """Send a request and wait for the answer.

        Raises:
            TokeniserError: the process reports an error.
            TokeniserEndedError: the process has ended.
        """
        try:
            self.channel.send(request)
            answer = self.channel.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise self.last_words() from None
        if isinstance(answer, WorkerFailed):
            raise TokeniserError(f"a tokenising process failed: {answer.message}")
        return answer

    def last_words(self) -> TokeniserEndedError:
        """Return the error for a process that has ended, with its exit code and stderr."""
        code, said = self.ended() or (0, "")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return TokeniserEndedError(
            f"a tokenising process ended with {how}{said}",
            hint=("out of memory, if it was killed; " if code < 0 else "") + "run the same command again to go on",
        )


@dataclass
class Tokenisers:
    """Pool of tokenising processes, started only once a single thread turns out to be too slow.

    Args:
        source: the model with the tokenizer.
        renderer: the run's renderer, which the processes must reproduce.
        trust_remote_code: as for the run's own tokenizer.
        say: prints when the processes start.
        patience: seconds that the model may wait before they start.
    """

    source: ModelSource
    renderer: Renderer
    trust_remote_code: bool = False
    say: Callable[[str], None] = lambda _: None
    patience: float = PATIENCE
    count: int = field(default=0, init=False)
    waited: float = field(default=0.0, init=False)  # seconds that the model waited before they started
    planned: float = field(default=0.0, init=False)  # seconds that a thread planned before they started
    gave_up: str | None = field(default=None, init=False)  # why the run went on with a thread
    _free: SimpleQueue[TokeniserProcess] = field(default_factory=SimpleQueue, init=False, repr=False)
    _all: list[TokeniserProcess] = field(default_factory=list, init=False, repr=False)
    _threads: ThreadPoolExecutor | None = field(default=None, init=False, repr=False)
    _ready: list[Future[None]] = field(default_factory=list, init=False, repr=False)

    def start_if_slow(self, work: Work, device: str) -> None:
        """Start the processes if the thread is too slow; never on a CPU, where the model needs all cores.

        Args:
            work: what was done so far.
            device: type of the model's device: `cpu`, `cuda`, ...
        """
        waited, much = work.waited >= self.patience, work.planned > max(BESIDE * work.seconds, self.patience)
        if self.count or device == "cpu" or not (waited or (much and work.seconds)):
            return
        from tithe.engine.host import cpu_cores

        spare = cpu_cores() - 1
        if spare < 1:
            return
        if type(self.renderer) in RENDERERS:
            self.waited, self.planned = work.waited, work.planned
            self.start(min(MOST, spare))
            why = f"the model has waited {work.waited:.1f} s for tokens"
            if not waited:
                why = f"a thread planned for {work.planned:.1f} s while the model read for {work.seconds:.1f} s"
            self.say(f"{why}: {self.count} processes tokenise from here on")

    def start(self, count: int) -> None:
        """Start `count` processes without waiting for them."""
        self.count, self._threads = count, ThreadPoolExecutor(count)
        self._all = [TokeniserProcess() for _ in range(count)]
        recipe = RendererRecipe(self.source, self.trust_remote_code, type(self.renderer), self.renderer.settings)
        self._ready = [self._threads.submit(self._greet, process, recipe) for process in self._all]

    def _greet(self, process: TokeniserProcess, recipe: RendererRecipe) -> None:
        """Let a process make its renderer, and check that it is the same as ours."""
        if process.ask(recipe) != describe_renderer(self.renderer):
            raise TokeniserError(
                f"a tokenising process renders differently from this run: the files of `{self.source.name}` or the "
                "template have changed since the run began",
                hint="run the same command again",
            )
        self._free.put(process)

    @property
    def ahead(self) -> int:
        """Number of windows to hand over in advance; 0 until all processes are ready."""
        return AHEAD if self._ready and all(one.done() for one in self._ready) else 0

    def encode(self, examples: Iterable[Example]) -> Callable[[], Encodings]:
        """Start encoding examples without blocking; call the result to wait for the encodings.

        Returns:
            A function that returns them by example id; an empty dict if no process is ready.

        Raises:
            TokeniserError: a process has failed; the returned function may raise it, too.
        """
        if not self.ahead:
            return dict
        try:
            for one in self._ready:
                one.result()
        except TokeniserEndedError as error:  # it never started: the thread can go on as before
            self.gave_up = str(error)
            self.say(f"note: {error}; a thread tokenises as before")
            self.stop()
            return dict
        assert self._threads is not None
        chosen = list(examples)
        pieces = [chosen[i : i + PIECE] for i in range(0, len(chosen), PIECE)]
        coming = [self._threads.submit(self._encoded, piece) for piece in pieces]
        names = [example.id for example in chosen]
        return lambda: dict(zip(names, [one for each in coming for one in each.result()], strict=True))

    def _encoded(self, piece: Sequence[Example]) -> list[EncodedExample | Problem]:
        process = self._free.get()
        try:
            found: list[EncodedExample | Problem] = process.ask(piece)
            return found
        finally:
            self._free.put(process)

    def stop(self) -> None:
        """End all processes."""
        for process in self._all:
            process.close()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self._all, self._ready, self._threads = [], [], None

    def as_dict(self) -> dict[str, Any]:
        """Return the counts for the run record."""
        return {
            "processes": self.count,
            "started_after_waiting_seconds": round(self.waited, 2),
            "started_after_planning_seconds": round(self.planned, 2),
            **({} if self.gave_up is None else {"gave_up": self.gave_up}),
        }


def describe_renderer(renderer: Renderer) -> str:
    """Return a renderer's description as text, to compare it between processes."""
    return json.dumps(renderer.describe(), default=str)


def hide_torch() -> None:
    """Hide torch from transformers, which would import it: 270 MB that a tokenizer does not need."""
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find(name, package)

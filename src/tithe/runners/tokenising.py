"""Processes that tokenise ahead of the model, where one thread beside it is not enough."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

from tithe.data.authors import CherryRenderer, CpqsRenderer, SuperfilteringRenderer
from tithe.data.render import Encoded, Renderer, RenderSettings, TemplateRenderer
from tithe.engine.workers.child_process import ChildProcess
from tithe.engine.workers.worker_process import WorkerFailed
from tithe.errors import TitheError
from tithe.records import Example, Problem

if TYPE_CHECKING:
    from tithe.engine.model_source import ModelSource
    from tithe.runners.trace import Work

RENDERERS = (TemplateRenderer, CherryRenderer, SuperfilteringRenderer, CpqsRenderer)
MOST = 4  # processes: each tokenises about 2,000 short records a second, and what is left to this one is less
PATIENCE = 2.0  # seconds that the model may wait in all before they are started, which takes about as long
# Seconds of planning that stand against one of reading: beside a GPU no more than this is left to a thread, as it holds
# Python's lock while kernels are to be launched. Measured: half the time lost on a small model.
BESIDE = 0.25
PIECE = 512  # examples a request: a window is spread over all processes
AHEAD = 3  # windows under way
QUIET = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
Encodings: TypeAlias = Mapping[str, Encoded | Problem]  # by the examples' ids


class TokeniserError(TitheError):
    """A process that tokenises has failed."""


class TokeniserEndedError(TokeniserError):
    """It is not there any more."""


@dataclass(frozen=True)
class RendererRecipe:
    """What it takes to make the run's renderer in another process."""

    source: ModelSource
    trust_remote_code: bool
    renderer: type[Any]  # one of `RENDERERS`
    settings: RenderSettings

    def made(self) -> Renderer:
        """Make it, from the same files."""
        from tithe.engine.model_source import load_tokenizer

        if not self.trust_remote_code:
            without_torch()
        tokenizer = load_tokenizer(self.source, trust_remote_code=self.trust_remote_code)
        renderer: Renderer = self.renderer(tokenizer, self.settings)
        return renderer


class TokeniserProcess(ChildProcess):
    """One of them. Only one thread may ask it at a time."""

    def __init__(self) -> None:
        super().__init__("tithe.runners.tokeniser", QUIET)

    def ask(self, request: RendererRecipe | Sequence[Example]) -> Any:
        """Send it a request and wait for the answer.

        Raises:
            TokeniserError: it cannot.
            TokeniserEndedError: it is dead.
        """
        try:
            self.channel.send(request)
            answer = self.channel.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise self.last_words() from None
        if isinstance(answer, WorkerFailed):
            raise TokeniserError(f"a process that tokenises says: {answer.message}")
        return answer

    def last_words(self) -> TokeniserEndedError:
        code, said = self.ended() or (0, "")
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        return TokeniserEndedError(
            f"a process that tokenises ended with {how}{said}",
            hint=("out of memory, if it was killed; " if code < 0 else "")
            + "the same command goes on from what is done",
        )


@dataclass
class Tokenisers:
    """Encodes examples in processes, once a thread is too slow or too much; before that, and without, nothing happens.

    Args:
        source: the model, whose tokenizer it is.
        renderer: what the processes have to repeat.
        trust_remote_code: as the run's own tokenizer was loaded.
        say: told when they are started.
        patience: seconds.
    """

    source: ModelSource
    renderer: Renderer
    trust_remote_code: bool = False
    say: Callable[[str], None] = lambda _: None
    patience: float = PATIENCE
    count: int = field(default=0, init=False)
    waited: float = field(default=0.0, init=False)  # seconds, before they were started
    planned: float = field(default=0.0, init=False)
    gave_up: str | None = field(default=None, init=False)  # why a thread went on in their place
    _free: SimpleQueue[TokeniserProcess] = field(default_factory=SimpleQueue, init=False, repr=False)
    _all: list[TokeniserProcess] = field(default_factory=list, init=False, repr=False)
    _threads: ThreadPoolExecutor | None = field(default=None, init=False, repr=False)
    _ready: list[Future[None]] = field(default_factory=list, init=False, repr=False)

    def after(self, work: Work, device: str) -> None:
        """Start them if it is time: on a CPU never, as the model has all cores there.

        Args:
            work: what the model has read so far, how long it has waited, and how long a thread has planned.
            device: where it is: `cpu`, `cuda`, ...
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
        """Start so many, and do not wait for them."""
        self.count, self._threads = count, ThreadPoolExecutor(count)
        self._all = [TokeniserProcess() for _ in range(count)]
        recipe = RendererRecipe(self.source, self.trust_remote_code, type(self.renderer), self.renderer.settings)
        self._ready = [self._threads.submit(self._greet, process, recipe) for process in self._all]

    def _greet(self, process: TokeniserProcess, recipe: RendererRecipe) -> None:
        if process.ask(recipe) != described(self.renderer):
            raise TokeniserError(
                f"a process that tokenises renders otherwise than this run: the files of `{self.source.name}` or the "
                "template have changed since it began",
                hint="run the same command again",
            )
        self._free.put(process)

    @property
    def ahead(self) -> int:
        """Count the windows to hand over before the first is wanted."""
        return AHEAD if self._ready and all(one.done() for one in self._ready) else 0

    def encode(self, examples: Iterable[Example]) -> Callable[[], Encodings]:
        """Begin to encode those that can be; what is called for the result says which were.

        Raises:
            TokeniserError: when it is called, if a process has failed.
        """
        if not self.ahead:
            return dict
        try:
            for one in self._ready:
                one.result()
        except TokeniserEndedError as error:  # before it had anything to do: the thread can go on as before
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

    def _encoded(self, piece: Sequence[Example]) -> list[Encoded | Problem]:
        process = self._free.get()
        try:
            found: list[Encoded | Problem] = process.ask(piece)
            return found
        finally:
            self._free.put(process)

    def stop(self) -> None:
        """End them all."""
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


def described(renderer: Renderer) -> str:
    """Return what a renderer says of itself, to be compared between processes."""
    return json.dumps(renderer.describe(), default=str)


def without_torch() -> None:
    """Hide torch from transformers, which imports it wherever it is installed: 270 MB a tokenizer has no use for."""
    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, package=None: None if name == "torch" else find(name, package)

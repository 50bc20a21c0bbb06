"""Processes that tokenise ahead of the model, where one thread beside it is not enough."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from queue import SimpleQueue
from typing import IO, TYPE_CHECKING, Any, TypeAlias

from tithe.data.render import Encoded, Renderer
from tithe.engine.workers.orphan import child_variables
from tithe.engine.workers.process import last_line, search_path
from tithe.errors import TitheError
from tithe.records import Example, Problem
from tithe.runners.tokeniser import RENDERERS, can_send, sent, unpacked

if TYPE_CHECKING:
    from tithe.engine.sources import ModelSource
    from tithe.runners.trace import Work

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


class EndedError(TokeniserError):
    """It is not there any more."""


@dataclass
class Process:
    """One of them. Only one thread may ask it at a time.

    Args:
        recipe: what it takes to make the renderer.
    """

    recipe: Mapping[str, Any]
    popen: subprocess.Popen[bytes] = field(init=False)
    words: IO[bytes] = field(init=False, repr=False)  # what it says besides; open as long as it lives

    def __post_init__(self) -> None:
        self.words = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tithe.runners.tokeniser"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.words,
            # The same modules, found in the same order; and nothing that lies in the present folder by chance.
            env={**os.environ, **QUIET, **child_variables(), "PYTHONPATH": search_path(), "PYTHONSAFEPATH": "1"},
            start_new_session=True,  # Ctrl-C is for us; it ends when we do
        )

    def ask(self, request: Any) -> tuple[dict[str, Any], bytes]:
        """An answer's line, and the bytes behind it.

        Raises:
            TokeniserError: it cannot.
            EndedError: it is dead.
        """
        assert self.popen.stdin is not None and self.popen.stdout is not None
        line = body = b""
        with suppress(BrokenPipeError):
            self.popen.stdin.write(json.dumps(request).encode() + b"\n")
            self.popen.stdin.flush()
            line = self.popen.stdout.readline()
        said: dict[str, Any] = json.loads(line) if line.endswith(b"\n") else {}
        if "error" in said:
            raise TokeniserError(f"a process that tokenises says: {said['error']}")
        body = self.popen.stdout.read(said.get("bytes", 0))
        if not said or len(body) < said.get("bytes", 0):
            raise self.ended()
        return said, body

    def ended(self) -> EndedError:
        """How it did, and what it said last."""
        code = self.popen.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        said = last_line(self.words)
        return EndedError(
            f"a process that tokenises ended with {how}" + (f", and its last words were: {said}" if said else ""),
            hint=("out of memory, if it was killed; " if code < 0 else "")
            + "the same command goes on from what is done",
        )

    def stop(self) -> None:
        """It ends with its input; whatever it is doing is not wanted."""
        self.popen.kill()
        self.popen.wait()
        for pipe in (self.popen.stdin, self.popen.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()
        self.words.close()


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
    _free: SimpleQueue[Process] = field(default_factory=SimpleQueue, init=False, repr=False)
    _all: list[Process] = field(default_factory=list, init=False, repr=False)
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
        if type(self.renderer) in RENDERERS.values():
            self.waited, self.planned = work.waited, work.planned
            self.start(min(MOST, spare))
            why = f"the model has waited {work.waited:.1f} s for tokens"
            if not waited:
                why = f"a thread planned for {work.planned:.1f} s while the model read for {work.seconds:.1f} s"
            self.say(f"{why}: {self.count} processes tokenise from here on")

    def start(self, count: int) -> None:
        """Start so many, and do not wait for them."""
        self.count, self._threads = count, ThreadPoolExecutor(count)
        self._all = [Process(self.recipe()) for _ in range(count)]
        self._ready = [self._threads.submit(self._greet, process) for process in self._all]

    def recipe(self) -> dict[str, Any]:
        """What it takes to make the renderer elsewhere."""
        adapter = self.source.adapter
        return {
            "model": self.source.name,
            "folder": str(self.source.folder),
            "adapter": None if adapter is None else str(adapter),
            "trust_remote_code": self.trust_remote_code,
            "renderer": type(self.renderer).__name__,
            "settings": asdict(self.renderer.settings),
        }

    def _greet(self, process: Process) -> None:
        said, _ = process.ask(process.recipe)
        if said["ready"] != json.loads(json.dumps(self.renderer.describe(), default=str)):
            raise TokeniserError(
                f"a process that tokenises renders otherwise than this run: the files of `{self.source.name}` or the "
                "template have changed since it began",
                hint="run the same command again",
            )
        self._free.put(process)

    @property
    def ahead(self) -> int:
        """Windows to hand over before the first is wanted."""
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
        except EndedError as error:  # before it had anything to do: the thread can go on as before
            self.gave_up = str(error)
            self.say(f"note: {error}; a thread tokenises as before")
            self.stop()
            return dict
        assert self._threads is not None
        chosen = [example for example in examples if can_send(example)]
        pieces = [chosen[i : i + PIECE] for i in range(0, len(chosen), PIECE)]
        coming = [self._threads.submit(self._encoded, piece) for piece in pieces]
        names = [example.id for example in chosen]
        return lambda: dict(zip(names, [one for each in coming for one in each.result()], strict=True))

    def _encoded(self, piece: Sequence[Example]) -> list[Encoded | Problem]:
        process = self._free.get()
        try:
            return unpacked(*process.ask([sent(example) for example in piece]), len(piece))
        finally:
            self._free.put(process)

    def stop(self) -> None:
        """End them all."""
        for process in self._all:
            process.stop()
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self._all, self._ready, self._threads = [], [], None

    def as_dict(self) -> dict[str, Any]:
        """For the run record."""
        return {
            "processes": self.count,
            "started_after_waiting_seconds": round(self.waited, 2),
            "started_after_planning_seconds": round(self.planned, 2),
            **({} if self.gave_up is None else {"gave_up": self.gave_up}),
        }

"""Seconds of the whole job, by what takes them: each measured on a sample, and taken to all records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tithe.data.render import Renderer
from tithe.runners.tokenising import BESIDE, MOST, PATIENCE, RENDERERS


@dataclass(frozen=True)
class Whole:
    """What goes on one after the other, and what beside what.

    Args:
        load: seconds until the engine reads at its speed.
        tokens: that are to be read.
        rates: tokens per second of the model in each reading: the slowest, the median and the fastest.
        thread: seconds of tokenising by one thread.
        processes: that share it out.
        score: seconds of making scores and their table.
        overlapped: whether scores are made while the model reads the next records; on a CPU they are not.
    """

    load: float
    tokens: int
    rates: tuple[float, float, float]
    thread: float
    processes: int
    score: float
    overlapped: bool

    @property
    def tokenise(self) -> float:
        """Seconds of tokenising."""
        return self.thread / self.processes

    def seconds(self, rate: float) -> float:
        """All of it, at so many tokens per second of the model."""
        beside = [self.tokens / rate, self.tokenise, *([self.score] if self.overlapped else [])]
        return self.load + max(beside) + (0.0 if self.overlapped else self.score)

    def as_dict(self) -> dict[str, Any]:
        """For the record."""
        slowest, median, fastest = self.rates
        return {
            "tokens": self.tokens,
            "seconds": round(self.seconds(median), 2),
            "seconds_range": [round(self.seconds(rate), 2) for rate in (fastest, slowest)],
            "load_seconds": round(self.load, 2),
            "read_seconds": round(self.tokens / median, 2),
            "tokenise_seconds": round(self.tokenise, 2),
            "score_seconds": round(self.score, 2),
            "scores_overlapped": self.overlapped,
        }


def tokenising_processes(thread: float, read: float, device: str, renderer: Renderer) -> int:
    """How many a run starts for it; 1 also where it leaves all to a thread.

    Args:
        thread: seconds of one thread for the whole job.
        read: of the model.
        device: `cpu`, `cuda`, ...
        renderer: of the run; processes know those of Tithe alone.
    """
    from tithe.engine.host import cpu_cores

    if device == "cpu" or type(renderer) not in RENDERERS or thread <= max(BESIDE * read, PATIENCE):
        return 1
    return max(1, min(MOST, cpu_cores() - 1))

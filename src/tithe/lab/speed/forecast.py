"""Forecast a whole job from a measured sample: seconds and memory, as a record and in words."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tithe.data.outfile import check_writable
from tithe.data.render import Renderer
from tithe.lab.speed.sample import TimedReading
from tithe.run.folder import write_json
from tithe.runners.tokenising import BESIDE, MOST, PATIENCE, RENDERERS

NOISY = 0.2  # spread of repeated readings above which other work must be running
FEW = 4  # batches per worker; with fewer, partly filled ones distort the speed


@dataclass(frozen=True)
class BenchResult:
    """The result of a bench; `record` has the numbers."""

    record: dict[str, Any] = field(repr=False)

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the record as JSON."""
        check_writable(Path(path), overwrite)
        write_json(Path(path), self.record)

    def __str__(self) -> str:
        return "\n".join(lines(self.record))


@dataclass(frozen=True)
class SampleSpeed:
    """Speed of a sample.

    Args:
        readings: of the same sample.
        peak: GFLOP/s of the machine's matrix products.
    """

    readings: Sequence[TimedReading]
    peak: float

    @property
    def rates(self) -> list[float]:
        """Tokens per second of each reading."""
        return [one.tokens / one.seconds for one in self.readings]

    @property
    def spread(self) -> float:
        """(most - least) / median."""
        return (max(self.rates) - min(self.rates)) / statistics.median(self.rates)

    @property
    def middle(self) -> TimedReading:
        """The reading of median seconds."""
        return sorted(self.readings, key=lambda one: one.seconds)[len(self.readings) // 2]

    def as_dict(self) -> dict[str, Any]:
        gflops = self.middle.flops / self.middle.seconds / 1e9
        return {
            "tokens_per_second": [round(rate, 1) for rate in self.rates],
            "tokens_per_second_median": round(statistics.median(self.rates), 1),
            "spread": round(self.spread, 3),
            "gflops": round(gflops, 3),
            "utilisation": round(gflops / self.peak, 4),
            "padding": round(1 - self.middle.tokens / self.middle.through, 4),
            "peak_bytes": max(one.peak_bytes for one in self.readings),
            "batches_halved": max(one.halved for one in self.readings),
        }

    def doubts(self, budget: int, workers: int) -> Iterator[str]:
        """Yield reasons to doubt the numbers.

        Args:
            budget: tokens of a batch.
            workers: batches read at once.
        """
        if self.spread > NOISY:
            yield f"repeated readings differ by {self.spread:.0%}: other work on this machine?"
        batches = self.middle.through / budget
        if batches < FEW * workers:
            full = f"the sample fills {batches:.1f} batches of {budget:,} tokens"
            yield f"{full}, with {workers} at once: a larger `--limit` or `--seconds` is steadier"


@dataclass(frozen=True)
class WholeJob:
    """Seconds of the whole job, extrapolated from a sample.

    Args:
        load: seconds until the engine reads at full speed.
        tokens: to read.
        rates: tokens per second of the slowest, the median and the fastest reading.
        thread: seconds of tokenising with one thread.
        processes: that share the tokenising.
        score: seconds of computing scores and their table.
        overlapped: whether scores are computed while the model reads the next records; not on a CPU.
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
        """Return the seconds of the whole job, if the model reads `rate` tokens per second."""
        # What runs at the same time costs as much as its slowest part.
        beside = [self.tokens / rate, self.tokenise, *([self.score] if self.overlapped else [])]
        return self.load + max(beside) + (0.0 if self.overlapped else self.score)

    def as_dict(self) -> dict[str, Any]:
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
    """Return how many processes a run starts for tokenising; 1 stands for a thread, too.

    Args:
        thread: seconds of one thread for the whole job.
        read: seconds of the model's reading.
        device: `cpu`, `cuda`, ...
        renderer: of the run; processes support only Tithe's own ones.
    """
    from tithe.engine.host import cpu_cores

    if device == "cpu" or type(renderer) not in RENDERERS or thread <= max(BESIDE * read, PATIENCE):
        return 1
    return max(1, min(MOST, cpu_cores() - 1))


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the record of a bench in words, line by line."""
    whole, speed, peak, engine = record["whole"], record["speed"], record["peak"], record["engine"]
    machine, sample = record["machine"], record["sample"]
    by = " by oneDNN" if engine.get("fp32", {}).get("name") == "onednn" else ""
    cores = f" on {peak['threads']} cores" if peak["threads"] > 1 else ""
    yield (
        f"machine: {machine['device']}, {machine['cores']} cores; {engine['dtype']}{by} multiplies at "
        f"{peak['gflops']:,.4g} GFLOP/s{cores} (median {peak['gflops_median']:,.4g}; {peak['product']})"
    )
    yield (
        f"sample: {sample['records']:,} of {sample['of']:,} records, {sample['tokens']:,} tokens, "
        f"read {sample['repeats']} times"
    )
    rates = speed["tokens_per_second"]
    halved = f", halved {speed['batches_halved']:,} times because memory ran out" if speed["batches_halved"] else ""
    yield (
        f"speed: {speed['tokens_per_second_median']:,.0f} tokens/s ({min(rates):,.0f} to {max(rates):,.0f}), "
        f"{engine['batch_tokens']:,} tokens a batch, {engine['workers']} at once{halved}"
    )
    yield (
        f"model-FLOPs utilisation: {speed['utilisation']:.0%}, {speed['gflops']:,.3g} of {peak['gflops']:,.4g} "
        "GFLOP/s; attention's own products are counted"
    )
    if speed["padding"] >= 0.005:
        yield f"padding: {speed['padding']:.1%} of the tokens that go through the layers"
    low, high = (duration(seconds) for seconds in whole["seconds_range"])
    takes = f"{duration(whole['seconds'])} ({low} to {high})"
    yield f"whole job: {whole['tokens']:,} tokens in {takes}: {job_parts(whole)}"
    yield f"memory: {size(whole['peak_bytes'])} at most, weights {size(whole['weight_bytes'])} of it"
    for note in record["notes"]:
        yield f"note: {note}"


def job_parts(whole: Mapping[str, Any]) -> str:
    """Return the parts of the whole job's seconds; of those beside the reading, only one that takes longer."""
    beside = {"tokenising": whole["tokenise_seconds"]}
    if whole["scores_overlapped"]:
        beside["scores"] = whole["score_seconds"]
    words = [f"loading {duration(whole['load_seconds'])}", f"reading {duration(whole['read_seconds'])}"]
    longest = max(beside, key=lambda name: beside[name])
    if beside[longest] > whole["read_seconds"]:
        words.append(f"beside it {longest} {duration(beside[longest])}")
    if not whole["scores_overlapped"]:
        words.append(f"scores {duration(whole['score_seconds'])}")
    return ", ".join(words)


def duration(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def size(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} GB"

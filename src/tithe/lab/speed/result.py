"""What a bench has found: numbers in a record, and in words."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.data.outfile import check_writable
from tithe.engine.measure.shape import Shape
from tithe.lab.speed.reading import NOISY, Choice, Reading, Sample
from tithe.lab.speed.whole import Whole, tokenising_processes
from tithe.lab.speed.words import lines
from tithe.run.folder import write_json

if TYPE_CHECKING:
    from tithe.engine.measure.machine import Machine

WORTH = 0.05  # faster by this share than the defaults: less is no reason to give options
FEW = 4  # batches a worker, below which their ends count


@dataclass(frozen=True)
class BenchResult:
    """A bench; `record` has the numbers."""

    record: dict[str, Any] = field(repr=False)

    def write(self, path: str | Path, *, overwrite: bool = False) -> None:
        """The record as JSON."""
        check_writable(Path(path), overwrite)
        write_json(Path(path), self.record)

    def __str__(self) -> str:
        return "\n".join(lines(self.record))


@dataclass(frozen=True)
class Limits:
    """Where the time goes.

    Args:
        readings: with a clock, one pass of one thread after the other.
        tokenising: seconds and tokens of planning the sample.
        shape: of the model.
        peak: GFLOP/s of one core, or of the GPU.
        loading: seconds until the engine reads at its speed.
    """

    readings: Sequence[Reading]
    tokenising: Sequence[tuple[float, int]]
    shape: Shape
    peak: float
    loading: float = 0.0

    @property
    def tokenised(self) -> list[float]:
        """Tokens per second of one thread that tokenises."""
        return [tokens / seconds for seconds, tokens in self.tokenising]

    def as_dict(self, rate: float, processes: int = 1) -> dict[str, Any]:
        """For the record.

        Args:
            rate: tokens per second, as a plan counts them, of the model at work.
            processes: that tokenise.
        """
        tokenised = self.tokenised
        layers = [self.shape.flops(one.tokens, 0) + one.attention for one in self.readings]
        heads = [self.shape.flops(0, one.scored) for one in self.readings]
        return {
            "backbone": self.part([one.backbone_seconds for one in self.readings], layers),
            "head": self.part([one.head_seconds for one in self.readings], heads),
            "rest": self.part([one.seconds - one.backbone_seconds - one.head_seconds for one in self.readings]),
            "padding": round(1 - sum(r.tokens for r in self.readings) / sum(r.through for r in self.readings), 4),
            "tokenising": {
                "tokens_per_second": round(statistics.median(tokenised), 1),
                "spread": round((max(tokenised) - min(tokenised)) / statistics.median(tokenised), 3),
                "processes": processes,
                "share_of_the_model": round(rate / statistics.median(tokenised) / processes, 4),
            },
        }

    def part(self, seconds: Sequence[float], flops: Sequence[float] = ()) -> dict[str, Any]:
        """One part of a pass: its share of the time in each reading, and how near it comes to the peak."""
        shares = [own / one.seconds for own, one in zip(seconds, self.readings, strict=True)]
        out: dict[str, Any] = {
            "share": round(sum(seconds) / sum(one.seconds for one in self.readings), 4),  # of all: they add up to 1
            "shares": [round(share, 4) for share in shares],
        }
        if flops and all(own > 0 for own in seconds):
            gflops = statistics.median(work / own / 1e9 for work, own in zip(flops, seconds, strict=True))
            out |= {"gflops": round(gflops, 3), "utilisation": round(gflops / self.peak, 4)}
        return out


def conclude(
    record: dict[str, Any],
    sample: Sample,
    choices: Sequence[Choice],
    limits: Limits,
    machine: Machine,
    notes: list[str],
) -> BenchResult:
    """The measurements, what they say of the whole job, and which options to take."""
    engine = record["engine"]
    dtype = next(peak.speed.dtype for peak in machine.peaks if str(peak.speed.dtype) == f"torch.{engine['dtype']}")
    peak = machine.best(dtype, machine.threads)
    usual = next(c for c in choices if (c.budget, c.workers) == (engine["batch_tokens"], engine["workers"]))
    best = max(choices, key=lambda one: one.rate)
    taken = best if best.rate > usual.rate * (1 + max(WORTH, usual.spread, best.spread)) else usual
    whole = whole_job(record, sample, taken, limits, machine.device.type)
    held = max(one.peak_bytes for one in taken.readings)
    if machine.device.type == "cpu":  # where the examples of the whole job are planned, too
        held += record["planning_bytes"]
    record |= {
        "peak": {
            "gflops": round(peak.best, 1),
            "gflops_median": round(peak.median, 1),
            "gflops_one_core": round(machine.best(dtype, 1).best, 1),
            "threads": peak.threads,
            "product": str(peak.product),
        },
        "sample": {
            "records": sample.records,
            "of": record["counts"]["records"],
            "tokens": usual.middle.tokens,
            "repeats": len(usual.readings),
        },
        "tried": [one.as_dict(sample, peak.best) for one in choices],
        "usual": usual.as_dict(sample, peak.best),
        "limits": limits.as_dict(whole.rates[1], whole.processes),
        "whole": {
            **whole.as_dict(),
            "peak_bytes": held,
            "weight_bytes": sum(w.numel() * w.element_size() for w in weights(sample)),
        },
        "options": {"batch_tokens": taken.budget, "workers": taken.workers, "defaults": taken is usual},
    }
    record["notes"] = [*notes, *doubts(choices, usual)]
    return BenchResult(record)


def whole_job(record: dict[str, Any], sample: Sample, taken: Choice, limits: Limits, device: str) -> Whole:
    """The seconds of the whole job, with the options that are taken."""
    planned = [one.planned / one.seconds for one in taken.readings]
    rate, tokens = statistics.median(planned), record["counts"]["forward_tokens"]
    thread = tokens / statistics.median(limits.tokenised)
    return Whole(
        load=limits.loading,
        tokens=tokens,
        rates=(min(planned), rate, max(planned)),
        thread=thread,
        processes=tokenising_processes(thread, tokens / rate, device, sample.setup.renderer),
        score=statistics.median(one.score_seconds for one in taken.readings)
        * (record["counts"]["records"] / sample.records),
        overlapped=device != "cpu",
    )


def weights(sample: Sample) -> Any:
    return sample.usual.model.model.parameters()


def doubts(choices: Sequence[Choice], usual: Choice) -> list[str]:
    """Why the numbers may be worth less than they look."""
    found = []
    worst = max(one.spread for one in choices)
    if worst > NOISY:
        found.append(f"readings of the same differ by {worst:.0%}: other work on this machine?")
    batches = usual.middle.through / usual.budget
    if batches < FEW * usual.workers:
        full = f"the sample fills {batches:.1f} batches of {usual.budget:,} tokens"
        found.append(f"{full}, with {usual.workers} at once: a larger `--limit` or `--seconds` is steadier")
    return found

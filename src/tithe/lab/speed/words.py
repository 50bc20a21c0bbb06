"""What a bench says, line by line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

PARTS = {"backbone": "layers", "head": "output head", "rest": "all else"}
KERNELS = {"default": "torch's own", "onednn": "oneDNN's"}
SLOW = 0.5  # of the peak, below which other things than products take most of the time


def lines(record: Mapping[str, Any]) -> Iterator[str]:
    """For people; the numbers are those of the record."""
    whole, usual, peak = record["whole"], record["usual"], record["peak"]
    yield from machine_lines(record)
    sample = record["sample"]
    yield (
        f"sample: {sample['records']:,} of {sample['of']:,} records, {sample['tokens']:,} tokens, "
        f"read {sample['repeats']} times in each way"
    )
    for one in record["tried"]:
        yield tried_line(one, one == usual)
    yield (
        f"model-FLOPs utilisation: {usual['utilisation']:.0%}, {usual['gflops']:,.3g} of {peak['gflops']:,.4g} "
        "GFLOP/s; attention's own products are counted"
    )
    yield from limit_lines(record["limits"], "" if record["engine"]["device"] != "cpu" else ", on one core")
    low, high = (duration(seconds) for seconds in whole["seconds_range"])
    takes = f"{duration(whole['seconds'])} ({low} to {high})"
    yield f"whole job: {whole['tokens']:,} tokens in {takes}: {whole_words(whole)}"
    yield f"memory: {size(whole['peak_bytes'])} at most, of it weights {size(whole['weight_bytes'])}"
    yield options_line(record["options"])
    for note in record["notes"]:
        yield f"note: {note}"


def machine_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """The ceiling, and of a CPU the kernels of fp32."""
    machine, peak, engine = record["machine"], record["peak"], record["engine"]
    by = " by oneDNN" if engine.get("fp32", {}).get("name") == "onednn" else ""
    cores = f" on {peak['threads']} cores, {peak['gflops_one_core']:,.4g} on one" if peak["threads"] > 1 else ""
    yield (
        f"machine: {machine['device']}, {machine['cores']} cores; {engine['dtype']}{by} multiplies at "
        f"{peak['gflops']:,.4g} GFLOP/s{cores} (median {peak['gflops_median']:,.4g}; {peak['product']})"
    )
    fp32 = machine["fp32"]
    if fp32 is not None:
        rates = ", ".join(f"{KERNELS[name]} {rate:,.4g} GFLOP/s" for name, rate in fp32["gflops"].items())
        errors = ", ".join(f"{KERNELS[name]} {error:.1e}" for name, error in fp32["relative_error"].items())
        yield f"fp32: {fp32['why']}; {rates}{'; ' if rates else ''}relative error {errors}"


def tried_line(one: Mapping[str, Any], usual: bool) -> str:
    rates = one["tokens_per_second"]
    halved = f", halved {one['batches_halved']:,} times for want of memory" if one["batches_halved"] else ""
    return (
        f"{one['batch_tokens']:,} tokens a batch, {one['workers']} at once: "
        f"{one['tokens_per_second_median']:,.0f} tokens/s ({min(rates):,.0f} to {max(rates):,.0f}), "
        f"{one['utilisation']:.0%} of peak{halved}{' <- as it is' if usual else ''}"
    )


def limit_lines(limits: Mapping[str, Any], where: str) -> Iterator[str]:
    """Where the time of a pass goes, and what that says."""
    yield f"time of a pass{where}: " + ", ".join(part_words(name, limits[name]) for name in PARTS)
    if limits["padding"] >= 0.005:
        yield f"padding: {limits['padding']:.1%} of the tokens that go through the layers"
    tokenising = limits["tokenising"]
    need = tokenising["share_of_the_model"]
    done = "done ahead" if need < 1 else "the model waits for it"
    who = f" in each of {tokenising['processes']} processes" if tokenising["processes"] > 1 else ""
    yield f"tokenising: {tokenising['tokens_per_second']:,.0f} tokens/s{who}, {need:.1%} of the model's time, {done}"
    yield f"what limits: {what_limits(limits)}"


def part_words(name: str, part: Mapping[str, Any]) -> str:
    shares = part["shares"]
    peak = f", at {part['utilisation']:.0%} of peak" if "utilisation" in part else ""
    return f"{PARTS[name]} {part['share']:.0%} ({min(shares):.0%} to {max(shares):.0%}{peak})"


def what_limits(limits: Mapping[str, Any]) -> str:
    """The largest part, and whether it computes or waits."""
    if limits["tokenising"]["share_of_the_model"] >= 1:
        return "tokenising; the model is faster"
    name = max(PARTS, key=lambda one: limits[one]["share"])
    part = limits[name]
    if "utilisation" not in part:
        return f"{PARTS[name]}: batching, copying and storing answers, which small models do not hide"
    if part["utilisation"] >= SLOW:
        return f"the {PARTS[name]}, at {part['utilisation']:.0%} of what this machine multiplies"
    return (
        f"the {PARTS[name]}, at {part['utilisation']:.0%} of what this machine multiplies: the rest goes to small "
        "matrices, and to what is no matrix product"
    )


def whole_words(whole: Mapping[str, Any]) -> str:
    """What is waited for; of what goes on beside the reading, what takes longer."""
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


def options_line(options: Mapping[str, Any]) -> str:
    given = f"--batch-tokens {options['batch_tokens']} --workers {options['workers']}"
    return "options: none are needed, nothing tried is clearly faster" if options["defaults"] else f"options: {given}"


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

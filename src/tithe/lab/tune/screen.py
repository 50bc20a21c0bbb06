"""What a person sees of a training, on stderr; of several processes only the main one talks."""

from __future__ import annotations

from tithe.lab.tune.processes import is_main
from tithe.lab.tune.tune import TuneResult
from tithe.report.reporter import Talk
from tithe.report.terminal import Screen, console, say


def listener() -> Talk:
    """A screen for the main process; nobody for the others."""
    return Screen() if is_main() else Talk()


def show_tuned(result: TuneResult) -> None:
    """Losses, speed, and where the model lies."""
    if not is_main():
        return
    out, record = console(), result.record
    losses = record["losses"]
    say(out, f"loss {losses[0]:.4g} at the first step, {losses[-1]:.4g} at the last, nats per response token")
    rate = record["tokens_per_second"]
    speed = f", {rate:,.0f} tokens/s" if rate else ""
    say(out, f"{record['steps']:,} steps, {record['tokens']:,} tokens in {record['seconds']:.1f} s{speed}")
    say(out, f"recipe digest {record['recipe_digest']}; model: {result.folder}")

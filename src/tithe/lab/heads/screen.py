"""What a terminal shows of a head."""

from __future__ import annotations

from tithe.lab.heads.train_head import HeadResult
from tithe.printable import counted
from tithe.report.terminal import console, say


def show_head(result: HeadResult) -> None:
    """What a head is worth, the verdict first, and where it lies."""
    out, counts = console(), result.record.get("counts", {})
    for reason, n in counts.get("left_out", {}).items():
        say(out, f"responses left out, {n:,}: {reason}")
    if counts.get("truncated_responses") or counts.get("truncated_prompts"):
        say(
            out,
            f"cut at max length: {counted(counts['truncated_responses'], 'response')}, "
            f"{counted(counts['truncated_prompts'], 'prompt')}",
        )
    if "train_responses" in counts:
        sides = ", ".join(f"{counts[f'{name}_responses']:,} {name}" for name in ("train", "validation", "test"))
        say(out, f"{counted(counts['responses'], 'response')} to {counted(counts['prompts'], 'prompt')}: {sides}")
    for line in str(result).splitlines():
        say(out, line)

"""Print the results of answering and judging to stderr."""

from __future__ import annotations

from pathlib import Path

from tithe.lab.judge.pairwise import JudgeResult
from tithe.lab.judge.prompt_answers import AnswerResult
from tithe.lab.judge.tally import Tally
from tithe.report.terminal import console, pairs, say

MOST_REASONS = 5  # shown
MUCH, FEW = 0.3, 2  # share and number of pairs decided by their order, above which there is a warning


def show_answered(result: AnswerResult, folder: Path) -> None:
    """Print what became of the prompts."""
    out, counts = console(), result.record["counts"]
    rows = [("prompts", counts["prompts"]), ("answers", counts["answers"])]
    rows += [("  empty", counts["empty"])] if counts["empty"] else []
    rows += [("  cut off", counts["unfinished"])] if counts["unfinished"] else []
    rows += [(f"no answer: {reason}", n) for reason, n in counts["problems"].items()]
    rows += [(f"bad row: {reason}", n) for reason, n in counts["bad_rows"].items()]
    out.print(pairs(rows))
    reused = result.record["model"]["reused"]
    say(out, f"written: {result.output}, {counts['answers']:,} answers ({reused:,} found here); run folder {folder}")


def show_compared(result: JudgeResult, output: Path, folder: Path) -> None:
    """Print what was matched, what the judge did, and the tally."""
    out, counts, judge = console(), result.record["counts"], result.record["judge"]
    rows = []
    for side in ("a", "b"):
        one = counts[side]
        rows.append((f"answers of {side.upper()}", one["answers"]))
        rows += [("  left out, no answer in the other file", one["unmatched"])] if one["unmatched"] else []
        rows += [("  bad rows", one["bad_rows"])] if one["bad_rows"] else []
    rows.append(("pairs", counts["pairs"]))
    rows += [("  equal answers, a tie without asking", counts["same_answer"])] if counts["same_answer"] else []
    out.print(pairs(rows))
    say(out, f"{judge['replies']:,} replies of the judge, {judge['reused']:,} of them found here")
    show_tally(result.tally)
    say(out, f"written: {output}, {len(result.reviews):,} reviewed pairs; run folder {folder}")


def show_tally(found: Tally) -> None:
    """Print counts, the win rate with its interval, and a warning if the order decides too many pairs."""
    out = console()
    rows = [("win", found.win), ("tie", found.tie), ("loss", found.loss), ("no verdict", found.no_verdict)]
    out.print(pairs([*rows, ("= pairs", found.n + found.no_verdict)]))
    reasons = list(found.why.items())
    for reason, n in reasons[:MOST_REASONS]:
        say(out, f"no verdict, {n:,}: {reason}")
    if len(reasons) > MOST_REASONS:
        rest = sum(n for _, n in reasons[MOST_REASONS:])
        say(out, f"no verdict, {rest:,}: {len(reasons) - MOST_REASONS:,} other reasons")
    if found.win_rate is None or found.interval is None:
        say(out, "nothing was judged: no win rate")
        return
    low, high = found.interval["low"], found.interval["high"]
    say(
        out,
        f"win rate {found.win_rate:.4f} (1 is equally good), {100 * found.level:g} % interval {low:.4f} to {high:.4f}",
    )
    for side in ("first", "second"):
        n = found.orders.get(side, 0)
        if n > max(FEW, MUCH * found.n):
            say(
                out,
                f"warning: in {n:,} of {found.n:,} pairs the judge votes for the answer shown {side}, whichever it is",
            )

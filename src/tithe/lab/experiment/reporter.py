"""Print an experiment: data and arms, means, verdicts in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tithe.data.counts import note_sentences, remark_sentences
from tithe.lab.evaluate.comparison import Comparison
from tithe.lab.experiment.comparisons import AGAINST, PAGE, UNTRAINED, ExperimentResult, Mean
from tithe.lab.tune.optimiser_steps import FEW
from tithe.printable import counted
from tithe.report.terminal import console, say

FEW_EXAMPLES = 100  # training examples of an arm below which single ones weigh much
FEW_ITEMS = 50  # held-out prompts: with fewer, a difference has to be near half a standard deviation to be seen
MUCH = 0.5  # share of a length-matched arm in the arm it matches, above which they are nearly the same


def show_experiment(result: ExperimentResult) -> None:
    """Print means and verdicts, and the path of the report."""
    out = console()
    for line in result_lines(result):
        say(out, line)
    if result.results is not None:
        say(out, f"report: {result.folder / PAGE}")


def data_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield the sizes of pool and held-out set, and their contamination."""
    data = record["data"]
    prompts = f"{data['prompts']:,} prompt{'s' * (data['prompts'] != 1)}"
    yield f"pool {data['pool']:,} examples, held out {data['held_out']:,} ({prompts})"
    if data["held_out"] > data["prompts"]:
        yield f"held-out responses to one prompt count as their mean: {data['prompts']:,} items"
    for reason, n in data["left_out"].items():
        yield f"left out of the pool: {n:,} ({reason})"
    if "counts" in data:  # older records have none
        yield from count_lines(data["counts"])
    yield from contamination_lines(data["contamination"])


def count_lines(counts: Mapping[str, Any]) -> Iterator[str]:
    """Yield notes on the records of both sides; each evaluation reports how held-out ones are rendered."""
    pool = counts["pool"]
    for reason, n in pool["bad_rows"].items():
        yield f"bad rows set aside, {n:,}: {reason}"
    yield from note_sentences(pool, "the pool")
    yield from (f"the pool: {line}" for line in remark_sentences(pool))
    if pool["truncated_prompts"] or pool["truncated_responses"]:
        cut = f"{pool['truncated_responses']:,} responses, {pool['truncated_prompts']:,} prompts"
        yield f"the pool: cut at max length: {cut}"
    yield from note_sentences(counts["held_out"], "the held-out set")


def plan_lines(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield data, contamination, and what each arm trains on."""
    yield from data_lines(record)
    yield from columns(arm_rows(record))
    yield from (f"note: {line}" for line in cautions(record))


def arm_rows(record: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return what each arm trains on as rows of a table, its header first."""
    against = record["settings"]["against"]
    rows: list[tuple[str, ...]] = [
        ("arm", "budget", "examples", "steps", "response tokens", "median length", f"shared with {against}")
    ]
    for one in record["arms"]:
        shared = one[f"shared_with_{against}"]
        rows.append(
            (
                one["arm"] if one["draws"] == 1 else f"{one['arm']} (drawn for each seed)",
                one["budget"],
                f"{one['examples']:,}",
                f"{one['steps']:,}",
                f"{one['response_tokens']:,}",
                f"{one['median_length']:g}",
                "" if shared is None else f"{100 * shared:.1f} %",
            )
        )
    return rows


def cautions(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield what limits the verdicts and is known before them; the report has these, too."""
    steps = min(record["arms"], key=lambda one: one["steps"], default=None)
    if steps is not None and steps["steps"] < FEW:
        yield (
            f"only {counted(steps['steps'], 'optimiser step')} ({steps['arm']} at {steps['budget']}): warm-up and "
            "decay are over before the model has moved much; a smaller `train_batch_size`, more epochs or larger "
            "budgets give more"
        )
    examples = min(record["arms"], key=lambda one: one["examples"], default=None)
    if examples is not None and examples["examples"] < FEW_EXAMPLES:
        yield (
            f"only {counted(examples['examples'], 'example')} to train on ({examples['arm']} at "
            f"{examples['budget']}): single examples decide much then; larger budgets, or a larger pool, say more "
            "about the way of choosing"
        )
    if record["data"]["prompts"] < FEW_ITEMS:
        yield (
            f"only {counted(record['data']['prompts'], 'held-out prompt')}: no small difference can be told from "
            "chance; a larger `holdout` shows smaller ones"
        )
    for one in record["arms"]:
        if one["same_as"] is not None:
            yield f"{one['arm']} at {one['budget']} is trained on the same as {one['same_as']}, and tested again"
        if one.get("shared_with_it", 0) > MUCH:
            yield (
                f"{one['arm']} at {one['budget']} shares {100 * one['shared_with_it']:.0f} % with "
                f"{one['repeats']}: there are few others of these lengths, and the two arms are nearly one"
            )
    looks = record.get("earlier_looks")
    if looks:
        yield looks_caution(looks)


def looks_caution(looks: Sequence[int]) -> str:
    """Return the caution about verdicts that were drawn from fewer seeds before."""
    return (
        f"verdicts were drawn here from {', '.join(map(str, looks))} seeds before; adding some after a look makes "
        "`better` likelier by chance alone"
    )


def contamination_lines(found: Mapping[str, Any]) -> Iterator[str]:
    for name, one in found["against"].items():
        yield (
            f"{found['ngram']}-grams shared with {name}: {one['examples_hit']:,} examples of the pool, "
            f"{one['items_hit']:,} of its {one['items']:,} items"
        )


def result_lines(result: ExperimentResult) -> Iterator[str]:
    """Yield tables of means, and verdicts, metric by metric."""
    if result.results is None:
        return
    for metric in dict.fromkeys(one.metric for one in result.results.means):
        yield ""
        yield from columns(mean_rows([one for one in result.results.means if one.metric == metric]))
        for one in result.results.against:
            if one.metric == metric:
                yield sentence(one)
    yield from other_lines(result.results.full, "Against the full set:")
    yield from other_lines(result.results.references, "For orientation:")


def other_lines(comparisons: tuple[Comparison, ...], title: str) -> Iterator[str]:
    if comparisons:
        yield ""
        yield title
        yield from map(sentence, comparisons)


def mean_rows(means: list[Mean]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [("arm", "budget", means[0].metric, "by seed", "items")]
    for one in means:
        seeds = " ".join(f"{value:.4f}" for value in one.by_seed) if len(set(one.by_seed)) > 1 else ""
        rows.append((one.arm, one.budget, f"{one.mean:.4f}", seeds, f"{one.items:,}"))
    return rows


def columns(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """Yield the rows with aligned columns, two spaces apart."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [cell.ljust(w) for cell, w in zip(row, widths, strict=True)]
        yield "  ".join(cells).rstrip()


def sentence(one: Comparison) -> str:
    """Say in one sentence how an arm compares, with interval and p value."""
    head, against = sides(one)
    if one.verdict == "no verdict":
        return f"{head}: no verdict on {one.metric}, {one.why}"
    assert one.difference is not None and one.detectable is not None
    clear = one.verdict in ("better", "worse")
    what = "interval" if clear else "interval of the gain"
    how = f"{amount(one)} (95 % {what} {interval(one)}, p {p_value(one.p_holm)} after Holm over {one.family})".lstrip()
    if clear:
        return f"{head}: {one.verdict} than {against} on {one.metric} by {how}"
    way = "the means are equal" if one.effect == 0 else f"the mean is {'better' if one.effect > 0 else 'worse'} by"
    data = f"{detectable_difference(one)}; {needed_data(one)}"
    return f"{head}: not distinguishable from {against} on {one.metric}: {way} {how}; {data}"


def sides(one: Comparison) -> tuple[str, str]:
    """Name the arm and what it is compared with, each with its budget if they differ."""
    own, _, other = one.budget.partition(AGAINST)
    head = f"{one.arm} ({own})" if own == UNTRAINED else f"{one.arm} at {own}"
    against = f"{one.against} at {other}" if other else one.against
    return head if one.group is None else f"{head}, {one.group}", against


def amount(one: Comparison) -> str:
    """Return the size of the effect with its unit, without a sign: the words before it give the direction."""
    if one.effect == 0:
        return ""
    size = abs(one.effect)
    if one.unit == "right":
        return f"{100 * size:.2f} points"
    share = "" if one.relative is None else f", {abs(100 * one.relative):.2f} %"
    return f"{size:.4g} {one.unit}{share}"


def interval(one: Comparison) -> str:
    """Return the interval of the gain; of the loss if the verdict is `worse`."""
    assert one.difference is not None
    scale, digits = (100, 2) if one.unit == "right" else (1, 4)  # accuracies are shown in points
    low, high = scale * one.difference.low, scale * one.difference.high
    if one.verdict == "worse":
        low, high = -high, -low  # of the loss instead of the gain
    sign = "" if one.verdict in ("better", "worse") else "+"
    return f"{low:{sign}.{digits}f} to {high:{sign}.{digits}f}"


def detectable_difference(one: Comparison) -> str:
    """Say which difference this much data would have shown."""
    assert one.detectable is not None
    size = f"{100 * one.detectable:.1f} points" if one.unit == "right" else f"{one.detectable:.3g} {one.unit}"
    return f"a difference of {size} would have been seen with a power of 80 %"


def needed_data(one: Comparison) -> str:
    """Say how much data would show the observed effect, if it is the true one."""
    ways = []
    if one.seeds_needed is not None:
        ways.append(f"{one.seeds_needed:,} seeds")
    if one.items_needed is not None:
        ways.append(f"{one.items_needed:,} items")
    if one.effect == 0:
        return "no difference was found"
    if not ways:
        return "to show one as small as the one found, more seeds and more items would be needed together"
    return f"to show one as small as the one found, {' or '.join(ways)} would be needed"


def p_value(p: float | None) -> str:
    return "unknown" if p is None else "< 0.0001" if p < 0.0001 else f"{p:.4f}" if p < 0.1 else f"{p:.2f}"

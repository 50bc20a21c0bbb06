"""From lm-eval's samples to one value per item, under names that stay the same from model to model."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tithe.errors import DataError
from tithe.lab.evaluate.measured import Kind, Measured
from tithe.lab.evaluate.tasks import Asked, Built

RIGHT = {"acc", "acc_norm", "acc_bytes", "exact_match", "pass@1"}  # where a value is 0 or 1, it is right or wrong


@dataclass(frozen=True)
class Found:
    """What came of one name.

    Args:
        measured: one metric each.
        notes: what a person should know of them.
    """

    measured: list[Measured]
    notes: list[str]


def found(
    asked: Asked, built: Sequence[Built], results: Mapping[str, Any], about: Mapping[str, Any], cut: int
) -> Found:
    """One `Measured` per metric and filter; of a group all items together, its tasks being the groups.

    Raises:
        DataError: no metric of the task has a number for each item.
    """
    samples = results["samples"]
    parts: dict[tuple[str, str], list[tuple[Built, list[Mapping[str, Any]]]]] = defaultdict(list)
    for one in built:
        by: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
        for item in samples[one.leaf.name]:
            for metric in item["metrics"]:
                by[metric, item["filter"]].append(item)
        for key, items in by.items():
            parts[key].append((one, items))
    whole, notes = [], []
    for (metric, filter_), some in parts.items():
        name = named(asked.name, metric, filter_, list(parts))
        try:
            whole.append(measured(name, metric, some, results, about, len(built) > 1))
        except NotANumberError as error:
            notes.append(f"`{name}` is left out: {error}")
    if not whole:
        raise DataError(f"task `{asked.name}` gives no number per item: {'; '.join(notes)}", hint="leave it out")
    if cut:
        all_ = len({(name, item["doc_id"]) for name, some in samples.items() for item in some})
        notes.append(
            f"`{asked.name}`: {cut:,} of {all_:,} prompts do not fit the model's window and lose their beginning"
        )
    stopped = sum(one.grader.stopped for one in built if one.grader is not None)
    if stopped:
        notes.append(f"`{asked.name}`: {stopped:,} programs were stopped by a limit of time, and count as wrong")
    return Found(whole, notes)


class NotANumberError(Exception):
    """A metric that is made of all items together."""


def named(task: str, metric: str, filter_: str, all_: Sequence[tuple[str, str]]) -> str:
    """The task, and what tells its metrics apart: `gsm8k strict-match`, `arc_easy acc_norm`, `mmlu`."""
    more = [metric] if len({one for one, _ in all_}) > 1 else []
    more += [filter_] if len({one for _, one in all_}) > 1 else []
    return " ".join([task, *more])


def measured(
    name: str,
    metric: str,
    parts: Sequence[tuple[Built, Sequence[Mapping[str, Any]]]],
    results: Mapping[str, Any],
    about: Mapping[str, Any],
    grouped: bool,
) -> Measured:
    """Items of one or more tasks under one metric."""
    values: dict[str, float] = {}
    groups: list[str] = []
    problems: dict[str, str] = {}
    for one, items in parts:
        prefix = f"{one.leaf.name}/" if grouped else ""
        for id_, item in zip(ids(items), items, strict=True):
            value = number(item[metric])
            if math.isfinite(value):
                values[prefix + id_] = value
                groups.append(one.leaf.name)
            else:
                problems[prefix + id_] = f"its value is {value}"
    array = np.array(list(values.values()), dtype=np.float64)
    kind: Kind = "right" if metric in RIGHT and bool(np.isin(array, (0.0, 1.0)).all()) else "number"
    better = results["higher_is_better"][parts[0][0].leaf.name].get(metric, True)
    return Measured(
        metric=name,
        kind=kind,
        unit="right" if kind == "right" else metric,
        higher_is_better=bool(better),
        items=tuple(values),
        values=array,
        groups=tuple(groups) if grouped else (),
        problems=problems,
        about={**about, "metric": metric, "filter": parts[0][1][0]["filter"]},
    )


def number(value: Any) -> float:
    if isinstance(value, bool | int | float | np.number):
        return float(value)
    raise NotANumberError(f"its metric has {type(value).__name__} and no number for each item")


def ids(items: Sequence[Mapping[str, Any]]) -> list[str]:
    """The hash of each item's content, which is the same for every model; of repeated ones with a number."""
    seen: Counter[str] = Counter()
    out = []
    for item in sorted(items, key=lambda one: one["doc_id"]):
        hash_ = item["doc_hash"][:16]
        out.append(f"{hash_}-{seen[hash_]}" if seen[hash_] else hash_)
        seen[hash_] += 1
    place = {item["doc_id"]: id_ for item, id_ in zip(sorted(items, key=lambda one: one["doc_id"]), out, strict=True)}
    return [place[item["doc_id"]] for item in items]

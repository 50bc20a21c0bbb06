"""Tiers that somebody else has made: a `tier` column, `high` and `low` columns, or a file for each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from tithe.data.containers import Row
from tithe.data.counts import RecordCounts
from tithe.data.dataset import Dataset
from tithe.data.formats import read_examples
from tithe.data.ids import Occurrences
from tithe.data.prompts import with_response
from tithe.data.turns import json_type, quoted_names
from tithe.errors import DataError, SettingsError
from tithe.lab.tiers.tier_rows import OWN, TIERS, Tier, TierRow, of_example
from tithe.records import BadRow, Example

Layout: TypeAlias = Literal["pairs", "labels"]
WRITTEN = tuple(name for name in OWN if name not in ("messages", "tools"))


@dataclass(frozen=True)
class Labels:
    """Which values of a `tier` column are which tier.

    Args:
        high: labels of the better responses.
        low: labels of the others.
    """

    high: tuple[str, ...] = ("high",)
    low: tuple[str, ...] = ("low",)

    def __post_init__(self) -> None:
        both = [label for label in self.high if label in self.low]
        if both:
            raise SettingsError(f"the label `{both[0]}` is given for both tiers", hint="give it to one")

    def tier(self, value: object) -> Tier | None:
        label = as_label(value)
        return "high" if label in self.high else "low" if label in self.low else None


def as_label(value: object) -> str | None:
    """A cell of a `tier` column in words: `true`, `1` and `high` alike."""
    if value is None or isinstance(value, Mapping | list | tuple):
        return None
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def layout(dataset: Dataset) -> Layout:
    """How a file tells the tiers apart.

    Raises:
        DataError: in no way, in half a way, or in two.
    """
    there, name = dataset.columns_seen, dataset.source
    sides = [tier for tier in TIERS if tier in there]
    if "tier" in there and len(sides) == 2:
        raise DataError(
            f"`{name}` has a column `tier` and columns `high` and `low`", hint="take out or rename one kind"
        )
    if "tier" in there:
        return "labels"
    if len(sides) == 2:
        return "pairs"
    if sides:
        other = next(tier for tier in TIERS if tier not in there)
        raise DataError(
            f"`{name}` has a column `{sides[0]}` without `{other}`: there is {quoted_names(there)}",
            hint="pairs need both; a `tier` column, or a file for each tier, will do as well",
        )
    raise DataError(
        f"`{name}` has neither a column `tier` nor columns `high` and `low`: there is {quoted_names(there)}",
        hint="where all its records are of one tier, give it with `--high-file` or `--low-file`",
    )


def by_labels(dataset: Dataset, labels: Labels, counts: RecordCounts | None = None) -> Iterator[TierRow | BadRow]:
    """Rows of a file with a `tier` column.

    Raises:
        DataError: there are labels that no tier has, or only those of one tier.
    """
    check_labels(dataset, labels)
    for item in dataset if counts is None else counts.counting(dataset):
        if isinstance(item, BadRow):
            yield item
            continue
        tier = labels.tier(item.columns.get("tier"))
        yield BadRow(item.row, item.where, "no tier") if tier is None else again(item, tier, None)


def check_labels(dataset: Dataset, labels: Labels) -> None:
    """Every label must be known before anything is written."""
    records = (record for _, record in dataset.records() if isinstance(record, dict))
    found = Counter(label for record in records if (label := as_label(record.get("tier"))) is not None)
    unknown = [label for label in found if labels.tier(label) is None]
    if unknown:
        raise DataError(
            f"`{dataset.source}` has the tiers {shown(found)}, and {shown(unknown)} is neither of "
            f"high ({', '.join(labels.high)}) and low ({', '.join(labels.low)})",
            hint="`--high-tier NAME[,NAME]` and `--low-tier NAME[,NAME]` say which is which",
        )
    if not found:
        raise DataError(f"the column `tier` of `{dataset.source}` is empty", hint="its values are `high` and `low`")


def shown(labels: Collection[str]) -> str:
    """At most six labels, with how often they come where that is known."""
    counts = labels if isinstance(labels, Mapping) else {}
    parts = [f"`{label[:40]}`" + (f" ({counts[label]:,})" if counts else "") for label in list(labels)[:6]]
    return ", ".join(parts) + (f" and {len(labels) - 6:,} more" if len(labels) > 6 else "")


def by_pairs(dataset: Dataset, counts: RecordCounts | None = None) -> Iterator[TierRow | BadRow]:
    """Rows of a file in which a record holds two responses to one prompt: the high one, then the low one."""
    seen, counts = Occurrences(), counts or RecordCounts()
    for number, row in dataset.rows():
        if row.fault is not None or not isinstance(row.record, Mapping):
            reason = row.fault or f"the record is {json_type(row.record)}, it must be an object"
            yield from counts.counting([BadRow(number, row.where, reason)])
            continue
        for tier in TIERS:
            item = side(dataset, row, tier, number, seen)
            counts.add_item(item)
            named = item.columns.get(f"{tier}_model") if isinstance(item, Example) else None
            model = named if isinstance(named, str) and named else None
            yield item if isinstance(item, BadRow) else of_example(item, tier, model)


def side(dataset: Dataset, row: Row, tier: Tier, number: int, seen: Occurrences) -> Example | BadRow:
    """Return one of the two responses of a pair."""
    record, where = row.record, row.where
    text = record.get(tier)
    if not isinstance(text, str):
        return BadRow(
            number, where, f"`{tier}` is {json_type(text)}, it must be a string" if tier in record else f"no `{tier}`"
        )
    prompt = {name: value for name, value in record.items() if name not in TIERS}
    made = with_response(prompt, dataset.format, text)
    (item,) = read_examples(made, dataset.format, "last", number, where, seen, row.notes)
    return replace(item, reason=f"`{tier}`: {item.reason}") if isinstance(item, BadRow) else item


def by_file(
    dataset: Dataset, tier: Tier, model: str | None, counts: RecordCounts | None = None
) -> Iterator[TierRow | BadRow]:
    """Rows of a file whose records are all of one tier."""
    for item in dataset if counts is None else counts.counting(dataset):
        yield item if isinstance(item, BadRow) else of_example(item, tier, model)


def again(example: Example, tier: Tier, model: str | None) -> TierRow:
    """A row of a file with a `tier` column; where that is a tier file of ours, its provenance is kept as it was."""
    columns = {name: value for name, value in example.columns.items() if name != "tier"}
    row = of_example(replace(example, columns=columns), tier, model)
    if not all(name in example.columns for name in WRITTEN):
        return row
    rest = {name: value for name, value in row.columns.items() if name not in OWN}
    finished, tokens = columns["finished"], columns["response_tokens"]
    return replace(
        row,
        source=str(columns["source"]),
        finished=finished if isinstance(finished, bool) else None,
        tokens=tokens if isinstance(tokens, int) else None,
        columns=rest,
    )

"""Rows of a tier file: made from a `tier` column, from `high` and `low` columns, or from one file per tier."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeAlias

from tithe.data.containers import Row
from tithe.data.counts import RecordCounts
from tithe.data.dataset import Dataset
from tithe.data.ids import Occurrences, prompt_id
from tithe.data.prompts import with_response
from tithe.data.turns import json_type, quoted_names
from tithe.data.writers import json_fallback
from tithe.errors import DataError, SettingsError
from tithe.records import BadRow, Example, Message

Tier: TypeAlias = Literal["high", "low"]
TIERS: tuple[Tier, Tier] = ("high", "low")
OWN = ("messages", "tools", "tier", "model", "prompt_id", "source", "finished", "response_tokens")


@dataclass(frozen=True, slots=True)
class TierRow:
    """A prompt, one response to it, and its tier.

    Args:
        prompt: all messages before the response.
        response: the assistant's message.
        tier: `high` or `low`.
        model: who responded; None if unknown.
        source: where it was read, `file:line`.
        finished: whether the model ended its response; None if unknown.
        tokens: of the response, by the model's own count; None if it was not generated here.
        tools: function schemas the dialogue may call.
        columns: other columns of the record.
    """

    prompt: tuple[Message, ...]
    response: Message
    tier: Tier
    model: str | None = None
    source: str = ""
    finished: bool | None = None
    tokens: int | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def prompt_id(self) -> str:
        return prompt_id(self.prompt, self.tools)

    def record(self) -> dict[str, Any]:
        """Return the record for the file; a column with one of our own names becomes `original_...`."""
        out: dict[str, Any] = {"messages": [message.as_dict() for message in (*self.prompt, self.response)]}
        if self.tools:
            out["tools"] = [dict(tool) for tool in self.tools]
        out |= {"tier": self.tier, "model": self.model, "prompt_id": self.prompt_id, "source": self.source}
        out |= {"finished": self.finished, "response_tokens": self.tokens}
        return out | {f"original_{name}" if name in OWN else name: value for name, value in self.columns.items()}


def of_example(example: Example, tier: Tier, model: str | None = None) -> TierRow:
    """Make a row of an example; its own `model` column overrides `model`."""
    columns = dict(example.columns)
    own = columns.get("model")
    if isinstance(own, str) and own:
        model = columns.pop("model")
    return TierRow(
        example.prompt,
        example.response,
        tier,
        model,
        file_and_line(example.where),
        tools=example.tools,
        columns=columns,
    )


def file_and_line(where: str) -> str:
    """Return `file:line` without the folder, so that a published data set does not reveal local paths."""
    return where.rpartition("/")[2]


def json_line(row: TierRow) -> bytes:
    """Return the row as a line of JSON."""
    record = row.record()
    try:
        return json.dumps(record, ensure_ascii=False, default=json_fallback).encode() + b"\n"
    except UnicodeEncodeError:  # a lone surrogate in some column: write its escape
        return json.dumps(record, default=json_fallback).encode() + b"\n"


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
    """Return a cell of a `tier` column as text, be it a boolean, a number or a string."""
    if value is None or isinstance(value, Mapping | list | tuple):
        return None
    return str(value).lower() if isinstance(value, bool) else str(value).strip()


def layout(dataset: Dataset) -> Layout:
    """Find how a file marks the tiers.

    Raises:
        DataError: it does not, only half, or in two ways.
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
    """Yield the rows of a file with a `tier` column.

    Raises:
        DataError: it has unknown labels, or none.
    """
    check_labels(dataset, labels)
    for item in (counts or RecordCounts()).counting(dataset):
        if isinstance(item, BadRow):
            yield item
            continue
        tier = labels.tier(item.columns.get("tier"))
        yield BadRow(item.row, item.where, "no tier") if tier is None else of_labelled(item, tier, None)


def check_labels(dataset: Dataset, labels: Labels) -> None:
    """Check all labels before anything is written."""
    records = (record for _, record in dataset.records() if isinstance(record, dict))
    found = Counter(label for record in records if (label := as_label(record.get("tier"))) is not None)
    unknown = [label for label in found if labels.tier(label) is None]
    if unknown:
        raise DataError(
            f"`{dataset.source}` has the tiers {name_labels(found)}, and {name_labels(unknown)} is neither of "
            f"high ({', '.join(labels.high)}) and low ({', '.join(labels.low)})",
            hint="`--high-tier NAME[,NAME]` and `--low-tier NAME[,NAME]` say which is which",
        )
    if not found:
        raise DataError(f"the column `tier` of `{dataset.source}` is empty", hint="its values are `high` and `low`")


def name_labels(labels: Collection[str]) -> str:
    """Name at most six labels, with their counts if these are given."""
    counts = labels if isinstance(labels, Mapping) else {}
    parts = [f"`{label[:40]}`" + (f" ({counts[label]:,})" if counts else "") for label in list(labels)[:6]]
    return ", ".join(parts) + (f" and {len(labels) - 6:,} more" if len(labels) > 6 else "")


def by_pairs(dataset: Dataset, counts: RecordCounts | None = None) -> Iterator[TierRow | BadRow]:
    """Yield the rows of a file whose records have two responses to a prompt: the high one, then the low one."""
    seen, counts = Occurrences(), counts or RecordCounts()
    for number, row in dataset.rows():
        if row.fault is not None or not isinstance(row.record, Mapping):
            reason = row.fault or f"the record is {json_type(row.record)}, it must be an object"
            yield from counts.counting([BadRow(number, row.where, reason)])
            continue
        for tier in TIERS:
            item = pair_item(dataset, row, tier, number, seen)
            counts.add_item(item)
            named = item.columns.get(f"{tier}_model") if isinstance(item, Example) else None
            model = named if isinstance(named, str) and named else None
            yield item if isinstance(item, BadRow) else of_example(item, tier, model)


def pair_item(dataset: Dataset, row: Row, tier: Tier, number: int, seen: Occurrences) -> Example | BadRow:
    """Return one of the two responses of a pair."""
    record, where = row.record, row.where
    text = record.get(tier)
    if not isinstance(text, str):
        return BadRow(
            number, where, f"`{tier}` is {json_type(text)}, it must be a string" if tier in record else f"no `{tier}`"
        )
    prompt = {name: value for name, value in record.items() if name not in TIERS}
    (item,) = dataset.names.read(
        prompt,
        dataset.format,
        "last",
        number,
        where,
        seen,
        row.notes,
        change=lambda record: with_response(record, dataset.format, text),
        needs_response=False,
    )
    return replace(item, reason=f"`{tier}`: {item.reason}") if isinstance(item, BadRow) else item


def by_file(dataset: Dataset, tier: Tier, model: str | None, counts: RecordCounts) -> Iterator[TierRow | BadRow]:
    """Yield the rows of a file whose records are all of one tier."""
    for item in counts.counting(dataset):
        yield item if isinstance(item, BadRow) else of_example(item, tier, model)


def of_labelled(example: Example, tier: Tier, model: str | None) -> TierRow:
    """Make a row of an example with a `tier` column; keep the provenance if Tithe wrote the file."""
    columns = {name: value for name, value in example.columns.items() if name != "tier"}
    row = of_example(replace(example, columns=columns), tier, model)
    if not all(name in example.columns for name in WRITTEN):
        return row
    # Our own columns became fields of the row; `original_...` ones stay columns.
    rest = {name: value for name, value in row.columns.items() if name not in OWN}
    finished, tokens = columns["finished"], columns["response_tokens"]
    return replace(
        row,
        source=str(columns["source"]),
        finished=finished if isinstance(finished, bool) else None,
        tokens=tokens if isinstance(tokens, int) else None,
        columns=rest,
    )

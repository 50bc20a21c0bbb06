"""One response with its tier, and the line of a tier file that it becomes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tithe.data.ids import prompt_id
from tithe.data.writers import json_fallback
from tithe.records import Example, Message

Tier: TypeAlias = Literal["high", "low"]
TIERS: tuple[Tier, Tier] = ("high", "low")
OWN = ("messages", "tools", "tier", "model", "prompt_id", "source", "finished", "response_tokens")


@dataclass(frozen=True, slots=True)
class TierRow:
    """A prompt, one response to it, and how good those who gave it are.

    Args:
        prompt: all messages before the response.
        response: the assistant's message.
        tier: `high` or `low`.
        model: who responded, None where that is not known.
        source: where it was read (`file:line`), or the fingerprint or address of the model that was asked.
        finished: whether the model ended by itself; None where that is not known.
        tokens: of the response, by the model's own count; None where it was not generated here.
        tools: function schemas the dialogue may call.
        columns: whatever else the record had.
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
        """As it stands in the file; a column of a name that we use ourselves becomes `original_...`."""
        out: dict[str, Any] = {"messages": [message.as_dict() for message in (*self.prompt, self.response)]}
        if self.tools:
            out["tools"] = [dict(tool) for tool in self.tools]
        out |= {"tier": self.tier, "model": self.model, "prompt_id": self.prompt_id, "source": self.source}
        out |= {"finished": self.finished, "response_tokens": self.tokens}
        return out | {f"original_{name}" if name in OWN else name: value for name, value in self.columns.items()}


def of_example(example: Example, tier: Tier, model: str | None = None) -> TierRow:
    """A record that was read, as a row of a tier; its own `model` column goes before `model`."""
    columns = dict(example.columns)
    own = columns.get("model")
    if isinstance(own, str) and own:
        model = columns.pop("model")
    return TierRow(
        example.prompt, example.response, tier, model, place(example.where), tools=example.tools, columns=columns
    )


def place(where: str) -> str:
    """`file:line` without the folder: a data set that is given away tells nothing of the machine it was made on."""
    return where.rpartition("/")[2]


def line(row: TierRow) -> bytes:
    """One line of JSON."""
    record = row.record()
    try:
        return json.dumps(record, ensure_ascii=False, default=json_fallback).encode() + b"\n"
    except UnicodeEncodeError:  # half a character in somebody's column: only its escape can be written
        return json.dumps(record, default=json_fallback).encode() + b"\n"

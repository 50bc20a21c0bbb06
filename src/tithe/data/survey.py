"""Count what the records of a file contain: columns, roles, and traits that some trainer cannot read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from tithe.data.columns import UNNAMED, ColumnNames
from tithe.data.dataset import Dataset
from tithe.data.formats import COMPLETIONS, CONVERSATIONS, Shape, Turns, read_dialogue
from tithe.data.ids import Occurrences
from tithe.data.loss_marks import judge_turn
from tithe.data.turns import ROLES
from tithe.records import BadRow

Trait: TypeAlias = Literal[
    "parts",  # content that is a list of parts
    "calls",  # `tool_calls` beside the content
    "text beside calls",
    "call turns",  # a turn that is nothing but a call
    "reasoning",  # beside the content
    "weight 0",  # an assistant turn that is marked as not to be trained on
    "further responses",  # more than one turn may be learnt
    "after the response",  # messages follow the last response that may be learnt
    "not alternating",
    "tools as objects",
    "message lists",  # as prompt or completion
    "history",
    "system beside",  # a column `system` beside messages
    "messages as text",  # JSON in a cell
]
REASONING = ("reasoning_content", "reasoning", "thinking")
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value", "text")
_ASKS = {"user", "tool"}


@dataclass
class Survey:
    """Counts over the records of a file.

    Args:
        shape: of the records.
        turns: which responses of a record are learnt: the `last`, or `all`.
        names: the columns that the user has named; records are counted under the shape's names.
        records: number of records.
        examples: number of responses that are learnt.
        columns: name -> records that have a value there.
        keys: name of a message's field -> messages that have a value there.
        roles: role as written -> messages.
        traits: trait -> records that have it.
        left_out: reason -> records or responses that tithe cannot read.
    """

    shape: Shape
    turns: Turns = "last"
    names: ColumnNames = UNNAMED
    records: int = 0
    examples: int = 0
    columns: Counter[str] = field(default_factory=Counter)
    keys: Counter[str] = field(default_factory=Counter)
    roles: Counter[str] = field(default_factory=Counter)
    traits: Counter[Trait] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)

    def own(self, name: str) -> str:
        """Return what the file calls a column, or a field or role of a message."""
        written = {own[0]: self.names.of_record[role] for role, own in self.names.fields(self.shape).items()}
        return written.get(name) or self.names.given.get(name, name)

    def field(self, names: Sequence[str]) -> str:
        """Return the column name that most records use; the first name if no record uses any."""
        return max(names, key=lambda name: self.columns[name])

    def key(self, names: Sequence[str]) -> str:
        """Return the field name that most messages use; the first name if no message uses any."""
        return max(names, key=lambda name: self.keys[name])

    def names_of(self, role: str) -> list[str]:
        """Return the spellings of a role, most frequent first."""
        return [name for name, _ in self.roles.most_common() if ROLES.get(name.strip().lower()) == role]

    def add(self, record: Mapping[str, Any]) -> None:
        """Count a record that can be read."""
        self.columns.update(name for name, value in record.items() if value is not None)
        self.traits.update(set(self._traits(record)))

    def _traits(self, record: Mapping[str, Any]) -> Iterator[Trait]:
        dialogue = read_dialogue(record, self.shape)
        if len(dialogue.learnt) > 1:
            yield "further responses"
        if dialogue.learnt and dialogue.learnt[-1] < len(dialogue.messages) - 1:
            yield "after the response"
        if dialogue.tools and not isinstance(record.get("tools"), str):
            yield "tools as objects"
        if self.shape == "alpaca" and record.get("history"):
            yield "history"
        lists = [value for name in _FIELDS[self.shape] if isinstance(value := record.get(name), (list, tuple))]
        if lists and self.shape == "prompt-completion":
            yield "message lists"
        if lists and self.shape != "prompt-completion" and record.get("system"):
            yield "system beside"
        if self.shape in ("messages", "sharegpt") and not lists:
            yield "messages as text"
        # The turns as written, not as `read_dialogue` normalised them: trainers see the file's own spelling.
        roles = []
        for turn in (turn for value in lists for turn in value):
            roles.append(self._count(turn))
            yield from _traits_of(turn, roles[-1])
        if not _alternate(roles):
            yield "not alternating"

    def _count(self, turn: Mapping[str, Any]) -> str:
        """Count the turn's fields and role; return the role in tithe's spelling."""
        self.keys.update(name for name, value in turn.items() if value is not None)
        written = next(str(turn[key]) for key in ROLE_KEYS if turn.get(key) is not None)
        self.roles[written] += 1
        return ROLES[written.strip().lower()]


_FIELDS: Mapping[Shape, tuple[str, ...]] = {
    "alpaca": (),
    "prompt-completion": ("prompt", *COMPLETIONS),
    "messages": ("messages",),
    "sharegpt": CONVERSATIONS,
}


def survey_dataset(dataset: Dataset) -> Survey:
    """Read the file once and count what its records have."""
    found, seen = Survey(dataset.format, dataset.turns, dataset.names), Occurrences()
    for number, row in dataset.rows():
        found.records += 1
        if row.fault is not None:
            found.left_out[row.fault] += 1
            continue
        items = list(dataset.names.read(row.record, dataset.format, dataset.turns, number, row.where, seen))
        found.left_out.update(item.reason for item in items if isinstance(item, BadRow))
        good = sum(not isinstance(item, BadRow) for item in items)
        found.examples += good
        if good:
            found.add(dataset.names.view(row.record, dataset.format))
    return found


def _traits_of(turn: Mapping[str, Any], role: str) -> Iterator[Trait]:
    content = next((turn[key] for key in CONTENT_KEYS if turn.get(key) is not None), None)
    if isinstance(content, (list, tuple)):
        yield "parts"
    if role == "function_call":
        yield "call turns"
    if turn.get("tool_calls") or turn.get("function_call"):
        yield "calls"
        if content:
            yield "text beside calls"
    if any(turn.get(key) for key in REASONING):
        yield "reasoning"
    if not judge_turn(turn, []):
        yield "weight 0"


def _alternate(roles: Sequence[str]) -> bool:
    """Tell whether a user or tool turn and an assistant turn alternate to the end, after an optional system message."""
    said = roles[1:] if roles[:1] == ["system"] else roles
    return len(said) % 2 == 0 and all(
        (role in _ASKS) == (place % 2 == 0) and role != "system" for place, role in enumerate(said)
    )

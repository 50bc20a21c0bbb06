"""Read records whose columns have names of their own: which column is the prompt, the response, a message's role.

Renaming is for reading only: a record is read through a copy with the names of a known shape, and written as it was.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tithe.data.formats import (
    COMPLETIONS,
    CONVERSATIONS,
    INPUTS,
    OUTPUTS,
    Record,
    Shape,
    Turns,
    detect_shape,
    matching_shapes,
    read_examples,
)
from tithe.data.ids import Occurrences
from tithe.data.named_columns import OF_TURNS, PARTS, SPEAKERS, split_entry
from tithe.data.turns import RecordError, json_type, parse_field, quoted_names
from tithe.errors import SettingsError, did_you_mean
from tithe.records import BadRow, Example

NEEDED = ("prompt", "response", "messages")  # without a value there is no example
LISTS = ("prompt", "completion", "messages", *CONVERSATIONS)  # fields that may hold messages
# What a role is called in each shape: the first name is written, the others are read too where no column is given.
FIELDS: Mapping[Shape, Mapping[str, tuple[str, ...]]] = {
    "alpaca": {"prompt": ("instruction",), "response": OUTPUTS, "context": INPUTS},
    "prompt-completion": {"prompt": ("prompt",), "response": COMPLETIONS},
    "messages": {"messages": ("messages",)},
    "sharegpt": {"messages": CONVERSATIONS},
}
SHARED: Mapping[str, tuple[str, ...]] = {"system": ("system",), "tools": ("tools", "functions")}
NO_RESPONSE = tuple(f"no `{names[0]}` (or `{names[1]}`)" for names in (OUTPUTS, COMPLETIONS))


@dataclass(frozen=True)
class ColumnNames:
    """The columns that a user has named.

    Args:
        entries: as `role=column`, each role once.
    """

    entries: tuple[str, ...] = ()

    @cached_property
    def given(self) -> Mapping[str, str]:
        """Role -> column, or field or value of a message."""
        return dict(split_entry(entry) for entry in self.entries)

    @cached_property
    def of_record(self) -> Mapping[str, str]:
        """Role -> column, without what is inside messages."""
        return {role: name for role, name in self.given.items() if role in PARTS}

    def __bool__(self) -> bool:
        return bool(self.entries)

    def check_shape(self, format: str) -> None:
        """Refuse roles that exclude each other, or that the given shape does not have.

        Raises:
            SettingsError: names the role.
        """
        apart = [role for role in ("prompt", "response", "context") if role in self.given]
        if "messages" in self.given and apart:
            raise SettingsError(
                f"`columns` names `messages` and `{apart[0]}`: messages hold the whole dialogue",
                hint="leave one of the two out",
            )
        if format == "auto":
            return
        fields = {**FIELDS[format], **SHARED}  # type: ignore[index]
        strange = next((role for role in self.of_record if role not in fields), None)
        if strange is not None:
            fitting = next(shape for shape, own in FIELDS.items() if strange in own)
            raise SettingsError(
                f"`columns` names `{strange}`, which records of the format `{format}` do not have",
                hint=f"`--format {fitting}` has it, or leave `--format` out",
            )

    def choose_shape(self, records: Sequence[Record], format: str) -> Shape | None:
        """Return the shape in which most of the records can be read under these names; None if none can.

        Raises:
            SettingsError: the roles exclude each other, or do not fit the format.
        """
        self.check_shape(format)
        if format != "auto":
            return format  # type: ignore[return-value]
        if "messages" in self.given:
            return "messages"
        fitting: list[Shape] = ["prompt-completion", "alpaca"] if "context" not in self.given else ["alpaca"]
        if not {"prompt", "response", "context"} & self.given.keys():
            return detect_shape([self.view(record, "messages") for record in records])
        counts = {
            shape: sum(shape in matching_shapes(self.view(record, shape)) for record in records) for shape in fitting
        }
        best = max(fitting, key=lambda shape: counts[shape])  # of equal ones the first
        # Prompts alone are enough for some commands; for the others every record is a bad row.
        return best if counts[best] else detect_shape([self.view(record, fitting[0]) for record in records])

    def fields(self, shape: Shape) -> Mapping[str, tuple[str, ...]]:
        """Return role -> its names in a shape, for the roles that have a column."""
        known = {**FIELDS[shape], **SHARED}
        return {role: known[role] for role in self.of_record if role in known}

    def hidden(self, record: Record, shape: Shape) -> list[str]:
        """Return the record's columns that would be read, if the user had not named others."""
        own = set(self.of_record.values())
        return [name for names in self.fields(shape).values() for name in names if name in record and name not in own]

    def view(self, record: Any, shape: Shape) -> Any:
        """Return a copy of the record with the names of the shape; the record itself where nothing is named."""
        if not self.entries or not isinstance(record, Mapping):
            return record
        fields = self.fields(shape)
        gone = {*self.of_record.values(), *(name for names in fields.values() for name in names)}
        out = {name: value for name, value in record.items() if name not in gone}
        out |= {
            fields[role][0]: record[name] for role, name in self.of_record.items() if role in fields and name in record
        }
        if any(role in self.given for role in (*OF_TURNS, *SPEAKERS)):
            out |= {name: self.view_turns(out[name], name) for name in LISTS if name in out}
        return out

    def view_turns(self, value: Any, name: str) -> Any:
        """Return messages with the usual field names and roles; what is no list of messages unchanged."""
        if isinstance(value, str) and value.lstrip()[:1] == "[":  # a CSV cell
            try:
                value = parse_field(value, f"`{name}`")
            except RecordError:
                return value  # the reader of messages says what is wrong
        if not isinstance(value, list | tuple):
            return value
        return [self.view_turn(turn) if isinstance(turn, Mapping) else turn for turn in value]

    def view_turn(self, turn: Record) -> Record:
        """Return one message with the usual field names and role."""
        own = {name: self.given[name] for name in OF_TURNS if name in self.given}
        unread = {"role": ("role", "from"), "content": ("content", "value", "text")}
        gone = {*own.values(), *(name for role in own for name in unread[role])}
        out = {name: value for name, value in turn.items() if name not in gone}
        out |= {role: turn[name] for role, name in own.items() if name in turn}
        key = "role" if "role" in out else "from"
        said = {name: role for role, name in self.given.items() if role in SPEAKERS}
        return out | {key: said[out[key]]} if isinstance(out.get(key), str) and out[key] in said else out

    def own_words(self, text: str, shape: Shape) -> str:
        """Return a message about a view with the user's names in place of the shape's."""
        names = {own[0]: self.of_record[role] for role, own in self.fields(shape).items()}
        names |= {name: self.given[name] for name in OF_TURNS if name in self.given}
        return re.sub(r"`(\w+)(?=[`\[])", lambda found: f"`{names.get(found[1], found[1])}", text)

    def demand_values(self, record: Any) -> None:
        """Check that a record has the columns that hold its prompt and response.

        Raises:
            RecordError: one is missing.
        """
        if isinstance(record, Mapping):
            for role, name in self.of_record.items():
                if role in NEEDED and name not in record:
                    raise RecordError(f"no `{name}`: there is {quoted_names([*record])}")

    def read(
        self,
        record: Any,
        shape: Shape,
        turns: Turns,
        row: int,
        where: str,
        seen: Occurrences,
        notes: tuple[str, ...] = (),
        change: Callable[[Any], Any] = lambda view: view,
        needs_response: bool = True,
    ) -> Iterator[Example | BadRow]:
        """Yield the examples of a record, as `read_examples` does, under the user's names.

        Args:
            record: as read from the file.
            shape: in which it is viewed.
            turns: as in `read_examples`.
            row: as in `read_examples`.
            where: as in `read_examples`.
            seen: as in `read_examples`.
            notes: as in `read_examples`.
            change: makes another record of the view, before it is read.
            needs_response: whether a record without the response's column is a bad row.
        """
        if not self.entries:
            yield from read_examples(change(record), shape, turns, row, where, seen, notes)
            return
        try:
            (self if needs_response else self.without("response")).demand_values(record)
        except RecordError as error:
            yield BadRow(row, where, str(error))
            return
        hidden = self.hidden(record, shape) if isinstance(record, Mapping) else []
        notes = (*notes, *(f"`{name}` is not read: it is no part of the dialogue" for name in hidden if record[name]))
        for item in read_examples(change(self.view(record, shape)), shape, turns, row, where, seen, notes):
            if isinstance(item, BadRow):
                unnamed = "response" not in self.given and item.reason.startswith(NO_RESPONSE)
                listed = quoted_names([*record]) if isinstance(record, Mapping) else ""
                said = f"no response: there is {listed}, and `columns` names none of them the response"
                yield replace(item, reason=said if unnamed else self.own_words(item.reason, shape))
            elif hidden:
                yield replace(item, columns={**item.columns, **{name: record[name] for name in hidden}})
            else:
                yield item

    def without(self, role: str) -> ColumnNames:
        """Return the names without a role."""
        return ColumnNames(tuple(entry for entry in self.entries if split_entry(entry)[0] != role))


UNNAMED = ColumnNames()


def demand_text(names: ColumnNames, source: str, records: Sequence[Record]) -> None:
    """Refuse a column that holds no text in any of the first records.

    Raises:
        SettingsError: names the column and what it holds.
    """
    for role, name in names.of_record.items():
        values = [record[name] for record in records if record.get(name) is not None]
        lists = role in ("messages", "prompt", "response", "tools")
        good = str if not lists else (str, list, tuple, Mapping) if role == "tools" else (str, list, tuple)
        if values and not any(isinstance(value, good) for value in values):
            texts = [column for column in columns_of(records) if holds_text(column, records)]
            raise SettingsError(
                f"the column `{name}` of `{source}` cannot be the {role}: it holds {json_type(values[0])}, not text",
                hint=f"text is in {quoted_names(texts)}" if texts else "no column holds text",
            )


def columns_of(records: Sequence[Record]) -> list[str]:
    """Return all column names of the records, in order."""
    return list(dict.fromkeys(str(name) for record in records for name in record))


def holds_text(column: str, records: Sequence[Record]) -> bool:
    """Tell whether a column holds a text in any of the records."""
    return any(isinstance(record.get(column), str) and record[column].strip() for record in records)


def unknown_column(missing: str, source: str, there: Sequence[str]) -> SettingsError:
    """Return the error for a column that no record has."""
    near = did_you_mean(missing, there) if there else ""
    near = near if near.startswith("did you mean") else ""
    listed = f"there is {quoted_names(list(there))}"
    return SettingsError(f"no record of `{source}` has a column `{missing}`", hint=f"{near} {listed}".strip())


# Names that public data sets give to a prompt and to a response, likeliest first.
ASKING = (
    *("question", "query", "prompt", "instruction", "problem", "task", "request", "user", "human", "q"),
    *("user_message", "user_input", "source", "title", "input", "text", "context"),
)
ANSWERING = (
    *("answer", "response", "output", "completion", "reply", "solution", "assistant", "bot", "gpt", "a"),
    *("assistant_message", "model_output", "target", "chosen", "output_text", "answers", "label", "summary"),
)


def guess_columns(records: Sequence[Record]) -> str:
    """Return the likeliest `--columns` for records of no known shape, ready to paste; with capitals where unknown."""
    return shlex.quote(likeliest_columns(records))


def likeliest_columns(records: Sequence[Record]) -> str:
    """Return the likeliest roles of the columns, as `role=column,role=column`."""
    there = columns_of(records)
    for name in there:
        turns: list[Any] = next(
            (record[name] for record in records if isinstance(record.get(name), list) and record[name]), []
        )
        if turns and all(isinstance(turn, Mapping) for turn in turns):
            return f"messages={name}" + guess_turns(turns[0])
    texts = [name for name in there if holds_text(name, records)]
    asked = likeliest(ASKING, texts)
    answered = likeliest(ANSWERING, [name for name in texts if name != asked])
    rest = [name for name in texts if name not in (asked, answered)]
    asked = asked or (rest.pop(0) if rest and len(texts) <= 2 else "COLUMN")
    answered = answered or (rest.pop(0) if rest and len(texts) <= 2 else "COLUMN")
    return f"prompt={asked},response={answered}"


def likeliest(known: Sequence[str], there: Sequence[str]) -> str | None:
    """Return the column whose name is the first of the known ones, or else has one as a part."""
    plain = {name: re.sub(r"[\s-]+", "_", name.strip().lower()) for name in there}
    whole = next((name for word in known for name in there if plain[name] == word), None)
    inside = (name for word in known if len(word) > 2 for name in there if word in plain[name].split("_"))
    return whole or next(inside, None)


def guess_turns(turn: Record) -> str:
    """Return the names of a message's fields for `--columns`, if they are not the usual ones."""
    out = ""
    if not {"role", "from"} & turn.keys():
        who = likeliest(("speaker", "author", "sender", "name", "who", "type", "party"), [str(name) for name in turn])
        out += f",role={who or 'FIELD'}"
    if not {"content", "value", "text"} & turn.keys():
        said = likeliest(("utterance", "message", "body", "msg", "sentence"), [str(name) for name in turn])
        out += f",content={said or 'FIELD'}"
    return out

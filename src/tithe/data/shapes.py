"""A record in another shape than its own: messages, alpaca, prompt-completion."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

from tithe.data.formats import Dialogue, Shape, read_dialogue
from tithe.data.turns import RecordError
from tithe.errors import OutputError
from tithe.records import Message


def reshape(record: Any, own: Shape, to: str, turns: Collection[int] | None, where: str) -> Iterator[dict[str, Any]]:
    """The record in shape `to`, every other column kept; nothing where it cannot be read.

    Args:
        record: as it stands in the file.
        own: its shape.
        to: `messages`, `alpaca` or `prompt-completion`.
        turns: the responses that were chosen, None for the last. `messages` keeps the dialogue up to the
            last of them in one record, where turns that are not to be learnt have weight 0; `prompt-completion`
            gives a record for each, `alpaca` puts what came before the last into `system` and `history`.
        where: for the error.

    Raises:
        OutputError: the shape has no place for what the record holds.
    """
    try:
        dialogue = read_dialogue(record, own)
    except RecordError:
        return
    chosen = sorted(turns) if turns is not None else list(dialogue.learnt[-1:])
    for turn in chosen if to == "prompt-completion" else chosen[-1:]:
        if to == "alpaca":
            yield _alpaca(dialogue, turn, where) | dict(dialogue.columns)
            continue
        said = [message.as_dict() for message in dialogue.messages[: turn + 1]]
        if to == "messages":  # a trainer must not learn what the record says is not to be learnt
            for index, message in enumerate(said):
                message |= {"weight": 0} if message["role"] == "assistant" and index not in dialogue.learnt else {}
        body = {"messages": said} if to == "messages" else {"prompt": said[:-1], "completion": said[-1:]}
        tools = {"tools": list(dialogue.tools)} if dialogue.tools else {}
        yield body | tools | dict(dialogue.columns)


def _alpaca(dialogue: Dialogue, turn: int, where: str) -> dict[str, Any]:
    said = list(dialogue.messages[: turn + 1])
    system = said.pop(0).content if said[0].role == "system" else None
    asked, answered = said[0::2], said[1::2]
    plain = len(said) % 2 == 0 and all(_is(m, "user") for m in asked) and all(_is(m, "assistant") for m in answered)
    if not plain or dialogue.tools:
        message = f"{where}: the `alpaca` shape has no place for tools, reasoning or turns that do not alternate"
        raise OutputError(message, hint="write `messages`")
    whole = turn == len(dialogue.messages) - 1 and dialogue.instruction is not None
    out: dict[str, Any] = {
        "instruction": dialogue.instruction if whole else asked[-1].content,
        "input": (dialogue.input or "") if whole else "",
        "output": answered[-1].content,
    }
    if system is not None:
        out["system"] = system
    if len(said) > 2:
        out["history"] = [[a.content, b.content] for a, b in zip(asked[:-1], answered[:-1], strict=True)]
    return out


def _is(message: Message, role: str) -> bool:
    return message.role == role and message.plain

"""Chat completions: the request for a dialogue, and what its answer says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tithe.endpoint.client import Client, Unusable
from tithe.records import Message, Problem

PAGE = "/chat/completions"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said.

    Args:
        text: as it came.
        tokens: of it, by the server's count; None where it does not say.
        finished: False where the length limit cut it off.
    """

    text: str
    tokens: int | None
    finished: bool


def chat_body(
    model: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), **settings: Any
) -> dict[str, Any]:
    """The request; settings are `temperature`, `top_p`, `max_tokens`, `seed`, ..., None is left out."""
    body: dict[str, Any] = {"model": model, "messages": [message.as_dict() for message in messages]}
    if tools:
        body["tools"] = [dict(tool) for tool in tools]
    return body | {name: value for name, value in settings.items() if value is not None}


def read_reply(answer: Any) -> Reply:
    """The first choice of an answer.

    Raises:
        Unusable: there is none, or it holds no text.
    """
    choices = answer.get("choices") if isinstance(answer, Mapping) else None
    if not isinstance(choices, list) or not choices:
        raise Unusable("the answer has no choices")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        raise Unusable("the answer's first choice has no message")
    text = message.get("content")
    if text is None and message.get("tool_calls"):
        raise Unusable("the answer is a tool call, not a text")
    if text is not None and not isinstance(text, str):
        raise Unusable("the answer's content is no text")
    usage = answer.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    counted = tokens if isinstance(tokens, int) and not isinstance(tokens, bool) else None
    return Reply(text or "", counted, choice.get("finish_reason") != "length")


def chat(client: Client, body: Mapping[str, Any]) -> Reply | Problem:
    """Ask once, with all patience; see `Client.ask`."""
    return client.ask(PAGE, body, read_reply)

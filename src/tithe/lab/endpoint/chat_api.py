"""Chat completions: the request for a dialogue, and what its answer says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tithe.lab.endpoint.client import Client, Unusable, message_of
from tithe.records import Message, Problem

PAGE = "/chat/completions"
MOST_TOKENS = 1 << 31  # that a server may say it wrote: a greater number counts something else
CUT_OFF = ("length", "content_filter")  # why an answer ends where its model did not end it


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
        said = message_of(answer["error"]) if isinstance(answer, Mapping) and "error" in answer else ""
        raise Unusable(f"the answer has no choices{said and ': '}{said}")
    choice = choices[0]
    message = choice.get("message") if isinstance(choice, Mapping) else None
    if not isinstance(message, Mapping):
        raise Unusable("the answer's first choice has no message")
    usage = answer.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, Mapping) else None
    counted = isinstance(tokens, int) and not isinstance(tokens, bool) and 0 <= tokens < MOST_TOKENS
    return Reply(text_of(message), tokens if counted else None, choice.get("finish_reason") not in CUT_OFF)


def text_of(message: Mapping[str, Any]) -> str:
    """What a message says, whole or in parts; nothing where it says nothing.

    Raises:
        Unusable: it calls a tool, refuses in its own field, or holds what is no text.
    """
    content, refusal = message.get("content"), message.get("refusal")
    if isinstance(content, list):
        parts = [part["text"] for part in content if isinstance(part, Mapping) and isinstance(part.get("text"), str)]
        content = "".join(parts) if len(parts) == len(content) else content
    if not content and message.get("tool_calls"):
        raise Unusable("the answer is a tool call, not a text")
    if not content and isinstance(refusal, str) and refusal:
        raise Unusable(f"the model refuses: {refusal}")
    if content is not None and not isinstance(content, str):
        raise Unusable("the answer's content is no text")
    text = content or ""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise Unusable("the answer holds half a character, which no file can")
    return text


def chat(client: Client, body: Mapping[str, Any]) -> Reply | Problem:
    """Ask once, with all patience; see `Client.ask`. A key that the answer repeats is taken out."""
    found = client.ask(PAGE, body, read_reply)
    return replace(found, text=client.address.scrub(found.text)) if isinstance(found, Reply) else found


A = TypeVar("A")
B = TypeVar("B")


def crowd(work: Callable[[A], B], items: Iterable[A], at_once: int, stop: Callable[[], None]) -> Iterator[tuple[A, B]]:
    """Yield each item with what became of it, in order of completion.

    The first exception ends it: those under way are told to `stop`, what is finished by then is still yielded, and the
    exception comes last. So no answer that was paid for is lost.
    """
    waiting = iter(items)
    under_way: dict[Future[B], A] = {}
    failure: BaseException | None = None
    with ThreadPoolExecutor(at_once) as pool:
        try:
            while True:
                while failure is None and len(under_way) < at_once and (item := next(waiting, None)) is not None:
                    under_way[pool.submit(work, item)] = item
                if not under_way:
                    break
                done, _ = wait(under_way, return_when=FIRST_COMPLETED)
                for future in done:
                    item = under_way.pop(future)
                    error = future.exception()
                    if error is None:
                        yield item, future.result()
                    elif failure is None:
                        failure = error
                        stop()
        except BaseException:
            stop()
            raise
    if failure is not None:
        raise failure

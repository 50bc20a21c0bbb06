"""Chat completions: build a request, read its answer, and send many at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tithe.lab.endpoint.client import Client, Unusable, message_of
from tithe.records import Message, Problem

PAGE = "/chat/completions"
MOST_TOKENS = 1 << 31  # of one answer; a server that reports more counts something else
CUT_OFF = ("length", "content_filter")  # reasons for which an answer ends before the model is done


@dataclass(frozen=True, slots=True)
class Reply:
    """A model's answer.

    Args:
        text: the text, unchanged.
        tokens: number of tokens by the server's count; None if it does not say.
        finished: whether the model ended it; False if it was cut off.
    """

    text: str
    tokens: int | None
    finished: bool


def chat_body(
    model: str, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), **settings: Any
) -> dict[str, Any]:
    """Return the request. Settings are `temperature`, `top_p`, `max_tokens`, `seed`, ...; None leaves one out."""
    body: dict[str, Any] = {"model": model, "messages": [message.as_dict() for message in messages]}
    if tools:
        body["tools"] = [dict(tool) for tool in tools]
    return body | {name: value for name, value in settings.items() if value is not None}


def read_reply(answer: Any) -> Reply:
    """Read the first choice of an answer.

    Raises:
        Unusable: there is no choice, or it holds no text.
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
    """Return the text of a message, whose content may be one text or a list of parts; empty if there is none.

    Raises:
        Unusable: it is a tool call, a refusal in its own field, or not text.
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
        raise Unusable("the answer's content is not text")
    text = content or ""
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise Unusable("the answer holds half a character, which cannot be stored")
    return text


def chat(client: Client, body: Mapping[str, Any]) -> Reply | Problem:
    """Send one request with `Client.ask`; a key that the answer repeats is taken out."""
    found = client.ask(PAGE, body, read_reply)
    return replace(found, text=client.address.scrub(found.text)) if isinstance(found, Reply) else found


A = TypeVar("A")
B = TypeVar("B")


def map_unordered(
    work: Callable[[A], B], items: Iterable[A], workers: int, stop: Callable[[], None]
) -> Iterator[tuple[A, B]]:
    """Yield each item with its result, in order of completion.

    After the first exception no item is begun, those under way are told to `stop`, finished ones are still yielded, and
    the exception is raised last. So no answer that was paid for is lost.
    """
    waiting = iter(items)
    under_way: dict[Future[B], A] = {}
    failure: BaseException | None = None
    with ThreadPoolExecutor(workers) as pool:
        try:
            while True:
                while failure is None and len(under_way) < workers and (item := next(waiting, None)) is not None:
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

"""Answers and examples out of nothing, for the contract of scorers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TypeAlias

from tithe import plugins
from tithe.records import Answer, Ask, Example, Message, Nll

Fabricate: TypeAlias = Callable[[int, float, bool], Answer]

TOKENS = (1, 2, 3, 40, 700)
MEANS = (0.0, 1e-6, 0.7, 2.3, 11.0, 60.0)  # nats per token: certain, ordinary, and worse than any guess


def fabricated(asks: Mapping[str, Ask], known: Mapping[str, Fabricate]) -> list[dict[str, Answer]]:
    """Answers of several lengths and likelihoods; the passes differ in both, and in whether the first token counts."""
    return [
        {
            key: answer(ask, known, tokens, MEANS[(i + j + 2 * k) % len(MEANS)], first or k % 2 == 0)
            for k, (key, ask) in enumerate(asks.items())
        }
        for i, tokens in enumerate(TOKENS)
        for j in range(len(MEANS))
        for first in (True, False)
    ]


def answer(ask: Ask, known: Mapping[str, Fabricate], tokens: int, mean: float, first: bool) -> Answer:
    """The answer to one ask; its readout is known."""
    fabricate = lookup(ask.readout, known)
    assert fabricate is not None, ask.readout
    return fabricate(tokens, mean, first)


def lookup(readout: str, known: Mapping[str, Fabricate]) -> Fabricate | None:
    """Return what fabricates the answers of a readout: as given, or as the registered readout says; None for neither.

    Args:
        readout: by name, or with an argument: `head:folder` is a `head`.
        known: readout -> what fabricates its answers.
    """
    name, _, argument = readout.partition(":")
    own = known.get(readout) or known.get(name)
    if own is not None or name not in plugins.names(plugins.READOUTS):
        return own
    return partial(plugins.readout(name).made_up, argument)


def describe(answers: Mapping[str, Answer]) -> str:
    """Answers in a line of a failure message."""
    parts = [
        f"{key}: {one.total:.4g} nats over {one.tokens} tokens" if isinstance(one, Nll) else f"{key}: {one}"
        for key, one in answers.items()
    ]
    return f"({', '.join(parts)})"


def _example(row: int, instruction: str, extra: str, response: str) -> Example:
    prompt = (Message("user", f"{instruction}\n{extra}" if extra else instruction),)
    columns = {"source": "web"} if row % 2 else {}
    reply = Message("assistant", response)
    return Example(f"{row:032x}", row, 1, prompt, reply, instruction, extra, columns=columns, where=f"test:{row}")


EXAMPLES = (
    _example(0, "Name the capital of France.", "", "Paris."),
    _example(1, "Translate to German.", "Good morning", "Guten Morgen"),
    _example(2, "Say nothing.", "", "."),
    _example(3, "Write an emoji.", "", "\U0001f600 \u05e9\u05dc\u05d5\u05dd"),
)

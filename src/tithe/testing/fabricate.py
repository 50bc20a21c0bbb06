"""Answers and examples out of nothing, for the contract of scorers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from tithe.records import Answer, Ask, Count, Example, Margin, Message, Nll, Options, Vector

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
    """By name, or by what stands before its argument: `head:folder` is a `head`.

    A readout `nll...` that is not known by name is an Nll with its tokens kept.
    """
    name = readout.partition(":")[0]
    return known.get(readout) or known.get(name) or (_nll_per_token if readout.startswith("nll") else None)


def describe(answers: Mapping[str, Answer]) -> str:
    """Answers in a line of a failure message."""
    parts = [
        f"{key}: {one.total:.4g} nats over {one.tokens} tokens" if isinstance(one, Nll) else f"{key}: {one}"
        for key, one in answers.items()
    ]
    return f"({', '.join(parts)})"


def _nll_per_token(tokens: int, mean: float, first: bool) -> Nll:
    """As the engine answers: without context the first token is not scored, and `tokens` is one fewer."""
    per_token = np.full(tokens, mean, dtype=np.float32)
    per_token[::2] *= np.float32(0.5)
    scored = per_token if first else per_token[1:]
    opening = float(per_token[0]) if first and tokens else math.nan
    return Nll(float(scored.sum(dtype=np.float64)), len(scored), opening, scored)


def _nll(tokens: int, mean: float, first: bool) -> Nll:
    return replace(_nll_per_token(tokens, mean, first), per_token=None)


def _count(tokens: int, mean: float, first: bool) -> Count:
    return Count(prompt=12, response=tokens)


def _margin(tokens: int, mean: float, first: bool) -> Margin:
    return Margin((mean - 2.3) * (1 if first else -1))


def _vector(tokens: int, mean: float, first: bool) -> Vector:
    angle = mean + tokens
    return Vector(np.array([math.cos(angle), math.sin(angle), 0.0], dtype=np.float32))


def _options(tokens: int, mean: float, first: bool) -> Options:
    """Of up to six replies: likelier ones further on, or all alike."""
    return Options(np.log(np.linspace(0.01, 0.01 + mean / 400, 6)).astype(np.float32))


def _example(row: int, instruction: str, extra: str, response: str) -> Example:
    prompt = (Message("user", f"{instruction}\n{extra}" if extra else instruction),)
    columns = {"source": "web"} if row % 2 else {}
    reply = Message("assistant", response)
    return Example(f"{row:032x}", row, 1, prompt, reply, instruction, extra, columns=columns, where=f"test:{row}")


KNOWN: Mapping[str, Fabricate] = {
    "nll": _nll,
    "count": _count,
    "head": _margin,
    "weighted": _vector,
    "options": _options,
}
EXAMPLES = (
    _example(0, "Name the capital of France.", "", "Paris."),
    _example(1, "Translate to German.", "Good morning", "Guten Morgen"),
    _example(2, "Say nothing.", "", "."),
    _example(3, "Write an emoji.", "", "\U0001f600 \u05e9\u05dc\u05d5\u05dd"),
)

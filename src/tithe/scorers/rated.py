"""Ask the model for a rating, and read how likely each reply is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tithe.records import Answer, Ask, Example, FloatArray, Message, Options, PassSpec

MASS = "mass"  # the name, in `also`, of the probability of all replies together
NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def rating(example: Example, question: str, replies: Sequence[str]) -> Ask:
    """Ask a question about an example: how likely is each of the replies?"""
    return Ask(PassSpec("rated", example, question=question, options=tuple(replies)), f"options:{','.join(replies)}")


def shares(answers: Mapping[str, Answer], name: str) -> FloatArray:
    """Return the probabilities among the replies, normalised to sum to 1: (replies,)."""
    answer = answers[name]
    assert isinstance(answer, Options), f"`{name}` is {type(answer).__name__}"
    return answer.shares


def mass(answers: Mapping[str, Answer]) -> float:
    """Return the probability that the model gives one of the replies, averaged over the questions; 0 to 1."""
    found = [np.exp(one.log_probs.astype(np.float64)).sum() for one in answers.values() if isinstance(one, Options)]
    return min(1.0, float(np.mean(found)))  # rounding may lead a little above 1


def exchanges(example: Example) -> list[tuple[str, str]]:
    """Return (query, answer) of each turn; the last answer is the example's response."""
    found, query = list[tuple[str, str]](), ""
    for message in (*example.prompt, example.response):
        if message.role == "user":
            query = message.content
        elif message.role == "assistant" and (message.content or message is example.response):
            found.append((query, message.content))
    return found


def prompt_text(example: Example) -> str:
    """Return the prompt as one text: a single message as it is, several each with the speaker's name before it."""
    if len(example.prompt) == 1:
        return example.prompt[0].content
    return "\n\n".join(map(spoken, example.prompt))


def spoken(message: Message) -> str:
    return f"{NAMES.get(message.role, message.role)}: {message.content}"

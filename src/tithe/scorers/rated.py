"""What scorers have in common that ask the model for a rating and look at how likely each reply is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tithe.records import Answer, Ask, Example, FloatArray, Message, Options, PassSpec

MASS = "mass"  # the name, in `also`, of the share of probability that lies on the replies
NAMES = {"system": "System", "user": "User", "assistant": "Assistant", "tool": "Tool"}


def rating(example: Example, question: str, replies: Sequence[str]) -> Ask:
    """A question about an example, and how likely each of the replies is."""
    return Ask(PassSpec("rated", example, question=question, options=tuple(replies)), f"options:{','.join(replies)}")


def shares(answers: Mapping[str, Answer], name: str) -> FloatArray:
    """(replies,) probabilities among the replies alone."""
    answer = answers[name]
    assert isinstance(answer, Options), f"`{name}` is {type(answer).__name__}"
    return answer.shares


def mass(answers: Mapping[str, Answer]) -> float:
    """The share of probability that lies on the replies at all, on the average of the questions; 0 to 1."""
    found = [np.exp(one.log_probs.astype(np.float64)).sum() for one in answers.values() if isinstance(one, Options)]
    return min(1.0, float(np.mean(found)))


def exchanges(example: Example) -> list[tuple[str, str]]:
    """What a user says and what is answered, turn by turn; the last answer is the example's response."""
    found, query = list[tuple[str, str]](), ""
    for message in (*example.prompt, example.response):
        if message.role == "user":
            query = message.content
        elif message.role == "assistant" and (message.content or message is example.response):
            found.append((query, message.content))
    return found


def prompt_text(example: Example) -> str:
    """The prompt in one text: of a single message its words, of several each under its speaker's name."""
    if len(example.prompt) == 1:
        return example.prompt[0].content
    return "\n\n".join(map(spoken, example.prompt))


def spoken(message: Message) -> str:
    return f"{NAMES.get(message.role, message.role)}: {message.content}"

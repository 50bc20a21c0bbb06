"""What every template makes of an example: text, cut where the response begins and ends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example in text: `prompt + response + tail` is the whole rendering.

    Args:
        prompt: all that stands before the response.
        response: what is scored, as the template writes it.
        tail: what the template puts after the response: the end-of-turn marker, a newline.
        anchor: the end of the prompt that is the same for every example.
    """

    prompt: str
    response: str
    tail: str
    anchor: str


@dataclass(frozen=True, slots=True)
class Turns:
    """How a second dialogue goes on after a first in one sequence.

    Args:
        opening: what the template writes before the first user's words, default system message included.
        between: what it writes between a response and the next user's words, in place of the opening.
            None where a further turn cannot be rendered.
        tail: what it writes after the last response.
    """

    opening: str
    between: str | None
    tail: str = ""

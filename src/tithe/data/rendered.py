"""What every template makes of an example: text, cut where the response begins and ends."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Remarks:
    """What a reader of the counts should know about how an example was rendered and tokenised.

    Args:
        parts: the unusual parts that the example has: its system message, reasoning, tool calls and so on.
        left_out: those of them that the template did not write at all, or not all of them.
        apart: a token of the whole text reaches over the beginning of the response, so prompt and response were
            tokenised apart.
        own_end: the response's own text ends with the marker that ends a response.
    """

    parts: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    apart: bool = False
    own_end: bool = False


NOTHING_ODD = Remarks()


@dataclass(frozen=True, slots=True)
class Rendered:
    """One example in text: `prompt + response + tail` is the whole rendering.

    Args:
        prompt: all that stands before the response.
        response: what is scored, as the template writes it.
        tail: what the template puts after the response: the end-of-turn marker, a newline.
        anchor: the end of the prompt that is the same for every example.
        remarks: which parts of the example the template has left out.
    """

    prompt: str
    response: str
    tail: str
    anchor: str
    remarks: Remarks = NOTHING_ODD


@dataclass(frozen=True, slots=True)
class Turns:
    """How a second dialogue goes on after a first in one sequence.

    Args:
        opening: what the template writes before the first user's words, default system message included.
        between: what it writes between a response and the next user's words, in place of the opening.
            None where a further turn cannot be rendered.
        tail: what it writes after the last response.
        system_opening: what it writes before the words of a system message; None where it takes none.
    """

    opening: str
    between: str | None
    tail: str = ""
    system_opening: str | None = None

"""Responses that decline to respond, by how they open. A short list of our own: it finds the usual, not all."""

from __future__ import annotations

import re

OPENINGS = (
    "i'm sorry, but",
    "i am sorry, but",
    "i'm sorry, i ",
    "i apologize, but",
    "sorry, but i",
    "sorry, i ",
    "i cannot",
    "i can't",
    "i can not",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "i am not able to",
    "unfortunately, i cannot",
    "unfortunately, i can't",
    "unfortunately, i am unable",
    "unfortunately, i'm unable",
    "as an ai language model, i",
    "as an ai assistant, i",
    "as an ai, i",
    "as a language model, i",
)
_REFUSAL = re.compile(r"[\W_]*(?:" + "|".join(re.escape(opening) for opening in OPENINGS) + ")")


def is_refusal(text: str) -> bool:
    """Whether the response opens with one of `OPENINGS`, whatever the case and the kind of apostrophe."""
    return _REFUSAL.match(text[:200].lower().replace("\u2019", "'")) is not None

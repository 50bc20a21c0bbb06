"""Recognise preference pairs, rated completions and KTO labels: data that says which responses are good or bad."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tithe.data.turns import quoted_names
from tithe.records import ResponseNote

# Field names of several public preference data sets: (wanted, not wanted), or two responses without a verdict.
PAIRS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("response_chosen", "response_rejected"),
    ("preferred", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("response_a", "response_b"),
    ("response_0", "response_1"),
    ("response1", "response2"),
    ("output_1", "output_2"),
    ("answer_a", "answer_b"),
    ("completion_a", "completion_b"),
)
RESPONSE_LISTS = (
    "completions",
    "responses",
    "candidates",
    "generations",
)  # fields with a list of responses to one prompt
LABELS = ("label", "kto_tag", "desirable", "is_desirable", "accepted", "is_chosen")
SCORES = frozenset(
    [
        "labels",
        "margin",
        "preference",
        "rank",
        "ranking",
        "rating",
        "ratings",
        "reward",
        "rewards",
        "score",
        "scores",
        "score_chosen",
        "score_rejected",
        "chosen_score",
        "rejected_score",
        "chosen_rating",
        "rejected_rating",
        "overall_score",
        "winner",
    ]
)
REJECTED = frozenset(
    [
        "rejected",
        "rejected_response",
        "rejected_responses",
        "rejected_messages",
        "rejected_input",
        "rejected_output",
        "response_rejected",
        "non_preferred_output",
    ]
)  # fields with the response that was not preferred
FEEDBACK_FIELDS = frozenset((*RESPONSE_LISTS, *LABELS, *SCORES, *REJECTED, *(name for pair in PAIRS for name in pair)))
_FALSE = ("false", "undesirable", "rejected")


def describe_alternatives(record: Mapping[str, Any]) -> str | None:
    """Describe the alternative responses that a record has for one prompt; None if it has only one."""
    if not FEEDBACK_FIELDS & record.keys():
        return None
    for pair in PAIRS:
        if all(record.get(name) for name in pair):
            return f"a pair of responses ({quoted_names(pair)})"
    for name in RESPONSE_LISTS:
        if isinstance(record.get(name), (list, tuple)) and record[name]:
            beside = " with `labels`, as of single steps" if record.get("labels") else ""
            return f"several responses to one prompt (`{name}`{beside})"
    return None


def note_feedback(record: Mapping[str, Any], notes: list[str]) -> None:
    """Note labels, scores and rejected responses beside the response."""
    there = FEEDBACK_FIELDS & record.keys()
    for name in sorted(there):
        value = record[name]
        if value is None:
            continue
        if name in LABELS:
            if value is False or (isinstance(value, str) and value.strip().lower() in _FALSE):
                shown = f'"{value}"' if isinstance(value, str) else "0"
                said = f"`{name}` is false, which marks an undesirable response in preference data (KTO): it is scored "
                notes.append(ResponseNote(f"{said}all the same; `select --drop '{name} == {shown}'` leaves it out"))
        elif name in SCORES:
            said = f"`{name}` is feedback on the response and is not looked at; `select --drop` can use numbers"
            notes.append(ResponseNote(said))
        elif value and (name in REJECTED or describe_alternatives(record)):
            notes.append(f"`{name}` is another response, of preference data, and is not read")


def explain_preference_data(record: Mapping[str, Any]) -> str | None:
    """Explain why a preference record cannot be learnt from, and the way out; None if it is not such a record."""
    words = describe_alternatives(record)
    if words is None:
        return None
    wanted = "`chosen`" if "`chosen`" in words else "the wanted one"
    return f"preference or feedback data: {words}; write {wanted} as `messages`, or as `prompt` and `completion`"

"""The planner keeps each distinct pass once, and its costs equal those counted by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest

from tithe.data.render import EncodedExample, Renderer, RenderSettings
from tithe.planner import (
    WINDOW,
    Cost,
    Slot,
    Window,
    plan_window,
    window_size,
    windows,
    without_details,
)
from tithe.records import Answer, Ask, BadRow, Example, Message, Pass, PassKind, PassSpec, Problem
from tithe.runners.local import MODEL_READOUTS, LocalRunner
from tithe.scorers.base import Scorer
from tithe.scorers.ifd import IFD
from tithe.scorers.length import Length
from tithe.scorers.perplexity import Perplexity
from tithe.scorers.random import Random
from tithe.scorers.superfiltering import Superfiltering

ALL: dict[str, Scorer] = {s.name: s for s in (IFD(), Superfiltering(), Perplexity(), Length(), Random())}
NO_IDS = np.empty(0, dtype=np.int32)
BOS = 1


def example(row: int, prompt: str, response: str) -> Example:
    return Example(f"{row:04d}", row, 1, (Message("user", prompt),), Message("assistant", response))


class Letters(Renderer):
    """A token per letter, BOS first, at most twelve tokens; an empty response and one of `?` are problems."""

    def __init__(self, lead: bool = True) -> None:
        self.settings = RenderSettings()
        self.lead = np.array([BOS] if lead else [], dtype=np.int32)
        self.encoded = 0

    def describe(self) -> dict[str, Any]:
        return {}

    def encode(self, examples: Sequence[Example]) -> list[EncodedExample | Problem]:
        self.encoded += len(examples)
        return [self._encode(e) for e in examples]

    def _encode(self, e: Example) -> EncodedExample | Problem:
        if not e.response.content:
            return Problem("empty response")
        if e.response.content == "?":
            return Problem(f"too odd: {len(e.prompt[0].content)} letters")
        prompt, response = (np.array([ord(c) for c in t], np.int32) for t in (e.prompt[0].content, e.response.content))
        return EncodedExample(self.lead, prompt, response, NO_IDS)

    def build(self, kind: PassKind, encoded: EncodedExample, shots: Sequence[EncodedExample] = ()) -> Pass | Problem:
        before = [encoded.lead] if kind == "alone" else [encoded.lead, *(s.ids for s in shots), encoded.prompt]
        context = np.concatenate(before)
        room = 12 - len(context)
        response = encoded.response[:room]
        return Pass(np.concatenate([context, response]), len(context), 0, len(encoded.response) - len(response))


def planned(items: Sequence[Example | BadRow], scorers: Mapping[str, Scorer] = ALL, lead: bool = True) -> Window:
    return LocalRunner(scorers, Letters(lead), None, {}).plan(items)


def places(slots: Mapping[str, Slot | Problem]) -> dict[str, object]:
    """Readout and pass of each ask."""
    return {name: (slot.readout, slot.index) if isinstance(slot, Slot) else slot for name, slot in slots.items()}


def cost(*each: Window) -> Cost:
    total = Cost()
    for window in each:
        total.add(window, MODEL_READOUTS)
    return total


def test_three_scorers_on_one_model_cost_two_passes() -> None:
    window = planned([example(0, "why", "so"), example(1, "how", "thus")])
    assert window.asked == 2 * (2 + 2 + 1 + 1)
    assert [(kind, len(p.ids)) for kind, p in zip(window.kinds, window.passes, strict=True)] == [
        ("given", 6), ("alone", 3), ("given", 8), ("alone", 5),
    ]  # fmt: skip
    assert window.readouts == [{"nll", "count"}, {"nll"}] * 2
    ifd, super_, perplexity, length, random = map(places, window.slots[1])
    assert ifd == super_ == {"given": ("nll", 2), "alone": ("nll", 3)}
    assert perplexity == {"given": ("nll", 2)}
    assert length == {"given": ("count", 2)}
    assert random == {}


def test_equal_passes_of_different_examples_are_one() -> None:
    """Two prompts, one response: `alone` is the same. Without a prompt, `given` is `alone`."""
    window = planned([example(0, "why", "so"), example(1, "how", "so"), example(2, "", "so")])
    assert len(window.passes) == 3
    found = [places(each[0]) for each in window.slots]
    assert found[0]["alone"] == found[1]["alone"] == found[2]["given"]
    specs = [window.slots[i][0]["alone"].spec for i in (0, 1)]  # type: ignore[union-attr]
    assert [spec.example.row for spec in specs] == [0, 1]  # one pass, read for both
    total = cost(window)
    assert total.passes == {"given": 2, "alone": 1}
    assert total.asked == 18


def test_the_cost_by_hand() -> None:
    items: list[Example | BadRow] = [
        example(0, "why", "so"),  # given 1+3+2, alone 1+2
        example(1, "how", "so"),  # given 1+3+2; alone as before
        BadRow(2, "x:3", "no response"),
        example(3, "where", "here and there"),  # given 12 of 1+5+14: 8 cut; alone 12 of 15: 3 cut
        example(4, "when", ""),
        example(5, "who", "?"),
        example(6, "whose", "?"),
    ]
    found = cost(planned(items)).as_dict()
    assert found == {
        "records": 7,
        "examples": 6,
        "bad_rows": {"no response": 1},
        "notes": {},
        "duplicates": 0,
        "problems": {"empty response": 1, "too odd": 2},
        "passes_asked": 6 * 6,
        "passes": {"given": 3, "alone": 2},
        "forward_tokens": 5 + 2 + 5 + 11 + 11,  # the last token of a pass needs no forward
        "scored_tokens": 2 + 2 + 2 + 6 + 11,
        "longest_pass": 12,
        "truncated_prompts": 0,
        "truncated_responses": 1,
        "response_tokens_cut": 8,
        "truncated_shots": 0,
        "shot_tokens_cut": 0,
        "left_out_by_template": {},
        "tokenised_apart": 0,
        "own_end_markers": 0,
    }


def test_notes_are_counted_once_a_record_and_repeated_contents_by_their_ids() -> None:
    first = replace(example(0, "why", "so"), notes=("odd", "long"))
    second = replace(example(0, "how", "so"), notes=("odd",))
    third = replace(example(4, "when", "so"), id="a-1", notes=("odd",))
    found = cost(planned([first, second, BadRow(2, "x:3", "no response"), third])).as_dict()
    assert found["notes"] == {"odd": 2, "long": 1}
    assert found["duplicates"] == 1


def test_a_first_token_without_context_is_not_scored() -> None:
    found = cost(planned([example(0, "", "so"), example(1, "", "x")], {"perplexity": Perplexity()}, lead=False))
    assert (found.tokens, found.scored) == (1, 1)  # "so" reads one token and scores one; "x" neither


def test_windows_share_what_they_have_in_common() -> None:
    one, other = planned([example(0, "why", "so")]), planned([example(1, "how", "so")])
    both = planned([example(0, "why", "so"), example(1, "how", "so")])
    apart, together = cost(one, other).as_dict(), cost(both).as_dict()
    assert apart == together
    assert cost(one, one).as_dict() | {"records": 0, "examples": 0, "passes_asked": 0} == cost(one).as_dict() | {
        "records": 0, "examples": 0, "passes_asked": 0,
    }  # fmt: skip


def test_counts_alone_need_no_pass() -> None:
    found = cost(planned([example(0, "why", "so")], {"length": Length(), "random": Random()}))
    assert (dict(found.passes), found.tokens, found.scored, found.longest) == ({}, 0, 0, 0)


def test_turns_of_a_record_are_one_record() -> None:
    items = [
        Example(f"{i}", row, i, (Message("user", "a"),), Message("assistant", "b"))
        for i, row in enumerate([0, 0, 0, 1])
    ]
    found = cost(planned(items[:2]), planned(items[2:]))
    assert (found.records, found.examples) == (2, 4)


def test_a_problem_stands_in_every_slot_of_its_example() -> None:
    window = planned([example(0, "who", "?"), example(1, "why", "so")])
    assert window.passes and len(window.given) == 2
    bad = Problem("too odd: 3 letters")
    assert window.given[0] == bad
    assert window.slots[0] == [{"given": bad, "alone": bad}, {"given": bad, "alone": bad}, {"given": bad},
                               {"given": bad}, {}]  # fmt: skip


def test_bad_rows_keep_their_places() -> None:
    bad = BadRow(1, "x:2", "no response")
    window = planned([example(0, "why", "so"), bad, example(2, "how", "so")])
    assert window.items[1] is bad
    assert [e.row for e in window.examples] == [0, 2]
    assert len(window.given) == len(window.slots) == 2


@dataclass(frozen=True)
class Shown(Scorer):
    """Reads each response behind another example."""

    name: ClassVar[str] = "shown"
    unit: ClassVar[str] = "nats"
    reads: ClassVar[str] = "shown: nll"

    shot: Example

    def asks(self, example: Example) -> dict[str, Ask]:
        return {"one": Ask(PassSpec("shown", example, (self.shot,)), "nll")}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        return 0.0


def test_a_shot_from_elsewhere_is_encoded_once() -> None:
    shot, renderer = example(99, "w", "o"), Letters()
    items = [example(i, "why", "so"[: 1 + i % 2]) for i in range(6)]
    asks = [[Shown(shot).asks(e)] for e in items]
    window = plan_window(items, asks, renderer)
    assert renderer.encoded == 7
    # BOS; the shot's own BOS, `w` and `o`; then `why` and the response
    assert [len(p.ids) for p in window.passes] == [8, 9]
    odd = plan_window(items, [[Shown(example(98, "w", "")).asks(e)] for e in items], Letters())
    assert odd.passes == [] and odd.slots[0] == [{"one": Problem("no worked example: empty response")}]
    assert cost(odd).problems == {"no worked example": 6}


def test_tokens_cut_of_shots_are_counted_once_a_pass() -> None:
    class Cutting(Letters):
        def build(
            self, kind: PassKind, encoded: EncodedExample, shots: Sequence[EncodedExample] = ()
        ) -> Pass | Problem:
            whole = super().build(kind, encoded, shots)
            return replace(whole, cut_shots=3) if shots and isinstance(whole, Pass) else whole

    items = [example(0, "why", "so"), example(1, "how", "thus")]
    scorers = [Shown(example(99, "w", "o")), Shown(example(99, "w", "o")), Shown(example(98, "v", "o"))]
    window = plan_window(items, [[scorer.asks(e) for scorer in scorers] for e in items], Cutting())
    found = cost(window)
    assert (found.truncated["shots"], found.cut_shots) == (2, 2 * 2 * 3)  # two examples, two distinct passes each
    assert window.shot_tokens_cut == [6, 6]


def test_what_is_read_before_the_scores_is_counted_without_examples() -> None:
    window = planned([example(0, "why", "so")])
    total = Cost()
    total.add_passes(window, MODEL_READOUTS)
    assert (total.examples, total.records, dict(total.passes)) == (0, 0, {"given": 1, "alone": 1})
    total.add(window, MODEL_READOUTS)
    assert (total.examples, dict(total.passes)) == (1, {"given": 1, "alone": 1})  # passes are counted once


@pytest.mark.parametrize(("asks", "size"), [(0, WINDOW), (4, WINDOW), (8, WINDOW), (16, WINDOW // 2), (10**6, 1)])
def test_windows_are_smaller_where_each_example_asks_much(asks: int, size: int) -> None:
    assert window_size(asks) == size


def test_windows_are_cut_by_count_alone() -> None:
    items = [BadRow(i, "", "x") for i in range(WINDOW * 2 + 1)]
    assert [len(chunk) for chunk in windows(iter(items))] == [WINDOW, WINDOW, 1]
    assert list(windows([])) == []


@pytest.mark.parametrize(
    ("reason", "bare"), [("too odd: 3 letters", "too odd"), ("empty response", "empty response"), (": x", "")]
)
def test_reasons_are_counted_without_their_particulars(reason: str, bare: str) -> None:
    assert without_details(reason) == bare

"""Counts of what was odd in rendering a data set's examples, and the sentences that say so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tithe.data.rendered import Remarks


@dataclass
class RemarkCounts:
    """How many examples were rendered in an odd way.

    Args:
        parts: kind of part -> examples that have it; the usual kinds are counted where the template left them out.
        left_out: kind of part -> examples of which the template left some of it out.
        apart: examples whose prompt and response had to be tokenised apart.
        own_end: examples whose response ends with an end marker of its own.
    """

    parts: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    apart: int = 0
    own_end: int = 0

    def add(self, remarks: Remarks) -> None:
        self.parts.update(remarks.parts)
        self.left_out.update(remarks.left_out)
        self.apart += remarks.apart
        self.own_end += remarks.own_end

    def as_dict(self) -> dict[str, Any]:
        return {
            "left_out_by_template": {
                kind: {"examples": n, "of": self.parts[kind]} for kind, n in sorted(self.left_out.items())
            },
            "tokenised_apart": self.apart,
            "own_end_markers": self.own_end,
        }


def remark_sentences(counts: Mapping[str, Any]) -> Iterator[str]:
    """Yield a sentence for each oddity that was counted; counts written before there were any have none."""
    for kind, found in counts.get("left_out_by_template", {}).items():
        yield f"left out by the template: {kind}, in {found['examples']:,} of {found['of']:,} examples that have one"
    if counts.get("tokenised_apart"):
        yield (
            f"prompt and response tokenised apart, {counts['tokenised_apart']:,} examples: "
            "one token of the whole text reaches over both"
        )
    if counts.get("own_end_markers"):
        yield f"responses that end with an end marker of their own: {counts['own_end_markers']:,}"

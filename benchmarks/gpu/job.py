"""What is scored: records as the two passes of IFD, and how much there is to read in them."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tithe.data.formats import read_examples
from tithe.data.ids import Occurrences
from tithe.data.render import EncodedExample, RenderSettings, make_renderer
from tithe.records import BadRow, Example, Pass


@dataclass(frozen=True)
class Work:
    """What a model has to do for some passes.

    Args:
        tokens: of the passes, as they are.
        read: that go through the body: of each pass all but the last, which predicts nothing.
        scored: whose likelihood is wanted.
        pairs: of a query and a key that it sees.
    """

    tokens: int
    read: int
    scored: int
    pairs: int


@dataclass(frozen=True)
class Job:
    """Passes `given` and `alone` of each record, one after the other."""

    passes: list[Pass]
    left_out: int
    seconds: float  # of reading and tokenising

    @property
    def records(self) -> int:
        return len(self.passes) // 2

    def first(self, records: int) -> list[Pass]:
        return self.passes[: 2 * records]


def make_job(data: Path, tokenizer: Any, records: int, max_length: int) -> Job:
    """The first records that can be scored, under the Alpaca template."""
    began = time.perf_counter()
    renderer = make_renderer(tokenizer, RenderSettings(template="alpaca", max_length=max_length))
    read, seen, passes, left_out = list[Example](), Occurrences(), list[Pass](), 0
    with data.open(encoding="utf-8") as lines:
        for row, line in enumerate(lines):
            for one in read_examples(json.loads(line), "alpaca", "last", row, f"line {row + 1}", seen):
                left_out += isinstance(one, BadRow)
                read += [] if isinstance(one, BadRow) else [one]
            if len(read) >= records:
                break
    for encoded in renderer.encode(read):
        pair = (
            [renderer.build(kind, encoded) for kind in ("given", "alone")]
            if isinstance(encoded, EncodedExample)
            else []
        )
        if pair and all(isinstance(one, Pass) for one in pair):
            passes += pair
        else:
            left_out += 1
    return Job(passes, left_out, time.perf_counter() - began)


def work_of(passes: Sequence[Pass], shared: Sequence[int] | None = None) -> Work:
    """Args: `shared` says per pass how many of its first tokens are read in another one."""
    tokens = read = scored = pairs = 0
    for pass_, common in zip(passes, shared or [0] * len(passes), strict=True):
        length = max(len(pass_.ids) - 1, 1)
        tokens += len(pass_.ids)
        read += length - common
        scored += len(pass_.ids) - max(pass_.start, 1)
        pairs += (length * (length + 1) - common * (common + 1)) // 2
    return Work(tokens, read, scored, pairs)

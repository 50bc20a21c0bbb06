"""Mean hidden states of the parts of a pass, and margins of linear probes that read them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from tithe.engine.forward.states import PendingStates, ReaderContext, StateReader, StateReadout
from tithe.engine.host import start_fetch
from tithe.engine.readouts.base import View
from tithe.records import Answer, Pass, Problem, States, Vector

PROMPT, RESPONSE, LAST = PARTS = range(3)
LAYERS = 5  # hidden states that are read
Margins: TypeAlias = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.float64]]


def spread_layers(count: int) -> tuple[int, ...]:
    """Return the hidden states to read, ascending: five, evenly spread from the middle of the model to its end.

    >>> spread_layers(31)
    (14, 18, 22, 26, 30)
    """
    return tuple(sorted({round(place) for place in np.linspace(0.45 * (count - 1), count - 1, LAYERS).tolist()}))


def part_spans(start: int, stop: int) -> tuple[slice, ...]:
    """Return the tokens of the prompt, of the response, and its last token; without a prompt the response is both."""
    return slice(0, start or stop), slice(start, stop), slice(stop - 1, stop)


class PartStates(StateReadout):
    """The mean hidden state of each part of a pass, in five layers: (layers, parts, dim) float32.

    The parts are the prompt, the response, and the response's last token.
    """

    name = "parts"
    version = 1
    fields: ClassVar[Mapping[str, Any]] = {"values": "list<float32>", "layers": "int32"}

    def layers(self, count: int) -> Sequence[int]:
        return spread_layers(count)

    def span(self, pass_: Pass) -> range:
        return range(len(pass_.ids))

    def reader(self, passes: Sequence[Pass], model: ReaderContext) -> StateReader:
        return PartReader(self.lengths(passes), [part_spans(one.start, len(one.ids)) for one in passes])

    def read(self, view: View) -> dict[str, Any] | Problem:
        if isinstance(view.found, Problem):
            return view.found
        return {"values": view.found.ravel(), "layers": len(view.found)}

    def answer(self, row: Mapping[str, Any]) -> Answer:
        values = np.asarray(row["values"], dtype=np.float32)
        return States(values.reshape(int(row["layers"]), len(PARTS), -1))

    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Answer:
        """Return fabricated states that differ by likelihood and length."""
        waves = np.sin(mean * np.arange(1, 2 * len(PARTS) * 4 + 1) + tokens)  # two layers, four dimensions
        return States(waves.astype(np.float32).reshape(2, len(PARTS), 4))


class PartReader:
    """A reader that averages the states of each part, layer by layer.

    Args:
        lengths: tokens of each pass.
        spans: of its parts.
    """

    def __init__(self, lengths: Sequence[int], spans: Sequence[Sequence[slice]]) -> None:
        self.lengths, self.spans = list(lengths), spans
        self.found: list[torch.Tensor] = []

    def take(self, layer: int, rows: torch.Tensor) -> None:
        # Pass by pass, so that the order of summation does not depend on the rest of the batch.
        means = [
            torch.stack([states[span].mean(0, dtype=torch.float32) for span in spans])
            for states, spans in zip(torch.split(rows, self.lengths), self.spans, strict=True)
        ]
        self.found.append(torch.stack(means))  # (passes, parts, dim)

    def results(self) -> PendingStates:
        values = start_fetch(torch.stack(self.found, dim=1))  # (passes, layers, parts, dim)
        return lambda: list(values())


class ProbeMargins(PartStates):
    """The margins of a pass by linear probes that were fitted in this run: (outputs,) float32.

    Args:
        margins: maps the states of a pass, (layers, parts, dim), to (outputs,); None until the probes are fitted.
        fingerprint: of the probes, so that other probes' answers are never found.
    """

    name = "probes"
    fields: ClassVar[Mapping[str, Any]] = {"values": "list<float32>"}

    def __init__(self, margins: Margins | None = None, fingerprint: str = "unfitted") -> None:
        self.margins, self.name = margins, f"probes-{fingerprint}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle without the probes: another process only averages the states."""
        return type(self), (None, self.name.removeprefix("probes-"))

    def read(self, view: View) -> dict[str, Any] | Problem:
        if isinstance(view.found, Problem):
            return view.found
        assert self.margins is not None, "not fitted yet"
        return {"values": self.margins(view.found).astype(np.float32)}

    def answer(self, row: Mapping[str, Any]) -> Answer:
        return Vector(np.asarray(row["values"], dtype=np.float32))

    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Answer:
        return Vector(np.array([mean - 2.3, 2.3 - mean, float(first)], dtype=np.float32))

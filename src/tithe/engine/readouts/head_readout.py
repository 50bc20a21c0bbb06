"""A quality head as a readout: the hidden states of a response in, one margin out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar

from tithe.engine.copies import fetched
from tithe.engine.forward.states import Reading, Results, StateReader, StateReadout
from tithe.engine.heads.files import load_head, read_card
from tithe.engine.readouts.base import View
from tithe.records import Answer, Margin, Pass, Problem

if TYPE_CHECKING:
    import torch

    from tithe.engine.heads.base import LayerReader, StateHead


class MarginReadout(StateReadout):
    """Margins by one head.

    Args:
        head: on the CPU; it is put where the states are.
        name: under which its answers are kept, apart from those of any other.
    """

    version = 1
    fields: ClassVar[Mapping[str, Any]] = {"margin": "float64"}
    travels: ClassVar[bool] = False  # a head in memory

    def __init__(self, head: StateHead | None, name: str) -> None:
        self.name = name
        self._head = head
        self._lock = Lock()
        self._placed: dict[torch.device, StateHead] = {}

    def head(self) -> StateHead:
        assert self._head is not None
        return self._head

    def layers(self, count: int) -> Sequence[int]:
        return self.head().layers

    def span(self, pass_: Pass) -> range:
        return range(pass_.start, len(pass_.ids))

    def reader(self, lengths: Sequence[int], model: Reading) -> StateReader:
        with self._lock:  # several threads begin at once
            if model.device not in self._placed:
                self._placed[model.device] = self.head().to(model.device)
        head = self._placed[model.device]
        return Margins(head, head.reader(lengths))

    def read(self, view: View) -> dict[str, Any] | Problem:
        return view.found if isinstance(view.found, Problem) else {"margin": float(view.found)}

    def answer(self, row: Mapping[str, Any]) -> Answer:
        return Margin(float(row["margin"]))


class HeadReadout(MarginReadout):
    """Margins by a head on disk.

    Args:
        folder: of the head; its weights are read when the first batch is.

    Raises:
        ModelError: there is no head.
    """

    travels: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.card = folder, read_card(folder)
        super().__init__(None, f"head-{self.card.fingerprint}")

    def __reduce__(self) -> tuple[type[HeadReadout], tuple[Path]]:
        """To another process goes the folder; it reads the weights there."""
        return type(self), (self.folder,)

    def head(self) -> StateHead:
        if self._head is None:
            self._head = load_head(self.folder)
        return self._head

    def layers(self, count: int) -> Sequence[int]:
        return self.card.layers

    def describe(self) -> dict[str, Any]:
        """For the run record."""
        card = self.card
        return {"folder": str(self.folder), "fingerprint": card.fingerprint, "kind": card.kind, "layers": card.layers}


class Margins:
    """A head and its own reader, as a tap wants them."""

    def __init__(self, head: StateHead, reader: LayerReader) -> None:
        self.head, self.reader = head, reader

    def take(self, layer: int, rows: torch.Tensor) -> None:
        self.reader.take(layer, rows)

    def results(self) -> Results:
        head, found = self.head, fetched(self.reader.found())
        return lambda: [float(margin) for margin in head.margins(found())]

"""A quality head as a readout: it turns the hidden states of a response into one margin."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any, ClassVar, Self

from tithe.data.paper_renderers import CPQS_PAPER
from tithe.engine.forward.states import PendingStates, ReaderContext, StateReader, StateReadout
from tithe.engine.heads.files import load_head, read_card
from tithe.engine.host import start_fetch
from tithe.engine.readouts.base import RunFacts, View
from tithe.errors import ModelError, SettingsError
from tithe.records import Answer, Margin, Pass, Problem

if TYPE_CHECKING:
    import torch

    from tithe.engine.heads.base import LayerReader, StateHead


RENDERING = ("template", "template_hash", "bos", "eos", "lead_ids")  # settings that affect a response's states


class MarginReadout(StateReadout):
    """The margin of a response, by a head in memory.

    Args:
        head: on the CPU; it is copied to the states' device.
        name: unique name under which its answers are stored.
    """

    version = 1
    fields: ClassVar[Mapping[str, Any]] = {"margin": "float64"}
    travels: ClassVar[bool] = False  # a head in memory is not sent to other processes

    def __init__(self, head: StateHead | None, name: str) -> None:
        self.name = name
        self._head = head
        self._lock = Lock()
        self._placed: dict[torch.device, StateHead] = {}

    def head(self) -> StateHead:
        """Return the head, on the CPU."""
        assert self._head is not None
        return self._head

    def layers(self, count: int) -> Sequence[int]:
        return self.head().layers

    def span(self, pass_: Pass) -> range:
        return range(pass_.start, len(pass_.ids))

    def reader(self, passes: Sequence[Pass], model: ReaderContext) -> StateReader:
        with self._lock:  # several threads may start at once; the head is copied once
            if model.device not in self._placed:
                self._placed[model.device] = self.head().to(model.device)
        head = self._placed[model.device]
        return MarginReader(head, head.reader(self.lengths(passes)))

    def read(self, view: View) -> dict[str, Any] | Problem:
        return view.found if isinstance(view.found, Problem) else {"margin": float(view.found)}

    def answer(self, row: Mapping[str, Any]) -> Answer:
        return Margin(float(row["margin"]))

    @classmethod
    def made_up(cls, argument: str, tokens: int, mean: float, first: bool) -> Answer:
        return Margin((mean - 2.3) * (1 if first else -1))


class HeadReadout(MarginReadout):
    """The margin of a response, by a head on disk.

    Args:
        folder: of the head; its weights are read with the first batch.

    Raises:
        ModelError: there is no head in the folder.
    """

    travels: ClassVar[bool] = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.card = folder, read_card(folder)
        super().__init__(None, f"head-{self.card.fingerprint}")

    @classmethod
    def make(cls, argument: str, run: RunFacts) -> Self:
        """Make the readout of the head in a folder, and note how good the head is and what differs from its training.

        Raises:
            SettingsError: no head is given.
            ModelError: there is no head, or it was trained on another model.
        """
        if not argument:
            raise SettingsError(
                "`cpqs` needs a head", hint="`--head my-head`; `tithe head train` makes one from tiers of responses"
            )
        readout = cls(Path(argument))
        if run.weights:
            check_head(readout, argument, run)
        run.note(verdict(readout))
        return readout

    def __reduce__(self) -> tuple[type[HeadReadout], tuple[Path]]:
        """Pickle only the folder; another process reads the weights from it."""
        return type(self), (self.folder,)

    def head(self) -> StateHead:
        if self._head is None:
            self._head = load_head(self.folder)
        return self._head

    def layers(self, count: int) -> Sequence[int]:
        return self.card.layers

    def describe(self) -> dict[str, Any]:
        """Return the head's folder, fingerprint, kind and layers, for the run record."""
        card = self.card
        return {"folder": str(self.folder), "fingerprint": card.fingerprint, "kind": card.kind, "layers": card.layers}


class MarginReader:
    """A state reader that applies a head to what the head's own reader computed."""

    def __init__(self, head: StateHead, reader: LayerReader) -> None:
        self.head, self.reader = head, reader

    def take(self, layer: int, rows: torch.Tensor) -> None:
        self.reader.take(layer, rows)

    def results(self) -> PendingStates:
        head, found = self.head, start_fetch(self.reader.found())
        return lambda: [float(margin) for margin in head.margins(found())]


def check_head(readout: HeadReadout, folder: str, run: RunFacts) -> None:
    """Raise if the head belongs to another model; note if it was trained with another dtype or rendering."""
    card, name = readout.card, run.model_name
    # By fingerprint: a model of the same name may have other weights.
    theirs = card.model["fingerprint"]
    if theirs != run.fingerprint:
        raise ModelError(
            f"the head `{folder}` belongs to model `{card.model['name']}` (fingerprint {theirs}), "
            f"not to `{name}` (fingerprint {run.fingerprint})",
            hint="train one on this model's hidden states: `tithe head train`",
        )
    if card.model["dtype"] != run.dtype:
        run.note(f"note: the head was trained on states in {card.model['dtype']}, here they are {run.dtype}")
    odd = other_rendering(card.rendering, run.renderer.describe())
    if odd:
        run.note(f"note: the head was trained with another rendering: {odd}")


def other_rendering(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """Return how two renderings differ in what affects a response's states; empty if they do not."""
    preset = [one.get("truncation") == CPQS_PAPER for one in (theirs, own)]
    if preset[0] != preset[1]:
        without = ["with" if one else "without" for one in preset]
        return f"{without[0]} `--preset {CPQS_PAPER}`, here {without[1]} it"
    odd = [key for key in RENDERING if own.get(key) != theirs.get(key)]
    return ", ".join(f"{key} {theirs.get(key)!r}, here {own.get(key)!r}" for key in odd)


def verdict(readout: HeadReadout) -> str:
    """Return one line about how well the head tells tiers apart."""
    report: Any = readout.card.training.get("report")
    try:
        auc, alone, better = report["auc"]["value"], report["length"]["auc"], report["better_than_length"]
        assert isinstance(auc, float) and isinstance(alone, float)
    except (KeyError, TypeError, AssertionError):  # there is no report, or it was edited
        return f"note: it is not known how well this {readout.card.kind} head tells tiers apart"
    if better:
        return f"head: {readout.card.kind}, AUC {auc:.3f} on prompts it never saw, response length alone {alone:.3f}"
    return (
        f"note: this {readout.card.kind} head was NOT SHOWN TO BE BETTER than response length on prompts it never saw: "
        f"AUC {auc:.3f}, length alone {alone:.3f}"
    )

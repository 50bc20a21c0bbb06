"""Readouts that are named with what they need: `head:folder`, `options:1,2,3`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.data.dialogue import PRESET
from tithe.data.render import Renderer
from tithe.engine.readouts.base import READOUTS, Readout
from tithe.errors import ModelError, SettingsError
from tithe.run.model import Model

if TYPE_CHECKING:
    from tithe.engine.readouts.head_readout import HeadReadout


RENDERING = ("template", "template_hash", "bos", "eos", "lead_ids")


@dataclass(frozen=True)
class ReadoutNeeds:
    """What a readout may need of a run.

    Args:
        model: that is read.
        renderer: of its passes.
        weights: whether it will be loaded.
        notes: takes what is odd.
    """

    model: Model
    renderer: Renderer
    weights: bool = True
    notes: list[str] = field(default_factory=list)


def make_readouts(
    asked: Iterable[str], model: Model, renderer: Renderer, *, weights: bool = True
) -> tuple[Mapping[str, Readout], list[str]]:
    """Return the readouts by name, the common ones included, and what is to be said of them."""
    parts = ReadoutNeeds(model, renderer, weights)
    own = {name: make_readout(name, parts) for name in sorted(asked) if name not in READOUTS}
    return {**READOUTS, **{name: readout for name, readout in own.items() if readout is not None}}, parts.notes


def make_readout(name: str, parts: ReadoutNeeds) -> Readout | None:
    """The readout of a name that scorers ask for; None where there is none, which the runner says.

    Raises:
        TitheError: what it needs is not there, or does not fit the model.
    """
    kind, _, argument = name.partition(":")
    make = MAKERS.get(kind)
    return None if make is None else make(argument, parts)


def head_readout(folder: str, parts: ReadoutNeeds) -> Readout:
    """A head's readout, if it belongs to the run's model; what else is odd about it is noted.

    Raises:
        SettingsError: no head is named.
        ModelError: there is none, or it was trained on another model.
    """
    if not folder:
        raise SettingsError(
            "`cpqs` needs a head", hint="`--head my-head`; `tithe head train` makes one from tiers of responses"
        )
    from tithe.engine.readouts.head_readout import HeadReadout

    readout = HeadReadout(Path(folder))
    if parts.weights:
        check_head(readout, folder, parts)
    parts.notes.append(verdict(readout))
    return readout


def check_head(readout: HeadReadout, folder: str, parts: ReadoutNeeds) -> None:
    """Refuse a head of another model; note another dtype, another rendering, and a poor report."""
    card, name = readout.card, parts.model.name
    theirs = card.model["fingerprint"]
    if theirs != parts.model.fingerprint:
        raise ModelError(
            f"the head `{folder}` belongs to model `{card.model['name']}` (fingerprint {theirs}), "
            f"not to `{name}` (fingerprint {parts.model.fingerprint})",
            hint="train one on this model's hidden states: `tithe head train`",
        )
    if card.model["dtype"] != parts.model.weights_dtype:
        parts.notes.append(
            f"note: the head was trained on states in {card.model['dtype']}, here they are {parts.model.weights_dtype}"
        )
    odd = other_rendering(card.rendering, parts.renderer.describe())
    if odd:
        parts.notes.append(f"note: the head was trained with another rendering: {odd}")


def other_rendering(theirs: Mapping[str, Any], own: Mapping[str, Any]) -> str:
    """In what two renderings differ, as far as a response's states can tell; empty where they do not."""
    preset = [one.get("truncation") == PRESET for one in (theirs, own)]
    if preset[0] != preset[1]:
        return f"{'with' if preset[0] else 'without'} `--preset {PRESET}`, here {'with' if preset[1] else 'without'} it"
    odd = [key for key in RENDERING if own.get(key) != theirs.get(key)]
    return ", ".join(f"{key} {theirs.get(key)!r}, here {own.get(key)!r}" for key in odd)


def verdict(readout: HeadReadout) -> str:
    """What is known of a head's worth, in one line."""
    report: Any = readout.card.training.get("report")
    try:
        auc, alone, better = report["auc"]["value"], report["length"]["auc"], report["better_than_length"]
        assert isinstance(auc, float) and isinstance(alone, float)
    except (KeyError, TypeError, AssertionError):  # none was made, or somebody has written there
        return f"note: nothing is known of how well this {readout.card.kind} head tells tiers apart"
    if better:
        return f"head: {readout.card.kind}, AUC {auc:.3f} on prompts it never saw, response length alone {alone:.3f}"
    return (
        f"note: this {readout.card.kind} head was NOT SHOWN TO BE BETTER than response length on prompts it never saw: "
        f"AUC {auc:.3f}, length alone {alone:.3f}"
    )


def weighted_readout(argument: str, parts: ReadoutNeeds) -> Readout:
    from tithe.engine.readouts.weighted import Weighted

    return Weighted()


def options_readout(texts: str, parts: ReadoutNeeds) -> Readout:
    """How likely these replies are, by the run's tokenizer and template."""
    from tithe.engine.readouts.options import OptionsReadout, find_replies

    return OptionsReadout(find_replies(parts.renderer, parts.model.tokenizer, texts.split(",")))


MAKERS: Mapping[str, Callable[[str, ReadoutNeeds], Readout]] = {
    "head": head_readout,
    "weighted": weighted_readout,
    "options": options_readout,
}

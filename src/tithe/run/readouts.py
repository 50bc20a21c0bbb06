"""Readouts that are named with what they need: `head:folder`, `options:1,2,3`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tithe.engine.readouts import Readout

if TYPE_CHECKING:
    from tithe.run.setup import Parts


def make_readout(name: str, parts: Parts) -> Readout | None:
    """The readout of a name that scorers ask for; None where there is none, which the runner says.

    Raises:
        TitheError: what it needs is not there, or does not fit the model.
    """
    kind, _, argument = name.partition(":")
    if kind == "weighted":
        from tithe.engine.weighted import Weighted

        return Weighted()
    if kind == "options":
        from tithe.engine.options import OptionsReadout, find_replies

        return OptionsReadout(find_replies(parts.renderer, parts.tokenizer, argument.split(",")))
    return None

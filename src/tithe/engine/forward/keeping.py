"""Models that keep something of what they read: two passes side by side would read each other's."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch

from tithe.engine.forward.probe import probe_passes
from tithe.engine.model import LoadedModel

PLAIN = (bool, int, float, str, type(None))
TORCHS = ("_parameters", "_buffers", "_modules")  # torch's own of every module
Held: TypeAlias = dict[tuple[str, str], Any]  # (module, attribute) -> value


def what_is_kept(loaded: LoadedModel) -> str | None:
    """Module and attribute that reading changes, such as the state of a recurrence; None where nothing is.

    A value that is changed in its place is not noticed.
    """
    before, passes = held(loaded.model), probe_passes(loaded.vocabulary)
    for some in (passes[:2], passes[3:4]):
        loaded.nll(some)
    for (module, name), value in held(loaded.model).items():
        if (module, name) not in before or changed(before[module, name], value):
            return f"`{name}` of `{module}`"
    return None


def held(model: torch.nn.Module) -> Held:
    """All that modules have besides weights, parts and hooks; buffers are among it."""
    return {
        (module, name): value
        for module, part in model.named_modules()
        for name, value in {**vars(part), **part._buffers}.items()
        if name not in TORCHS and "_hooks" not in name
    }


def changed(before: Any, now: Any) -> bool:
    """Whether it is another value; of what is no number or word, whether it is another object."""
    if isinstance(before, PLAIN) and isinstance(now, PLAIN):
        return bool(before != now)
    return before is not now

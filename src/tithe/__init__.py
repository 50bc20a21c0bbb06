"""Pick the few percent of an instruction-tuning set that teach a given language model most.

import tithe

data = tithe.load("data.jsonl")
scores = tithe.score(data, scorer="ifd", model="path/or/hub-id")
kept = tithe.select(data, scorer="ifd", model="path/or/hub-id", keep="5%")
kept.write("kept.jsonl")
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tithe.extras import __version__ as __version__

__all__ = ["bench", "check", "load", "plan", "score", "select"]

if TYPE_CHECKING:
    from tithe.api import bench, check, load, plan, score, select


def __getattr__(name: str) -> object:
    """Import the public functions on first use, so that `import tithe` stays light."""
    if name in __all__:
        from tithe import api

        return getattr(api, name)
    raise AttributeError(f"module `tithe` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

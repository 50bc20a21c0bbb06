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

__all__ = [
    "answer",
    "bench",
    "build_tiers",
    "check",
    "compare",
    "evaluate",
    "evaluate_head",
    "experiment",
    "export",
    "find_contamination",
    "import_tiers",
    "judge",
    "load",
    "plan",
    "score",
    "select",
    "show",
    "tally",
    "train_head",
    "tune",
    "warmup",
]
_CORE = ("bench", "check", "compare", "load", "plan", "score", "select", "show")

if TYPE_CHECKING:
    from tithe.api import bench, check, compare, load, plan, score, select, show
    from tithe.lab_api import (
        answer,
        build_tiers,
        evaluate,
        evaluate_head,
        experiment,
        export,
        find_contamination,
        import_tiers,
        judge,
        tally,
        train_head,
        tune,
        warmup,
    )


def __getattr__(name: str) -> object:
    """Import the public functions on first use, so that `import tithe` stays light."""
    if name in _CORE:
        from tithe import api

        return getattr(api, name)
    if name in __all__:
        from tithe import lab_api

        return getattr(lab_api, name)
    raise AttributeError(f"module `tithe` has no attribute `{name}`")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

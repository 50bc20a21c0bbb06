"""The kernels with which a run began, kept beside its answers: the run that goes on takes the same, whatever a new
measurement says, and gives the same last bits.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from tithe.errors import StoreError
from tithe.run.folder import write_json

if TYPE_CHECKING:
    from tithe.engine.fp32_route import Fp32Route, RouteName

PLACE = Path("answers", "fp32-route.json")


def kept_route(folder: Path) -> RouteName | None:
    """What an earlier part of the run took; None where there was none, or nothing to choose.

    Raises:
        StoreError: the file is damaged.
    """
    path = folder / PLACE
    if not path.exists():
        return None
    try:
        name: RouteName = json.loads(path.read_text(encoding="utf-8"))["name"]
    except (ValueError, TypeError, KeyError) as error:
        raise StoreError(f"`{path}` is damaged", hint="delete it: the kernels are then measured again") from error
    if name not in ("default", "onednn"):
        raise StoreError(f"`{path}` names kernels that there are not: `{name}`", hint="delete it")
    return name


def keep_route(folder: Path, route: Fp32Route | None) -> None:
    """Write down what was taken, where there was something to choose."""
    path = folder / PLACE
    if route is None or not route.gflops or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, route.as_dict())

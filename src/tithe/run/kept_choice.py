"""What a run chose when it began, kept beside its answers: the run that goes on does the same, whatever a new
measurement says, and gives the same last bits.

One JSON file holds the choices of a run by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.data.checksum import sealed, unsealed
from tithe.errors import StoreError
from tithe.foreign import read_json
from tithe.run.folder import write_json

if TYPE_CHECKING:
    from tithe.engine.measure.cpu_kernels import Fp32Route, RouteName

PLACE = Path("answers", "choices.json")
ROUTE, DTYPE = "fp32_route", "dtype_cpu"
TIMED = ("bf16", "fp32")  # dtypes between which a CPU's speed decides


def kept(folder: Path | None, name: str) -> Any:
    """What an earlier part of the run chose; None where there was none, or nothing to choose.

    Raises:
        StoreError: the file is damaged.
    """
    return None if folder is None else read(folder / PLACE).get(name)


def kept_number(folder: Path | None, name: str) -> int | None:
    """The same of a number above 0."""
    value = kept(folder, name)
    if value is not None and (type(value) is not int or value < 1):
        raise damaged(folder, name, value)
    return value


def kept_word(folder: Path | None, name: str, known: tuple[str, ...]) -> str | None:
    """The same of one of several words."""
    value = kept(folder, name)
    if value is not None and value not in known:
        raise damaged(folder, name, value)
    return None if value is None else str(value)


def keep(folder: Path | None, name: str, value: Any) -> None:
    """Write down what was chosen; the first choice of a run stays."""
    if folder is None:
        return
    path = folder / PLACE
    choices = read(path)
    if name in choices:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, sealed({**choices, name: value}))


def read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return unsealed(read_json(path, StoreError, ""))
    except (StoreError, ValueError) as error:
        raise StoreError(f"`{path}` is damaged", hint="delete it: what it held is then chosen again") from error


def damaged(folder: Path | None, name: str, value: object) -> StoreError:
    assert folder is not None
    return StoreError(f"`{folder / PLACE}`: `{name}` cannot be `{value}`", hint="delete it: it is then chosen again")


def kept_route(folder: Path | None) -> RouteName | None:
    """The kernels of fp32 with which the run began."""
    found = kept_word(folder, ROUTE, ("default", "onednn"))
    return None if found is None else "onednn" if found == "onednn" else "default"


def keep_route(folder: Path | None, route: Fp32Route | None) -> None:
    """Write down what was taken, where there was something to choose."""
    if route is not None and route.gflops:
        keep(folder, ROUTE, route.name)


def began_with(folder: Path | None, fresh: str) -> tuple[str, str | None]:
    """The dtype of a run on a CPU that was given none: that with which it began, whatever is faster by now.

    Args:
        folder: of the run.
        fresh: what a new measurement takes.

    Returns:
        The dtype, and a note where it is not what the measurement takes.
    """
    before = kept_word(folder, DTYPE, TIMED) or held(folder)
    if before in (None, fresh):
        return fresh, None
    return before, (
        f"note: {before}, as this run began; measured anew, `--dtype auto` takes {fresh}, "
        f"and `--dtype {fresh}` computes all passes again"
    )


def held(folder: Path | None) -> str | None:
    """The one dtype whose answers a run folder of an earlier version holds; None where it has none, or several."""
    found = set() if folder is None else {path.name.partition("-")[0] for path in (folder / PLACE.parent).glob("*/*-*")}
    return found.pop() if len(found) == 1 and found <= {*TIMED} else None

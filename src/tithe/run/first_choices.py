"""What a run chose when it began: batch size, threads, kernels, dtype. A resumed run chooses the same.

Measurements differ from day to day; without these choices a resumed run could compute its remaining answers otherwise
than the stored ones.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.data.checksum import seal, unseal
from tithe.errors import StoreError
from tithe.foreign import read_json
from tithe.run.folder import write_json

if TYPE_CHECKING:
    from tithe.engine.measure.cpu_kernels import Fp32Route, RouteName

CHOICES = Path("answers", "choices.json")
ROUTE, DTYPE = "fp32_route", "dtype_cpu"
TIMED = ("bf16", "fp32")  # dtypes between which a CPU's speed decides


def choice(folder: Path | None, name: str) -> Any:
    """Return what the run chose under this name when it began, or None.

    Raises:
        StoreError: the file is damaged.
    """
    return None if folder is None else read_choices(folder / CHOICES).get(name)


def chosen_number(folder: Path | None, name: str) -> int | None:
    """Return a number above 0 that the run chose when it began, or None."""
    value = choice(folder, name)
    if value is not None and (type(value) is not int or value < 1):
        raise damaged(folder, name, value)
    return value


def chosen_word(folder: Path | None, name: str, known: tuple[str, ...]) -> str | None:
    """Return one of several words that the run chose when it began, or None."""
    value = choice(folder, name)
    if value is not None and value not in known:
        raise damaged(folder, name, value)
    return None if value is None else str(value)


def keep_choice(folder: Path | None, name: str, value: Any) -> None:
    """Write a choice to the run folder, unless an earlier part of the run has made it."""
    if folder is None:
        return
    path = folder / CHOICES
    choices = read_choices(path)
    if name in choices:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, seal({**choices, name: value}))


def read_choices(path: Path) -> dict[str, Any]:
    """Read the file of choices, {} if there is none.

    Raises:
        StoreError: the file is damaged.
    """
    if not path.exists():
        return {}
    try:
        return unseal(read_json(path, StoreError, ""))
    except (StoreError, ValueError) as error:
        raise StoreError(f"`{path}` is damaged", hint="delete it: what it held is then chosen again") from error


def damaged(folder: Path | None, name: str, value: object) -> StoreError:
    assert folder is not None
    return StoreError(f"`{folder / CHOICES}`: `{name}` cannot be `{value}`", hint="delete it: it is then chosen again")


def chosen_route(folder: Path | None) -> RouteName | None:
    """Return the fp32 kernels with which the run began, or None."""
    found = chosen_word(folder, ROUTE, ("default", "onednn"))
    return None if found is None else "onednn" if found == "onednn" else "default"


def keep_route(folder: Path | None, route: Fp32Route | None) -> None:
    """Keep the fp32 kernels if several were measured."""
    if route is not None and route.gflops:
        keep_choice(folder, ROUTE, route.name)


def dtype_at_start(folder: Path | None, fresh: str) -> tuple[str, str | None]:
    """Return the dtype for `--dtype auto` on a CPU: the one with which the run began, even if another is faster now.

    Args:
        folder: the run folder.
        fresh: the dtype that a new measurement chooses.

    Returns:
        The dtype, and a note if a new measurement chooses another one.
    """
    before = chosen_word(folder, DTYPE, TIMED) or dtype_of_answers(folder)
    if before in (None, fresh):
        return fresh, None
    return before, (
        f"note: {before}, as this run began; measured anew, `--dtype auto` takes {fresh}, "
        f"and `--dtype {fresh}` computes all passes again"
    )


def dtype_of_answers(folder: Path | None) -> str | None:
    """Return the one dtype of the answers in a folder; early versions kept no choice. None if there is not just one."""
    stores = () if folder is None else (folder / CHOICES.parent).glob("*/*-*")
    found = {path.name.partition("-")[0] for path in stores}
    return found.pop() if len(found) == 1 and found <= {*TIMED} else None

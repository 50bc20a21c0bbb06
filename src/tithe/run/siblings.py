"""Answers that another run folder holds: used where that is asked for, else the folder is named."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tithe.engine.store.store import Store
from tithe.errors import SettingsError, StoreError
from tithe.foreign import read_json
from tithe.run.folder import RECORD, SUFFIX


def demand_run_folder(path: Path) -> None:
    """Refuse what has no answers to give.

    Raises:
        SettingsError: it is no run folder, or no model has answered there.
    """
    if not (path / "answers").is_dir():
        what = "there is no folder" if not path.exists() else "no answers are in"
        raise SettingsError(f"{what} `{path}`", hint=f"`answers` names another run's folder, often `NAME{SUFFIX}`")


def borrow(path: Path, stores: Iterable[Store]) -> bool:
    """Let stores read the answers of another run folder too; nothing in it changes. Whether it has any for them."""
    found = [store.borrow(path) for store in stores]  # all of them: no `any` of a generator
    return any(found)


def find_answers(place: Path, model: str, data: Path) -> Path | None:
    """The run folder beside this one that has read the same data with the same model, where this one is new.

    Args:
        place: this run's folder.
        model: `answers_name` of the model, its dtype included.
        data: the data set's file or folder.
    """
    if has_answers(place, model):
        return None
    here = place.resolve()
    beside = sorted(path for path in here.parent.glob(f"*{SUFFIX}") if path != here)
    return next((path for path in beside if has_answers(path, model) and data_of(path) == data), None)


def has_answers(folder: Path, model: str) -> bool:
    return next((folder / "answers").glob(f"*/{model}/part-*"), None) is not None


def data_of(folder: Path) -> Path | None:
    """The data set that a run folder's record names; None where there is no record that says so."""
    try:
        return Path(read_json(folder / RECORD, StoreError, "")["dataset"]["path"])
    except (StoreError, KeyError, TypeError):  # it is not ours to complain of
        return None

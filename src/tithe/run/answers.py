"""Stored answers of a run: its own, and those of another run folder where that is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tithe.data.dataset import Dataset
from tithe.engine.store.store import Store, answers_name
from tithe.errors import SettingsError, StoreError
from tithe.foreign import read_json
from tithe.run.folder import RECORD, SUFFIX
from tithe.run.model import Model
from tithe.settings import ScoreSettings


def model_answers(model: Model) -> str:
    """Return the name under which a store keeps the answers of this model in this dtype."""
    from tithe.engine.engine import NUMERICS

    return answers_name(model.fingerprint, model.weights_dtype, NUMERICS)


def answers_elsewhere(settings: ScoreSettings, dataset: Dataset, model: Model, place: Path) -> Path | None:
    """Return another run folder that has answers of this model on this data, where this one has none and none is named.

    Args:
        settings: of the run.
        dataset: what it reads.
        model: that reads it.
        place: the folder that keeps its answers.
    """
    data = Path(dataset.source)
    if settings.answers is not None or not data.exists():
        return None
    return find_answers(place, model_answers(model), data.resolve())


def demand_run_folder(path: Path) -> None:
    """Refuse a folder that has no answers to give.

    Raises:
        SettingsError: it is no run folder, or no model has answered there.
    """
    if not (path / "answers").is_dir():
        what = "there is no folder" if not path.exists() else "no answers are in"
        raise SettingsError(f"{what} `{path}`", hint=f"`answers` names another run's folder, often `NAME{SUFFIX}`")


def borrow(path: Path, stores: Iterable[Store]) -> bool:
    """Let stores read the answers of another run folder too; return whether it has any for them. It stays as it is."""
    found = [store.borrow(path) for store in stores]  # all of them: no `any` of a generator
    return any(found)


def find_answers(place: Path, model: str, data: Path) -> Path | None:
    """Return the run folder beside this one that has read the same data with the same model, if this one is new.

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
    """Return whether a folder has stored answers of this model."""
    return next((folder / "answers").glob(f"*/{model}/part-*"), None) is not None


def data_of(folder: Path) -> Path | None:
    """Return the data set that a run folder's record names; None where no record says so."""
    try:
        return Path(read_json(folder / RECORD, StoreError, "")["dataset"]["path"])
    except (StoreError, KeyError, TypeError):  # it is not ours to complain of
        return None

"""Find and borrow the stored answers of other run folders."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tithe.data.dataset import Dataset
from tithe.engine.store.store import Store, answers_name
from tithe.errors import SettingsError, StoreError
from tithe.foreign import read_json
from tithe.run.folder import RECORD, SUFFIX
from tithe.run.run_model import RunModel
from tithe.settings import ScoreSettings


def model_answers(model: RunModel) -> str:
    """Return the name of the folder in which a store keeps this model's answers in this dtype."""
    from tithe.engine.engine import NUMERICS

    return answers_name(model.fingerprint, model.weights_dtype, NUMERICS)


def answers_elsewhere(settings: ScoreSettings, dataset: Dataset, model: RunModel, place: Path) -> Path | None:
    """Return another run folder with answers of this model on this data, if this one has none; else None.

    Args:
        settings: settings of the run; if `answers` names a folder, no other is searched for.
        dataset: the data set to read.
        model: the scoring model.
        place: folder of this run's answers.
    """
    data = Path(dataset.source)
    if settings.answers is not None or not data.exists():
        return None
    return find_answers(place, model_answers(model), data.resolve())


def demand_run_folder(path: Path) -> None:
    """Refuse a folder without stored answers.

    Raises:
        SettingsError: it does not exist, or holds no answers.
    """
    if not (path / "answers").is_dir():
        what = "there is no folder" if not path.exists() else "no answers are in"
        raise SettingsError(f"{what} `{path}`", hint=f"`answers` names another run's folder, often `NAME{SUFFIX}`")


def borrow(path: Path, stores: Iterable[Store]) -> bool:
    """Let stores also read another run folder, which stays unchanged; return whether it has answers for them."""
    found = [store.borrow(path) for store in stores]  # a list: `any` of a generator would stop at the first
    return any(found)


def find_answers(place: Path, model: str, data: Path) -> Path | None:
    """Return a run folder beside this one with answers of the same model on the same data, if this one is new.

    Args:
        place: this run's folder.
        model: `answers_name` of the model, which includes the dtype.
        data: file or folder of the data set.
    """
    if has_answers(place, model):
        return None
    here = place.resolve()
    beside = sorted(path for path in here.parent.glob(f"*{SUFFIX}") if path != here)
    return next((path for path in beside if has_answers(path, model) and data_of(path) == data), None)


def has_answers(folder: Path, model: str) -> bool:
    """Tell whether a folder has stored answers of this model."""
    return next((folder / "answers").glob(f"*/{model}/part-*"), None) is not None


def data_of(folder: Path) -> Path | None:
    """Return the data set that a folder's run record names, or None."""
    try:
        return Path(read_json(folder / RECORD, StoreError, "")["dataset"]["path"])
    except (StoreError, KeyError, TypeError):  # not a run folder, or of an early version: skip it
        return None

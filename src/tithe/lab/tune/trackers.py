"""Log trainings to trackers, by transformers' own names for them; a tracker that fails ends no training."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from tithe.errors import MissingExtraError, SettingsError, did_you_mean
from tithe.extras import install_hint
from tithe.printable import one_line

NONE, ALL = "none", "all"
PROJECT = "tithe"
RUNS = "runs"  # folder of TensorBoard's events
# What pip calls the package of a tracker and Python imports, where either differs from transformers' name.
PIP = {"azure_ml": "azureml-core", "flyte": "flytekit"}
MODULES = {"azure_ml": "azureml", "flyte": "flytekit"}
EXTRA = {"trackio": "track"}
EVENTS = ("on_train_begin", "on_log", "on_save", "on_evaluate", "on_predict", "on_train_end")


@dataclass(frozen=True)
class Tracking:
    """Where a training is logged.

    Args:
        names: of the trackers, as transformers has them.
        run_name: what they call the run.
        project: what they call the project or experiment that the run belongs to.
        events: folder of TensorBoard's files.
    """

    names: tuple[str, ...] = ()
    run_name: str | None = None
    project: str = PROJECT
    events: Path | None = None


def demand_trackers(given: Sequence[str]) -> tuple[str, ...]:
    """Return the trackers' names, after checking that transformers knows them and their packages are installed.

    Args:
        given: names; `none` means none, and `all` all that are installed.

    Raises:
        SettingsError: a name is unknown, or goes with no other.
        MissingExtraError: a package is not installed.
    """
    known = known_trackers()
    names = list(dict.fromkeys(given))
    for name in names:
        if name not in (*known, NONE, ALL):
            raise SettingsError(f"no tracker `{name}`", hint=did_you_mean(name, [*known, NONE, ALL]))
    if len(names) > 1 and (sole := next((name for name in names if name in (NONE, ALL)), None)):
        raise SettingsError(f"`{sole}` goes with no other tracker", hint=f"`--report-to {sole}`, or only the names")
    if names in ([], [NONE]):
        return ()
    if names == [ALL]:
        return tuple(name for name in known if is_installed(name))
    for name in names:
        if not is_installed(name):
            hint = install_hint(EXTRA[name]) if name in EXTRA else f"pip install {PIP.get(name, name)}"
            raise MissingExtraError(f"`report_to` names `{name}`, which is not installed", hint=hint)
    return tuple(names)


def known_trackers() -> list[str]:
    """Return the names that transformers knows."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return sorted(INTEGRATION_TO_CALLBACK)


def is_installed(name: str) -> bool:
    """Tell whether the package of a tracker is installed."""
    modules = (MODULES.get(name, name), *(("tensorboardX",) if name == "tensorboard" else ()))
    return any(module in sys.modules or importlib.util.find_spec(module) is not None for module in modules)


class TrackerGuard(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Passes a training's events to a tracker, and lets go of it when it fails.

    Args:
        name: of the tracker.
        make: makes transformers' callback for it.
        say: called with a sentence if it fails.
    """

    def __init__(self, name: str, make: Callable[[], Any], say: Callable[[str], None]) -> None:
        self.name, self.say = name, say
        self.inner: Any = None
        with self.guarded():
            self.inner = make()

    @contextlib.contextmanager
    def guarded(self) -> Iterator[None]:
        try:
            # Trackers print to stdout, which is for results.
            with contextlib.redirect_stdout(sys.stderr):
                yield
        except Exception as error:  # of a foreign package, which may raise anything: no reason to lose a training
            self.inner = None
            self.say(f"note: the tracker `{self.name}` failed, and the training goes on without it: {words_of(error)}")

    def pass_on(self, event: str, *given: Any, **more: Any) -> None:
        if self.inner is not None:
            with self.guarded():
                getattr(self.inner, event)(*given, **more)


def _add_event(event: str) -> None:
    def passed(self: TrackerGuard, *given: Any, **more: Any) -> None:
        self.pass_on(event, *given, **more)

    setattr(TrackerGuard, event, passed)


for _event in EVENTS:
    _add_event(_event)


def words_of(error: Exception) -> str:
    """Return an error of a foreign package on one line."""
    return one_line(f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}")


def tracker_callbacks(tracking: Tracking, say: Callable[[str], None]) -> list[TrackerGuard]:
    """Return the callbacks that log to the trackers."""
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    return [TrackerGuard(name, INTEGRATION_TO_CALLBACK[name], say) for name in tracking.names]


@contextlib.contextmanager
def tracker_variables(tracking: Tracking) -> Iterator[None]:
    """Tell the trackers that read environment variables the project and place; those that are set already win."""
    own = {"WANDB_PROJECT": tracking.project, "MLFLOW_EXPERIMENT_NAME": tracking.project}
    if tracking.events is not None:
        own["TENSORBOARD_LOGGING_DIR"] = str(tracking.events)
    added = {name: value for name, value in own.items() if tracking.names and name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def log_table(
    tracking: Tracking, columns: Sequence[str], rows: Sequence[Sequence[Any]], say: Callable[[str], None]
) -> None:
    """Log a table to every tracker that has tables, as a run of its own; say it where there is no place for one.

    Args:
        tracking: the trackers, the run's name and the project.
        columns: heads.
        rows: one value per column, numbers, texts or None.
        say: called with a sentence for each tracker without the table.
    """
    for name in tracking.names:
        log = TABLES.get(name)
        if log is None:
            say(f"note: `{name}` gets no table from tithe; it is in `comparisons.csv` and `report.html`")
            continue
        try:
            with contextlib.redirect_stdout(sys.stderr), tracker_variables(tracking):
                log(tracking, list(columns), [list(row) for row in rows])
        except Exception as error:  # of a foreign package; the table is in the experiment's folder all the same
            say(f"note: the table could not be logged to `{name}`: {words_of(error)}")


def table_to_trackio(tracking: Tracking, columns: list[str], rows: list[list[Any]]) -> None:
    """Log a table as a run of trackio."""
    import pandas as pd

    trackio = importlib.import_module("trackio")
    trackio.init(project=tracking.project, name=tracking.run_name, resume="allow")
    trackio.log({tracking.run_name: trackio.Table(dataframe=pd.DataFrame(rows, columns=columns))})
    trackio.finish()


def table_to_wandb(tracking: Tracking, columns: list[str], rows: list[list[Any]]) -> None:
    """Log a table as a run of wandb."""
    wandb = importlib.import_module("wandb")
    run = wandb.init(project=os.environ["WANDB_PROJECT"], name=tracking.run_name)
    texts = [
        [value if value is None or isinstance(value, (int, float)) else str(value) for value in row] for row in rows
    ]
    run.log({tracking.run_name: wandb.Table(columns=columns, data=texts, allow_mixed_types=True)})
    run.finish()


def table_to_mlflow(tracking: Tracking, columns: list[str], rows: list[list[Any]]) -> None:
    """Log a table as a run of MLflow."""
    mlflow = importlib.import_module("mlflow")
    mlflow.set_experiment(os.environ["MLFLOW_EXPERIMENT_NAME"])
    with mlflow.start_run(run_name=tracking.run_name):
        values = {name: [row[i] for row in rows] for i, name in enumerate(columns)}
        mlflow.log_table(values, f"{tracking.run_name}.json")


def table_to_tensorboard(tracking: Tracking, columns: list[str], rows: list[list[Any]]) -> None:
    """Log a table as a text of TensorBoard, which shows Markdown."""
    from torch.utils.tensorboard import SummaryWriter

    cells = [["" if value is None else str(value).replace("|", "\\|") for value in row] for row in rows]
    lines = [columns, ["---"] * len(columns), *cells]
    writer: Any = SummaryWriter(os.environ["TENSORBOARD_LOGGING_DIR"])  # type: ignore[no-untyped-call,unused-ignore]
    writer.add_text(tracking.run_name, "\n".join(f"| {' | '.join(line)} |" for line in lines))
    writer.close()


TABLES: dict[str, Callable[[Tracking, list[str], list[list[Any]]], None]] = {
    "trackio": table_to_trackio,
    "wandb": table_to_wandb,
    "mlflow": table_to_mlflow,
    "tensorboard": table_to_tensorboard,
}

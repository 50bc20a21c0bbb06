"""Trackers: transformers' names, what is refused, what a real one gets, and one that fails in the middle."""

from __future__ import annotations

import json
import sys
import types
from importlib.machinery import ModuleSpec

import pytest

from tests.lab.tune.test_tune import data, settings
from tithe.errors import MissingExtraError, SettingsError
from tithe.lab.tune import trackers
from tithe.lab.tune.trackers import Tracking, demand_trackers, known_trackers, log_table
from tithe.lab.tune.tune import tune
from tithe.report.reporter import Reporter

pytestmark = pytest.mark.slow  # TRL alone takes seconds to import
__all__ = ["data"]


class Heard(Reporter):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def say(self, sentence: str) -> None:
        self.lines.append(sentence)


@pytest.fixture
def fake(monkeypatch):
    """A wandb of our own, which remembers its calls; `transformers` takes it for the package."""
    from transformers.integrations import integration_utils

    calls: list = []

    class Run:
        def log(self, values):
            calls.append(("table", values))

        def finish(self):
            calls.append(("finish",))

    def init(**given):
        calls.append(("init", given))
        return Run()

    class Callback(integration_utils.TrainerCallback):
        def on_train_begin(self, args, state, control, **more):
            import os

            print("a tracker prints")
            calls.append(("begin", args.run_name, os.environ["WANDB_PROJECT"]))

        def on_log(self, args, state, control, logs=None, **more):
            calls.append(("log", state.global_step, dict(logs)))

        def on_train_end(self, args, state, control, **more):
            calls.append(("end",))

    module = types.ModuleType("wandb")
    module.__spec__ = ModuleSpec("wandb", None)
    module.init = init
    module.Table = lambda columns, data, allow_mixed_types: (columns, data)
    monkeypatch.setitem(sys.modules, "wandb", module)
    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "wandb", Callback)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return calls, Callback


def test_the_names_are_those_of_transformers():
    assert {"trackio", "wandb", "mlflow", "tensorboard"} <= set(known_trackers())
    assert demand_trackers(()) == demand_trackers(("none",)) == ()
    for given, words, hint in (
        (("wanbd",), "no tracker `wanbd`", "`wandb`"),
        (("none", "trackio"), "goes with no other", "--report-to none"),
    ):
        with pytest.raises(SettingsError, match=words) as caught:
            demand_trackers(given)
        assert hint in (caught.value.hint or "")


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr(trackers, "is_installed", lambda name: name == "mlflow")
    for name, hint in (("trackio", "[track]"), ("wandb", "pip install wandb"), ("azure_ml", "azureml-core")):
        with pytest.raises(MissingExtraError, match=f"names `{name}`, which is not installed") as caught:
            demand_trackers((name,))
        assert hint in (caught.value.hint or "")
    assert demand_trackers(("all",)) == ("mlflow",)


def test_every_step_is_logged_under_the_runs_name(fake, data, model_dir, tmp_path, capsys):
    calls, _ = fake
    result = tune(settings(data, model_dir, report_to="wandb", run_name="mine", project="p"), tmp_path / "tuned")
    assert calls[0] == ("begin", "mine", "p") and calls[-1] == ("end",)
    losses = [logs["loss"] for kind, _, logs in (call for call in calls if call[0] == "log") if "loss" in logs]
    assert losses == pytest.approx(result.record["losses"], abs=1e-3)
    assert capsys.readouterr().out == "", "stdout is for results"


def test_the_outputs_name_is_the_runs_and_an_untracked_training_is_the_same(fake, data, model_dir, tmp_path):
    calls, _ = fake
    tracked = tune(settings(data, model_dir, report_to="wandb"), tmp_path / "tuned")
    plain = tune(settings(data, model_dir), tmp_path / "plain")
    assert calls[0] == ("begin", "tuned", "tithe")
    assert tracked.record["losses"] == plain.record["losses"]
    assert tracked.record["identity"] == plain.record["identity"], "who looks on changes no training"


@pytest.mark.parametrize("event", ["__init__", "on_train_begin", "on_log"])
def test_a_tracker_that_fails_ends_no_training(fake, data, model_dir, tmp_path, event):
    _, callback = fake

    def broken(*_, **__):
        raise ConnectionError("no route\nto host")

    setattr(callback, event, broken)
    heard = Heard()
    result = tune(settings(data, model_dir, report_to="wandb"), tmp_path / "tuned", reporter=heard)
    said = [line for line in heard.lines if "the tracker `wandb` failed" in line]
    assert len(said) == 1 and "ConnectionError: no route" in said[0] and len(result.record["losses"]) == 8


def test_an_unknown_tracker_is_refused_before_anything_is_read(data, tmp_path):
    with pytest.raises(SettingsError, match="no tracker `trackoi`"):
        tune(settings(data, tmp_path / "no-model", report_to="trackoi"), tmp_path / "tuned")
    assert not (tmp_path / "tuned").exists()


def test_trackio_gets_the_losses(data, model_dir, tmp_path, monkeypatch):
    trackio = pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    from trackio import sqlite_storage

    monkeypatch.setattr(sqlite_storage, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    done = tune(settings(data, model_dir, report_to="trackio", run_name="mine", project="tests"), tmp_path / "tuned")
    logs = sqlite_storage.SQLiteStorage.get_logs("tests", "mine")
    losses = [one["train/loss"] for one in logs if "train/loss" in one]
    assert losses == pytest.approx(done.record["losses"], abs=1e-3) and trackio.__version__


def test_tables_reach_the_trackers_that_have_tables(fake, tmp_path):
    calls, _ = fake
    said: list[str] = []
    tracking = Tracking(("wandb", "codecarbon"), "verdicts", "p")
    log_table(tracking, ["arm", "effect"], [["ifd", 0.5], ["a|b", None]], said.append)
    assert calls == [
        ("init", {"project": "p", "name": "verdicts"}),
        ("table", {"verdicts": (["arm", "effect"], [["ifd", 0.5], ["a|b", None]])}),
        ("finish",),
    ]
    assert said == ["note: `codecarbon` gets no table from tithe; it is in `comparisons.csv` and `report.html`"]


def test_a_table_that_cannot_be_logged_is_said(monkeypatch):
    def broken(*_):
        raise OSError("disk")

    monkeypatch.setitem(trackers.TABLES, "mlflow", broken)
    said: list[str] = []
    log_table(Tracking(("mlflow",), "verdicts"), ["a"], [[1]], said.append)
    assert said == ["note: the table could not be logged to `mlflow`: OSError: disk"]


def test_every_cell_has_a_name_of_its_own_and_trackers_change_no_cell(tmp_path):
    from tithe.lab.experiment.cells import TRACKING, spec_digest

    spec = {"arm": "ifd", "budget": "5%", "seed": 1, "tune": {"dataset": "x"}, "evaluation": {}, "keep_models": False}
    assert spec_digest(spec) == spec_digest({**spec, TRACKING: {"report_to": ["wandb"], "run_name": "ifd-5%-seed1"}})
    assert json.dumps(spec)


def test_a_cells_run_is_named_after_arm_budget_and_seed(tmp_path):
    from tithe.lab.experiment.arm_choices import Choice
    from tithe.lab.experiment.cells import TRACKING, Cell, prepare, read_spec

    class Pool:
        def write(self, places, path):
            path.write_text("")

    choice = Choice("ifd", "5%", None, (0, 1))
    common = {"tune": {"model": "m"}, "evaluation": {}, "keep_models": False}
    tracked = {**common, TRACKING: {"report_to": ["trackio"], "project": "p"}}
    for seed in (0, 1):
        cell = Cell("ifd", "5%", seed, choice, "key")
        own = prepare(cell, Pool(), tmp_path, tracked, lambda sentence: None)
        assert read_spec(own)[TRACKING] == {"report_to": ["trackio"], "project": "p", "run_name": f"ifd-5%-seed{seed}"}
        said: list[str] = []
        prepare(cell, Pool(), tmp_path, common, said.append)  # without a tracker it is the same cell
        assert said == []


def test_an_experiment_refuses_a_name_for_all_trainings():
    from tithe.lab.experiment.settings import ExperimentSettings

    base = {"dataset": "d.jsonl", "model": "m", "arms": {"ifd": None, "random": None}}
    assert ExperimentSettings.of({**base, "report_to": "trackio", "project": "p"}).report_to == ("trackio",)
    for name in ("report_to", "run_name"):
        with pytest.raises(SettingsError, match="would be the same for all trainings"):
            ExperimentSettings.of({**base, "training": {name: "x"}})

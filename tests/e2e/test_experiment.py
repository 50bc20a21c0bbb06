"""A whole experiment by the command: trained, judged, resumed, refused."""

from __future__ import annotations

import csv
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.e2e.command import alive, child, records, write_jsonl
from tests.lab.endpoint.server import reply, serve
from tithe.lab.experiment.conduct import experiment
from tithe.lab.experiment.settings import read_experiment

pytestmark = pytest.mark.slow

RUN = "import sys; sys.argv[0] = 'tithe'; from tithe.cli import main; main()"


def rows():
    """60 records; numbers between the words, so that no two share thirteen in a row."""
    found = records(60)
    for i, row in enumerate(found):
        row["output"] = " ".join(f"{word} {i}" for word in row["output"].split()[:30])
    return found


def write(place, own_model, **more):
    """An experiment of 60 records whose trainings take a second each."""
    write_jsonl(place / "data.jsonl", rows())
    settings = {
        "dataset": str(place / "data.jsonl"),
        "model": str(own_model),
        "holdout": 20,
        "holdout_group": "category",
        "budgets": ["25%"],
        "seeds": 3,
        "training": {"train_batch_size": 4, "learning_rate": 1e-3, "num_train_epochs": 1, "save_steps": 0},
        "scoring": {"max_length": 256},
        "arms": {"longest": {"scorer": "length"}, "random": None, "base": None},
    }
    path = place / "experiment.yaml"
    path.write_text(yaml.safe_dump(settings | more, sort_keys=False))
    return path


def comparisons(folder):
    return list(csv.DictReader((folder / "comparisons.csv").read_text().splitlines()))


def judge(number, body):
    """Longer answers are better, wherever they stand."""
    return reply("5 7")


@pytest.fixture(scope="module")
def done(tmp_path_factory, model_dir):
    """One that came to its end, with a task file, a contaminated record and a judge that likes the second answer."""
    place = tmp_path_factory.mktemp("experiment")
    own = rows()
    sentence = "The quick brown fox jumps over the lazy dog and runs into the dark green forest today."
    write_jsonl(place / "eval.jsonl", [{"question": sentence, "answer": "yes"}])
    write_jsonl(place / "questions.jsonl", [{"prompt": row["instruction"]} for row in own[:4]])
    with serve(judge) as server:
        path = write(
            place,
            model_dir,
            arms={
                "some": {"scorer": "length", "selector": "random(seed=9)"},
                "random": None,
                "random-like": None,
                "full": None,
                "base": None,
            },
            contamination=[str(place / "eval.jsonl")],
            drop_contaminated=True,
            judge={
                "prompts": [str(place / "questions.jsonl")],
                "judge": server.url,
                "judge_model": "big",
                "answers": {"max_new_tokens": 8},
            },
        )
        write_jsonl(place / "data.jsonl", [*own, {**own[0], "instruction": sentence, "category": "sums"}])
        result = experiment(read_experiment(path, {}), place / "out")
    return place, path, result


def test_everything_is_there(done):
    place, _, result = done
    out = place / "out"
    record = json.loads((out / "experiment.json").read_text())
    cells = {(cell["arm"], cell["budget"], cell["seed"]) for cell in record["cells"]}
    assert len(cells) == 4 * 3 + 1 and ("base", None, None) in cells
    assert record["data"]["pool"] + record["data"]["held_out"] + sum(record["data"]["left_out"].values()) == 61
    assert any("contaminated" in reason for reason in record["data"]["left_out"])
    assert {one["training"]["recipe_digest"] for one in record["cells"] if one["training"]} == {
        record["recipe"]["digest"]
    }
    assert (out / "report.html").stat().st_size > 10_000 and list((out / "plots").iterdir())
    assert not list(out.rglob("cells/**/*.safetensors"))  # weights go once they are evaluated
    assert {row["verdict"] for row in comparisons(out)} <= {"better", "worse", "not distinguishable"}
    assert result.results is not None
    trained = [one for one in result.results.references if one.arm == "base" and one.metric == "holdout_nll"]
    assert [one.verdict for one in trained] == ["worse"]  # an untrained model of random weights


def test_training_sees_what_was_chosen(done):
    out = done[0] / "out"
    record = json.loads((out / "experiment.json").read_text())
    for row in record["arms"]:
        for seed in range(3):
            lines = (
                (out / "cells" / f"{row['arm']}-{row['budget']}-seed{seed}" / "train.jsonl").read_text().splitlines()
            )
            assert len(lines) == row["examples"]
    held = {json.loads(line)["instruction"] for line in (out / "data" / "holdout.jsonl").read_text().splitlines()}
    pool = {json.loads(line)["instruction"] for line in (out / "data" / "pool.jsonl").read_text().splitlines()}
    assert not held & pool


def test_the_judge_was_heard(done):
    _, _, result = done
    assert result.results is not None
    judged = [one for one in result.results.against if one.metric == "judge questions"]
    assert {(one.arm, one.items) for one in judged} == {("some", 4), ("random-like", 4)}
    # it likes whichever answer stands second: both orders conflict, every prompt is a tie
    assert all(one.effect == 0 and one.verdict == "not distinguishable" for one in judged)


def test_nothing_is_done_twice(done, tithe, monkeypatch):
    place, path, _ = done
    before = comparisons(place / "out")
    monkeypatch.setattr("tithe.lab.experiment.workers.Worker.do", lambda *_: pytest.fail("a cell was done again"))
    ended = tithe.ok("experiment", path, "-o", place / "out", "--json")
    assert "13 of 13 cells are done" in ended.err and ended.json["results"]["against"]
    assert comparisons(place / "out") == before


def test_another_design_is_refused_by_name(done, tithe):
    place, path, _ = done
    text = path.read_text()
    path.write_text(text.replace("learning_rate: 0.001", "learning_rate: 0.002"))
    failed = tithe.fails("experiment", path, "-o", place / "out")
    path.write_text(text)
    assert "holds an experiment with another `recipe`" in failed.err
    assert "another `limit`: None, here 50" in tithe.fails("experiment", path, "-o", place / "out", "--limit", 50).err


@pytest.mark.thorough
def test_killed_it_goes_on_and_ends_the_same(tmp_path, model_dir):
    """The whole process group killed after some cells; another folder that was left alone says the same."""
    path = write(tmp_path, model_dir)
    experiment(read_experiment(path, {}), tmp_path / "straight")
    process = child(RUN, "experiment", path, "-o", tmp_path / "killed", session=True)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "killed").glob("cells/*/cell.json"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    there = len(list((tmp_path / "killed").glob("cells/*/cell.json")))
    assert there < 7
    result = experiment(read_experiment(path, {}), tmp_path / "killed")
    assert len(result.outcomes) == 7
    for one, other in zip(comparisons(tmp_path / "straight"), comparisons(tmp_path / "killed"), strict=True):
        assert one["verdict"] == other["verdict"]
        assert np.isclose(float(one["effect"]), float(other["effect"]), atol=1e-5)


@pytest.mark.thorough
def test_a_worker_ends_with_a_killed_experiment(tmp_path, model_dir):
    """Killed alone, in the middle of a cell that would go on for a minute."""
    long = {"train_batch_size": 4, "learning_rate": 1e-3, "num_train_epochs": 500, "save_steps": 0}
    process = child(RUN, "experiment", write(tmp_path, model_dir, training=long), "-o", tmp_path / "out")
    log, deadline = tmp_path / "out" / "logs" / "worker0.log", time.monotonic() + 120
    while not (log.exists() and "training all weights" in log.read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    lists = Path(f"/proc/{process.pid}/task").glob("*/children")
    (worker,) = (int(pid) for one in lists for pid in one.read_text().split())
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(worker)
    process.communicate()


def test_a_cell_that_fails_is_named_and_the_rest_is_kept(tmp_path, model_dir, tithe):
    path = write(tmp_path, model_dir, training={"train_batch_size": 4, "learning_rate": 1e30, "save_steps": 0})
    failed = tithe.fails("experiment", path, "-o", tmp_path / "out")
    assert "longest-25%-seed0: the " in failed.err and "at step" in failed.err
    assert (tmp_path / "out" / "cells" / "base" / "cell.json").exists()
    told = json.loads((tmp_path / "out" / "experiment.json").read_text())
    assert told["outcome"]["status"] == "failed" and told["outcome"]["error"].startswith("longest-25%-seed0: the ")
    cell = json.loads((tmp_path / "out" / "cells" / "longest-25%-seed0" / "cell.json").read_text())
    assert cell["outcome"]["status"] == "failed" and "at step" in cell["outcome"]["error"]
    assert [one["outcome"]["status"] for one in told["cells"]] == ["finished", "failed"]


def test_stopped_it_says_so_of_itself_and_of_the_cell_under_way(tmp_path, model_dir, tithe):
    """By a signal to the command alone, as a scheduler sends it; then the same command comes to the end."""
    training = {"train_batch_size": 4, "learning_rate": 1e-3, "num_train_epochs": 40, "save_steps": 0}
    path, out = write(tmp_path, model_dir, training=training), tmp_path / "out"
    process = child(RUN, "experiment", path, "-o", out)
    deadline = time.monotonic() + 240
    while not list(out.glob("cells/*-seed0/model/begun.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM, err
    told = json.loads((out / "experiment.json").read_text())
    assert told["outcome"] == {"status": "interrupted", "by": "SIGTERM", "cells_stored": 1}
    assert f"1 cell is stored in `{out}`: run the same command again to go on" in err
    assert told.keys() >= {"settings", "versions", "model", "recipe", "data", "arms"} and "results" not in told
    base, under_way = told["cells"]
    assert base["outcome"] == {"status": "finished"} and base["evaluation"]
    assert under_way["outcome"] == {"status": "interrupted", "by": "SIGTERM"} and under_way["seed"] == 0
    (own,) = (file.parent for file in out.glob("cells/*-seed0/cell.json"))
    assert json.loads((own / "cell.json").read_text())["outcome"] == under_way["outcome"]
    tuned = json.loads((own / "model" / "tune.json").read_text())
    assert tuned["outcome"] == {"status": "interrupted", "by": "SIGTERM", "steps_stored": 0}

    path.write_text(path.read_text().replace("num_train_epochs: 40", "num_train_epochs: 1"))
    assert "another `recipe`" in tithe.fails("experiment", path, "-o", out).err
    assert json.loads((out / "experiment.json").read_text()) == told  # of a refused command nothing is told
    done = tithe.ok("experiment", path, "-o", out, "--overwrite", "--json").json
    assert done["outcome"] == {"status": "finished"} and done == json.loads((out / "experiment.json").read_text())
    assert done["earlier_looks"] == [] and len(done["cells"]) == 7
    cells = [json.loads(file.read_text())["outcome"] for file in out.glob("cells/*/cell.json")]
    assert cells == [{"status": "finished"}] * 7


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            {"arms": {"none": {"scorer": "length", "drop": "length > 0"}, "random": None}},
            "arm `none` at 25%: nothing of",
        ),
        ({"arms": {"few": {"scorer": "length", "drop": "length > 12"}, "random": None}}, "arm `few` selected"),
        ({"arms": {"x": {"scorer": "lenght"}, "random": None}}, "arm `x` at 25%: "),
        ({"holdout": 60}, "cannot be held out"),
        ({"holdout": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"holdout_group": "kind"}, "kind"),
        ({"contamination": ["nowhere.jsonl"]}, "nowhere.jsonl"),
        ({"recipe": "alpacca"}, "no recipe `alpacca`"),
        ({"training": {"num_train_epoch": 1}}, "unknown setting `num_train_epoch`"),
        ({"tasks": ["humaneval"]}, "allow"),
        ({"evaluation": {"tusks": 1}}, "unknown setting `tusks`"),
        ({"judge": {"judge": "pocket"}}, "names no prompts"),
        ({"judge": {"prompts": ["p.jsonl"], "jugde": "pocket"}}, "jugde"),
        ({"model": "nowhere"}, "nowhere"),
    ],
)
def test_said_before_anything_is_trained(tmp_path, model_dir, tithe, monkeypatch, more, said):
    monkeypatch.setattr("tithe.lab.experiment.workers.Worker.do", lambda *_: pytest.fail("a cell was begun"))
    monkeypatch.chdir(tmp_path)
    assert said in tithe.fails("experiment", write(tmp_path, model_dir, **more), "-o", tmp_path / "out").err


def test_without_a_folder(tithe, tmp_path, model_dir):
    assert "no folder" in tithe.fails("experiment", write(tmp_path, model_dir), code=2).err

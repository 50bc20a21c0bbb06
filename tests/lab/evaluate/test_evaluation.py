"""An evaluation from settings to files: what is used again, what is measured again, what is refused."""

import json

import numpy as np
import pytest

from tests.lab.evaluate.test_holdout import ROWS, Heard, write
from tests.small_model import make_model
from tithe.errors import DataError, SettingsError, StoreError
from tithe.lab.evaluate import evaluation as evaluate_pieces
from tithe.lab.evaluate.evaluation import evaluate
from tithe.lab.evaluate.measured import Measured, from_files
from tithe.lab.evaluate.reporter import interval, interval_text, mean_text
from tithe.lab.evaluate.settings import EvaluateSettings

QUESTIONS = [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(6)]


@pytest.fixture
def files(tmp_path):
    write(tmp_path / "held.jsonl", ROWS)
    write(tmp_path / "gsm8k_test.jsonl", QUESTIONS)
    return tmp_path


def settings(model, files, **more):
    values = {
        "model": str(model),
        "holdout": str(files / "held.jsonl"),
        "holdout_group": "category",
        "tasks": f"gsm8k={files / 'gsm8k_test.jsonl'}",
        "num_fewshot": 0,
        "max_new_tokens": 4,
        "dtype": "fp32",
        "device": "cpu",
        "template": "alpaca",
    }
    return EvaluateSettings.of({k: v for k, v in {**values, **more}.items() if v is not None})


def only_holdout(model, files, **more):
    nothing = dict.fromkeys(("tasks", "num_fewshot", "max_new_tokens"))
    return settings(model, files, **nothing, **more)


def only_tasks(model, files, **more):
    return settings(model, files, holdout=None, holdout_group=None, **more)


NAMES = ["holdout_nll", "gsm8k strict-match", "gsm8k flexible-extract"]


def test_all_is_measured_written_and_used_again(model_dir, files, tmp_path):
    place = tmp_path / "out"
    first = evaluate(settings(model_dir, files), place)
    assert [one.metric for one in first.measured] == NAMES
    record = json.loads((place / "evaluation.json").read_text())
    assert record["work"]["computed"] == ["holdout", "gsm8k"] and record == json.loads(json.dumps(first.record))
    for read, one in zip(from_files(place / "items.parquet", record["metrics"]), first.measured, strict=True):
        assert read.items == one.items and read.values.tolist() == one.values.tolist() and read.groups == one.groups
    again = evaluate(settings(model_dir, files), place)
    assert again.record["work"]["computed"] == [] and again.record["work"]["reused"] == ["holdout", "gsm8k"]
    assert [one.values.tolist() for one in again.measured] == [one.values.tolist() for one in first.measured]


def test_only_what_changed_is_measured_again(model_dir, files, tmp_path):
    place, heard = tmp_path / "out", Heard()

    def computed(made):
        return evaluate(made, place, reporter=heard).record["work"]["computed"]

    assert computed(settings(model_dir, files)) == ["holdout", "gsm8k"]
    assert computed(settings(model_dir, files, eos=True)) == ["holdout"]
    assert any(
        "`holdout` measured with other settings, data or versions; it is measured again" in line for line in heard.said
    )
    assert computed(settings(model_dir, files, eos=True, limit=3)) == ["gsm8k"]
    write(files / "held.jsonl", ROWS[:2])
    assert computed(settings(model_dir, files, eos=True, limit=3)) == ["holdout"]
    write(files / "gsm8k_test.jsonl", QUESTIONS[1:])
    assert computed(settings(model_dir, files, eos=True, limit=3)) == ["gsm8k"]
    assert computed(settings(model_dir, files, eos=True, limit=3, device="auto")) in ([], ["holdout", "gsm8k"])
    write(files / "elsewhere.jsonl", ROWS[:2])
    moved = settings(model_dir, files, eos=True, limit=3, holdout=str(files / "elsewhere.jsonl"))
    assert computed(moved) == []


def test_another_model_or_tokenizer_replaces_all(files, tmp_path):
    place, model, heard = tmp_path / "out", make_model(tmp_path / "m"), Heard()
    first = evaluate(only_holdout(model, files), place)
    other = evaluate(only_holdout(make_model(tmp_path / "n", seed=1), files), place, reporter=heard)
    assert other.record["work"]["computed"] == ["holdout"] and any("of another model" in line for line in heard.said)
    assert not np.allclose(first.measured[0].values, other.measured[0].values)
    evaluate(only_holdout(model, files), place)
    config = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps({**config, "model_max_length": 300}))
    assert evaluate(only_holdout(model, files), place).record["work"]["computed"] == ["holdout"]


def test_pieces_of_one_model_gather_in_a_folder(model_dir, files, tmp_path):
    place = tmp_path / "out"
    evaluate(only_holdout(model_dir, files), place)
    got = evaluate(only_tasks(model_dir, files), place)
    assert [one.metric for one in got.measured] == NAMES[1:]
    assert [one["metric"] for one in got.record["metrics"]] == NAMES


def test_what_was_done_before_a_fault_is_kept(model_dir, files, tmp_path, monkeypatch):
    place = tmp_path / "out"

    def broken(self):
        raise DataError("the lamp went out")

    with monkeypatch.context() as patch:
        patch.setattr(evaluate_pieces.TaskPiece, "measure", broken)
        with pytest.raises(DataError, match="the lamp went out"):
            evaluate(settings(model_dir, files), place)
    assert evaluate(settings(model_dir, files), place).record["work"] | {"seconds": 0} == {
        "computed": ["gsm8k"],
        "reused": ["holdout"],
        "seconds": 0,
    }


def test_a_damaged_folder_is_refused(model_dir, files, tmp_path):
    place = tmp_path / "out"
    evaluate(only_holdout(model_dir, files), place)
    whole = (place / "evaluation.json").read_text()
    record = json.loads(whole)
    record["metrics"][0]["items"] = 99
    for text in ("{", json.dumps(record), "[]"):
        (place / "evaluation.json").write_text(text)
        with pytest.raises(StoreError, match=r"is damaged|cannot be read as an evaluation"):
            evaluate(only_holdout(model_dir, files), place)
    (place / "evaluation.json").write_text(whole)
    (place / "items.parquet").unlink()
    with pytest.raises(DataError, match="cannot read the measured items"):
        evaluate(only_holdout(model_dir, files), place)


def test_nothing_is_measured_before_all_is_checked(model_dir, files, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluate_pieces, "measure_holdout", lambda *_, **__: pytest.fail("measured"))
    write(files / "gsm8k_test.jsonl", [*QUESTIONS, {"question": "What?"}])
    with pytest.raises(DataError, match=r"gsm8k_test.jsonl:7: the record has no field `answer`"):
        evaluate(settings(model_dir, files), tmp_path / "out")
    with pytest.raises(SettingsError, match="runs code that the model writes"):
        evaluate(settings(model_dir, files, tasks="humaneval"), tmp_path / "out")


def test_shots_that_a_task_never_shows_are_told(sandbox, model_dir, files, tmp_path):
    heard = Heard()
    row = {"task_id": "t", "prompt": "def f(x):\n", "test": "def check(c):\n    pass\n", "entry_point": "f"}
    write(files / "humaneval.jsonl", [row])
    made = only_tasks(model_dir, files, tasks=f"humaneval={files}", num_fewshot=3, allow_code_execution=True)
    (one,) = evaluate(made, tmp_path / "out", reporter=heard).measured
    assert any("`humaneval` never has worked examples" in line for line in heard.said)
    assert one.about["execution"]["confined"] and one.about["num_fewshot"] == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"holdout": None, "holdout_group": None, "tasks": None}, "nothing is given to evaluate"),
        ({"holdout": None}, "`holdout_group` is given without `holdout`"),
        ({"tasks": None}, "`num_fewshot` is given, but no tasks"),
        ({"batch_size": 0}, "`batch_size` cannot be `0`"),
        ({"num_fewshot": -1}, "`num_fewshot` cannot be `-1`"),
        ({"batch_sise": 1}, "unknown setting `batch_sise`"),
    ],
)
def test_settings_that_cannot_be(files, values, words):
    with pytest.raises(SettingsError, match=words):
        settings("pocket", files, **values)


def test_tasks_may_be_one_text_or_several():
    made = EvaluateSettings.of({"model": "m", "tasks": ["gsm8k, arc_easy=x.jsonl", "piqa"], "batch_size": "auto"})
    assert made.tasks == ("gsm8k", "arc_easy=x.jsonl", "piqa") and made.batch_size == "auto"


def measured(kind, *values):
    array = np.array(values, dtype=np.float64)
    return Measured("m", kind, "u", True, tuple(map(str, range(len(values)))), array)


def test_intervals_are_those_of_the_textbook():
    """Wilson 1927: (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n); Student: x̄ ± t s / √n."""
    z, n, p = 1.959963984540054, 10, 0.3
    middle, half = p + z * z / (2 * n), z * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    got = interval(measured("right", *[1] * 3, *[0] * 7))
    assert got == pytest.approx(((middle - half) / (1 + z * z / n), (middle + half) / (1 + z * z / n)))
    t = 4.302652729911275  # two degrees of freedom, 97.5 %
    half = t * np.sqrt(((1 - 2) ** 2 + 0 + (3 - 2) ** 2) / 2) / np.sqrt(3)
    assert interval(measured("number", 1, 2, 3)) == pytest.approx((2 - half, 2 + half))


def test_one_item_has_no_interval_and_none_has_no_mean():
    assert interval_text(measured("right", 1)) == "none: one item" and mean_text(measured("right", 1)) == "1"
    assert interval_text(measured("number")) == "none: no item has a value" and mean_text(measured("number")) == "-"

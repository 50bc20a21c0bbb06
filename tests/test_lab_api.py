"""The lab's commands from Python: the same names and settings, light to import."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tithe
from tests.e2e.command import read_jsonl, records, write_jsonl
from tithe.errors import SettingsError, TitheError

QA = [{"question": one["instruction"], "answer": one["output"]} for one in records(12)]
NAMED = {"prompt": "question", "response": "answer"}
LIGHT = """
import sys
from tithe import tune, evaluate, experiment, judge, export, build_tiers, train_head, tally
print([name for name in ("torch", "trl", "transformers", "peft") if name in sys.modules])
"""


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "qa.jsonl", QA)


def test_importing_the_functions_imports_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-c", LIGHT], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("name", tithe.__all__)
def test_every_function_is_typed_and_described(name: str) -> None:
    function = getattr(tithe, name)
    assert (function.__doc__ or "").strip() and name in dir(tithe)
    assert all(one.annotation is not inspect.Parameter.empty for one in inspect.signature(function).parameters.values())
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty


def test_an_unknown_name_is_none() -> None:
    with pytest.raises(AttributeError, match="no attribute `tunes`"):
        tithe.tunes  # noqa: B018


@pytest.mark.slow
def test_tune_then_evaluate(data: Path, model_dir: Path, tmp_path: Path) -> None:
    given = {"model": str(model_dir), "max_steps": 2, "warmup_ratio": 0.0, "train_batch_size": 2, "max_length": 64}
    trained = tithe.tune(tithe.load(data, columns=NAMED), output=tmp_path / "tuned", **given)
    assert trained.folder == tmp_path / "tuned" and trained.record["identity"]
    found = tithe.evaluate(tmp_path / "tuned", output=tmp_path / "results", holdout=data, columns=NAMED)
    assert [one.metric for one in found.measured] == ["holdout_nll"] and len(found.measured[0].items) == 12


def test_export_reads_named_columns(data: Path, tmp_path: Path) -> None:
    assert tithe.export(data, "messages", output=tmp_path / "m.jsonl", columns=NAMED) is None
    first = read_jsonl(tmp_path / "m.jsonl")[0]
    assert [turn["role"] for turn in first["messages"]] == ["user", "assistant"] and set(first) == {"messages"}
    program = tithe.export(tithe.load(data, columns=NAMED), "trl")
    assert program is not None and '"response": "answer"' in program
    with pytest.raises(SettingsError, match="without `limit`"):
        tithe.export(tithe.load(data, columns=NAMED, limit=3), "trl")


def test_contamination_reads_named_columns(data: Path, tmp_path: Path) -> None:
    against = write_jsonl(tmp_path / "eval.jsonl", [{"text": QA[3]["answer"]}])
    found = tithe.find_contamination(data, against, columns="prompt=question,response=answer", ngram=3)
    assert found.record["examples_hit"] >= 1


def test_tally_and_import_tiers(tmp_path: Path) -> None:
    tiers = write_jsonl(tmp_path / "pairs.jsonl", [{"question": "q", "high": "a good one", "low": "bad"}])
    made = tithe.import_tiers(tiers, output=tmp_path / "tiers.jsonl", columns="prompt=question")
    assert [row["tier"] for row in read_jsonl(tmp_path / "tiers.jsonl")] == ["high", "low"] and made.record["look"]
    with pytest.raises(TitheError):
        tithe.tally(tmp_path / "nothing.jsonl")


def test_a_judge_compares_two_files_of_answers(data: Path, model_dir: Path, tmp_path: Path) -> None:
    prompts = write_jsonl(tmp_path / "prompts.jsonl", [{"question": f"Name {i}."} for i in range(2)])
    answers = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for path in answers:
        tithe.answer(prompts, model=str(model_dir), output=path, max_new_tokens=4)
    same = tithe.judge(*answers, judge=str(model_dir), output=tmp_path / "reviews.jsonl")
    assert same.tally.as_dict() == tithe.tally(tmp_path / "reviews.jsonl").as_dict()  # equal answers are ties


def test_a_mistake_is_one_sentence(data: Path, tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="unknown setting `lerning_rate`") as error:
        tithe.tune(data, output=tmp_path / "x", model="pocket", lerning_rate=1.0)
    assert error.value.hint == "did you mean `learning_rate`?"
    with pytest.raises(SettingsError, match="`output` is empty"):
        tithe.tune(data, output=" ", model="pocket")
    with pytest.raises(SettingsError, match="`arms`"):
        tithe.experiment({"dataset": str(data), "model": "pocket"}, output=tmp_path / "x")
    with pytest.raises(SettingsError, match="a model is a path or a name, not a int"):
        tithe.evaluate(5, output=tmp_path / "x", holdout=data)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="`turns` of the opened data set is not read here"):
        tithe.build_tiers(
            tithe.load(data, columns=NAMED, turns="all"), weak_model="pocket", output=tmp_path / "t.jsonl"
        )

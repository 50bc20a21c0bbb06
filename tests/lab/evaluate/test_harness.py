"""Our tasks against lm-eval's own definitions, run by lm-eval's own function on the same data, item by item."""

import csv
import gzip
import io
import json
import zipfile

import numpy as np
import pytest

from tithe.engine.model_source import find_model
from tithe.errors import DataError, MissingExtraError, SettingsError, TemplateError
from tithe.extras import install_hint
from tithe.lab.evaluate import tasks
from tithe.lab.evaluate.harness import Harness, TaskSettings, quiet
from tithe.lab.evaluate.tasks import build, resolve

pytest.importorskip("lm_eval")
LIMIT, NEW = 4, 12


def run(spec, model, *, seed=0, apply_chat_template=False, **more):
    """Measured metrics by name, and the tasks as they were run."""
    (asked,) = resolve([spec], allow_code=True)
    built = [build(leaf, seed=seed, **{"shots": None, "max_new_tokens": NEW, **more}) for leaf in asked.leaves]
    how = TaskSettings(limit=LIMIT, seed=seed, apply_chat_template=apply_chat_template)
    harness = Harness(find_model(str(model)), "cpu", "fp32", how)
    harness.check(built)
    return {one.metric: one for one in harness.run(asked, built)[0]}, built


def ours(spec, model, **more):
    return run(spec, model, **more)[0]


def theirs(name, model, files, folder, **more):
    """lm-eval's own function and definition, only the data set's place put in; its samples in order."""
    from pathlib import Path

    import lm_eval
    from lm_eval.tasks import TaskManager

    root = Path(lm_eval.__file__).parent / "tasks"
    family = {"truthfulqa_mc1": "truthfulqa", "truthfulqa_mc2": "truthfulqa", "arc_easy": "arc", "arc_challenge": "arc"}
    place = root / ("mmlu/default" if name.startswith("mmlu") else family.get(name, name.split("_")[0]))
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(folder / "cache")},
    }
    for split in ("train", "validation"):
        if split not in files:
            task[f"{split.replace('train', 'training')}_split"] = None
    with quiet():
        results = lm_eval.simple_evaluate(
            "hf",
            {"pretrained": str(model), "dtype": "float32"},
            tasks=[{"group": "theirs", "task": [task]}],
            task_manager=TaskManager(include_path=str(place), include_defaults=False),
            device="cpu",
            batch_size=8,
            limit=LIMIT,
            bootstrap_iters=0,
            gen_kwargs={"max_gen_toks": NEW},
            **more,
        )
    return results["samples"][name]


def lines(path):
    raw = path.read_bytes()
    return [json.loads(line) for line in (gzip.decompress(raw) if path.suffix == ".gz" else raw).splitlines()]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def hub_rows(name, place, folder):
    """The hub's rows of the shared files, made in another way than ours: split -> file."""
    if name == "gsm8k":
        return {split: str(place / f"gsm8k_{split}.jsonl") for split in ("train", "test")}
    if name.startswith("arc"):
        rows = [
            {
                "question": row["query"][len("Question: ") :],
                "choices": {"text": row["choices"], "label": list("ABCD")},
                "answerKey": "ABCD"[row["gold"]],
            }
            for row in lines(place / f"{name}.jsonl")
        ]
        return {"test": write(folder / "rows.jsonl", rows)}
    if name == "piqa":
        rows = [
            {"goal": row["query"][10:-1], "sol1": row["choices"][0], "sol2": row["choices"][1], "label": row["gold"]}
            for row in lines(place / "piqa.jsonl")
        ]
        return {"validation": write(folder / "rows.jsonl", rows)}
    if name.startswith("truthfulqa"):
        rows = []
        for row in lines(place / "truthfulqa.jsonl"):
            one = {row["best_answer"]: 1} | dict.fromkeys(row["incorrect_answers"], 0)
            right, wrong = row["correct_answers"], row["incorrect_answers"]
            both = {"choices": right + wrong, "labels": [1 for _ in right] + [0 for _ in wrong]}
            first = {"choices": list(one), "labels": list(one.values())}
            rows.append({"question": row["question"], "mc1_targets": first, "mc2_targets": both})
        return {"validation": write(folder / "rows.jsonl", rows)}
    subject = name.removeprefix("mmlu_")
    files = {}
    with zipfile.ZipFile(place / "mmlu.zip") as packed:
        for split in ("test", "dev"):
            text = packed.read(f"data/{split}/{subject}_{split}.csv").decode()
            cells = list(csv.reader(io.StringIO(text)))
            rows = [
                {"question": c[0], "subject": subject, "choices": c[1:5], "answer": "ABCD".find(c[5])} for c in cells
            ]
            files[split] = write(folder / f"{split}.jsonl", rows)
    return files


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "more"),
    [
        pytest.param("gsm8k", {}, marks=pytest.mark.thorough),
        ("gsm8k", {"num_fewshot": 2, "apply_chat_template": True}),
        ("arc_easy", {}),
        pytest.param("arc_challenge", {}, marks=pytest.mark.thorough),
        ("piqa", {}),
        pytest.param("truthfulqa_mc1", {}, marks=pytest.mark.thorough),
        ("truthfulqa_mc2", {}),
        ("mmlu_anatomy", {"num_fewshot": 2}),
    ],
)
def test_items_are_those_of_lm_eval_itself(shared, model_dir, tmp_path, name, more):
    place = shared / "data" / "eval"
    seeds = dict.fromkeys(("random_seed", "numpy_random_seed", "torch_random_seed", "fewshot_random_seed"), 7)
    expected = theirs(name, model_dir, hub_rows(name, place, tmp_path), tmp_path, **more, **seeds)
    chat = "apply_chat_template" in more
    got, (built,) = run(f"{name}={place}", model_dir, shots=more.get("num_fewshot"), seed=7, apply_chat_template=chat)
    first = expected[0]["filter"]
    calls = [args for item in expected if item["filter"] == first for args in item["arguments"]]
    answers = [resps for item in expected if item["filter"] == first for resps in item["resps"]]
    by_item = sorted(built.task.instances, key=lambda one: (one.doc_id, one.idx))
    assert [one.args for one in by_item] == calls  # prompts with their worked examples, continuations, stops
    assert [one.resps for one in by_item] == answers  # likelihoods to the last bit, texts
    assert len(got) == len({(item["filter"], metric) for item in expected for metric in item["metrics"]})
    for one in got.values():
        items = [item for item in expected if item["filter"] == one.about["filter"]]
        assert one.values.tolist() == [float(item[one.about["metric"]]) for item in items]
        assert len(one.items) == LIMIT


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ["humaneval", "humaneval_instruct", "humaneval_plus"])
def test_humaneval_asks_and_stops_as_lm_eval_does(sandbox, shared, model_dir, monkeypatch, name):
    """lm-eval's own file cannot be loaded without the hub; its prompts and stops are compared with ours as they run."""
    heard = {}

    def grade(self, responses, docs):
        heard["docs"], heard["responses"] = docs, responses
        return [[True for _ in texts] for texts in responses]

    monkeypatch.setattr(tasks.Grader, "grade", grade)
    (asked,) = resolve([f"{name}={shared / 'data' / 'eval'}"], allow_code=True)
    built = build(asked.leaves[0], shots=None, seed=0, max_new_tokens=NEW)
    harness = Harness(find_model(str(model_dir)), "cpu", "fp32", TaskSettings(limit=2))
    (one,), _ = harness.run(asked, [built])
    own = built.leaf.config
    assert one.metric == name and one.kind == "right" and one.values.tolist() == [1.0, 1.0]
    doc = heard["docs"][0]
    assert {"prompt", "test", "entry_point"} <= set(doc)
    request = built.task.instances[0].args
    assert request[1]["until"] == own["generation_kwargs"]["until"] and request[1]["max_gen_toks"] == NEW
    if name != "humaneval_instruct":
        assert request[0] == doc["prompt"]
    assert built.grader.fenced == (name == "humaneval_instruct")


def test_repeated_responses_give_pass_at_several_k(sandbox, model_dir, tmp_path, monkeypatch):
    path = tmp_path / "h.jsonl"
    write(path, [{"task_id": "t", "prompt": "def f(x):\n", "test": "def check(c):\n    pass\n", "entry_point": "f"}])
    monkeypatch.setattr(tasks.Grader, "grade", lambda self, rs, docs: [[i < 16 for i in range(len(r))] for r in rs])
    got = ours(f"humaneval_64={path}", model_dir, max_new_tokens=2)
    assert list(got) == [f"humaneval_64 pass@{k}" for k in (2, 8, 16, 32, 64)]
    assert got["humaneval_64 pass@2"].values[0] == pytest.approx(1 - (48 * 47) / (64 * 63))
    assert got["humaneval_64 pass@2"].kind == "number" and got["humaneval_64 pass@64"].values[0] == 1


def gsm8k(path, n=5, train=False):
    write(path / "gsm8k_test.jsonl", [{"question": f"What is {i} + 1?", "answer": f"#### {i + 1}"} for i in range(n)])
    if train:
        write(path / "gsm8k_train.jsonl", [{"question": f"{i}?", "answer": f"#### {i}"} for i in range(n)])
    return f"gsm8k={path}"


def test_items_have_ids_of_their_content(model_dir, tmp_path):
    rows = [{"question": "What is 1?", "answer": "#### 1"}, {"question": "What is 2?", "answer": "#### 2"}]
    path = tmp_path / "a.jsonl"
    write(path, [*rows, rows[0]])
    first = ours(f"gsm8k={path}", model_dir, shots=0)["gsm8k strict-match"]
    assert first.items[2] == f"{first.items[0]}-1" and len(set(first.items)) == 3
    write(path, rows[::-1])
    assert ours(f"gsm8k={path}", model_dir, shots=0)["gsm8k strict-match"].items == first.items[1::-1]


def test_a_group_is_one_metric_with_its_tasks_as_groups(model_dir, tmp_path):
    (asked,) = resolve(["mmlu_stem"], allow_code=False)
    names = [leaf.name for leaf in asked.leaves]
    assert len(names) == 19 and "mmlu_anatomy" in names and len(resolve(["mmlu"], allow_code=False)[0].leaves) == 57
    with zipfile.ZipFile(tmp_path / "mmlu.zip", "w") as packed:
        for name in names:
            for split in ("test", "dev"):
                row = f"Why {name}?,1,2,3,4,A\nHow {name}?,1,2,3,4,B\n"
                packed.writestr(f"{name.removeprefix('mmlu_')}_{split}.csv", row)
    got = ours(f"mmlu_stem={tmp_path}", model_dir)
    one = got["mmlu_stem"]
    assert list(got) == ["mmlu_stem"] and len(one.items) == 38 and set(one.groups) == set(names)
    assert all(item.startswith(f"{group}/") for item, group in zip(one.items, one.groups, strict=True))


def test_prompts_that_do_not_fit_are_counted(model_dir, tmp_path):
    path = tmp_path / "a.jsonl"
    write(path, [{"question": "What? " * 400, "answer": "#### 1"}, {"question": "What?", "answer": "#### 1"}])
    (asked,) = resolve([f"gsm8k={path}"], allow_code=False)
    built = [build(asked.leaves[0], shots=0, seed=0, max_new_tokens=NEW)]
    measured, notes = Harness(find_model(str(model_dir)), "cpu", "fp32").run(asked, built)
    assert notes == ["`gsm8k`: 1 of 2 prompts do not fit the model's window and lose their beginning"]
    assert measured[0].about["cut_prompts"] == 1


@pytest.mark.parametrize(
    ("spec", "words", "hint"),
    [
        ("gms8k", "lm-eval has no task `gms8k`", "did you mean `gsm8k`?"),
        ("gsm8k=", "`gsm8k=` names no file", "gsm8k=FILE"),
        ("gsm8k=nowhere.jsonl", "there is no file `nowhere.jsonl`", "NAME=FILE"),
        ("humaneval", "runs code that the model writes", "--allow-code-execution"),
        ("hellaswag=tests", "no known form of local files", "openai/gsm8k"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(monkeypatch, spec, words, hint):
    if spec in ("gms8k", "hellaswag=tests"):  # the whole index takes a while; a part of it will do
        small = tasks.manager_of(("gsm8k", "hellaswag"))
        monkeypatch.setattr(tasks, "managers", lambda: iter([small]))
    with pytest.raises(SettingsError, match=words) as error:
        resolve([spec], allow_code=False)
    assert hint in error.value.hint


def test_a_task_twice_is_refused():
    with pytest.raises(SettingsError, match="`gsm8k` is given twice"):
        resolve(["gsm8k", "gsm8k"], allow_code=False)


def test_code_that_would_run_in_this_process_is_refused_even_if_allowed(monkeypatch):
    small = tasks.manager_of(("mbpp",))
    monkeypatch.setattr(tasks, "managers", lambda: iter([small]))
    with pytest.raises(SettingsError, match="`mbpp` would run generated code in this process"):
        resolve(["mbpp"], allow_code=True)


def test_worked_examples_need_a_file_of_their_own(tmp_path):
    (asked,) = resolve([gsm8k(tmp_path)], allow_code=False)
    with pytest.raises(SettingsError, match="shows 5 worked examples, and there is no file of them beside") as error:
        build(asked.leaves[0], shots=None, seed=0, max_new_tokens=None)
    assert "--num-fewshot 0" in error.value.hint
    gsm8k(tmp_path, train=True)
    (asked,) = resolve([f"gsm8k={tmp_path}"], allow_code=False)
    assert build(asked.leaves[0], shots=None, seed=0, max_new_tokens=None).task.get_config("num_fewshot") == 5


def test_a_hub_that_does_not_answer_is_one_sentence():
    (asked,) = resolve(["gsm8k"], allow_code=False)
    with pytest.raises(
        DataError, match="the data of task `gsm8k`, `openai/gsm8k` on the hub, could not be read"
    ) as error:
        build(asked.leaves[0], shots=0, seed=0, max_new_tokens=None)
    assert "--tasks gsm8k=FILE" in error.value.hint


def test_answers_need_room_in_the_window_and_chat_a_template(model_dir, tmp_path):
    from tests.small_model import make_model

    (asked,) = resolve([gsm8k(tmp_path)], allow_code=False)
    built = [build(asked.leaves[0], shots=0, seed=0, max_new_tokens=512)]
    harness = Harness(find_model(str(model_dir)), "cpu", "fp32")
    with pytest.raises(SettingsError, match="takes answers of up to 512 tokens, and the model reads 512"):
        harness.check(built)
    plain = make_model(tmp_path / "plain", chat=False)
    with pytest.raises(TemplateError, match="has no chat template"):
        Harness(find_model(str(plain)), "cpu", "fp32", TaskSettings(apply_chat_template=True)).check([])


def test_a_missing_lm_eval_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError) as error:
        resolve(["gsm8k"], allow_code=False)
    assert install_hint("eval") in error.value.hint


def test_quick_names_are_those_of_the_whole_index(sandbox):
    """Families are read alone only where that gives the same tasks; tags may reach further."""
    (arc,) = resolve(["arc_easy"], allow_code=False)
    assert arc.leaves[0].config["dataset_path"] == "allenai/ai2_arc" and np.isfinite(arc.leaves[0].shots(3))
    assert resolve(["humaneval"], allow_code=True)[0].leaves[0].shots(3) == 0

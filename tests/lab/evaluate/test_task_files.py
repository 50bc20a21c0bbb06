"""Local files of tasks: what lm-eval's rows are made of, and what is refused."""

import gzip
import json
import zipfile
from pathlib import Path

import pytest

from tithe.errors import DataError, SettingsError
from tithe.lab.evaluate.programs import Grader, pass_at_k, passed_at, plus_tests
from tithe.lab.evaluate.sandbox import Limits
from tithe.lab.evaluate.task_files import KNOWN, find_files
from tithe.lab.evaluate.tasks import GRADED

GSM8K, HUMANEVAL, PLUS = "openai/gsm8k", "openai/openai_humaneval", "evalplus/humanevalplus"
ARC, PIQA, TRUTH, MMLU = "allenai/ai2_arc", "baber/piqa", "truthfulqa/truthful_qa", "cais/mmlu"
PROGRAM = {
    "task_id": "t/0",
    "prompt": "def f(x):\n",
    "test": "def check(c):\n    assert c(1) == 2\n",
    "entry_point": "f",
}


def file(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def rows(hub, path, subset=None):
    data = find_files(hub, subset, path, "the-task")
    return data.rows()


@pytest.mark.parametrize(
    ("hub", "subset", "record", "row"),
    [
        (GSM8K, "main", {"question": "q", "answer": "a", "more": 1}, {"question": "q", "answer": "a"}),
        (
            ARC,
            "ARC-Easy",
            {"query": "Question: Why?", "choices": ["x", "y"], "gold": 1},
            {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"},
        ),
        (
            ARC,
            "ARC-Easy",
            {"id": "1", "question": "Why?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
            {"question": "Why?", "choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"},
        ),
        (
            PIQA,
            None,
            {"query": "Question: How?\n", "choices": ["x", "y"], "gold": 0},
            {"goal": "How?", "sol1": "x", "sol2": "y", "label": 0},
        ),
        (HUMANEVAL, None, PROGRAM, PROGRAM),
        (
            HUMANEVAL,
            None,
            {"task_id": "t/0", "prompt": "p", "test": "def check(f):\n    pass\n\ncheck(f)"},
            {"task_id": "t/0", "prompt": "p", "test": "def check(f):\n    pass\n", "entry_point": "f"},
        ),
        (PLUS, None, PROGRAM, PROGRAM),
    ],
)
def test_a_record_becomes_the_hubs_row(tmp_path, hub, subset, record, row):
    assert rows(hub, file(tmp_path / "some.jsonl", record), subset) == {KNOWN[hub].split: [row]}


def test_truthfulqa_has_one_true_answer_or_all(tmp_path):
    record = {"question": "q", "best_answer": "b", "correct_answers": ["b", "c"], "incorrect_answers": ["x"]}
    (row,) = rows(TRUTH, file(tmp_path / "t.jsonl", record))["validation"]
    assert row["mc1_targets"] == {"choices": ["b", "x"], "labels": [1, 0]}
    assert row["mc2_targets"] == {"choices": ["b", "c", "x"], "labels": [1, 1, 0]}


@pytest.mark.parametrize(
    ("hub", "records", "words"),
    [
        (GSM8K, [{"question": "q", "answer": "a"}, {"question": "q"}], r"some.jsonl:2: .* no field `answer`"),
        (GSM8K, [{"question": 3, "answer": "a"}], r":1: the field `question` is '3', and not a text"),
        (GSM8K, [["q"]], r":1: the record is not an object"),
        (GSM8K, [], r"is empty"),
        (
            ARC,
            [{"query": "q", "choices": ["a", "b"], "gold": 2}],
            r":1: the field `gold` is 2, and there are 2 choices",
        ),
        (ARC, [{"query": "q", "choices": [], "gold": 0}], r"`choices` is '\[\]', and not a list of texts"),
        (ARC, [{"question": "q", "choices": ["a"], "answerKey": "A"}], r"not an object of `text` and `label`"),
        (
            ARC,
            [{"question": "q", "choices": {"text": ["a"], "label": ["A"]}, "answerKey": "B"}],
            r"`answerKey` is `B`, and the labels are A",
        ),
        (PIQA, [{"query": "q", "choices": ["a", "b", "c"], "gold": 2}], r"holds 3 texts, not 2"),
        (HUMANEVAL, [{"task_id": "1", "prompt": "p", "test": "x = 1"}], r":1: the record has no field `entry_point`"),
        (PLUS, [{k: v for k, v in PROGRAM.items() if k != "test"}], r"no field `test`"),
        (TRUTH, [{"question": "q", "best_answer": "b"}], r"no field `correct_answers`"),
    ],
)
def test_a_file_without_the_fields_is_refused_with_field_and_line(tmp_path, hub, records, words):
    with pytest.raises(DataError, match=words):
        rows(hub, file(tmp_path / "some.jsonl", *records))


def test_files_are_found_in_folders_packed_and_beside(tmp_path):
    record = {"question": "q", "answer": "a"}
    file(tmp_path / "gsm8k_test.jsonl", record)
    assert set(find_files(GSM8K, "main", tmp_path, "gsm8k").files) == {"test"}
    with gzip.open(tmp_path / "gsm8k_train.jsonl.gz", "wt") as stream:
        stream.write(json.dumps({**record, "question": "train"}))
    got = rows(GSM8K, tmp_path / "gsm8k_test.jsonl")
    assert got["train"][0]["question"] == "train" and got["test"][0]["question"] == "q"
    other = file(tmp_path / "my-test.jsonl", record)
    file(tmp_path / "my-train.jsonl", record)
    assert find_files(GSM8K, "main", other, "gsm8k").files["train"].name == "my-train.jsonl"


@pytest.mark.parametrize(
    ("hub", "path", "words"),
    [
        (GSM8K, "gone.jsonl", "there is no file"),
        (GSM8K, ".", "the folder .* has no `gsm8k_test.jsonl`"),
        ("Rowan/hellaswag", ".", "no known form of local files"),
    ],
)
def test_what_cannot_be_a_tasks_file_is_refused(tmp_path, hub, path, words):
    with pytest.raises(SettingsError, match=words):
        find_files(hub, None, tmp_path / path, "the-task")


def test_mmlu_is_read_from_its_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "mmlu.zip", "w") as packed:
        packed.writestr("data/test/law_test.csv", '"A, or B?",w,x,y,z,C\n')
        packed.writestr("data/dev/law_dev.csv", "Why?,1,2,3,4,A\n")
        packed.writestr("data/test/art_test.csv", "Why?,1,2,3,A\n")
        packed.writestr("data/dev/art_dev.csv", "")
    got = rows(MMLU, tmp_path, "law")
    assert got["test"] == [{"question": "A, or B?", "subject": "law", "choices": ["w", "x", "y", "z"], "answer": 2}]
    assert got["dev"][0]["answer"] == 0
    with pytest.raises(DataError, match=r"art_test.csv:1: 5 cells ending in `A`"):
        rows(MMLU, tmp_path / "mmlu.zip", "art")
    with pytest.raises(DataError, match=r"has no table `tax_test.csv`"):
        rows(MMLU, tmp_path / "mmlu.zip", "tax")
    (tmp_path / "no.zip").write_text("x")
    with pytest.raises(DataError, match="not a readable zip file"):
        rows(MMLU, tmp_path / "no.zip", "law")


def test_pass_at_k_is_the_share_of_draws_with_a_pass():
    from itertools import combinations

    for n in range(1, 7):
        for c in range(n + 1):
            for k in range(1, n + 1):
                draws = list(combinations([True] * c + [False] * (n - c), k))
                assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))
    assert passed_at(["-"], [[True, False]], [1, 2, 5]) == {"pass@1": 0.5, "pass@2": 1.0}


def test_responses_are_graded_in_order_and_reasons_are_kept(sandbox):
    grader = Grader()
    assert grader.grade([["    return x + 1", "    return x"], ["    return 2"]], [PROGRAM, PROGRAM]) == [
        [True, False],
        [True],
    ]
    assert grader.about()["outcomes"] == {"passed": 2, "AssertionError": 1} and grader.confined
    fenced = Grader(fenced=True)
    assert fenced.grade([["    return x + 1\n```\nThat adds one."]], [PROGRAM]) == [[True]]
    assert Grader().grade([["    return x + 1\n```\nThat adds one."]], [PROGRAM]) == [[False]]


@pytest.mark.parametrize(
    ("body", "passed"),
    [
        ("    return [v / 3 for v in x]", True),
        ("    return [v * (1 / 3) for v in x]", True),
        ("    return [v / 3 + 1e-7 for v in x]", True),
        ("    return [v / 3 + 1e-4 for v in x]", False),
        ("    return [v / 3 for v in x][:1]", False),
        ("    x.clear()\n    return x", False),
        ("    return None", False),
    ],
)
def test_plus_tests_compare_with_the_reference(sandbox, body, passed):
    tests = plus_tests("def f(x):\n    return [v / 3 for v in x]\n", "f", [[[1.0, 2.0]], [[5.0, 0.1]]], 0)
    doc = {**PROGRAM, "test": tests}
    assert Grader().grade([[body]], [doc]) == [[passed]]


def test_of_find_zero_the_value_at_the_zero_counts(sandbox):
    reference = (
        "def poly(xs, x):\n    return sum(c * x**i for i, c in enumerate(xs))\ndef find_zero(xs):\n    return 1\n"
    )
    doc = {
        "prompt": "def find_zero(xs):\n",
        "test": plus_tests(reference, "find_zero", [[[-4, 0, 1]]], 1e-4),
        "entry_point": "find_zero",
    }
    assert Grader().grade([["    return -2", "    return 1"]], [doc]) == [[True, False]]


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("hub", "name"),
    [(HUMANEVAL, "humaneval.jsonl"), pytest.param(PLUS, "humaneval_plus.jsonl.gz", marks=pytest.mark.thorough)],
)
def test_the_authors_own_solutions_pass_and_empty_ones_do_not(sandbox, shared, hub, name):
    place = shared / "data" / "eval" / name
    text = gzip.decompress(place.read_bytes()) if name.endswith(".gz") else place.read_bytes()
    solutions = [json.loads(line)["canonical_solution"] for line in text.splitlines()][:139:3]
    docs = rows(hub, place)["test"][:139:3]
    grader = Grader(limits=GRADED[hub])
    graded = grader.grade([[one, "    return None\n"] for one in solutions], docs)
    assert graded == [[True, False]] * len(docs), grader.about()


def test_names_of_the_shared_files(shared):
    subsets = {ARC: ("ARC-Easy", "ARC-Challenge"), MMLU: ("anatomy",)}
    for hub in KNOWN:
        for subset in subsets.get(hub, (None,)):
            data = find_files(hub, subset, Path(shared / "data" / "eval"), "the-task")
            assert data.files and all(len(value) == 32 for value in data.digest().values())


def test_programs_without_time_are_counted(sandbox):
    grader = Grader(limits=Limits(cpu_seconds=1, wall_seconds=9))
    assert grader.grade([["    while True:\n        pass", "    return x + 1"]], [PROGRAM]) == [[False, True]]
    assert grader.stopped == 1

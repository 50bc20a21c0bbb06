"""`tithe tiers`: built, imported, looked at, killed, refused, and from a server that misbehaves."""

from __future__ import annotations

import json
import re
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import tithe as library
from tests.e2e.command import Command, child, read_jsonl, records, write_jsonl
from tests.lab.endpoint.server import KEY, reply, serve
from tests.small_model import make_model
from tithe.lab.writing.texts import TextStore, key_of, store_name

pytestmark = pytest.mark.slow

# The command, with time to interrupt it between two batches.
HASTY = """
import sys, time
import tithe.engine.generate as generate
pause = float(sys.argv.pop(1))
real = generate.AnswerGenerator.answer
def answer(self, wanted):
    time.sleep(pause)
    return real(self, wanted)
generate.AnswerGenerator.answer = answer
sys.argv[0] = "tithe"
from tithe.cli import main
main()
"""
OWN = {"messages", "tier", "model", "prompt_id", "source", "finished", "response_tokens"}


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TITHE_API_KEY", raising=False)


@pytest.fixture
def few(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "few.jsonl", records(12))


def build(data: Path, model: object, output: Path, *more: object) -> list[object]:
    return [
        "tiers",
        "build",
        data,
        "-w",
        model,
        "--max-new-tokens",
        8,
        "--dtype",
        "fp32",
        "-o",
        output,
        "--json",
        *more,
    ]


def test_built_from_a_file_that_holds_the_strong_responses(tithe: Command, few: Path, model_dir: Path) -> None:
    out = few.with_name("t.jsonl")
    other = make_model(few.with_name("other"), seed=1)
    record = tithe.ok(*build(few, model_dir, out, "-w", other, "--strong-model", "me")).json
    rows = read_jsonl(out)
    assert [row["tier"] for row in rows] == ["high", "low", "low"] * 12
    assert [row["model"] for row in rows[:3]] == ["me", str(model_dir), str(other)]
    assert len({row["prompt_id"] for row in rows}) == 12 and rows[0]["prompt_id"] == rows[2]["prompt_id"]
    assert rows[0]["messages"][:-1] == rows[1]["messages"][:-1]
    assert rows[0]["category"] == "letters" and set(rows[1]) == OWN  # a column may tell of the strong response
    assert [row["messages"][-1]["content"] for row in rows[::3]] == [one["output"] for one in records(12)]
    examples = list(library.load(out))
    assert len(examples) == 36 and examples[1].columns["tier"] == "low"
    for model in record["weak_models"].values():
        assert model["prompts"] == model["answers"] + sum(model["problems"].values()) == 12
        assert re.fullmatch("[0-9a-f]{16}", model["fingerprint"]) and model["template"]["template"] == "chat"
    unfinished = sum(row["finished"] is False for row in rows)
    assert record["look"]["unfinished"] == {"high": None, "low": unfinished} and unfinished > 0
    assert json.loads((few.parent / "t.tithe" / "run.json").read_text()) == record


def test_strong_responses_from_another_file(tithe: Command, few: Path, model_dir: Path) -> None:
    asked = write_jsonl(few.with_name("asked.jsonl"), [{"instruction": f"Question {i}"} for i in (0, 1, 2, 3, 2)])
    answers = [{"prompt": f"Question {i} ", "completion": f"Answer {i}"} for i in (3, 7, 2, 8)] + [{"prompt": "x"}]
    strong = write_jsonl(few.with_name("strong.jsonl"), answers)
    done = tithe.ok(*build(asked, model_dir, few.with_name("t.jsonl"), "--strong", strong))
    counts = done.json["counts"]
    assert counts["without_strong_response"] == 2 and counts["strong_responses_unused"] == 2 and counts["prompts"] == 2
    assert counts["asked"] == {"records": 5, "prompts": 4, "repeated_prompts": 1, "bad_rows": {}, "notes": {}}
    assert sum(counts["strong"]["bad_rows"].values()) == 1
    for words in ("prompts without a strong response, left out +2", "strong responses to no prompt, left out +2"):
        assert re.search(words, done.err), done.err
    rows = read_jsonl(few.with_name("t.jsonl"))
    assert [row["messages"][-1]["content"] for row in rows if row["tier"] == "high"] == ["Answer 2", "Answer 3"]
    dropped = Counter(line["reason"] for line in read_jsonl(few.parent / "t.tithe" / "dropped.jsonl"))
    assert dropped["no strong response"] == 2 and dropped["the same prompt again"] == 1 and dropped.total() == 4


def test_a_draw_depends_on_the_seed_alone(tithe: Command, few: Path, model_dir: Path) -> None:
    found = []
    for i, more in enumerate((["--sample", 4], ["--sample", 4, "--batch-tokens", 60], ["--sample", 4, "--seed", 1])):
        out = few.with_name(f"t{i}.jsonl")
        assert tithe.ok(*build(few, model_dir, out, *more)).json["counts"]["not_drawn"] == 8
        found.append(out.read_bytes())
    assert found[0] == found[1] != found[2]


def test_the_second_time_nothing_is_generated(tithe: Command, few: Path, model_dir: Path) -> None:
    out = few.with_name("t.jsonl")
    first = tithe.ok(*build(few, model_dir, out))
    before = out.read_bytes()
    tithe.fails(*build(few, model_dir, out))
    again = tithe.ok(*build(few, model_dir, out, "--overwrite"))
    assert out.read_bytes() == before
    assert (
        first.json["weak_models"][str(model_dir)]["reused"],
        again.json["weak_models"][str(model_dir)]["reused"],
    ) == (
        0,
        12,
    )
    assert "writes on" not in again.err
    other = tithe.ok(*build(few, model_dir, out, "--overwrite", "--temperature", 0.2))
    assert other.json["weak_models"][str(model_dir)]["reused"] == 0 and out.read_bytes() != before


def parts(folder: Path) -> list[Path]:
    return sorted(folder.rglob("part-*.jsonl"))


@pytest.mark.parametrize("temperature", [0, pytest.param(0.8, marks=pytest.mark.slow)])
def test_killed_and_run_again(tithe: Command, model_dir: Path, tmp_path: Path, temperature: float) -> None:
    data = write_jsonl(tmp_path / "many.jsonl", records(60))
    (tmp_path / "straight").mkdir()
    (tmp_path / "broken").mkdir()
    straight, broken = tmp_path / "straight" / "t.jsonl", tmp_path / "broken" / "t.jsonl"
    more = ["--batch-tokens", 300, "--temperature", temperature]
    tithe.ok(*build(data, model_dir, straight, *more))
    for least in (2, 4):
        process = child(HASTY, 0.2, *build(data, model_dir, broken, *more))
        end = time.monotonic() + 120
        while len(parts(tmp_path / "broken")) < least and process.poll() is None and time.monotonic() < end:
            time.sleep(0.005)
        process.kill()
        process.communicate()
        assert least <= len(parts(tmp_path / "broken")) < len(parts(tmp_path / "straight")) and not broken.exists()
    again = tithe.ok(*build(data, model_dir, broken, *more)).json
    assert broken.read_bytes() == straight.read_bytes()
    assert again["weak_models"][str(model_dir)]["reused"] > 0
    keys = [line["key"] for part in parts(tmp_path / "broken") for line in read_jsonl(part)]
    assert len(keys) == len(set(keys)) == 60


def test_one_process_at_a_time(tithe: Command, few: Path, model_dir: Path) -> None:
    out = few.with_name("t.jsonl")
    process = child(HASTY, 5, *build(few, model_dir, out, "--batch-tokens", 10))
    end = time.monotonic() + 120
    while not (few.parent / "t.tithe" / ".lock").exists() and time.monotonic() < end:
        time.sleep(0.01)
    try:
        time.sleep(0.3)
        assert "another process is working in the run folder" in tithe.fails(*build(few, model_dir, out)).err
    finally:
        process.kill()
        process.communicate()


def test_a_damaged_part_is_named(tithe: Command, few: Path, model_dir: Path) -> None:
    out = few.with_name("t.jsonl")
    tithe.ok(*build(few, model_dir, out))
    (part,) = parts(few.parent)
    part.write_text('{"key": 1')
    failed = tithe.fails(*build(few, model_dir, out, "--overwrite"))
    assert str(part) in failed.errors[0] and "delete that file" in failed.hints[0]


def test_settings_from_yaml(tithe: Command, few: Path, model_dir: Path) -> None:
    config = few.with_name("s.yaml")
    config.write_text(f"dataset: {few}\nweak-model: {model_dir}\nmax_new_tokens: 4\nsample: 3\ndtype: fp32\n")
    record = tithe.ok(
        "tiers", "build", "--config", config, "--sample", 2, "-o", few.with_name("t.jsonl"), "--json"
    ).json
    assert record["settings"]["sample"] == 2 and record["settings"]["max_new_tokens"] == 4
    config.write_text("dataset: x\nweak_modle: y\n")
    assert "did you mean `weak_model`" in tithe.fails("tiers", "build", "-c", config, "-o", "t.jsonl").err


# ---------------------------------------------------------------------------------------------------- from a server


def remote(data: Path, url: str, out: Path, *more: object) -> list[object]:
    return ["tiers", "build", data, "--endpoint", url, "-w", "small", "-o", out, "--json", *more]


def test_answers_of_a_server_are_asked_for_once(tithe: Command, few: Path) -> None:
    with serve() as played:
        record = tithe.ok(*remote(few, played.url, few.with_name("t.jsonl"))).json
        assert len(played.asked) == 12 and {body["model"] for body in played.asked} == {"small"}
        assert len({body["seed"] for body in played.asked}) == 12
        first = few.with_name("t.jsonl").read_bytes()
        again = tithe.ok(*remote(few, played.url, few.with_name("t.jsonl"), "--overwrite")).json
        assert len(played.asked) == 12 and few.with_name("t.jsonl").read_bytes() == first
    assert (record["weak_models"]["small"]["reused"], again["weak_models"]["small"]["reused"]) == (0, 12)
    rows = read_jsonl(few.with_name("t.jsonl"))
    assert rows[1]["messages"][-1]["content"].startswith("answer to Write about") and rows[1]["model"] == "small"


def test_what_a_server_never_answers_is_counted(tithe: Command, few: Path) -> None:
    def say(number: int, body: dict[str, Any]) -> Any:
        text = body["messages"][-1]["content"]
        if "number 3." in text:
            return (400, {"error": {"message": "too long"}}, {})
        if "number 4." in text:
            return reply("  ")
        return reply("cut", finish_reason="length") if "number 5." in text else played.ok(body)

    with serve(say) as played:
        done = tithe.ok(*remote(few, played.url, few.with_name("t.jsonl")))
        model = done.json["weak_models"]["small"]
        assert model["answers"] == 10 and model["unfinished"] == 1
        assert model["problems"] == {"HTTP 400, too long": 1, "the answer is empty": 1}
        assert "no answer to 1 prompts: the answer is empty" in done.err
        dropped = read_jsonl(few.parent / "t.tithe" / "dropped.jsonl")
        assert {line["reason"] for line in dropped} == set(model["problems"]) and len(dropped) == 2
        before = len(played.asked)
        tithe.ok(*remote(few, played.url, few.with_name("t.jsonl"), "--overwrite"))
        assert len(played.asked) == before + 1  # the problem alone is tried again
    assert Counter(row["tier"] for row in read_jsonl(few.with_name("t.jsonl"))) == {"high": 12, "low": 10}


def test_a_server_that_goes_away_leaves_what_it_said(tithe: Command, few: Path) -> None:
    with serve(lambda number, body: played.ok(body) if number < 5 else (404, {}, {})) as played:
        failed = tithe.fails(*remote(few, played.url, few.with_name("t.jsonl"), "--concurrency", 1))
        assert "has no such page or model" in failed.err and not few.with_name("t.jsonl").exists()
        assert sum(len(read_jsonl(part)) for part in parts(few.parent)) == 5
    with serve() as second:
        few.with_name("u.jsonl")
        moved = tithe.ok(*remote(few, second.url, few.with_name("t.jsonl"))).json
    assert moved["weak_models"]["small"]["reused"] == 0  # another address may be another model


def test_the_key_is_written_nowhere(tithe: Command, few: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TITHE_API_KEY", KEY)
    with serve(key=KEY) as played:
        done = tithe.ok(*remote(few, played.url, few.with_name("t.jsonl")))
    monkeypatch.setenv("TITHE_API_KEY", "wrong" + KEY)
    with serve(key=KEY) as played:
        failed = tithe.fails(*remote(few, played.url, few.with_name("u.jsonl")))
    assert "`TITHE_API_KEY`" in failed.err
    texts = [path.read_text() for path in few.parent.rglob("*") if path.is_file()]
    assert len(texts) > 4 and not any(KEY in text for text in [*texts, done.out, done.err, failed.err])


def test_a_server_that_wants_a_key(tithe: Command, few: Path) -> None:
    with serve(key=KEY) as played:
        failed = tithe.fails(*remote(few, played.url, few.with_name("t.jsonl")))
    assert "wants a key, and `TITHE_API_KEY` is not set" in failed.errors[0]
    assert "environment variable" in failed.hints[0] and len(played.asked) <= 8


# --------------------------------------------------------------------------------------------------------- imported


def test_pairs(tithe: Command, tmp_path: Path) -> None:
    pairs = [
        {"instruction": f"q{i}", "input": "x", "high": f"good {i}", "low": f"bad {i}", "split": "a"} for i in range(4)
    ]
    data = write_jsonl(tmp_path / "p.jsonl", [*pairs, {**pairs[0], "high": ""}, {**pairs[0], "low": 5}])
    look = tithe.ok("tiers", "import", data, "-o", tmp_path / "t.jsonl", "--json").json["look"]
    assert look["responses"] == {"high": 5, "low": 5}
    assert look["bad_rows"] == {"`high`: the response is empty": 1, "`low` is a number, it must be a string": 1}
    rows = read_jsonl(tmp_path / "t.jsonl")
    assert rows[0]["split"] == "a" and rows[0]["messages"][0]["content"] == "q0\nx" and "high" not in rows[0]


def test_labels_of_ones_own(tithe: Command, tmp_path: Path) -> None:
    made = [{"prompt": "q", "completion": f"r{i}", "tier": i, "model": f"m{i}"} for i in range(4)]
    data = write_jsonl(tmp_path / "p.jsonl", made)
    failed = tithe.fails("tiers", "import", data, "-o", tmp_path / "t.jsonl")
    assert "`0` (1), `1` (1), `2` (1), `3` (1)" in failed.errors[0] and "--high-tier" in failed.hints[0]
    failed = tithe.fails("tiers", "import", data, "--high-tier", "2,3", "--low-tier", 0, "-o", tmp_path / "t.jsonl")
    assert "`1` is neither" in failed.errors[0] and not (tmp_path / "t.jsonl").exists()
    tithe.ok("tiers", "import", data, "--high-tier", "2,3", "--low-tier", "0,1", "-o", tmp_path / "t.jsonl")
    assert [row["tier"] for row in read_jsonl(tmp_path / "t.jsonl")] == ["low", "low", "high", "high"]


def test_a_tier_file_of_ours_is_imported_as_it_is(tithe: Command, few: Path, model_dir: Path) -> None:
    one, two = few.with_name("t.jsonl"), few.with_name("u.jsonl")
    tithe.ok(*build(few, model_dir, one))
    tithe.ok("tiers", "import", one, "-o", two)
    assert one.read_bytes() == two.read_bytes()


def test_a_file_for_each_tier(tithe: Command, tmp_path: Path) -> None:
    high = write_jsonl(tmp_path / "h.jsonl", [{"instruction": "q", "output": "good"}])
    low = write_jsonl(tmp_path / "l.jsonl", [{"prompt": "q", "completion": "bad", "model": "its own"}])
    files = ["--high-file", high, "--low-file", low, "--low-model", "m", "--high-model", "n"]
    look = tithe.ok("tiers", "import", *files, "-o", tmp_path / "t.jsonl", "--json").json["look"]
    assert look["prompts"] == {"all": 1, "both": 1, "only_high": 0, "only_low": 0}
    assert look["models"] == {"high": {"n": 1}, "low": {"its own": 1}}


@pytest.mark.shared
@pytest.mark.parametrize(
    ("files", "high", "low", "both"),
    [
        (["alpaca_eval_tiers.jsonl"], 1610, 3220, 805),
        (["expert_revised_pairs.jsonl"], 2539, 2540, 2539),
        (
            [
                "--high-file",
                "selfinstruct_text-davinci-003.jsonl",
                "--low-file",
                "selfinstruct_davinci-self-instruct.jsonl",
            ],
            252,
            252,
            252,
        ),
    ],
)
def test_real_files(
    tithe: Command, shared: Path, tmp_path: Path, files: list[str], high: int, low: int, both: int
) -> None:
    given = [name if name.startswith("--") else shared / "data" / "tiers" / name for name in files]
    look = tithe.ok("tiers", "import", *given, "-o", tmp_path / "t.jsonl", "--json").json["look"]
    assert look["responses"] == {"high": high, "low": low} and look["prompts"]["both"] == both
    again = tithe.ok("tiers", "look", tmp_path / "t.jsonl", "--json").json["look"]
    assert again == {**look, "bad_rows": {}}


def test_the_look_in_tokens(tithe: Command, few: Path, model_dir: Path) -> None:
    made = [{"instruction": "q", "high": "a long and good answer " * (i + 3), "low": "no"} for i in range(5)]
    data = write_jsonl(few.with_name("p.jsonl"), made)
    tithe.ok("tiers", "import", data, "-o", few.with_name("t.jsonl"))
    done = tithe.ok("tiers", "look", few.with_name("t.jsonl"), "--model", model_dir, "--json")
    assert "warning: length alone tells the tiers apart: AUC 1.00 in tokens" in done.err
    assert [one["unit"] for one in done.json["look"]["lengths"]] == ["characters", "tokens"]
    assert max(map(len, done.err.splitlines())) < 160


# -------------------------------------------------------------------------------------------------------- bad input

ALPACA = {"instruction": "q", "output": "a"}


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ([{"instruction": "q", "high": "a"}] * 3, "has a column `high` without `low`"),
        ([{"instruction": "q", "low": "a"}] * 3, "has a column `low` without `high`"),
        ([ALPACA] * 3, "has neither a column `tier` nor columns `high` and `low`"),
        ([{**ALPACA, "tier": "high"}] * 3, "has 3 high and 0 low responses"),
        ([{**ALPACA, "tier": None}] * 3, "the column `tier` of"),
        ([{**ALPACA, "tier": tier} for tier in ("high", "mid", "low")], "`mid` is neither"),
        ([{"instruction": "q", "high": " ", "low": ""}] * 3, "has 0 high and 0 low responses; 6 rows were set aside"),
        ([{"instruction": "q", "high": "a", "low": ""}] * 3, "has 3 high and 0 low responses; 3 rows were set aside"),
        ([{**ALPACA, "tier": "low", "high": "a", "low": "b"}], "has a column `tier` and columns `high` and `low`"),
        ([{"question": "q", "high": "a", "low": "b"}], "records of no known shape"),
    ],
)
def test_files_that_are_no_tiers(tithe: Command, tmp_path: Path, made: list[Any], said: str) -> None:
    data = write_jsonl(tmp_path / "p.jsonl", made)
    assert said in tithe.fails("tiers", "import", data, "-o", tmp_path / "t.jsonl").errors[0]
    assert {path.name for path in tmp_path.iterdir()} <= {"p.jsonl", "t.tithe"}
    account = tmp_path / "t.tithe" / "run.json"  # there where the file was read
    assert not account.exists() or said in json.loads(account.read_text())["outcome"]["error"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["build", "few.jsonl", "-o", "t.jsonl"], 2, "no weak model is given"),
        (["build", "-w", "M", "-o", "t.jsonl"], 2, "no prompts are given"),
        (["build", "few.jsonl", "-w", "M"], 2, "no place for the tiers is given"),
        (["build", "few.jsonl", "--dataset", "x", "-w", "M", "-o", "t.jsonl"], 2, "two data sets"),
        (["build", "few.jsonl", "-w", "M", "-w", "M", "-o", "t.jsonl"], 1, "is given twice"),
        (["build", "few.jsonl", "-w", "M", "-o", "few.jsonl", "--overwrite"], 1, "is the data set itself"),
        (["build", "few.jsonl", "-w", "M", "-o", "taken.jsonl"], 1, "exists"),
        (["build", "few.jsonl", "-w", "M", "-o", "t.csv"], 1, "tiers are written as JSON lines"),
        (["build", "few.jsonl", "-w", "nowhere/at/all", "-o", "t.jsonl"], 1, "nowhere/at/all"),
        (["build", "nowhere.jsonl", "-w", "M", "-o", "t.jsonl"], 1, "no file or folder `nowhere.jsonl`"),
        (["build", "few.jsonl", "--strong", "other.jsonl", "-w", "M", "-o", "t.jsonl"], 1, "none of the 12 prompts"),
        (["build", "few.jsonl", "--strong", "nowhere.jsonl", "-w", "M", "-o", "t.jsonl"], 1, "`nowhere.jsonl`"),
        (["build", "blank.jsonl", "-w", "M", "-o", "t.jsonl"], 1, "no record of `blank.jsonl` can be read: 3 bad rows"),
        (["build", "few.jsonl", "-w", "BARE", "--template", "chat", "-o", "t.jsonl"], 1, "has no chat template"),
        (["build", "few.jsonl", "-w", "M", "--template", "no", "-o", "t.jsonl"], 1, "unknown template `no`"),
        (["build", "few.jsonl", "-w", "M", "--temperature", "-1", "-o", "t.jsonl"], 1, "`temperature` cannot be"),
        (["build", "few.jsonl", "-w", "M", "--top-p", "0", "-o", "t.jsonl"], 1, "`top_p` cannot be `0.0`"),
        (["build", "few.jsonl", "-w", "M", "--top-p", "1.5", "-o", "t.jsonl"], 1, "`top_p` cannot be `1.5`"),
        (["build", "few.jsonl", "-w", "M", "--max-new-tokens", "0", "-o", "t.jsonl"], 1, "`max_new_tokens` cannot be"),
        (["build", "few.jsonl", "-w", "M", "--dtype", "fp8", "-o", "t.jsonl"], 1, "`dtype` cannot be `fp8`"),
        (["build", "few.jsonl", "-w", "M", "--device", "tpu", "-o", "t.jsonl"], 1, "`tpu`"),
        (["build", "few.jsonl", "-w", "m", "--endpoint", "host:1/v1", "-o", "t.jsonl"], 1, "is not an address"),
        (
            ["build", "few.jsonl", "-w", "M", "--concurrency", "2", "-o", "t.jsonl"],
            1,
            "it is only used with `endpoint`",
        ),
        (
            ["build", "few.jsonl", "-w", "m", "--endpoint", "http://localhost:1", "--dtype", "bf16", "-o", "t.jsonl"],
            1,
            "an endpoint does that itself",
        ),
        (
            [
                "build",
                "few.jsonl",
                "-w",
                "m",
                "--endpoint",
                "http://localhost:1",
                "--api-key-env",
                "NO_KEY",
                "-o",
                "t.jsonl",
            ],
            1,
            "`NO_KEY` is not set",
        ),
        (["import", "-o", "t.jsonl"], 2, "no file is given"),
        (["import", "few.jsonl"], 2, "no place for the tiers is given"),
        (["import", "--high-file", "few.jsonl", "-o", "t.jsonl"], 1, "without `--low-file`"),
        (["import", "few.jsonl", "--high-model", "m", "-o", "t.jsonl"], 1, "there is no `high_file`"),
        (["import", "few.jsonl", "-o", "few.jsonl", "--overwrite"], 1, "is the data set itself"),
        (["look", "few.jsonl"], 1, "has no column `tier`"),
        (["look", "nowhere.jsonl"], 1, "no file or folder"),
        (["look"], 2, "missing argument"),
    ],
)
def test_what_cannot_be(
    tithe: Command,
    few: Path,
    model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    code: int,
    said: str,
) -> None:
    folder = few.parent
    monkeypatch.chdir(folder)
    write_jsonl(folder / "other.jsonl", [{"instruction": "another", "output": "one"}])
    write_jsonl(folder / "blank.jsonl", [{"instruction": "q", "output": " "}] * 3)
    (folder / "taken.jsonl").write_text("mine")
    if "BARE" in arguments:
        make_model(folder / "bare", chat=False)
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    names = {"M": str(model_dir), "BARE": "bare"}
    failed = tithe.fails("tiers", *(names.get(one, one) for one in arguments), code=code)
    assert said in failed.errors[0]
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


def test_three_records_are_enough_to_say_that_they_are_few(tithe: Command, few: Path, model_dir: Path) -> None:
    done = tithe.ok(*build(few, model_dir, few.with_name("t.jsonl"), "--limit", 3))
    assert "warning: only 3 high and 3 low responses" in done.err


def test_a_model_that_says_nothing(tithe: Command, few: Path, model_dir: Path) -> None:
    with serve(lambda number, body: reply("")) as played:
        failed = tithe.fails(*remote(few, played.url, few.with_name("t.jsonl")))
    assert "no weak model has given an answer: the answer is empty (12 of 12)" in failed.err
    assert not few.with_name("t.jsonl").exists()


def test_prompts_that_fill_the_window_are_counted(tithe: Command, few: Path, model_dir: Path) -> None:
    long = {"instruction": "word " * 700, "output": "x"}
    data = write_jsonl(few.with_name("long.jsonl"), [*records(3), long])
    model = tithe.ok(*build(data, model_dir, few.with_name("t.jsonl"))).json["weak_models"][str(model_dir)]
    assert model["answers"] == 3 and list(model["problems"].values()) == [1]
    assert "context window" in next(iter(model["problems"]))


def test_stores_of_other_settings_are_others(tmp_path: Path) -> None:
    assert store_name("a/model", {"x": 1}) != store_name("a/model", {"x": 2})
    assert store_name("a/model", {"x": 1}).startswith("model-") and store_name("/", {}).startswith("model-")
    assert key_of("ab", "c") != key_of("a", "bc")
    store = TextStore(tmp_path, "m-1")
    value = {"text": "\ud800", "tokens": 1, "finished": True}
    store.put("k", value)
    store.flush()
    assert TextStore(tmp_path, "m-1")["k"] == value and "k" not in TextStore(tmp_path, "m-2")
    shutil.rmtree(tmp_path / "generated")


def test_a_batch_is_stored_whole_however_long_it_took(
    tithe: Command, few: Path, model_dir: Path, monkeypatch: Any
) -> None:
    """Half a batch on disk would be gone on with in another batch, and bf16 rounds by the batch."""
    monkeypatch.setattr("tithe.lab.writing.texts.FLUSH_SECONDS", 0.0)
    tithe.ok(*build(few, model_dir, few.with_name("t.jsonl")))
    assert [len(read_jsonl(part)) for part in parts(few.parent)] == [12]
    with serve() as played:
        tithe.ok(*remote(few, played.url, few.with_name("u.jsonl")))
    assert [len(read_jsonl(part)) for part in parts(few.parent / "u.tithe")] == [1] * 12

"""Whatever is wrong: one sentence with what and where, at most one hint, the right exit code, nothing lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.e2e.command import Command, child, read_jsonl, records, write_jsonl
from tests.small_model import change_config, make_tokenizer

GOOD = json.dumps(records(1)[0])

# name -> (bytes of the file, words that the error must have)
WHOLE_FILES: dict[str, tuple[bytes, list[str]]] = {
    "empty": (b"", ["data.jsonl", "empty"]),
    "whitespace": (b" \n\n ", ["data.jsonl", "whitespace"]),
    "not JSON": (b"hello there\nfriend\n", ["data.jsonl:1"]),
    "no record of a known shape": (b'{"question": "a", "reply": "b"}\n', ["data.jsonl", "question"]),
    "UTF-16": ('{"a": 1}'.encode("utf-16"), ["data.jsonl", "UTF-16"]),
    "only bad rows": (b'{"instruction": "Say", "output": ""}\n' * 3, ["3 bad rows", "data.jsonl:1", "empty"]),
    "an array cut off": (b"[" + GOOD.encode() + b',\n{"instruction": "x', ["data.jsonl"]),
}

# name -> (bytes of the second line, words in its reason)
BAD_LINES: dict[str, tuple[bytes, list[str]]] = {
    "not JSON": (b'{"instruction": "a" "output": "b"}', ["column 21"]),
    "missing field": (b'{"instruction": "a"}', ["output"]),
    "null field": (b'{"instruction": "a", "output": null}', ["output", "null"]),
    "number for text": (b'{"instruction": 5, "output": "b"}', ["instruction"]),
    "empty response": (b'{"instruction": "a", "output": ""}', ["empty"]),
    "whitespace response": (b'{"instruction": "a", "output": " \\n\\t"}', ["empty"]),
    "empty prompt": (b'{"instruction": " ", "output": "b"}', ["empty"]),
    "lone surrogate": (b'{"instruction": "a\\ud800", "output": "b"}', ["surrogate"]),
    "not UTF-8": (b'{"instruction": "a\xff", "output": "b"}', ["UTF-8"]),
    "another shape": (b'{"messages": [{"role": "user", "content": "a"}]}', ["messages", "alpaca"]),
    "an array": (b"[1, 2]", ["object"]),
    "too deep": (b"[" * 100_000, []),
}

# odd, but fine
FINE_LINES: dict[str, dict[str, str]] = {
    "emoji": {"instruction": "Name it", "output": "👩‍👩‍👧 and 🇩🇪 too"},
    "right to left": {"instruction": "ترجم", "output": "שלום عليكم"},
    "NUL": {"instruction": "a\x00b", "output": "c\x00d"},
    "1 MB": {"instruction": "Say it", "output": "red green " * 100_000},
}


@pytest.mark.parametrize("case", WHOLE_FILES)
def test_a_file_that_holds_nothing(tithe: Command, model_dir: Path, tmp_path: Path, case: str) -> None:
    content, words = WHOLE_FILES[case]
    (tmp_path / "data.jsonl").write_bytes(content)
    failed = tithe.fails("select", tmp_path / "data.jsonl", "--model", model_dir, "-o", tmp_path / "k.jsonl")
    assert all(word in failed.err for word in words), failed.err
    assert not (tmp_path / "k.jsonl").exists() and failed.out == ""


@pytest.mark.parametrize("case", BAD_LINES)
def test_a_bad_row_is_set_aside_with_its_reason(tithe: Command, model_dir: Path, tmp_path: Path, case: str) -> None:
    line, words = BAD_LINES[case]
    data, folder = tmp_path / "data.jsonl", tmp_path / "run"
    data.write_bytes(b"\n".join([GOOD.encode(), line, GOOD.encode()]) + b"\n")
    done = tithe.ok("select", data, "-s", "length", "--model", model_dir, "-k", "100%", "--run-dir", folder, "--json")
    ((reason, count),) = done.json["counts"]["bad_rows"].items()
    assert count == 1 and all(word in reason for word in words), reason
    assert "bad rows set aside, 1: " in done.err
    (dropped,) = read_jsonl(folder / "dropped.jsonl")
    assert dropped["tithe_reason"] == reason
    failed = tithe.fails("select", data, "-s", "length", "--model", model_dir, "--run-dir", folder, "--strict")
    assert "data.jsonl:2" in failed.err and reason.split()[0] in failed.err


@pytest.mark.parametrize("case", FINE_LINES)
def test_odd_text_is_scored_and_kept_to_the_byte(tithe: Command, model_dir: Path, tmp_path: Path, case: str) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [FINE_LINES[case], *records(3)])
    tithe.ok("select", data, "--model", model_dir, "--no-drop", "-k", "100%", "-o", tmp_path / "k.jsonl")
    assert (tmp_path / "k.jsonl").read_bytes() == data.read_bytes()
    row = pq.read_table(tmp_path / "k.tithe" / "scores.parquet").to_pylist()[0]
    assert row["ifd"] > 0 and (row["truncated"] > 0) == (case == "1 MB")


def test_a_last_line_cut_off_is_a_bad_row(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_text(f"{GOOD}\n{GOOD[:40]}")
    done = tithe.ok("score", data, "-s", "length", "--model", model_dir, "-o", tmp_path / "s.parquet", "--json")
    assert sum(done.json["counts"]["bad_rows"].values()) == 1 and done.json["counts"]["examples"] == 1


def test_a_byte_order_mark_does_no_harm(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    data = tmp_path / "data.jsonl"
    data.write_bytes(b"\xef\xbb\xbf" + f"{GOOD}\n{GOOD}\n".encode())
    done = tithe.ok("score", data, "-s", "length", "--model", model_dir, "-o", tmp_path / "s.parquet", "--json")
    assert done.json["counts"]["examples"] == 2 and not done.json["counts"]["bad_rows"]


def test_a_folder_of_two_shapes(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    write_jsonl(folder / "a.jsonl", records(3))
    write_jsonl(folder / "b.jsonl", [{"prompt": "a", "completion": "b"}])
    failed = tithe.fails("score", folder, "-s", "length", "--model", model_dir, "-o", tmp_path / "s.parquet")
    assert "b.jsonl" in failed.err and "prompt-completion" in failed.err and "alpaca" in failed.err


def test_equal_records_have_ids_of_their_own(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", records(4) * 2)
    tithe.ok("score", data, "--model", model_dir, "-o", tmp_path / "s.parquet")
    rows = pq.read_table(tmp_path / "s.parquet").to_pylist()
    assert len({row["id"] for row in rows}) == 8
    assert [row["ifd"] for row in rows[:4]] == [row["ifd"] for row in rows[4:]]
    work = json.loads((tmp_path / "s.tithe" / "run.json").read_text())["work"]
    assert work["passes_computed"] == 8


def test_a_response_that_is_cut_away_whole(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [{"instruction": "red " * 300, "output": "blue"}, *records(3)])
    done = tithe.ok("score", data, "--model", model_dir, "--max-length", 200, "-o", tmp_path / "s.parquet", "--json")
    assert done.json["counts"]["problems"] == {"no response token left": 1}
    assert "examples without a score, 1: no response token left" in done.err
    first = pq.read_table(tmp_path / "s.parquet").to_pylist()[0]
    assert first["ifd"] is None and "max length is 200" in first["problem"]


# arguments (without data and output) -> words in the error
SETTINGS: list[tuple[list[str], list[str]]] = [
    (["--scorer", "idf"], ["`idf`", "`ifd`"]),
    (["--scorer", "ifd,ifd"], ["ifd", "twice"]),
    (["--scorer", "ifd,"], ["empty entry"]),
    (["--scorer", "ifd(same=true)"], ["same_tokens"]),
    (["--scorer", "ifd(same_tokens=maybe)"], ["same_tokens", "maybe"]),
    (["--scorer", "ifd("], ["ifd("]),
    (["--selector", "tpo"], ["`tpo`", "`top`"]),
    (["--selector", "stratified(by=categry)"], ["`categry`", "`category`"]),
    (["--selector", "stratified"], ["by"]),
    (["--template", "alpacca"], ["alpacca", "`alpaca`"]),
    (["--template", "no/such.jinja"], ["no/such.jinja"]),
    (["--preset", "chery"], ["`chery`", "`cherry`"]),
    (["--preset", "cherry", "--scorer", "length"], ["cherry", "length", "ifd(same_tokens=false)"]),
    (["--preset", "cherry", "--template", "plain"], ["cherry", "plain"]),
    (["--preset", "cherry", "--eos"], ["cherry", "eos"]),
    (["--dtype", "pf16"], ["`pf16`", "`fp16`"]),
    (["--device", "cdua"], ["cdua"]),
    (["--turns", "frist"], ["frist", "last"]),
    (["--format", "alpca"], ["alpca", "`alpaca`"]),
    (["--truncation", "left"], ["left", "prompt"]),
    (["--bos", "yes"], ["yes", "always"]),
    (["--keep-of", "all"], ["all", "input"]),
    (["--shape", "chat"], ["chat", "messages"]),
    (["--keep", "0"], ["`0`", "keeps nothing"]),
    (["--keep", "0%"], ["`0%`", "keeps nothing"]),
    (["--keep", "-3"], ["`-3`"]),
    (["--keep", "150%"], ["`150%`", "more than everything"]),
    (["--keep", "5.5"], ["`5.5`", "`5.5%` is a share"]),
    (["--keep", "many"], ["`many`", "`5%`"]),
    (["--keep", "1%", "--limit", "10"], ["`1%`", "10 examples", "0 rows"]),
    (["--keep", "1-tokens"], ["1-tokens", "response tokens"]),
    (["--by", "length"], ["`length`", "not scored"]),
    (["--drop", "idf > 1"], ["`idf`", "`ifd`"]),
    (["--drop", "ifd = 1"], ["ifd == 1"]),
    (["--drop", "ifd > high"], ["high"]),
    (["--drop", "category > 3"], ["category", "letters"]),
    (["--max-length", "0"], ["max_length", "at least 1"]),
    (["--max-length", "513"], ["513", "512"]),
    (["--limit", "0"], ["limit"]),
    (["--batch-tokens", "0"], ["batch_tokens"]),
    (["--workers", "-1"], ["workers"]),
    (["--compile", "sometimes"], ["compile", "sometimes"]),
    (["--split", "train"], ["split"]),
    (["--model", "tiny-lama"], ["tiny-lama"]),
    (["--model", "./tiny-lama"], ["tiny-lama"]),
]


@pytest.mark.parametrize(("arguments", "words"), SETTINGS, ids=[" ".join(a) for a, _ in SETTINGS])
def test_settings_that_cannot_be(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path, arguments: list[str], words: list[str]
) -> None:
    model = [] if "--model" in arguments else ["--model", model_dir]
    failed = tithe.fails("select", small, *model, *arguments, "-o", tmp_path / "k.jsonl")
    assert all(word in failed.err for word in words), failed.err
    assert not (tmp_path / "k.jsonl").exists() and failed.out == ""


def test_more_than_there_is_keeps_all_and_says_so(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    done = tithe.ok("select", small, "-s", "length", "--model", model_dir, "-k", 100, "-o", tmp_path / "k.jsonl")
    assert "`100` asks for 100 rows, but only 60 of 60" in done.err
    assert (tmp_path / "k.jsonl").read_bytes() == small.read_bytes()


def test_five_rows_and_five_percent_differ(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    for keep, rows in (("5", 5), ("5%", 3), ("0.05", 3), ("1.0", 60), ("1", 1)):
        output = tmp_path / "k.jsonl"
        tithe.ok("select", small, "-s", "length", "--model", model_dir, "-k", keep, "-o", output, "--overwrite")
        assert len(read_jsonl(output)) == rows


USAGE: list[tuple[list[str], str]] = [
    (["selct"], "select"),
    (["select", "--modle", "x"], "--model"),
    (["look", "a", "b", "-o", "c"], "b"),
    (["select", "a", "--keep"], "--keep"),
    (["select", "a", "--limit", "ten", "-o", "c"], "--limit"),
    (["select", "a"], "-o"),
    (["select", "-o", "k.jsonl"], "no data set"),
    (["select", "a", "--dataset", "b", "-o", "c"], "two data sets"),
    (["select", "a", "-o", "c", "--no-drop", "--drop", "ifd > 1"], "exclude each other"),
    (["score", "a", "--keep", "5"], "--keep"),
    (["export", "a"], "--to"),
]


@pytest.mark.parametrize(("arguments", "word"), USAGE, ids=[" ".join(a) for a, _ in USAGE])
def test_wrong_usage_exits_two(tithe: Command, arguments: list[str], word: str) -> None:
    failed = tithe.fails(*arguments, code=2)
    assert word in failed.err


def unpickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def cut_weights(model: Path) -> None:
    content = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(content[: len(content) // 2])


MODELS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "encoder": (lambda m: change_config(m, architectures=["BertModel"], model_type="bert"), ["BertModel", "causal"]),
    "encoder-decoder": (lambda m: change_config(m, is_encoder_decoder=True), ["encoder-decoder"]),
    "no config": (lambda m: (m / "config.json").unlink(), ["config.json"]),
    "config is no JSON": (lambda m: (m / "config.json").write_text("{"), ["config.json"]),
    "pickled weights": (unpickled, ["safetensors"]),
    "no weights": (lambda m: (m / "model.safetensors").unlink(), ["safetensors"]),
    "half the weights": (cut_weights, []),
    "no tokenizer": (lambda m: [(m / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")], ["tokenizer"]),
    "unknown architecture": (
        lambda m: change_config(m, architectures=["NopeForCausalLM"], model_type="nope"),
        ["nope"],
    ),
    "weights of another size": (lambda m: change_config(m, hidden_size=64), []),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_do_not_fit(tithe: Command, small: Path, model_dir: Path, tmp_path: Path, case: str) -> None:
    spoil, words = MODELS[case]
    model = Path(shutil.copytree(model_dir, tmp_path / "model"))
    spoil(model)
    failed = tithe.fails("select", small, "--model", model, "-o", tmp_path / "k.jsonl")
    assert str(model) in failed.err and all(word in failed.err for word in words), failed.err


def test_a_model_path_with_a_slip(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    slip = model_dir.with_name("tiny-lama")
    failed = tithe.fails("select", small, "--model", slip, "-o", tmp_path / "k.jsonl")
    assert f"did you mean `{model_dir}`?" in failed.err
    failed = tithe.fails("select", small, "--model", model_dir / "config.json", "-o", tmp_path / "k.jsonl")
    assert "is a file" in failed.err
    failed = tithe.fails("select", small, "-o", tmp_path / "k.jsonl")
    assert "needs a model" in failed.err and "pocket" in failed.err


def test_chat_is_asked_for_and_there_is_no_template(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(model_dir, tmp_path / "model"))
    for name in ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    make_tokenizer(model, chat=False)
    failed = tithe.fails("select", small, "--model", model, "--template", "chat", "-o", tmp_path / "k.jsonl")
    assert "chat template" in failed.err


def test_a_data_path_with_a_slip(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    failed = tithe.fails("select", small.with_name("smal.jsonl"), "--model", model_dir, "-o", tmp_path / "k.jsonl")
    assert "smal.jsonl" in failed.err and "`small.jsonl`" in failed.hints[0]


def test_an_output_that_is_there_stops_the_run_before_anything(tithe: Command, small: Path, tmp_path: Path) -> None:
    kept = tmp_path / "k.jsonl"
    kept.write_text("mine")
    failed = tithe.fails("select", small, "--model", tmp_path / "no-model", "-o", kept)
    assert "exists" in failed.err and "--overwrite" in failed.hints[0]
    assert kept.read_text() == "mine" and not (tmp_path / "k.tithe").exists()


def places(tmp_path: Path, small: Path) -> dict[str, tuple[list[object], str]]:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    (tmp_path / "data").mkdir()
    shutil.copy(small, tmp_path / "data" / "a.jsonl")
    (tmp_path / "link.jsonl").symlink_to(small)
    out, run = "-o", "--run-dir"
    return {
        "the input": ([small, out, small, "--overwrite"], "data set itself"),
        "a link to the input": ([small, out, tmp_path / "link.jsonl", "--overwrite"], "data set itself"),
        "in the input's folder": ([tmp_path / "data", out, tmp_path / "data" / "k.jsonl"], "data set's folder"),
        "run folder is the input": ([tmp_path / "data", run, tmp_path / "data"], "data set itself"),
        "under a file": ([small, out, tmp_path / "file" / "k.jsonl"], "file"),
        "run folder under a file": ([small, run, tmp_path / "file" / "run"], "run folder"),
        "run folder is a file": ([small, run, tmp_path / "file"], "is a file"),
        "a folder": ([small, out, tmp_path / "folder"], "is a folder"),
        "the run folder's own file": ([small, out, tmp_path / "r" / "run.json", run, tmp_path / "r"], "run.json"),
        "a kind not written": ([small, out, tmp_path / "k.xlsx"], "Excel"),
    }


PLACES = [
    "the input",
    "a link to the input",
    "in the input's folder",
    "run folder is the input",
    "under a file",
    "run folder under a file",
    "run folder is a file",
    "a folder",
    "the run folder's own file",
    "a kind not written",
]


@pytest.mark.parametrize("case", PLACES)
def test_places_where_nothing_can_be_written(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path, case: str
) -> None:
    before = small.read_bytes()
    arguments, word = places(tmp_path, small)[case]
    failed = tithe.fails("select", *arguments, "-s", "length", "--model", model_dir)
    assert word in failed.err, failed.err
    assert small.read_bytes() == before


def test_a_run_folder_in_folders_that_are_not_there_yet(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "a" / "b" / "k.jsonl"
    tithe.ok("select", small, "-s", "length", "--model", model_dir, "-o", output, "--run-dir", tmp_path / "c" / "d")
    assert output.exists() and (tmp_path / "c" / "d" / "run.json").exists()


def test_a_damaged_part_is_named(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    score = ("score", small, "--model", model_dir, "--run-dir", tmp_path / "run")
    tithe.ok(*score)
    part = next((tmp_path / "run").rglob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-20])
    failed = tithe.fails(*score)
    assert str(part) in failed.err and "delete that file" in failed.hints[0]


def test_earlier_answers_survive_an_error(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    score = ("score", small, "--model", model_dir, "--run-dir", tmp_path / "run", "--json")
    total = tithe.ok(*score).json["work"]["passes_computed"]
    tithe.fails(*score, "--dtype", "nope")
    tithe.fails("select", small, "--model", model_dir, "--run-dir", tmp_path / "run", "--drop", "ifd > 0")
    with small.open("a") as stream:
        stream.write('{"instruction": ')
    tithe.fails(*score, "--strict")
    assert tithe.ok(*score).json["work"] | {
        "seconds": 0,
        "reading_seconds": 0,
        "waited_for_tokens_seconds": 0,
        "longest_wait_seconds": 0,
        "tokens_per_second": 0,
    } == {
        "passes_computed": 0,
        "passes_reused": total,
        "passes_out_of_memory": 0,
        "tokens_read": 0,
        "seconds": 0,
        "reading_seconds": 0,
        "waited_for_tokens_seconds": 0,
        "longest_wait_seconds": 0,
        "tokens_per_second": 0,
    }


FULL_DISK = """
import os, resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)), resource.RLIM_INFINITY))
sys.argv[0] = "tithe"
from tithe.cli import main
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="limits of a process are POSIX")
def test_a_full_disk_is_one_sentence_and_loses_nothing(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path
) -> None:
    """A limit on the size of any file stands for the disk: first answers do not fit, then the kept file does not."""
    kept, folder = tmp_path / "k.jsonl", tmp_path / "run"
    arguments = ["select", small, "--model", model_dir, "-k", "100%", "--no-drop", "-o", kept, "--run-dir", folder]
    for limit, words in ((1_000, "cannot write answers"), (9_000, "k.jsonl` cannot be written")):
        process = child(FULL_DISK, limit, *arguments)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 1 and out == "", err
        assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1, err
        assert words in err and "Traceback" not in err, err
        assert not kept.exists() and not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob("*.tmp"))
    assert tithe.ok(*arguments, "--json").json["work"]["passes_computed"] == 0
    assert kept.read_bytes() == small.read_bytes()


@pytest.mark.slow
def test_settings_that_cannot_be_are_refused_without_asserts_too(model_dir: Path, tmp_path: Path) -> None:
    """`python -O` leaves asserts out; what a user can cause is raised all the same, before a run folder is made."""
    data = write_jsonl(tmp_path / "data.jsonl", records(4))
    command = ["score", data, "--scorer", "ifd", "--model", model_dir, "--max-length", "999999"]
    done = subprocess.run(
        [sys.executable, "-O", "-m", "tithe.cli", *command, "--run-dir", tmp_path / "run"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1 and "max" in done.stderr and not (tmp_path / "run").exists(), done.stderr

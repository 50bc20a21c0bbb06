"""Files for ms-swift, torchtune and Unsloth, by their documented rules, and weights of examples."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from scipy.stats import rankdata

from tests.e2e.command import Command, read_jsonl, write_jsonl

CALL = {"type": "function", "function": {"name": "clock", "arguments": {"zone": 2}}}
DIALOGUE = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello?"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": "How warm is it?"},
        {"role": "assistant", "content": "21 degrees.", "reasoning_content": "Look it up."},
    ]
}
CALLING = {
    "messages": [
        {"role": "user", "content": "Is it late?"},
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "23:10", "name": "clock"},
        {"role": "assistant", "content": "Yes."},
    ],
    "tools": [{"type": "function", "function": {"name": "clock", "parameters": {}}}],
}
PLAIN = {"messages": [{"role": "user", "content": "1 + 1?"}, {"role": "assistant", "content": "2"}]}


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    several = {
        "messages": [*DIALOGUE["messages"][:3], {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]
    }
    return write_jsonl(tmp_path / "mixed.jsonl", [DIALOGUE, CALLING, PLAIN, several])


def swift_rules(record: dict) -> None:
    """What ms-swift's page on custom data sets says of a standard record."""
    assert set(record) <= {"messages", "tools"} and isinstance(record.get("tools", ""), str)
    for turn in record["messages"]:
        assert set(turn) <= {"role", "content", "loss", "loss_scale"} and isinstance(turn["content"], str)
        assert turn["role"] in {"system", "user", "assistant", "tool", "tool_call"}
        if turn["role"] == "tool_call":
            assert set(json.loads(turn["content"])) == {"name", "arguments"}


def test_ms_swift_learns_what_was_scored(tithe: Command, mixed: Path, tmp_path: Path) -> None:
    done = tithe.ok("export", mixed, "--to", "ms-swift", "-o", tmp_path / "s.jsonl")
    assert done.out.strip() == f'swift sft --model MODEL --dataset "{tmp_path / "s.jsonl"}"'
    found = read_jsonl(tmp_path / "s.jsonl")
    for record in found:
        swift_rules(record)
        learnt = [turn.get("loss") for turn in record["messages"]]
        assert learnt[-1] is True and learnt.count(True) == 1
    assert found[0]["messages"][-1]["content"] == "<think>\nLook it up.\n</think>\n\n21 degrees."
    assert [turn["role"] for turn in found[1]["messages"]] == ["user", "tool_call", "tool", "assistant"]
    assert json.loads(found[1]["tools"])[0]["function"]["name"] == "clock"


def test_all_turns_are_records_of_their_own(tithe: Command, mixed: Path, tmp_path: Path) -> None:
    tithe.ok("export", mixed, "--to", "ms-swift", "--turns", "all", "-o", tmp_path / "s.jsonl")
    assert len(read_jsonl(tmp_path / "s.jsonl")) == 7


def validate_messages(messages: list[dict]) -> None:
    """torchtune 0.6.1: at least two, the system first, a user before each assistant and never two in a row."""
    assert len(messages) >= 2
    last = "assistant"
    for i, message in enumerate(messages):
        assert set(message) == {"role", "content"} and isinstance(message["content"], str)
        assert message["role"] != "assistant" or last == "user"
        assert message["role"] != "user" or last != "user"
        assert message["role"] != "system" or i == 0
        last = message["role"]


def test_torchtune_gets_a_file_and_yaml(tithe: Command, mixed: Path, tmp_path: Path) -> None:
    done = tithe.ok("export", mixed, "--to", "torchtune", "-o", tmp_path / "t.jsonl")
    part = yaml.safe_load(done.out)["dataset"]
    assert part["_component_"] == "torchtune.datasets.chat_dataset" and part["conversation_style"] == "openai"
    import datasets

    loaded = datasets.load_dataset(
        part["source"], data_files=part["data_files"], split=part["split"], cache_dir=str(tmp_path / "cache")
    )
    assert len(loaded) == 2
    for record in loaded:
        validate_messages(record[part["conversation_column"]])
    assert "left out, 1, as torchtune does not read it: it calls tools" in done.err
    assert "left out, 1, as torchtune does not read it: it has reasoning" in done.err
    assert "1 examples have earlier responses, which torchtune learns too" in done.err


def test_torchtune_reads_it_itself(tithe: Command, mixed: Path, tmp_path: Path) -> None:
    messages = pytest.importorskip("torchtune.data", exc_type=ImportError)
    tithe.ok("export", mixed, "--to", "torchtune", "-o", tmp_path / "t.jsonl")
    for record in read_jsonl(tmp_path / "t.jsonl"):
        found = messages.OpenAIToMessages(train_on_input=False)(record)["messages"]
        messages.validate_messages(found)
        assert [one.masked for one in found] == [one.role != "assistant" for one in found]


def test_unsloth_gets_a_file_and_a_program(tithe: Command, mixed: Path, tmp_path: Path) -> None:
    done = tithe.ok("export", mixed, "--to", "unsloth", "-o", tmp_path / "u.jsonl")
    compile(done.out, "unsloth.py", "exec")
    assert json.dumps(str(tmp_path / "u.jsonl")) in done.out and "last_response_only=True" in done.out
    assert len(read_jsonl(tmp_path / "u.jsonl")) == 2 and "earlier" not in done.err


@pytest.fixture
def kept(tithe: Command, small: Path, tmp_path: Path) -> Path:
    out = tmp_path / "kept.jsonl"
    tithe.ok("select", small, "-m", "pocket", "-s", "length,random", "-k", 20, "-o", out)
    return out


def scores_of(kept: Path) -> dict[str, list[float]]:
    table = pq.read_table(kept.with_suffix(".tithe") / "scores.parquet").to_pandas()
    return table[table["dropped"].isna()]


def test_weights_by_rank_are_one_on_average(tithe: Command, kept: Path, tmp_path: Path) -> None:
    done = tithe.ok("export", kept, "--to", "ms-swift", "--weights", "rank(length)", "-o", tmp_path / "w.jsonl")
    assert "--loss_scale default --is_binary_loss_scale false" in done.out
    found = [record["messages"][-1]["loss_scale"] for record in read_jsonl(tmp_path / "w.jsonl")]
    expected = 2 * (rankdata(scores_of(kept)["length"]) - 0.5) / 20
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert np.mean(found) == pytest.approx(1) and min(found) > 0
    assert all("loss_scale" not in turn for one in read_jsonl(tmp_path / "w.jsonl") for turn in one["messages"][:-1])


def test_weights_in_proportion_and_by_mean_rank(tithe: Command, kept: Path, tmp_path: Path) -> None:
    tithe.ok("export", kept, "--to", "messages", "--weights", "length", "-o", tmp_path / "a.jsonl")
    length = scores_of(kept)["length"].to_numpy()
    found = read_jsonl(tmp_path / "a.jsonl")
    np.testing.assert_allclose([one["sample_weight"] for one in found], length / length.mean())
    assert [one["n"] for one in found] == [one["n"] for one in read_jsonl(kept)], "other columns stay"
    both = "rank(length)-rank(random)"
    tithe.ok("export", kept, "--to", "messages", "--weights", both, "-o", tmp_path / "b.jsonl")
    random = scores_of(kept)["random"].to_numpy()
    expected = (rankdata(length) - 0.5) / 20 + 1 - (rankdata(random) - 0.5) / 20
    np.testing.assert_allclose([one["sample_weight"] for one in read_jsonl(tmp_path / "b.jsonl")], expected)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--to", "trl", "--weights", "length"], "nothing reads weights of examples in `trl`"),
        (["--to", "torchtune", "--weights", "length"], "nothing reads weights"),
        (["--to", "ms-swift", "--weights", "lenght"], "has no score `lenght`"),
        (["--to", "ms-swift", "--weights", "rank(ifd)"], "has no score `ifd`"),
        (["--to", "ms-swift", "--weights", "rank(length"], "do not match"),
        (["--to", "ms-swift", "--weights", "length", "--run", "nowhere"], "no scores for the weights"),
        (["--to", "ms-swift", "--run", "nowhere"], "there are none"),
    ],
)
def test_weights_that_cannot_be(tithe: Command, kept: Path, tmp_path: Path, more: list[str], words: str) -> None:
    done = tithe("export", kept, *more, "-o", tmp_path / "no.jsonl")
    assert done.code == 1 and words in done.err, done.err
    assert not (tmp_path / "no.jsonl").exists()


def test_examples_without_a_score_have_no_weight(tithe: Command, kept: Path, small: Path, tmp_path: Path) -> None:
    other = write_jsonl(tmp_path / "other.jsonl", [*read_jsonl(kept), {"instruction": "new", "output": "one"}])
    run = kept.with_suffix(".tithe")
    done = tithe("export", other, "--to", "ms-swift", "--weights", "length", "--run", run, "-o", tmp_path / "no.jsonl")
    assert done.code == 1 and "1 of 21 examples have no `length` in the run" in done.err


def test_records_that_no_trainer_reads(tithe: Command, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "calls.jsonl", [CALLING])
    done = tithe("export", data, "--to", "torchtune", "-o", tmp_path / "no.jsonl")
    assert done.code == 1 and "no example can be written for torchtune: it calls tools" in done.err
    assert not (tmp_path / "no.jsonl").exists()
    assert "-o" in tithe("export", data, "--to", "unsloth").err
    assert "JSON lines" in tithe("export", data, "--to", "unsloth", "-o", tmp_path / "x.parquet").err

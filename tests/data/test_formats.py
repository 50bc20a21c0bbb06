"""Examples from records of every shape: what is read, what is refused, and with which message."""

# ruff: noqa: E501 - each case of a table in one line

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tithe.data.dataset import open_dataset
from tithe.data.formats import Shape, detect_shape, matching_shapes, read_examples
from tithe.data.ids import Occurrences, content_hash
from tithe.records import BadRow, Example, Message

SFT = Path(__file__).resolve().parents[3] / "shared" / "data" / "sft"


def read(record: object, shape: Shape = "alpaca", turns: Any = "last") -> list[Example | BadRow]:
    return list(read_examples(record, shape, turns, 7, "f:8", Occurrences()))


def one(record: object, shape: Shape = "alpaca") -> Example:
    (item,) = read(record, shape)
    assert isinstance(item, Example), item
    return item


def reason(record: object, shape: Shape = "alpaca") -> str:
    (item,) = read(record, shape)
    assert isinstance(item, BadRow), item
    assert (item.row, item.where) == (7, "f:8")
    return item.reason


def chat(*turns: tuple[str, str], **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": content} for role, content in turns], **more}


def test_alpaca_keeps_its_fields_apart_and_joined() -> None:
    got = one({"instruction": "Add", "input": "1 2", "output": "3", "category": "sum"})
    assert got.prompt == (Message("user", "Add\n1 2"),)
    assert got.response == Message("assistant", "3")
    assert (got.instruction, got.input, got.columns) == ("Add", "1 2", {"category": "sum"})
    assert (got.row, got.turn, got.where) == (7, 1, "f:8")


def test_dolly_names_are_alpaca_too() -> None:
    got = one({"instruction": "Add", "context": "", "response": "3"})
    assert got.prompt == (Message("user", "Add"),)
    assert got.input == ""


def test_alpaca_with_system_and_history_is_a_dialogue() -> None:
    record = {"instruction": "c", "output": "d", "system": "s", "history": [["a", "b"]]}
    got = one(record)
    assert [(m.role, m.content) for m in got.prompt] == [
        ("system", "s"),
        ("user", "a"),
        ("assistant", "b"),
        ("user", "c"),
    ]
    first, last = read(record, turns="all")
    assert isinstance(first, Example) and isinstance(last, Example)
    assert (first.response.content, first.instruction) == ("b", None)  # `instruction` belongs to the last turn
    assert (last.response.content, last.instruction) == ("d", "c")


def test_prompt_completion_as_strings_and_as_messages() -> None:
    plain = one({"prompt": "Sky is", "completion": " blue"}, "prompt-completion")
    assert plain.response.content == " blue"
    listed = one(
        {
            "prompt": [{"role": "user", "content": "Sky is"}],
            "completion": [{"role": "assistant", "content": " blue"}],
        },
        "prompt-completion",
    )
    assert (listed.prompt, listed.response, listed.id) == (plain.prompt, plain.response, plain.id)


def test_assistant_turns_of_a_prompt_are_never_responses() -> None:
    record = {
        "prompt": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        "completion": [{"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}],
    }
    assert [item.response.content for item in read(record, "prompt-completion", "all")] == ["d"]  # type: ignore[union-attr]


def test_roles_have_synonyms() -> None:
    turns = [{"from": "developer", "value": "s"}, {"from": "Human", "value": "q"}, {"from": "gpt", "value": "a"}]
    got = one({"conversations": turns}, "sharegpt")
    assert [m.role for m in got.prompt] == ["system", "user"]


def test_last_turn_or_all_of_them() -> None:
    record = chat(("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"), ("user", "5"))
    (last,) = read(record, "messages")
    assert isinstance(last, Example) and last.response.content == "4" and last.turn == 3
    both = read(record, "messages", "all")
    assert [item.turn for item in both if isinstance(item, Example)] == [1, 3]
    assert [len(item.prompt) for item in both if isinstance(item, Example)] == [1, 3]


def test_turns_of_weight_zero_are_context() -> None:
    record = chat(("user", "1"), ("assistant", "2"), ("user", "3"), ("assistant", "4"))
    record["messages"][3]["weight"] = 0
    assert [item.response.content for item in read(record, "messages", "all")] == ["2"]  # type: ignore[union-attr]
    assert one(record, "messages").response.content == "2"
    record["messages"][1]["train"] = False
    assert (
        reason(record, "messages")
        == "every assistant turn has weight 0 or another mark that keeps it from being learnt"
    )


def test_parts_text_reasoning_and_calls() -> None:
    parts = [
        {"type": "reasoning", "value": "hm"},
        {"type": "text", "text": "Now "},
        {"type": "text", "value": "look"},
        {"type": "tool_call", "value": '{"name": "f", "arguments": "{\\"x\\": 1}"}'},
    ]
    got = one({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": parts}]}, "messages")
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
    assert got.response == Message("assistant", "Now look", "hm", (call,))


def test_think_stays_in_the_content() -> None:
    text = "<think>hm</think>yes"
    got = one(chat(("user", "q"), ("assistant", text)), "messages")
    assert (got.response.content, got.response.reasoning) == (text, None)


def test_openai_tool_calls_without_content() -> None:
    calls = [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": [1]}'}}]
    turns = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "content": "r", "tool_call_id": "c1"},
        {"role": "assistant", "content": "done"},
    ]
    first, last = read({"messages": turns}, "messages", "all")
    assert isinstance(first, Example) and isinstance(last, Example)
    assert first.response.tool_calls[0]["function"]["arguments"] == {"a": [1]}
    assert first.response.tool_calls[0]["id"] == "c1"
    assert last.prompt[2] == Message("tool", "r", tool_call_id="c1")


def test_sharegpt_calls_become_one_message_with_calls_and_tool_messages() -> None:
    turns = [
        {"from": "human", "value": "q"},
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'},
        {"from": "function_call", "value": '[{"name": "g", "arguments": {"x": 1}}]'},
        {"from": "observation", "value": "r"},
        {"from": "gpt", "value": "done"},
    ]
    got = one({"conversations": turns, "tools": '[{"name": "f"}]', "system": "s"}, "sharegpt")
    assert [m.role for m in got.prompt] == ["system", "user", "assistant", "tool"]
    assert [call["function"]["name"] for call in got.prompt[2].tool_calls] == ["f", "g"]
    assert got.tools == ({"type": "function", "function": {"name": "f"}},)


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ([1], "the record is a list, it must be an object"),
        (None, "the record is null, it must be an object"),
        ({"instruction": "a", "ouput": "b"}, "no `output` (or `response`): there is `instruction`, `ouput`; is `ouput` a slip?"),
        ({"instruction": "a", "output": None}, "`output` is null, it must be a string"),
        ({"instruction": "a", "output": 5}, "`output` is a number, it must be a string"),
        ({"instruction": "a", "input": True, "output": "b"}, "`input` is a boolean, it must be a string"),
        ({"instruction": "a", "output": " \n"}, "the response is empty"),
        ({"instruction": " ", "input": "", "output": "b"}, "instruction and input are empty"),
        ({"instruction": "a", "output": "b\ud800"}, "a lone surrogate (U+D800) is in the text, it cannot be encoded as UTF-8"),
        ({"messages": []}, "looks like `messages`, the file is `alpaca`"),
        ({"conversations": []}, "looks like `sharegpt`, the file is `alpaca`"),
    ],
)  # fmt: skip
def test_bad_alpaca_records_say_why(record: object, words: str) -> None:
    assert reason(record) == words


@pytest.mark.parametrize(
    ("turns", "words"),
    [
        ([], "no assistant turn"),
        ("hello", "`messages` is a string, it must be a list of messages"),
        ([5], "`messages[0]` is a number, it must be an object with a role and a content"),
        ([{"content": "a"}], "`messages[0]` has no `role` (or `from`): there is `content`"),
        ([{"role": "wizard", "content": "a"}], "unknown role `wizard` in `messages[0]`: known are system, user, assistant, tool and their synonyms"),
        ([{"role": "user"}], "`messages[0]` has no content: there is `role`"),
        ([{"role": "user", "content": 5}], "the content of `messages[0]` is a number, it must be a string or a list of parts"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "`messages[0]` has a part of type `image_url`, only text can be scored"),
        ([{"role": "user", "content": [{"type": ["x"]}]}], "`messages[0]` has a part of type `['x']`, only text can be scored"),
        ([{"role": "assistant", "content": "a"}], "no prompt"),
        ([{"role": "user", "content": " "}, {"role": "assistant", "content": "a"}], "nothing but whitespace stands before the response"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "reasoning": "hm"}], "the response is only reasoning"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "tool_calls": [{}]}], "a tool call in `messages[1]` has no function name"),
        ([{"from": "function_call", "value": "{"}], "the tool call in `messages[0]` is not JSON: Expecting property name enclosed in double quotes: line 1 column 2 (char 1)"),
    ],
)  # fmt: skip
def test_bad_dialogues_say_why(turns: object, words: str) -> None:
    assert reason({"messages": turns}, "messages") == words


def test_one_bad_turn_leaves_the_others() -> None:
    record = chat(("user", "1"), ("assistant", " "), ("user", "3"), ("assistant", "4"))
    bad, good = read(record, "messages", "all")
    assert isinstance(bad, BadRow) and bad.where == "f:8, turn 1" and bad.reason == "the response is empty"
    assert isinstance(good, Example) and good.response.content == "4"


def test_nul_emoji_and_right_to_left_text_pass() -> None:
    text = "a\x00b 🧑‍🚀 שלום"
    assert one({"instruction": text, "output": text}).response.content == text


def test_ids_follow_content_only() -> None:
    base = {"instruction": "a", "input": "b", "output": "c"}
    shuffled = {"extra": 1, "output": "c", "input": "b", "instruction": "a"}
    assert one(base).id == one(shuffled).id
    assert len(one(base).id) == 16
    different = [
        base,
        base | {"output": "d"},
        base | {"input": ""},
        base | {"system": "s"},
        base | {"tools": [{"name": "f"}]},
    ]
    assert len({one(record).id for record in different}) == len(different)
    # dividing the same text differently between instruction and input makes another example
    assert one({"instruction": "a\nb", "output": "c"}).id != one(base).id


def test_id_is_the_documented_hash() -> None:
    import hashlib

    text = '[[{"content":"a","role":"user"}],{"content":"é","role":"assistant"},[]]'
    expected = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    assert one({"instruction": "a", "output": "é"}).id == expected


def test_id_of_a_dialogue_is_the_hash_of_its_canonical_json() -> None:
    import hashlib

    call = {"type": "function", "function": {"name": "f", "arguments": {"b": 1, "a": '"\n\x00'}}}
    prompt = [Message("user", 'é"\\/\x00\x7f\u2028'), Message("assistant", "", "hm", (call,)), Message("tool", "r")]
    response, tools = Message("assistant", "yes"), ({"function": {"name": "f"}},)
    content = [[message.as_dict() for message in prompt], response.as_dict(), tools, "in"]
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    expected = hashlib.blake2b(text.encode(), digest_size=8).digest()
    assert content_hash(prompt, response, tools, "in").to_bytes(8, "big") == expected


def test_later_occurrences_are_numbered() -> None:
    seen = Occurrences()
    content = content_hash([Message("user", "a")], Message("assistant", "b"), ())
    names = [seen.name(content) for _ in range(3)]
    assert names == [names[0], f"{names[0]}-1", f"{names[0]}-2"]


def test_shapes_are_told_by_fields() -> None:
    assert matching_shapes({"messages": 1, "prompt": 1, "completion": 1}) == ["messages", "prompt-completion"]
    assert detect_shape([{"instruction": "a", "output": "b"}] * 2 + [{"messages": []}]) == "alpaca"
    assert detect_shape([{"instruction": "a"}]) == "alpaca"
    assert detect_shape([{"text": "a"}]) is None


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "shape", "last", "every"),
    [
        # counted from the files themselves: assistant turns, and gpt + function_call turns
        ("messages_500.jsonl", "messages", 500, 500),
        ("reasoning_50.jsonl", "messages", 50, 112),
        ("sharegpt_toolcall_300.json", "sharegpt", 300, None),
        ("dolly_15k.jsonl", "alpaca", 14996, 14996),
    ],
)
def test_real_data_reads_whole(name: str, shape: str, last: int, every: int | None) -> None:
    if not SFT.is_dir():
        pytest.skip(f"{SFT} is not there")
    dataset = open_dataset(SFT / name)
    assert dataset.format == shape
    assert sum(isinstance(item, Example) for item in dataset) == last
    if every is None:
        records = json.loads((SFT / name).read_text(encoding="utf-8"))
        every = sum(turn["from"] in ("gpt", "function_call") for record in records for turn in record["conversations"])
    items = list(open_dataset(SFT / name, turns="all"))
    assert len(items) == every and all(isinstance(item, Example) for item in items)

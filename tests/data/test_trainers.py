"""Settings for trainers and their effect: TRL is run; for the others, their documented reading rules are applied."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.small_model import make_model
from tithe.data.dataset import open_dataset
from tithe.data.render import RenderSettings, make_renderer
from tithe.data.survey import Survey, survey_dataset
from tithe.data.trainers import (
    axolotl_snippet,
    llamafactory_entry,
    rewriting_helps,
    trainer_notes,
    trl_snippet,
    write_llamafactory,
)
from tithe.engine.model_source import find_model, load_tokenizer
from tithe.errors import OutputError, SettingsError
from tithe.records import Example

WEATHER = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALLED = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [{"type": "text", "text": "How warm is "}, {"type": "text", "text": "Rome?"}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
            ],
        },
        {"role": "tool", "content": "21", "tool_call_id": "a"},
        {"role": "assistant", "content": "It is 21 degrees.", "reasoning_content": "That is simple."},
    ],
    "tools": [WEATHER],
}
CALLING = {
    "messages": [
        {"role": "user", "content": "Is it late?"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"type": "function", "function": {"name": "clock", "arguments": {"zone": 2}}}],
        },
    ],
    "tools": [WEATHER],
}
SEVERAL = {
    "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "No.", "weight": 0},
        {"role": "user", "content": "Name two colours."},
        {"role": "assistant", "content": "Red and blue.", "weight": 1},
        {"role": "user", "content": "And one more."},
        {"role": "assistant", "content": "Green."},
        {"role": "user", "content": "Thanks"},
    ],
    "tools": None,
}
BROKEN = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": ""}]}
ALPACA = [
    {"instruction": "Say no", "input": "now", "output": "Nein", "n": 1},
    {
        "instruction": "Say yes",
        "input": None,
        "output": "Ja",
        "system": "In German.",
        "history": [["Hi", "Hallo"]],
    },
]
SHAREGPT = [
    {
        "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
        "system": "Be kind.",
    },
    {
        "conversations": [
            {"from": "human", "value": "Is it late?"},
            {"from": "function_call", "value": '{"name": "clock", "arguments": {"zone": 2}}'},
            {"from": "observation", "value": "noon"},
            {"from": "gpt", "value": "No."},
        ],
        "tools": json.dumps([WEATHER]),
    },
]
PAIRS = [{"prompt": "Count to 3.", "completion": "1 2 3"}, {"prompt": "Sing.", "completion": "La"}]


def written(folder: Path, records: list[Any], name: str = "k.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def of(folder: Path, *records: Any, turns: Any = "last") -> Survey:
    return survey_dataset(open_dataset(written(folder, list(records)), turns=turns))


TOOL_CHAT = (
    "{% if tools %}<|system|>\n{{ tools | tojson }}<|end|>\n{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>\n{% if m.reasoning_content %}({{ m.reasoning_content }}) {% endif %}"
    "{{ m.content }}{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


@pytest.fixture(scope="module")
def tooled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a tiny model whose chat template writes tools, calls and reasoning."""
    folder = make_model(tmp_path_factory.mktemp("tooled") / "model")
    (folder / "chat_template.jinja").write_text(TOOL_CHAT, encoding="utf-8")
    return folder


def run_program(program: str, model: Path, out: Path) -> Any:
    """Run the program for two steps on the CPU and return its trainer."""
    few = f"output_dir={json.dumps(str(out))}, max_steps=2, use_cpu=True, bf16=False, report_to=[], disable_tqdm=True"
    assert program.count('output_dir="out"') == 1 and program.count('"MODEL"') == 1
    program = program.replace('output_dir="out"', few).replace('"MODEL"', json.dumps(str(model)))
    names: dict[str, Any] = {}
    exec(program, names)
    return names["trainer"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("records", "turns"),
    [
        pytest.param(ALPACA, "last", id="alpaca"),
        pytest.param([SHAREGPT[0], {**SHAREGPT[0], "system": None}], "last", id="sharegpt"),
        pytest.param(SHAREGPT, "all", id="sharegpt with calls"),
        pytest.param(PAIRS, "last", id="pairs"),
        pytest.param([CALLED, SEVERAL, BROKEN, CALLING], "last", id="messages"),
        pytest.param([CALLED, SEVERAL, BROKEN, CALLING], "all", id="messages, all turns"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of TRL and torch
def test_trl_learns_exactly_the_responses(tmp_path: Path, tooled: Path, records: list[Any], turns: Any) -> None:
    """Run the program: the tokens with a label are the response and what the template writes after it."""
    path = written(tmp_path, records)
    dataset = open_dataset(path, turns=turns)
    trainer = run_program(trl_snippet(path, survey_dataset(dataset)), tooled, tmp_path / "out")
    assert trainer.state.global_step == 2
    tokenizer = load_tokenizer(find_model(str(tooled)))
    renderer = make_renderer(tokenizer, RenderSettings())
    examples = [item for item in dataset if isinstance(item, Example)]
    assert len(examples) == len(trainer.train_dataset)
    for encoded, row in zip(renderer.encode(examples), trainer.train_dataset, strict=True):
        learnt = [label for label in row["labels"] if label != -100]
        scored = encoded.response.tolist()
        assert row["input_ids"][: len(encoded.prompt)] == encoded.prompt.tolist()
        assert learnt[: len(scored)] == scored
        assert tokenizer.decode(learnt[len(scored) :]) == "<|end|>\n"


@pytest.mark.slow
def test_the_trl_program_reads_every_shape(tmp_path: Path) -> None:
    """Check the rows given to TRL for a file whose later records have more fields than the first."""
    for records in (ALPACA, SHAREGPT, PAIRS, [CALLED, SEVERAL]):
        path = written(tmp_path, records)
        program = trl_snippet(path, survey_dataset(open_dataset(path))).partition("\nargs =")[0]
        names: dict[str, Any] = {}
        exec(program, names)
        examples = [item for item in open_dataset(path) if isinstance(item, Example)]
        assert [row["prompt"] for row in names["data"]] == [[m.as_dict() for m in one.prompt] for one in examples]
        assert [row["completion"] for row in names["data"]] == [[one.response.as_dict()] for one in examples]
        tools = [json.loads(row.get("tools") or "[]") for row in names["data"]]
        assert tools == [list(one.tools) for one in examples]


def test_a_path_cannot_break_out_of_the_program(tmp_path: Path) -> None:
    path = written(tmp_path, PAIRS, 'k "1"\\.jsonl')
    names: dict[str, Any] = {}
    exec(trl_snippet(path, survey_dataset(open_dataset(path))).partition("\nargs =")[0], names)
    assert len(names["data"]) == 2


def llamafactory_reads(entry: dict[str, Any], record: dict[str, Any]) -> list[Any] | None:
    """Read a record by LLaMA-Factory's documented rules: system, tools, (role, content) of each turn; None if left out.

    Written from its data format pages: columns that are named have to be there, roles are known by one name each,
    `sharegpt` reads text alone, `openai` puts the calls in the content's place and joins results of tools.
    """
    columns, tags = entry["columns"], entry.get("tags", {})
    record = dict.fromkeys(columns.values()) | record
    extra = [record[columns[name]] if name in columns else "" for name in ("system", "tools")]
    if entry["formatting"] == "alpaca":
        asked = [record[columns[name]] for name in ("prompt", "query") if name in columns and record[columns[name]]]
        before = [text for pair in record[columns["history"]] or [] for text in pair] if "history" in columns else []
        return [*extra, *before, "\n".join(asked), record[columns["response"]]]
    turns = record[columns["messages"]]
    if turns[0][tags["role_tag"]] == tags["system_tag"]:
        extra[0], turns = turns[0][tags["content_tag"]], turns[1:]
    odd, even = ("user_tag", "observation_tag"), ("assistant_tag", "function_tag")
    said = []
    for turn in turns:
        role, content = turn[tags["role_tag"]], turn[tags["content_tag"]]
        if entry["formatting"] == "openai" and turn.get("tool_calls"):
            role, content = tags["function_tag"], json.dumps([call["function"] for call in turn["tool_calls"]])
        if role not in [tags[name] for name in (odd, even)[len(said) % 2]]:
            return None
        said.append(content)
    return [*extra, *said] if len(said) % 2 == 0 else None


def test_llamafactory_reads_columns_of_later_records(tmp_path: Path) -> None:
    entry = llamafactory_entry("k.jsonl", of(tmp_path, *ALPACA))
    assert llamafactory_reads(entry, ALPACA[0]) == [None, "", "Say no\nnow", "Nein"]
    assert llamafactory_reads(entry, ALPACA[1]) == ["In German.", "", "Hi", "Hallo", "Say yes", "Ja"]
    pictured = {**ALPACA[0], "images": ["a.png"], "videos": None}
    assert llamafactory_entry("k.jsonl", of(tmp_path, ALPACA[0], pictured))["columns"]["images"] == "images"
    entry = llamafactory_entry("k.jsonl", of(tmp_path, *SHAREGPT))
    assert entry["formatting"] == "sharegpt"
    assert llamafactory_reads(entry, SHAREGPT[0]) == ["Be kind.", None, "Hi", "Hello"]
    read = llamafactory_reads(entry, SHAREGPT[1])
    call = SHAREGPT[1]["conversations"][1]["value"]  # type: ignore[index]
    assert read is not None and read[1:] == [
        SHAREGPT[1]["tools"],
        "Is it late?",
        call,
        "noon",
        "No.",
    ]
    entry = llamafactory_entry("k.jsonl", of(tmp_path, SEVERAL, CALLING))
    read = llamafactory_reads(entry, CALLING)
    assert read is not None and json.loads(read[-1]) == [{"name": "clock", "arguments": {"zone": 2}}]
    assert entry["formatting"] == "openai" and read[1] == [WEATHER]


@pytest.mark.parametrize(
    ("role", "content", "user", "assistant"),
    [("from", "value", "user", "assistant"), ("role", "content", "human", "gpt"), ("role", "value", "user", "model")],
)
@pytest.mark.parametrize("name", ["messages", "conversations"])
def test_tags_are_the_names_in_the_file(
    tmp_path: Path, name: str, role: str, content: str, user: str, assistant: str
) -> None:
    record = {name: [{role: user, content: "Hi"}, {role: assistant, content: "Hello"}]}
    found = of(tmp_path, record)
    assert llamafactory_reads(llamafactory_entry("k.jsonl", found), record) == ["", "", "Hi", "Hello"]
    (data,) = yaml.safe_load(axolotl_snippet("k.jsonl", found))["datasets"]
    assert data["field_messages"] == name and data["message_property_mappings"] == {"role": role, "content": content}
    roles = data.get("roles", {"user": ["user"], "assistant": ["assistant"]})
    assert roles["user"] == [user] and roles["assistant"] == [assistant]


def survey_records(records: Iterable[dict[str, Any]], shape: Any) -> Survey:
    found = Survey(shape)
    for record in records:
        found.records += 1
        found.add(record)
        found.examples += 1
    return found


def test_llamafactory_entries_name_only_what_is_there() -> None:
    def entry(shape: Any, *records: dict[str, Any], path: str = "k.json") -> dict[str, Any]:
        return llamafactory_entry(path, survey_records(records, shape))

    assert entry("alpaca", {"instruction": "a", "response": "b", "system": "c", "n": 1}) == {
        "file_name": "k.json",
        "formatting": "alpaca",
        "columns": {"prompt": "instruction", "response": "response", "system": "system"},
    }
    plain = entry("alpaca", {"instruction": "a", "input": "", "output": "b", "system": None, "history": []})
    assert plain["columns"] == {"prompt": "instruction", "query": "input", "response": "output"}
    for path in ("k.jsonl.gz", "k.tsv"):
        with pytest.raises(SettingsError, match="does not read"):
            entry("alpaca", ALPACA[0], path=path)
    lists = [{"prompt": SEVERAL["messages"][:1], "completion": [{"role": "assistant", "content": "x"}]}]
    for write in (llamafactory_entry, axolotl_snippet):
        with pytest.raises(SettingsError, match="lists of messages"):
            write(
                "k.json",
                survey_records(lists, "prompt-completion"),
            )


def test_llamafactory_info_is_merged(tmp_path: Path) -> None:
    info, found = tmp_path / "dataset_info.json", survey_records(ALPACA, "alpaca")
    info.write_text('{"theirs": {"file_name": "é"}}', encoding="utf-8")
    assert write_llamafactory("kept", tmp_path / "kept.jsonl", found) == info
    write_llamafactory("kept", tmp_path / "kept.jsonl", found)  # the same entry again is no conflict
    both = json.loads(info.read_text(encoding="utf-8"))
    assert list(both) == ["theirs", "kept"] and both["kept"]["file_name"] == "kept.jsonl"
    with pytest.raises(OutputError, match="has another entry `theirs`"):
        write_llamafactory("theirs", tmp_path / "kept.jsonl", found)
    info.write_text("{", encoding="utf-8")
    with pytest.raises(OutputError, match="is not JSON and was left as it is"):
        write_llamafactory("kept", tmp_path / "kept.jsonl", found)
    assert info.read_text(encoding="utf-8") == "{"


def test_axolotl_snippets(tmp_path: Path) -> None:
    def first(*records: dict[str, Any], path: str = "k.jsonl") -> dict[str, Any]:
        (entry,) = yaml.safe_load(axolotl_snippet(path, of(tmp_path, *records)))["datasets"]
        return dict(entry)

    assert first(ALPACA[0]) == {"path": "k.jsonl", "ds_type": "json", "type": "alpaca"}
    system = first(*ALPACA)["type"]
    assert system["field_system"] == "system" and system["field_output"] == "output"
    dolly = first({"instruction": "a", "context": "b", "response": "c"}, path="k.parquet")
    assert dolly["ds_type"] == "parquet" and dolly["type"]["field_input"] == "context"
    sharegpt = first(*SHAREGPT)
    assert sharegpt["roles"]["assistant"] == ["gpt", "function_call"] and sharegpt["field_tools"] == "tools"
    several = first(CALLED, SEVERAL)
    assert several["message_field_training"] == "weight"
    assert several["message_property_mappings"]["reasoning_content"] == "reasoning_content"
    assert first(*PAIRS)["type"]["field_output"] == "completion"


def test_what_a_trainer_does_not_take_is_said_with_counts(tmp_path: Path) -> None:
    mixed = of(tmp_path, CALLED, SEVERAL, BROKEN, CALLING)
    said = "\n".join(trainer_notes("llamafactory", mixed))
    assert "tithe cannot read 1 of 4 records (the response is empty): they are in the file" in said
    assert "1 of 4 records have content in parts: LLaMA-Factory reads text alone" in said
    assert "1 of 4 records have reasoning beside the content: LLaMA-Factory leaves the reasoning out" in said
    assert "1 of 4 records have assistant turns with weight 0: LLaMA-Factory trains on them too" in said
    assert "1 of 4 records have turns that do not alternate" in said
    assert "2 of 4 records have several responses" in said and "`mask_history: true`" in said
    assert rewriting_helps("llamafactory", mixed)
    said = "\n".join(trainer_notes("trl", mixed))
    assert "(the response is empty): left out" in said
    assert "2 of 4 records have several responses: the last is learnt" in said and "`--turns all`" in said
    assert "1 of 4 records have messages after the last response" in said
    assert "several responses" not in "\n".join(trainer_notes("trl", of(tmp_path, CALLED, SEVERAL, turns="all")))
    said = "\n".join(trainer_notes("axolotl", of(tmp_path, *ALPACA)))
    assert "1 of 2 records have `history`: axolotl does not read it" in said
    said = "\n".join(trainer_notes("axolotl", of(tmp_path, *SHAREGPT)))
    assert "1 of 2 records have turns that are nothing but a tool call: axolotl reads the call as plain text" in said
    assert "1 of 2 records have no `system`: axolotl writes `None` there" in said
    two = [
        {"instruction": "a", "output": "b"},
        {"instruction": "a", "response": "b"},
        {"instruction": "a", "output": "c"},
    ]
    said = "\n".join(trainer_notes("llamafactory", of(tmp_path, *two)))
    assert "1 records have `response`, which is not read: others have `output`" in said
    for to in ("llamafactory", "axolotl", "trl"):
        assert trainer_notes(to, of(tmp_path, *PAIRS)) == [] and not rewriting_helps(to, of(tmp_path, *PAIRS))

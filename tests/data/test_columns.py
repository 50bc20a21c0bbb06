"""Columns that have names of their own are read as the user says, and written as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tithe.data.columns import guess_columns
from tithe.data.dataset import Dataset, open_dataset
from tithe.data.export import write_records
from tithe.data.named_columns import read_columns
from tithe.data.survey import survey_dataset
from tithe.data.trainers import axolotl_snippet, llamafactory_entry, trl_snippet
from tithe.errors import DataError, SettingsError, TitheError
from tithe.records import BadRow, Example

QA = [
    {"question": "What is 2 + 2?", "answer": "It is 4.", "topic": "maths"},
    {"question": "Name a colour.", "answer": "Red.", "topic": "art"},
]
DIALOG = [
    {"speaker": "customer", "utterance": "My card is lost."},
    {"speaker": "agent", "utterance": "I will send a new one."},
]
NAMED = ["messages=dialog", "role=speaker", "content=utterance", "user=customer", "assistant=agent"]


def put(folder: Path, records: list[Any], name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def examples(dataset: Dataset) -> list[Example]:
    return [item for item in dataset if isinstance(item, Example)]


def plain(dataset: Dataset) -> list[tuple[list[tuple[str, str]], str]]:
    return [([(m.role, m.content) for m in one.prompt], one.response.content) for one in examples(dataset)]


def test_a_renamed_data_set_is_read_as_one_with_the_usual_names(tmp_path: Path) -> None:
    usual = [{"prompt": one["question"], "completion": one["answer"], "topic": one["topic"]} for one in QA]
    ours = open_dataset(put(tmp_path, QA), columns=["prompt=question", "response=answer"])
    theirs = open_dataset(put(tmp_path, usual, "usual.jsonl"))
    assert ours.format == theirs.format == "prompt-completion"
    assert [(one.id, one.prompt, one.response, one.columns) for one in examples(ours)] == [
        (one.id, one.prompt, one.response, one.columns) for one in examples(theirs)
    ]
    assert [record for _, record in ours.records()] == QA


def test_a_context_makes_alpaca_and_a_system_column_a_message(tmp_path: Path) -> None:
    records = [{"q": "Sum up.", "passage": "A long text.", "a": "Text.", "persona": "Be brief."}]
    dataset = open_dataset(
        put(tmp_path, records), columns=["prompt=q", "context=passage", "response=a", "system=persona"]
    )
    assert dataset.format == "alpaca"
    assert plain(dataset) == [([("system", "Be brief."), ("user", "Sum up.\nA long text.")], "Text.")]
    (one,) = examples(dataset)
    assert (one.instruction, one.input, dict(one.columns)) == ("Sum up.", "A long text.", {})


def test_one_name_is_enough_where_the_others_are_usual(tmp_path: Path) -> None:
    alpaca = [{"instruction": "Add.", "input": "1 1", "result": "2"}]
    assert plain(open_dataset(put(tmp_path, alpaca), columns=["response=result"])) == [([("user", "Add.\n1 1")], "2")]
    other = [{"ask": "Add.", "response": "2"}]
    assert plain(open_dataset(put(tmp_path, other), columns=["prompt=ask"])) == [([("user", "Add.")], "2")]


@pytest.mark.parametrize("as_text", [False, True])
def test_odd_dialogues(tmp_path: Path, as_text: bool) -> None:
    dataset = open_dataset(put(tmp_path, [{"dialog": json.dumps(DIALOG) if as_text else DIALOG}]), columns=NAMED)
    assert plain(dataset) == [([("user", "My card is lost.")], "I will send a new one.")]


def test_a_column_of_a_usual_name_is_kept_but_not_read(tmp_path: Path) -> None:
    records = [{"prompt": "internal note", "question": "Name a fruit.", "answer": "Pear.", "completion": "old"}]
    (one,) = examples(open_dataset(put(tmp_path, records), columns=["prompt=question", "response=answer"]))
    assert (one.prompt[0].content, one.response.content) == ("Name a fruit.", "Pear.")
    assert dict(one.columns) == {"prompt": "internal note", "completion": "old"}
    assert {note for note in one.notes} == {
        "`prompt` is not read: it is no part of the dialogue",
        "`completion` is not read: it is no part of the dialogue",
    }


def test_two_columns_may_swap_their_names(tmp_path: Path) -> None:
    records = [{"prompt": "Pear.", "response": "Name a fruit."}]
    dataset = open_dataset(put(tmp_path, records), columns=["prompt=response", "response=prompt"])
    assert plain(dataset) == [([("user", "Name a fruit.")], "Pear.")]


def test_bad_rows_speak_of_the_users_columns(tmp_path: Path) -> None:
    records = [
        *QA,
        {"question": "Name a city.", "answer": 5},
        {"question": "No answer"},
        {"question": "", "answer": "a"},
    ]
    found = [item for item in open_dataset(put(tmp_path, records), columns=["prompt=question", "response=answer"])]
    reasons = [item.reason for item in found if isinstance(item, BadRow)]
    assert reasons == [
        "`answer` is a number, it must be a string or a list of messages",
        "no `answer`: there is `question`",
        "nothing but whitespace stands before the response",
    ]


def test_a_response_that_nobody_named(tmp_path: Path) -> None:
    (first, _) = open_dataset(put(tmp_path, QA), columns=["prompt=question"])
    assert isinstance(first, BadRow)
    listed = "there is `question`, `answer`, `topic`"
    assert first.reason == f"no response: {listed}, and `columns` names none of them the response"


def test_a_bad_turn_names_the_users_fields(tmp_path: Path) -> None:
    records = [
        {"dialog": DIALOG},
        {"dialog": [{"speaker": "robot", "utterance": "Hm."}]},
        {"dialog": [{"utterance": "x"}]},
    ]
    reasons = [item.reason for item in open_dataset(put(tmp_path, records), columns=NAMED) if isinstance(item, BadRow)]
    assert reasons[0].startswith("unknown role `robot` in `dialog[0]`")
    assert reasons[1].startswith("`dialog[0]` has no `speaker`")


@pytest.mark.parametrize(
    ("given", "entries"),
    [
        ("prompt=question,response=answer", ("prompt=question", "response=answer")),
        ({"response": "answer", "prompt": "question"}, ("prompt=question", "response=answer")),
        (["input=text, long", "output=b"], ("response=b", "context=text, long")),
        ("prompt=My question , response = a=b", ("prompt=My question", "response=a=b")),
        ("", ()),
    ],
)
def test_what_a_setting_may_look_like(given: Any, entries: tuple[str, ...]) -> None:
    assert read_columns(given) == entries
    assert read_columns(read_columns(given)) == entries  # as run.json holds it


@pytest.mark.parametrize(
    ("given", "words", "hint"),
    [
        ("promt=a", "`promt` is no part of an example", "did you mean `prompt`?"),
        ("prompt=a,prompt=b", "two columns for `prompt`: `a` and `b`", "give one"),
        ("prompt=a,instruction=b", "two columns for `prompt`: `a` and `b`", "give one"),
        ("prompt=a,response=a", "gives `a` twice, as the prompt and as the response", "a column is one of them"),
        ("question", "it has no `=`", "prompt=question,response=answer"),
        ("prompt=", "`prompt` has no column", "prompt=question"),
        ({"prompt": 5}, "names no column for `prompt`", "prompt=question"),
    ],
)
def test_impossible_settings(given: Any, words: str, hint: str) -> None:
    with pytest.raises(SettingsError) as error:
        read_columns(given)
    assert words in str(error.value) and hint in str(error.value.hint)


@pytest.mark.parametrize(
    ("columns", "format", "words", "hint"),
    [
        (["prompt=quesion", "response=answer"], "auto", "has a column `quesion`", "did you mean `question`? there is"),
        (["prompt=question", "response=n"], "auto", "`n` of", "text is in `question`, `answer`"),
        (["response=answer"], "auto", "names no prompt", "--columns prompt=question,response=answer"),
        (["messages=turns", "prompt=question"], "auto", "`messages` and `prompt`", "leave one of the two out"),
        (["context=answer"], "messages", "`context`, which records of the format `messages`", "--format alpaca"),
    ],
)
def test_columns_that_do_not_fit_the_data(
    tmp_path: Path, columns: list[str], format: str, words: str, hint: str
) -> None:
    path = put(tmp_path, [{"question": "q", "answer": "a", "n": 1, "turns": []}])
    with pytest.raises(TitheError) as error:
        open_dataset(path, columns=columns, format=format)
    assert words in str(error.value) and hint in str(error.value.hint)


def test_a_column_of_few_records_is_found_behind_the_first_hundred(tmp_path: Path) -> None:
    records = [{"q": f"{i}?", "a": "yes"} for i in range(150)] + [{"q": "?", "a": "yes", "sys": "Be kind."}]
    dataset = open_dataset(put(tmp_path, records), columns=["prompt=q", "response=a", "system=sys"])
    assert examples(dataset)[-1].prompt[0].role == "system"


@pytest.mark.parametrize(
    ("record", "guess"),
    [
        ({"question": "a", "answer": "b", "id": "c"}, "prompt=question,response=answer"),
        ({"id": 3, "user_prompt": "a", "model_response": "b"}, "prompt=user_prompt,response=model_response"),
        ({"left": "a", "right": "b"}, "prompt=left,response=right"),
        ({"My Question": "a", "answer": "b"}, "'prompt=My Question,response=answer'"),
        ({"dialog": DIALOG}, "messages=dialog,role=speaker,content=utterance"),
        ({"a1": "x", "b1": "y", "c1": "z"}, "prompt=COLUMN,response=COLUMN"),
    ],
)
def test_an_unknown_shape_gets_a_guess_to_paste(tmp_path: Path, record: dict[str, Any], guess: str) -> None:
    assert guess_columns([record]) == guess
    with pytest.raises(DataError, match="no known shape") as error:
        open_dataset(put(tmp_path, [record, record]))
    assert f"`--columns {guess}`" in str(error.value.hint)


def test_csv_with_semicolons_is_recognised_by_the_named_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("question;answer\nWhat, really?;Yes\n")
    assert plain(open_dataset(path, columns=["prompt=question", "response=answer"])) == [
        ([("user", "What, really?")], "Yes")
    ]


def test_another_data_set_may_have_the_usual_names(tmp_path: Path) -> None:
    path = put(tmp_path, [{"instruction": "Add.", "output": "2"}])
    names = ["prompt=question", "response=answer"]
    assert len(examples(open_dataset(path, columns=names, beside=True))) == 1
    with pytest.raises(SettingsError, match="no record"):
        open_dataset(path, columns=names)


def test_records_are_written_in_another_shape_from_the_named_columns(tmp_path: Path) -> None:
    dataset = open_dataset(put(tmp_path, QA), columns=["prompt=question", "response=answer"])
    write_records(dataset, {1}, tmp_path / "same.jsonl")
    assert json.loads((tmp_path / "same.jsonl").read_text()) == QA[1]
    write_records(dataset, {1}, tmp_path / "pc.jsonl", shape="prompt-completion")
    (made,) = [json.loads(line) for line in (tmp_path / "pc.jsonl").read_text().splitlines()]
    assert made == {
        "prompt": [{"role": "user", "content": "Name a colour."}],
        "completion": [{"role": "assistant", "content": "Red."}],
        "topic": "art",
    }


def test_trainers_get_the_files_own_names(tmp_path: Path) -> None:
    path = put(tmp_path, QA)
    found = survey_dataset(open_dataset(path, columns=["prompt=question", "response=answer"]))
    assert llamafactory_entry(path, found)["columns"] == {"prompt": "question", "response": "answer"}
    assert "field_instruction: question" in axolotl_snippet(path, found)
    assert 'columns={"prompt": "question", "response": "answer"}' in trl_snippet(path, found)
    chat = survey_dataset(open_dataset(put(tmp_path, [{"dialog": DIALOG}], "chat.jsonl"), columns=NAMED))
    entry = llamafactory_entry("chat.jsonl", chat)
    assert entry["columns"] == {"messages": "dialog"}
    assert {name: entry["tags"][name] for name in ("role_tag", "content_tag", "user_tag", "assistant_tag")} == {
        "role_tag": "speaker",
        "content_tag": "utterance",
        "user_tag": "customer",
        "assistant_tag": "agent",
    }

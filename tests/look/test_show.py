"""One record as the model reads it: what is shown is what `score` computes, and every byte of it is safe to print."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

import tithe
from tests.e2e.command import Command, records, write_jsonl
from tithe.errors import SettingsError, TitheError
from tithe.look.record_text import COLOURINGS, ShownRecord, print_record
from tithe.look.score_parts import ARITHMETIC, formula_of
from tithe.look.shown_record import Token
from tithe.plugins import scorer as scorer_named
from tithe.report.terminal import SafeConsole

TEMPLATE = (
    "{{ bos_token }}{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m['role'] }}|>\n"
    "{% if m.get('reasoning_content') %}<think>{{ m['reasoning_content'] }}</think>{% endif %}{{ m['content'] }}"
    "{% for call in m.get('tool_calls') or [] %}<call>{{ call['function'] | tojson }}</call>{% endfor %}"
    "<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Łódź"}}}
TOOL = {"type": "function", "function": {"name": "weather", "description": "?", "parameters": {"type": "object"}}}
DIALOGUES: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Name a colour of the rainbow."},
            {"role": "assistant", "content": "Red."},
            {"role": "user", "content": "And another?"},
            {"role": "assistant", "content": "Green, and blue too."},
        ]
    },
    {
        "messages": [
            {"role": "user", "content": "What is the weather in Łódź?"},
            {"role": "assistant", "content": "", "tool_calls": [CALL]},
            {"role": "tool", "content": "rain", "name": "weather"},
            {"role": "assistant", "content": "It rains there."},
        ],
        "tools": [TOOL],
    },
    {
        "messages": [
            {"role": "user", "content": "What is the sum of twelve and thirty?"},
            {"role": "assistant", "content": "Forty-two.", "reasoning_content": "Twelve and thirty make forty-two."},
        ]
    },
]
LIKE = "ifd,superfiltering,perplexity,length"
SHAPES: Mapping[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "alpaca": (records(4), {"template": "alpaca"}),
    "chat": (records(4), {}),
    "end scored": (records(4), {"eos": True, "template": "plain"}),
    "response cut": (records(8)[4:], {"max_length": 40}),
    "prompt cut": (records(8)[4:], {"max_length": 40, "truncation": "prompt"}),
    "no BOS": (records(4), {"bos": "never", "template": "plain"}),
    "header": (records(4), {"alone_header": "### Response:", "template": "alpaca"}),
    "dialogues": (DIALOGUES, {"turns": "all", "template": "chat.jinja"}),
    "authors": (records(4), {"preset": "cherry", "scorer": "ifd", "max_length": 200}),
}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("show")
    (folder / "chat.jinja").write_text(TEMPLATE, encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_losses_and_scores_are_those_of_score(name: str, there: Path, model_dir: Path) -> None:
    rows, settings = SHAPES[name]
    how = {"scorer": LIKE, "model": str(model_dir), "dtype": "fp32", "device": "cpu", **settings}
    if how.get("template", "").endswith(".jinja"):
        how["template"] = str(there / how["template"])
    data = write_jsonl(there / f"{name}.jsonl", rows)
    scored = tithe.score(data, run_dir=there / f"{name}.tithe", per_token=True, **how)
    kept = pq.read_table(there / f"{name}.tithe" / "tokens.parquet").to_pylist()
    losses = {(one["id"], one["pass"]): one for one in kept}
    table = scored.table.to_pylist()
    assert len(table) >= 4 and any(row["problem"] is None for row in table)
    for row in table:
        shown = tithe.show(data, row=row["row"], turn=row["turn"], **how)
        assert (shown.id, shown.row, shown.turn) == (row["id"], row["row"], row["turn"])
        for score in shown.scores:
            expected = row[score.name]
            assert (score.value is None) == (expected is None), (name, score)
            if expected is not None:
                assert score.value == pytest.approx(expected, rel=1e-5)
        if row["problem"] is not None:
            assert shown.problem == row["problem"]
            continue
        response = [one for one in shown.tokens if one.part == "response" and not one.cut]
        assert len(response) == row["response_tokens"]
        before = [one for one in shown.tokens if one.part in ("lead", "prompt") and not one.cut]
        assert len(before) == row["prompt_tokens"]
        assert sum(one.cut for one in shown.tokens) == row["truncated"]
        for kind in ("given", "alone"):
            one = shown.the_pass(kind)
            assert one is not None and one.loss == pytest.approx(row[f"nll_{kind}"], rel=1e-5)
            mine = [getattr(token, kind) for token in response]
            found = losses[row["id"], kind]
            assert [value for value in mine if value is not None] == pytest.approx(found["nll"], abs=1e-4)
            assert all(value is None for value in mine[: len(mine) - len(found["nll"])])
            if name != "authors":  # whose two passes tokenise the response apart
                assert [token.id for token in response][-len(found["nll"]) :] == found["token_ids"]


@pytest.mark.slow
def test_the_arithmetic_gives_the_score(there: Path, model_dir: Path) -> None:
    """What stands beside `=` is computed here anew, with numbers of four decimals."""
    data = write_jsonl(there / "arithmetic.jsonl", records(3))
    for settings in ({"template": "plain", "bos": "never"}, {}, {"scorer": "ifd(same_tokens=false)"}):
        shown = tithe.show(data, row=1, **({"scorer": LIKE, "model": str(model_dir), "dtype": "fp32"} | settings))
        done = 0
        for score in shown.scores:
            if score.arithmetic is None:
                continue
            text = score.arithmetic
            values = [float(one) for one in re.findall(r"\d+\.\d+", text)]
            result = values[0] / values[1] if "/" in text else np.exp(values[0] - sum(values[1:]))
            assert score.value == pytest.approx(result, rel=2e-3), (score, settings)
            done += 1
        assert done >= 1
    assert set(ARITHMETIC) == {"ifd", "superfiltering", "perplexity"}
    assert formula_of(scorer_named("ifd")()).startswith("IFD = s(A|Q) / s(A)")


@pytest.mark.slow
def test_a_scorer_that_looks_at_other_records(there: Path, model_dir: Path) -> None:
    """Its worked example is shown, and its number is that of the whole data set."""
    data = write_jsonl(there / "miwv.jsonl", records(12))
    how = {"scorer": "miwv(encoder=tfidf),ifd", "model": str(model_dir), "dtype": "fp32", "device": "cpu"}
    table = tithe.score(data, **how).table.to_pylist()
    shown = tithe.show(data, row=5, **how)
    assert shown.scores[0].value == pytest.approx(table[5]["miwv"], abs=1e-5)
    one = shown.the_pass("shown")
    assert one is not None and one.shots > 0 and one.asked_by == ["miwv: one"]
    shot = "".join(token.text for token in one.texts if token.part == "shot")
    assert "Write about" in shot and f"number {5}." not in shot
    assert "pass `shown`, for miwv: one" in str(shown) and "  example │" in str(shown)


@pytest.mark.slow
def test_tokens_without_weights_and_text_without_a_model(there: Path, model_dir: Path) -> None:
    data = write_jsonl(there / "plain.jsonl", [*records(2), *DIALOGUES[:1]][:2])
    full = tithe.show(data, row=1, model=str(model_dir))
    bare = tithe.show(data, row=1, model=str(model_dir), losses=False)
    assert [(one.id, one.part, one.cut) for one in full.tokens] == [(one.id, one.part, one.cut) for one in bare.tokens]
    assert full.has_losses and not bare.has_losses and bare.tokenised and not bare.scores
    assert "its tokenizer only" in str(bare)
    text = tithe.show(data, row=1, template="alpaca")
    assert not text.tokenised and [one.part for one in text.tokens] == ["prompt", "response"]
    assert text.tokens[0].text.endswith("### Response:") and "`--model`" in str(text)
    messages = tithe.show(data, row=1)
    assert [one.part for one in messages.tokens] == ["user", "assistant"] and "depends on the model" in str(messages)


@pytest.mark.slow
def test_a_model_without_weights_has_a_way_out(there: Path, model_dir: Path, tithe_command: Command) -> None:
    empty = there / "tokenizer-only"
    empty.mkdir()
    for path in model_dir.iterdir():
        if path.suffix != ".safetensors":
            (empty / path.name).write_bytes(path.read_bytes())
    data = write_jsonl(there / "weights.jsonl", records(2))
    done = tithe_command.fails("show", data, "--row", 0, "--model", empty)
    assert "--no-losses" in done.hints[0]
    assert "its tokenizer only" in tithe_command.ok("show", data, "--row", 0, "--model", empty, "--no-losses").out


def test_a_turn_of_a_dialogue_and_an_id(there: Path) -> None:
    data = write_jsonl(there / "turns.jsonl", DIALOGUES)
    last = tithe.show(data, row=0, turns="all")
    assert last.turn == 4 and list(last.turns) == [2, 4] and "turn 4 of 2, 4" in str(last)
    first = tithe.show(data, row=0, turn=2, turns="all")
    assert first.tokens[-1].text == "Red." and first.id != last.id
    again = tithe.show(data, id=first.id, turns="all")
    assert again == first
    calls = tithe.show(data, row=1, turn=1, turns="all")
    assert [one.part for one in calls.tokens] == ["tools", "user", "assistant: calls"] and "    calls │" in str(calls)


HOSTILE = "\x1b[31mred\x1b]0;title\x07 [bold]x[/bold] :smile: \u202e \u200b \x9b31m \r tab\t <|end|> 你好 \ud83d\ude00"


@pytest.mark.slow
def test_hostile_text_is_harmless_and_colours_change_nothing(there: Path, model_dir: Path) -> None:
    nasty = json.loads(json.dumps(HOSTILE))
    data = write_jsonl(there / "hostile.jsonl", [{"instruction": nasty, "input": "", "output": f"{nasty}\n{nasty}"}])
    for how in ({"model": str(model_dir)}, {"template": "plain"}, {}):
        shown = tithe.show(data, row=0, **how)
        plain = str(shown)
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u200b\u202e]", plain)
        assert r"\x1b[31mred\x1b]0;title\x07 [bold]x[/bold] :smile: \u202e" in plain
        for colour in COLOURINGS:
            file = io.StringIO()
            out = SafeConsole(file=file, width=100, force_terminal=True, color_system="truecolor", highlight=False)
            print_record(shown, out, colour=colour)
            bare = re.sub(r"\x1b\[[\d;]*m", "", file.getvalue())
            assert bare != file.getvalue() and "\x1b" not in bare
            if colour == "difference":
                assert bare.rstrip("\n") == plain
            assert ("48;2;" in file.getvalue()) == shown.has_losses  # the background of a token


def narrow_lines(shown: ShownRecord, width: int) -> list[str]:
    out = SafeConsole(file=io.StringIO(), width=width, color_system=None, highlight=False)
    print_record(shown, out)
    return out.file.getvalue().splitlines()  # type: ignore[attr-defined,no-any-return]


def test_marks_tell_parts_apart_without_colour() -> None:
    tokens = [
        Token("<s>", "lead", 0, special=True),
        Token("old", "prompt", 5, cut=True),
        Token("Say", "prompt", 1),
        Token(" it\n\n", "prompt", 2),
        Token("no", "response", 3, given=1.0, alone=2.0),
        Token("w", "response", 3, given=3.0, alone=None),
        Token("!", "response", 4, cut=True),
        Token("<e>", "tail"),
    ]
    shown = ShownRecord("a", 0, 1, [1], "f:1", "f", tokens, {"template": "t"}, {"name": "m"})
    lines = narrow_lines(shown, 60)
    start = lines.index("     lead │ ⟦<s>⟧")
    assert lines[start + 1 : start + 7] == [
        "      cut ╎ old",
        "   prompt │ Say it↵",
        "          │ ↵",
        "   scored ┃ now",
        "      cut ╎ !",
        " after it │ <e>",
    ]
    assert all(len(line) <= 40 for line in narrow_lines(shown, 40) if "│" in line or "┃" in line)
    assert [one.text for one in shown.strongest(5)] == ["no"] and shown.strongest(0) == []


def test_strongest_tokens_are_those_that_the_prompt_changes_most() -> None:
    losses = [(1.0, 1.5), (5.0, 1.0), (0.1, 6.0), (2.0, 2.1)]
    tokens = [Token(f"t{i}", "response", i, given=a, alone=b) for i, (a, b) in enumerate(losses)]
    shown = ShownRecord("a", 0, 1, [1], "", "f", tokens)
    assert [one.text for one in shown.strongest(2)] == ["t1", "t2"]  # +4.0 and -5.9, harder first
    only = [Token(f"t{i}", "response", i, given=a) for i, (a, _) in enumerate(losses)]
    assert [one.text for one in ShownRecord("a", 0, 1, [1], "", "f", only).strongest(2)] == ["t1", "t3"]


@pytest.fixture
def tithe_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    monkeypatch.setenv("COLUMNS", "100")
    return Command(monkeypatch, capsys)


@pytest.mark.slow
def test_the_command_prints_text_and_json(there: Path, model_dir: Path, tithe_command: Command) -> None:
    data = write_jsonl(there / "command.jsonl", records(6))
    model = ("--model", model_dir, "--dtype", "fp32", "--max-length", 60)
    done = tithe_command.ok("show", data, "--row", 3, *model)
    assert "\x1b" not in done.out and "record 3, turn 1" in done.out and "ifd " in done.out
    every = tithe_command.ok("show", data, "--row", 3, "--tokens", *model)
    assert "all scored tokens:" in every.out
    found = tithe_command.ok("show", data, "--row", 3, "--json", *model).json
    same = tithe.show(data, row=3, model=str(model_dir), dtype="fp32", max_length=60)
    assert found["id"] == same.id and len(found["tokens"]) == len(same.tokens)
    assert found["scores"][0]["value"] == pytest.approx(same.scores[0].value, rel=1e-6)
    assert {one["part"] for one in found["tokens"]} <= {"lead", "prompt", "response", "tail"}
    assert not list(there.glob("command.tithe*"))  # nothing is left behind
    value = same.scores[0].value
    assert repr(same).startswith("<ShownRecord: record 3, turn 1 of ") and f"ifd {value:.4g}>" in repr(same)


@pytest.mark.slow
def test_why_a_record_is_dropped(there: Path, model_dir: Path) -> None:
    data = write_jsonl(there / "dropped.jsonl", records(12))
    long = tithe.show(data, row=3, model=str(model_dir), max_length=3)
    assert long.problem is not None and "dropped, the model cannot read it: no response token left" in str(long)
    assert {one.problem for one in long.scores} == {long.problem} and "   scored" not in str(long)
    table = tithe.score(data, model=str(model_dir), dtype="fp32").table.to_pylist()
    for row in table:
        shown = tithe.show(data, row=row["row"], model=str(model_dir), dtype="fp32")
        (score,) = shown.scores
        assert score.dropped == ("ifd > 1" if row["ifd"] > 1 else None)
        assert ("if ifd ranks, unless `--drop` says otherwise: ifd > 1" in str(shown)) == (row["ifd"] > 1)
    assert {row["ifd"] > 1 for row in table} == {True, False}


BAD: list[tuple[list[Any], int, str]] = [
    ([], 2, "no record is given"),
    (["--row", 99], 1, "no record 99 in"),
    (["--row", "-1"], 1, "a row is a whole number from 0 on"),
    (["--row", "x"], 2, "--row"),
    (["--id", "nothing"], 1, "no example with the id `nothing`"),
    (["--row", 0, "--id", "a"], 1, "a row and an id are given"),
    (["--id", "a", "--turn", 1], 1, "an id and a turn are given"),
    (["--row", 0, "--turn", 3], 1, "record 0 has no response at turn 3"),
    (["--row", 3], 1, "record 3 is set aside as a bad row, at"),
    (["--row", 0, "--template", "nope"], 1, "unknown template `nope`"),
    (["--row", 0, "--colour", "pink"], 2, "cannot be coloured by `pink`"),
    (["--row", 0, "--model", "nowhere"], 1, "nowhere"),
    (["--row", 0, "--scorer", "idf", "--model", "pocket"], 1, "idf"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), BAD, ids=[message for _, _, message in BAD])
def test_bad_input_is_one_sentence(
    arguments: list[Any], code: int, message: str, tmp_path: Path, tithe_command: Command
) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", [*records(3), {"instruction": "a", "output": 3}])
    done = tithe_command.fails("show", data, *arguments, code=code)
    assert message in done.err and done.out == ""


def test_missing_data_and_empty_data(tmp_path: Path, tithe_command: Command) -> None:
    assert "no file or folder" in tithe_command.fails("show", tmp_path / "no.jsonl", "--row", 0).err
    (tmp_path / "empty.jsonl").write_text("")
    assert "empty.jsonl` is empty" in tithe_command.fails("show", tmp_path / "empty.jsonl", "--row", 0).err
    with pytest.raises(SettingsError, match="a turn is a whole number"):
        tithe.show(tmp_path / "empty.jsonl", row=0, turn=True)
    with pytest.raises(TitheError, match="unknown setting `modl`"):
        tithe.show(tmp_path / "empty.jsonl", row=0, modl="x")

"""Prompt ids, matching, lengths, likeness, refusals: against slow twins and by properties."""

from __future__ import annotations

import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.e2e.command import write_jsonl
from tithe.data.dataset import open_dataset
from tithe.data.prompts import read_prompts
from tithe.errors import DataError, SettingsError
from tithe.lab.tiers.look import (
    LEAST,
    auc,
    demand_both,
    duplicate_shares,
    is_refusal,
    jaccard,
    length_warning,
    lengths,
    look,
    near_duplicates,
    signatures,
    word_runs,
)
from tithe.lab.tiers.matching import PromptPool, draw, match
from tithe.lab.tiers.tier_rows import (
    Labels,
    TierRow,
    as_label,
    by_labels,
    by_pairs,
    json_line,
    layout,
    of_example,
    prompt_id,
)
from tithe.records import BadRow, Example, Message


def row(text, tier="high", asked="q", **more):
    return TierRow((Message("user", asked),), Message("assistant", text), tier, **more)


def test_prompt_ids_are_of_what_is_asked():
    first = prompt_id([Message("user", "a b")])
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert first == prompt_id([Message("user", " a b\n")])
    others = [[Message("user", "a  b")], [Message("system", "a b")], [Message("user", "a"), Message("user", "b")]]
    assert len({first, *map(prompt_id, others), prompt_id([Message("user", "a b")], [{"name": "f"}])}) == 5


def test_a_line_is_read_back_with_its_columns(tmp_path):
    made = row("yes", "low", model="m", source="x:1", finished=False, tokens=3, columns={"model": 1, "topic": "é"})
    (tmp_path / "t.jsonl").write_bytes(json_line(made))
    (example,) = open_dataset(tmp_path / "t.jsonl")
    assert example.response.content == "yes" and example.prompt == made.prompt
    assert example.columns == {
        "tier": "low", "model": "m", "prompt_id": made.prompt_id, "source": "x:1", "finished": False,
        "response_tokens": 3, "original_model": 1, "topic": "é",
    }  # fmt: skip


def test_half_a_character_in_a_column_does_not_stop_the_writing():
    assert json.loads(json_line(row("yes", columns={"odd": "\ud800"})))["odd"] == "\ud800"


def test_provenance_names_no_folder():
    example = Example("i", 0, 1, (Message("user", "q"),), Message("assistant", "a"), where="/some/where/f.jsonl:3")
    assert of_example(example, "high").source == "f.jsonl:3"


@pytest.mark.parametrize(
    "record",
    [
        {"instruction": "q"},
        {"instruction": "q", "input": "", "output": ""},
        {"instruction": "q", "response": None},
        {"prompt": "q"},
        {"prompt": [{"role": "user", "content": "q"}], "completion": []},
        {"messages": [{"role": "user", "content": "q"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": ""}]},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": json.dumps([{"role": "user", "content": "q"}])},
    ],
)
def test_prompts_need_no_response(tmp_path, record):
    (found,) = read_prompts(open_dataset(write_jsonl(tmp_path / "p.jsonl", [record])))
    assert isinstance(found, Example) and found.prompt == (Message("user", "q"),)


def test_prompts_that_are_none_are_bad_rows(tmp_path):
    rows = [{"instruction": "q"}, {"instruction": " "}, 7, {"x": 1}]
    found = [*read_prompts(open_dataset(write_jsonl(tmp_path / "p.jsonl", rows)))]
    assert [isinstance(one, BadRow) for one in found] == [False, True, True, True]
    with pytest.raises(DataError, match=r"p\.jsonl:2: "):
        [*read_prompts(open_dataset(tmp_path / "p.jsonl", strict=True))]


def pool(name, *asked):
    return PromptPool.of(
        name, (Example(a, 0, 1, (Message("user", a),), Message("assistant", a.upper())) for a in asked)
    )


def test_matching_counts_what_is_left_over():
    found = match(pool("p", "a", "b", "c", "b"), pool("s", "c", "x", "b ", "y", "z"))
    assert [one.response.content for one in found.strong.values()] == ["B ", "C"]  # in the prompts' order
    assert (found.unmatched, found.unused) == (1, 3)
    assert len(pool("p", "a", "b", "b", "b").repeated) == 2


def test_nothing_in_common_shows_both_sides():
    with pytest.raises(DataError, match="none of the 1 prompts of `p` is among the 2 of `s`") as caught:
        match(pool("p", "a long one " * 30), pool("s", "x", "y"))
    assert "a long one a long one" in caught.value.hint and "`x`" in caught.value.hint and len(caught.value.hint) < 200


def test_draws_are_nested_in_order_and_depend_on_the_seed():
    keys = [f"{i:016x}" for i in range(200)]
    few, many = draw(keys, 20, 0), draw(keys, 50, 0)
    assert set(few) < set(many) and few == sorted(few) and len(few) == 20
    assert draw(keys, 20, 1) != few and set(draw(keys[::-1], 20, 0)) == set(few)
    assert draw(keys, None, 0) == keys == draw(keys, 1000, 0)
    assert {key for key in few if key in keys[5:]} <= set(draw(keys[5:], 20, 0))


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_auc_is_the_share_of_pairs_won(high, low):
    pairs = [(a > b) + (a == b) / 2 for a in high for b in low]
    expected = sum(pairs) / len(pairs) if pairs else float("nan")
    assert auc(high, low) == pytest.approx(expected, nan_ok=True)


def test_length_that_tells_is_told():
    assert length_warning(lengths("characters", [5, 6, 7], [1, 2, 3])).startswith(
        "length alone tells the tiers apart: AUC 1.00"
    )
    assert "the low tier is longer" in length_warning(lengths("tokens", [1, 1, 2], [5, 6, 7]))
    assert length_warning(lengths("characters", [1, 5, 9], [2, 5, 8])) is None
    assert length_warning(lengths("characters", [], [1])) is None and lengths("characters", [], [1])["auc"] is None


def slow_runs(text):
    words = re.findall(r"\w+|[^\w\s]", text.lower())
    return {tuple(words[i : i + 3]) for i in range(max(1, len(words) - 2))}


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.sampled_from(["a", "b", "C", "d!", "e"]), max_size=12), st.lists(st.sampled_from(["a", "b", "c", "d"]))
)
def test_jaccard_is_that_of_the_sets(first, second):
    a, b = slow_runs(" ".join(first)), slow_runs(" ".join(second))
    assert jaccard(word_runs(" ".join(first)), word_runs(" ".join(second))) == pytest.approx(len(a & b) / len(a | b))


def test_near_duplicates_are_found_and_no_others():
    rng = random.Random(0)
    words = [f"w{i}" for i in range(500)]
    base = [" ".join(rng.choices(words, k=60)) for _ in range(60)]
    changed = [" ".join([*text.split()[:-1], "end"]) for text in base[:30]]
    texts = base + changed
    all_sets = [slow_runs(text) for text in texts]
    expected = {
        (i, j)
        for j in range(len(texts))
        for i in range(j)
        if len(all_sets[i] & all_sets[j]) >= LEAST * len(all_sets[i] | all_sets[j])
    }
    assert len(expected) == 30 and set(near_duplicates(texts)) == expected


def test_shares_within_and_across():
    long = "the quick brown fox jumps over the lazy dog and then goes home to sleep for a long while in its den"
    alike = long.replace("den", "hut")
    found = duplicate_shares([long, "x", " x "], [alike, "y", "z", long])
    assert found["equal_within_high"] == pytest.approx(2 / 3) and found["near_within_high"] == pytest.approx(2 / 3)
    assert found["equal_within_low"] == 0 and found["near_within_low"] == 0.5
    assert found["equal_high_in_low"] == pytest.approx(1 / 3) and found["near_low_in_high"] == 0.5
    assert found["equal_low_in_high"] == 0.25
    assert duplicate_shares([], ["a"])["equal_within_high"] is None


@pytest.mark.slow
def test_a_crowd_of_near_equals_costs_no_square_of_it():
    texts = [
        f"{i} I am a language model and can say nothing about that at all, whatever you ask of me" for i in range(3000)
    ]
    assert duplicate_shares(texts, [])["near_within_high"] == 1.0


def test_refusals_by_their_openings():
    yes = [
        "I'm sorry, but I can’t",
        "I cannot do that.",
        "  As an AI language model, I do not",
        '"I can\u2019t help',
        "I CANNOT",
    ]
    no = ["I can do that", "", "A poem: I cannot sleep", "Sorry to hear it. I cannot imagine", "I candidly say"]
    assert all(map(is_refusal, yes)) and not any(map(is_refusal, no))


def test_the_look_counts_everything():
    rows = [row("a b", asked="1"), row("c", "low", asked="1", model="m", finished=False), row("d", "low", asked="2")]
    found = look(
        rows, [BadRow(0, "f:1", "bad"), BadRow(1, "f:2", "bad")], lambda texts: [len(t.split()) for t in texts]
    )
    assert found["responses"] == {"high": 1, "low": 2} and found["bad_rows"] == {"bad": 2}
    assert found["prompts"] == {"all": 2, "both": 1, "only_high": 0, "only_low": 1}
    assert found["models"]["low"] == {"m": 1, "(not known)": 1}
    assert found["unfinished"] == {"high": None, "low": 1}
    assert [one["unit"] for one in found["lengths"]] == ["characters", "tokens"]
    assert found["lengths"][1]["high"]["median"] == 2
    assert any("only 1 high and 2 low" in text for text in found["warnings"])
    assert any("cut off" in text for text in found["warnings"])
    json.dumps(found)


def test_one_side_alone_is_refused():
    with pytest.raises(
        DataError, match="`f` has 0 high and 1 low responses; 1 rows were set aside, the first at x:1: why"
    ):
        demand_both([row("a", "low")], [BadRow(0, "x:1", "why")], "f")
    demand_both([row("a"), row("b", "low")], [], "f")


def test_labels():
    labels = Labels(("good", "1", "true"), ("bad",))
    assert [labels.tier(one) for one in ("good", 1, True, " bad ", "?", None, ["bad"])] == [
        "high", "high", "high", "low", None, None, None,
    ]  # fmt: skip
    assert as_label(2.0) == "2.0"
    with pytest.raises(SettingsError, match="`x` is given for both"):
        Labels(("x",), ("x",))


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.text(max_size=8), st.lists(st.text(max_size=3), max_size=2)
)
FIELDS = st.sampled_from(["instruction", "input", "output", "high", "low", "tier", "model", "messages", "prompt", "x"])
RECORDS = st.lists(st.one_of(st.dictionaries(FIELDS, VALUES, max_size=7), VALUES), min_size=1, max_size=8)


@settings(deadline=None, max_examples=200)
@given(RECORDS, st.sampled_from(["pairs", "labels"]))
def test_any_file_gives_rows_or_reasons(tmp_path_factory, made, kind):
    """Whatever stands in the records: every one is accounted for, or one sentence says why the file is refused."""
    good = {"instruction": "q", "output": "o"} | ({"high": "h", "low": "l"} if kind == "pairs" else {"tier": "high"})
    path = write_jsonl(tmp_path_factory.mktemp("fuzz") / "f.jsonl", [good, *made])
    try:
        dataset = open_dataset(path)
        found = [*(by_pairs(dataset) if layout(dataset) == "pairs" else by_labels(dataset, Labels()))]
    except DataError as error:
        assert len(str(error)) < 2000
        return
    assert all(isinstance(item, TierRow | BadRow) for item in found)
    assert len(found) >= len(made) + 1
    for item in found:
        if isinstance(item, TierRow):
            assert item.response.content.strip() or item.response.tool_calls
            back = json.loads(json_line(item))
            assert back["tier"] in ("high", "low") and back["prompt_id"] == item.prompt_id


def test_signatures_agree_as_often_as_the_sets_do():
    first, second = (word_runs(" ".join(f"w{i}" for i in range(a, a + 400))) for a in (0, 100))
    found = signatures([first, second])
    assert np.mean(found[0] == found[1]) == pytest.approx(jaccard(first, second), abs=0.2)

"""Parsing of pipelines, and what their stages need."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tithe.errors import DataError, SettingsError
from tithe.run.pipeline import check_settings, column_names
from tithe.settings import ScoreSettings, SelectSettings, settings_from
from tithe.stages import Stage, naming_stage, parse_pipeline, split


def of(text: str) -> list[tuple[str | None, str, str | None, str, bool]]:
    return [(s.scorer, s.selector, s.model, s.budget, s.of_all) for s in parse_pipeline(text)]


GOOD = {
    "superfiltering:20% -> ifd:5%": [
        ("superfiltering", "top", None, "20%", False),
        ("ifd", "top", None, "5%", False),
    ],
    "superfiltering@gpt2:20%->ifd@org/model-7b: 500 -> top : 1% of all": [
        ("superfiltering", "top", "gpt2", "20%", False),
        ("ifd", "top", "org/model-7b", "500", False),
        (None, "top", None, "1%", True),
    ],
    "ifd(same_tokens=false)@m|stratified(by=kind, inner=random):200k-tokens": [
        ("ifd(same_tokens=false)", "stratified(by=kind, inner=random)", "m", "200k-tokens", False)
    ],
    "ifd | band(low=0.1) : 0.5  OF  All": [("ifd", "band(low=0.1)", None, "0.5", True)],
    # the budget is read from the right: a model may hold what separates
    "ifd@/data/my models/llama 3:8b:5%": [("ifd", "top", "/data/my models/llama 3:8b", "5%", False)],
    "ifd@me@home/model:5%": [("ifd", "top", "me@home/model", "5%", False)],
    'ifd@"/odd -> path | it\'s: here 5% b":5%': [("ifd", "top", "/odd -> path | it's: here 5% b", "5%", False)],
    "ifd@'a (b':5%": [("ifd", "top", "a (b", "5%", False)],
    "ifd@run (1)/model:5%": [("ifd", "top", "run (1)/model", "5%", False)],
    'ifd:9 -> stratified(by="a:b -> c|d@e"):5': [
        ("ifd", "top", None, "9", False),
        (None, 'stratified(by="a:b -> c|d@e")', None, "5", False),
    ],
    # a scorer goes before a selector of the same name, a bar says that the selector is meant
    "random:9 -> |random:5": [("random", "top", None, "9", False), (None, "random", None, "5", False)],
}


@pytest.mark.parametrize("text", GOOD)
def test_what_can_be_read(text: str) -> None:
    assert of(text) == GOOD[text]


# text -> words of the error, words of the hint
BAD = {
    "": ("pipeline is empty", "->"),
    "  ": ("pipeline is empty", "->"),
    "ifd:5% -> ": ("stage 2 of the pipeline", "->"),
    " -> ifd:5%": ("stage 1 of the pipeline", "->"),
    "ifd:5% -> -> ifd:5%": ("stage 2 of the pipeline", "->"),
    "ifd": ("stage 1, `ifd`, has no budget", "`ifd:5%`"),
    "ifd:5% -> length:": ("stage 2, `length:`, has no budget", "`length:5%`"),
    "ifd(same_tokens=true) -> length:5%": ("stage 1, `ifd(same_tokens=true)`, has no budget", ":5%"),
    ":5%": ("stage 1, `:5%`, cannot be read", "->"),
    "@gpt2:5%": ("cannot be read", "->"),
    "length:9 -> @gpt2|top:5%": ("names a model, but uses the scores", "`ifd@gpt2|top:5%`"),
    "|top|top:5%": ("cannot be read", "->"),
    "ifd|:5%": ("cannot be read", "->"),
    "ifd:0": ("stage 1, ifd: budget `0` keeps nothing", ""),
    "ifd:0%": ("stage 1, ifd: budget `0%` keeps nothing", ""),
    "length:9 -> ifd:101%": ("stage 2, ifd: budget `101%` is more than everything", ""),
    "length:9 -> ifd:lots": ("stage 2, ifd: budget `lots` cannot be read", "a budget is"),
    "ifd:5 of all": ("stage 1, ifd: `of all` goes with a share, not with `5`", "5% of all"),
    "ifd:2k-tokens of all": ("stage 1, ifd: `of all` goes with a share", "5% of all"),
    "ifd:of all": ("budget `of all` cannot be read", ""),
    "idf:5%": ("stage 1, `idf:5%`, names no scorer or selector: `idf`", "did you mean `ifd`?"),
    "ifd:5% -> stratifid(by=a):5": ("names no scorer or selector: `stratifid`", "did you mean `stratified`?"),
    "ifd|tpo:5%": ("names no selector: `tpo`", "did you mean `top`?"),
    "ifd|length:5%": ("names no selector: `length`", ""),
    "top|top:5%": ("names no scorer: `top`", ""),
    "ifd(same=1):5%": ("stage 1, ifd: `ifd` has no setting `same`", "same_tokens"),
    "ifd:9 -> stratified:5": ("stage 2, stratified: `stratified` needs the setting `by`", "by=..."),
    "top:5%": ("stage 1, top: a selector chooses by the scores of the stage before", "`ifd|top`"),
    "|random:5%": ("stage 1, random: a selector chooses", "begin with a scorer"),
    "ifd:9 -> top@gpt2:5": ("names a model, but uses the scores of the stage before", "`ifd@gpt2|top:5`"),
    "ifd|top@gpt2:5": ("has its model beside the selector", "`ifd@gpt2|top:5`"),
    "ifd@:5%": ("has no model after `@`", "`ifd@model:5%`"),
    "ifd(:5%": ("brackets or quotes do not match", "quotes"),
    "ifd):5%": ("brackets or quotes do not match", "quotes"),
    "ifd@o'brien:5%": ("brackets or quotes do not match", "quotes"),
    # the arrow forgotten, or another one
    "superfiltering:20% ifd:5%": ("has two budgets", "`->`"),
    "superfiltering@gpt2:20% ifd:5%": ("has two budgets", "`->`"),
    "superfiltering@gpt2:20%, ifd:5%": ("has two budgets", "`->`"),
    "superfiltering:20% > ifd:5%": ("has two budgets", "`->`"),
    "superfiltering:20%=>ifd:5%": ("has two budgets", "`->`"),
    "superfiltering:20%→ifd:5%": ("has two budgets", "`->`"),
    "superfiltering:2k-tokens ifd:5%": ("has two budgets", "`->`"),
}


@pytest.mark.parametrize("text", BAD)
def test_what_cannot_be_read(text: str) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_pipeline(text)
    words, hint = BAD[text]
    assert words in str(caught.value) and hint in (caught.value.hint or ""), (caught.value, caught.value.hint)
    assert "\n" not in str(caught.value)


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.text(),
        st.text("ifdtop:@|->()'\"5%, \0"),
        st.lists(
            st.sampled_from(
                [
                    "ifd",
                    "top",
                    "random",
                    "stratified(by=a)",
                    ":",
                    "5%",
                    "->",
                    "@",
                    "|",
                    "(",
                    ")",
                    "'",
                    " ",
                    "of all",
                    "m",
                ]
            )
        ).map("".join),
    )
)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        stages = parse_pipeline(text)
    except SettingsError as error:
        assert str(error)
    else:
        assert [stage.number for stage in stages] == list(range(1, len(stages) + 1))
        assert stages[0].scorer is not None


def written(stage: Stage, spaces: str) -> str:
    """Write a stage as text, by the grammar."""
    at = f'@"{stage.model}"' if stage.model else ""
    head = f"{stage.scorer}{at}{spaces}|{spaces}{stage.selector}" if stage.scorer else f"|{stage.selector}"
    return f"{head}{spaces}:{spaces}{stage.budget}{' of all' if stage.of_all else ''}"


SCORERS = st.sampled_from(["ifd", "superfiltering(same_tokens=false)", "length", "random(seed=3)"])
SELECTORS = st.sampled_from(["top", "top(ties=last)", "band(low=0.1, high=0.9)", 'stratified(by="a:b -> c")', "random"])
MODELS = st.none() | st.text(st.characters(exclude_characters='"', codec="utf-8"), min_size=1).filter(
    lambda text: text == text.strip() and text[0] not in "'"
)
SHARES = st.tuples(st.sampled_from(["5%", "0.25", "100%"]), st.booleans())
BUDGETS = SHARES | st.tuples(st.sampled_from(["5", "1000", "20k-tokens", "0.5m tokens"]), st.just(False))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(SCORERS | st.none(), SELECTORS, MODELS, BUDGETS), min_size=1, max_size=4),
    st.sampled_from(["", " "]),
)
def test_what_is_written_is_read(made: list[tuple[str | None, str, str | None, tuple[str, bool]]], spaces: str) -> None:
    stages = [
        Stage(i, "", scorer if i > 1 else scorer or "ifd", selector, model if scorer else None, *budget)
        for i, (scorer, selector, model, budget) in enumerate(made, 1)
    ]
    text = f"{spaces}->{spaces}".join(written(stage, spaces) for stage in stages)
    expected = [(s.scorer, s.selector, s.model, s.budget, s.of_all) for s in stages]
    assert of(text) == expected, text


def test_marks_in_quotes_and_brackets_are_text() -> None:
    assert split("a->b", "->") == ["a", "b"]
    assert split("a(->)b->'->'->\"'->\"", "->") == ["a(->)b", "'->'", '"\'->"']
    assert split("", "->") == [""] and split("->", "->") == ["", ""]


def test_a_share_of_all_is_rows_of_the_whole() -> None:
    first, last = parse_pipeline("ifd:50% -> top:1% of all")
    assert first.budget_for(1000, "input").rows(200, 150) == 100  # of what comes in
    assert first.budget_for(1000, "kept").rows(200, 150) == 75  # of what the filters leave
    assert last.budget_for(1000, "input").rows(200, 150) == 10  # of the whole, whatever comes in
    assert last.budget_for(1000, "kept").rows(200, 150) == 10
    assert str(last.budget_for(1000, "input")) == "1% of all"
    with pytest.raises(SettingsError, match="`1% of all` of 99 examples comes to 0 rows"):
        last.budget_for(99, "input")


def test_columns_of_a_scorer_that_comes_again() -> None:
    stages = parse_pipeline("ifd@a:90% -> length:90% -> ifd@b:50% -> top:50% -> ifd:50%")
    assert column_names(stages) == [{"ifd": "ifd"}, {"length": "length"}, {"ifd": "ifd_2"}, {}, {"ifd": "ifd_3"}]


def test_a_stage_may_rank_by_several_scorers() -> None:
    text = "rank(ifd)+2*rank(length)@m:50% -> rank(ifd(same_tokens=false))-rank(perplexity)|bottom:5% -> top:3"
    stages = parse_pipeline(text)
    assert [stage.specs for stage in stages] == [("ifd", "length"), ("ifd(same_tokens=false)", "perplexity"), ()]
    assert [stage.model for stage in stages] == ["m", None, None] and stages[1].selector == "bottom"
    assert stages[0].label == "stage 1, rank(ifd)+2*rank(length)"
    assert column_names(stages) == [
        {"ifd": "ifd", "length": "length", "rank(ifd)+2*rank(length)": "rank(ifd)+2*rank(length)"},
        {"ifd": "ifd_2", "perplexity": "perplexity", "rank(ifd)-rank(perplexity)": "rank(ifd_2)-rank(perplexity)"},
        {},
    ]
    for bad, words in {
        "rank(ifdd)+rank(length):5%": "there is no scorer `ifdd`",
        "rank(ifd)+length:5%": "is no mean of ranks",
        "rank(ifd)+rank(ifd):5%": "has `ifd` twice",
    }.items():
        with pytest.raises(SettingsError, match=words):
            parse_pipeline(bad)


def test_stages_are_called_by_number_and_name() -> None:
    labels = [stage.label for stage in parse_pipeline("ifd(same_tokens=true)@a/b|band(low=0.1):9 -> top:5 -> length:1")]
    assert labels == ["stage 1, ifd|band", "stage 2, top", "stage 3, length"]


def test_errors_name_the_stage_and_keep_their_kind() -> None:
    (stage,) = parse_pipeline("ifd:5%")
    with pytest.raises(DataError, match=r"^stage 1, ifd: gone$") as caught, naming_stage(stage):
        raise DataError("gone", hint="look")
    assert caught.value.hint == "look"


@pytest.mark.parametrize(
    ("name", "value"), [("scorer", "length"), ("by", "ifd"), ("selector", "bottom"), ("keep", 7), ("preset", "cherry")]
)
def test_settings_that_the_stages_have_are_refused(name: str, value: object) -> None:
    check_settings(SelectSettings.of({"dataset": "a", "pipeline": "ifd:5%"}))
    with pytest.raises(SettingsError, match=f"`--{name}` does not go with `--pipeline`"):
        check_settings(SelectSettings.of({"dataset": "a", "pipeline": "ifd:5%", name: value}))


def test_only_a_selection_takes_a_pipeline(tmp_path) -> None:
    config = tmp_path / "settings.yaml"
    config.write_text("dataset: a.jsonl\npipeline: 'ifd:5%'\nkeep_of: kept\n")
    assert settings_from(SelectSettings, {}, config).pipeline == "ifd:5%"
    with pytest.raises(SettingsError, match="has a `pipeline`, which only `tithe select` runs"):
        settings_from(ScoreSettings, {}, config)
    with pytest.raises(SettingsError, match="unknown setting `pipeline`") as caught:
        ScoreSettings.of({"dataset": "a", "pipeline": "ifd:5%"})
    assert "one by one" in (caught.value.hint or "")

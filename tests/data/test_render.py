from __future__ import annotations

import unicodedata
from functools import cache
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.data.small import CHATML, CORPUS, Letters, dialogue, example, tokenizer
from tests.data.test_templates import DIALOGUES, REAL
from tests.matrix import pairs
from tests.shared import SHARED
from tithe.data.render import EncodedExample, Renderer, RenderSettings, TemplateRenderer, Truncation, make_renderer
from tithe.data.rendered import Rendered
from tithe.data.tokens import TextTokenizer
from tithe.errors import SettingsError
from tithe.records import Example, Pass, Problem

NAMES = ("gpt2", "qwen2.5", "mistral-7b-instruct-v0.3")
shared = pytest.mark.shared
needs_tokenizers = pytest.mark.skipif(
    not (SHARED / "data" / "tokenizers").exists(), reason="no ../shared/data/tokenizers"
)
ANCHORS = ("### Response:", "\n", "\n\n", "<|im_start|>assistant\n", "[/INST]", "ASSISTANT:", "")
# Texts that are hard at boundaries: white space, combining marks, halves of markers, other scripts, emoji.
_HARD = [
    *" \n\t\r'#:<|>/▁ĠéÀשלום你好\u0301\u200b\x00",
    "  ",
    "\n\n",
    "</s>",
    "[/INST]",
    "e\u0301",
    "👩\u200d👧",
    " a",
    "The",
]
texts = st.lists(
    st.one_of(st.sampled_from(_HARD), st.characters(exclude_categories=["Cs"])), min_size=1, max_size=12
).map("".join)


@cache
def real(name: str) -> Any:
    return AutoTokenizer.from_pretrained(SHARED / "data" / "tokenizers" / name)


@cache
def tokens(name: str) -> TextTokenizer:
    return TextTokenizer(tokenizer(name) if name in ("bytes", "spaces") else real(name))


def renderer(tok: Any = None, **changes: Any) -> TemplateRenderer:
    made = make_renderer(tok or tokenizer(), RenderSettings(**changes))
    assert isinstance(made, TemplateRenderer)
    return made


def encoded(made: Renderer, one: Example) -> EncodedExample:
    (out,) = made.encode([one])
    assert isinstance(out, EncodedExample), out
    return out


def passes(made: Renderer, one: Example, *shots: Example) -> dict[str, Pass]:
    whole = encoded(made, one)
    out = {
        kind: made.build(kind, whole, [encoded(made, shot) for shot in shots]) for kind in ("given", "alone", "shown")
    }
    assert all(isinstance(value, Pass) for value in out.values()), out
    return out  # type: ignore[return-value]


def response(one: Pass) -> list[int]:
    return one.ids[one.start :].tolist()


# The boundary


def check_boundary(name: str, anchor: str, text: str) -> None:
    """Check that the ids after the anchor decode to the text, with nothing lost or added."""
    own = tokens(name)
    backend = own._backend()
    (ids,), (head,) = own.encode_after([anchor], [text]), own.encode([anchor or "\n"])
    if name == "qwen2.5":
        text = unicodedata.normalize("NFC", text)
    if name.startswith("mistral"):
        text = text.replace("▁", " ")  # how it writes spaces
    got = backend.decode([*head, *ids], skip_special_tokens=False)
    assert got == (anchor or "\n") + text
    if name in ("gpt2", "qwen2.5", "bytes"):
        assert backend.decode(ids.tolist(), skip_special_tokens=False) == text


@pytest.mark.slow
@shared
@needs_tokenizers
@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=300, deadline=None)
@given(anchor=st.sampled_from(ANCHORS), text=texts)
def test_no_drift_at_the_boundary(name: str, anchor: str, text: str) -> None:
    check_boundary(name, anchor, text)


@settings(max_examples=200, deadline=None)
@given(anchor=st.sampled_from(ANCHORS), text=texts)
def test_no_drift_with_a_small_tokenizer(anchor: str, text: str) -> None:
    check_boundary("bytes", anchor, text)


@pytest.mark.parametrize("anchor", ["### Response:", "\n", "\n\n"])
@pytest.mark.parametrize("text", ["Red and blue.", "over again", "a", "###", "R\n\n"])
def test_no_word_begins_with_an_invented_space(anchor: str, text: str) -> None:
    own = tokens("spaces")
    (ids,) = own.encode_after([anchor], [text])
    pieces = [own._backend().id_to_token(int(i)) for i in ids]
    assert "".join(pieces).replace("▁", " ") == text


@shared
@needs_tokenizers
@pytest.mark.parametrize(
    ("name", "first"), [("gpt2", "Hello"), ("qwen2.5", "Hello"), ("mistral-7b-instruct-v0.3", "Hello")]
)
def test_first_token_after_a_newline(name: str, first: str) -> None:
    made = renderer(real(name), template="alpaca")
    whole = encoded(made, example(answer="Hello there"))
    assert real(name).convert_ids_to_tokens(int(whole.response[0])) == first


@settings(max_examples=50, deadline=None)
@given(
    answer=texts, asked=st.lists(texts, min_size=2, max_size=3), template=st.sampled_from(["alpaca", "plain", "chat"])
)
def test_response_ids_do_not_depend_on_the_prompt_or_on_neighbours(
    answer: str, asked: list[str], template: str
) -> None:
    made = renderer(tokenizer(chat=CHATML), template=template)
    outs = made.encode([example(one, answer) for one in asked])
    if not answer.strip():
        assert all(isinstance(out, Problem) for out in outs)
        return
    assert {tuple(out.response.tolist()) for out in outs} == {
        tuple(encoded(made, example("", answer)).response.tolist())
    }  # type: ignore[union-attr]


# The passes


def test_layout_of_text_passes() -> None:
    made = renderer(tokenizer(bos=True), template="alpaca")
    one, shot = example("Add.", "Four."), example("Name.", "Red.")
    got, backend = passes(made, one, shot), made._tokens._backend()
    texts = {kind: backend.decode(value.ids.tolist(), skip_special_tokens=False) for kind, value in got.items()}
    asked, before = made.render(one), made.render(shot)
    assert isinstance(asked, Rendered) and isinstance(before, Rendered)
    assert texts["given"] == f"<s>{asked.prompt}Four."
    assert texts["alone"] == "<s>Four."
    assert texts["shown"] == f"<s>{before.prompt}Red.\n\n{asked.prompt}Four."
    assert len({tuple(response(value)) for value in got.values()}) == 1
    assert got["alone"].start == 1
    assert passes(renderer(template="alpaca"), one)["alone"].start == 0


def test_layout_of_chat_passes() -> None:
    made = renderer(tokenizer(chat=CHATML))
    got = passes(made, example("Add.", "Four."), example("Name.", "Red."))
    decode = made._tokens._backend().decode
    head = "<|im_start|>system\nBe good.<|im_end|>\n"
    turn = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n{}"
    shown = decode(got["shown"].ids.tolist(), skip_special_tokens=False)
    assert shown == head + turn.format("Name.", "Red.") + "<|im_end|>\n" + turn.format("Add.", "Four.")
    ends = passes(renderer(tokenizer(chat=CHATML), eos=True), example("Add.", "Four."), example("Name.", "Red."))
    assert decode(ends["shown"].ids.tolist(), skip_special_tokens=False) == shown + "<|im_end|>"
    assert decode(ends["alone"].ids.tolist(), skip_special_tokens=False) == "Four.<|im_end|>"
    assert response(ends["given"]) == response(ends["alone"]) == response(ends["shown"])


def test_shot_with_its_own_system_message_keeps_both() -> None:
    made = renderer(tokenizer(chat=CHATML))
    one = dialogue(("system", "Hm."), ("user", "Add."), ("assistant", "Four."))
    shown = made._tokens._backend().decode(
        passes(made, one, example())["shown"].ids.tolist(), skip_special_tokens=False
    )
    assert shown.count("<|im_start|>system") == 2
    assert "Red, green and blue.<|im_end|>\n<|im_start|>system\nHm." in shown


def test_shown_without_shots_is_given() -> None:
    got = passes(renderer(), example())
    assert got["shown"].key == got["given"].key


def test_alone_header() -> None:
    made = renderer(tokenizer(bos=True), template="alpaca", alone_header="### Response:")
    got = passes(made, example())["alone"]
    assert made._tokens._backend().decode(got.ids.tolist()[1 : got.start]) == "### Response:"
    assert response(got) == response(passes(renderer(tokenizer(bos=True), template="alpaca"), example())["alone"])


def test_eos_is_scored_only_when_asked_for() -> None:
    for template in ("plain", "chat"):
        plain = passes(renderer(tokenizer(chat=CHATML), template=template), example())
        ends = passes(renderer(tokenizer(chat=CHATML), template=template, eos=True), example())
        last = tokenizer().convert_tokens_to_ids("</s>" if template == "plain" else "<|im_end|>")
        for kind in ("given", "alone"):
            assert response(ends[kind]) == [*response(plain[kind]), last]
    with pytest.raises(SettingsError, match="no EOS"):
        renderer(tokenizer(eos_token=None), eos=True)


# BOS

WITH_BOS = "{{ bos_token }}" + CHATML


@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("template", ["plain", "chat"])
@pytest.mark.parametrize("chat", [CHATML, WITH_BOS])
@pytest.mark.parametrize("bos", ["auto", "always", "never"])
def test_bos_is_never_doubled(adds: bool, template: str, chat: str, bos: str) -> None:
    made = renderer(tokenizer(bos=adds, chat=chat), template=template, bos=bos)
    got = passes(made, example(), example("Name."))
    by_itself = adds if template == "plain" else chat == WITH_BOS
    expected = {"auto": int(by_itself), "always": 1, "never": 0}[bos]
    for value in got.values():
        assert value.ids.tolist().count(1) == expected
        assert (value.ids[0] == 1) == bool(expected)


def test_bos_in_the_text_is_not_doubled() -> None:
    made = renderer(tokenizer(bos=True), template="plain")
    assert passes(made, example("<s>Add."))["given"].ids.tolist().count(1) == 1


def test_bos_always_needs_one() -> None:
    with pytest.raises(SettingsError, match="no BOS token"):
        renderer(tokenizer(bos_token=None), bos="always")


# Truncation


@settings(max_examples=60, deadline=None)
@given(
    limit=st.integers(1, 120), mode=st.sampled_from(get_args(Truncation)), bos=st.booleans(), header=st.booleans(),
    n=st.integers(1, 60),
)  # fmt: skip
def test_truncation_arithmetic(limit: int, mode: str, bos: bool, header: bool, n: int) -> None:
    tok = tokenizer(bos=bos)
    words = {"template": "wizardlm", "alone_header": "### Response:" if header else ""}
    one = example("Add. " * 7, "x" * n)
    whole = passes(renderer(tok, max_length=10_000, **words), one, one)
    made = renderer(tok, max_length=limit, truncation=mode, **words)
    uncut, full = encoded(made, one), len(whole["given"].ids)
    between = len(whole["shown"].ids) - len(uncut.lead) - 2 * (full - len(uncut.lead))
    outs = {kind: made.build(kind, uncut, [uncut]) for kind in ("given", "alone", "shown")}
    refused = {kind for kind, out in outs.items() if isinstance(out, Problem)}
    if mode == "problem":
        too_long = max(full, len(whole["alone"].ids)) > limit
        assert refused == (set(outs) if too_long else {"shown"} if len(whole["shown"].ids) > limit else set())
    too_long = {"shown"} if limit <= len(whole["given"].ids) + between else set()
    if mode == "prompt":
        hopeless = max(full, len(whole["alone"].ids)) > limit and len(whole["alone"].ids) > limit
        assert refused == (set(outs) if hopeless else too_long)
    if mode == "response":
        assert refused == (set(outs) if limit <= whole["given"].start else too_long)
    for kind, out in outs.items():
        if isinstance(out, Problem):
            continue
        assert len(out.ids) <= limit
        assert out.response_tokens + out.cut_response == len(uncut.response)
        assert response(out) == uncut.response[: out.response_tokens].tolist()
        assert out.response_tokens == len(uncut.response) or mode == "response"
        assert not bos or out.ids[0] == 1
        if kind == "given":
            assert len(out.ids) + out.cut_prompt + out.cut_response == full
            assert out.cut_prompt == 0 or mode == "prompt"
            tail = uncut.prompt[out.cut_prompt :].tolist()
            assert out.ids[: out.start].tolist() == [*uncut.lead.tolist(), *tail]


def test_the_shot_gives_way_first() -> None:
    """Test every maximal length, from nothing to everything."""
    one, shot = example("Add.", "Four."), example("Name three colours.", "Red, green and blue.")
    whole = passes(renderer(tokenizer(bos=True), max_length=10_000, template="alpaca"), one, shot)
    full = len(whole["shown"].ids)
    seen = set()
    for limit in range(1, full + 2):
        made = renderer(tokenizer(bos=True), max_length=limit, template="alpaca")
        uncut, before = encoded(made, one), encoded(made, shot)
        got, zero = made.build("shown", uncut, [before]), made.build("given", uncut)
        whole_shot = len(before.prompt) + len(before.response)
        if limit <= full - whole_shot:  # no token of the shot would be left: a problem, not a pass without the shot
            assert isinstance(got, Problem)
            why = "no room for the worked example: " if isinstance(zero, Pass) else "no response token left: "
            assert got.reason.startswith(why) and got.reason.endswith(str(limit))
            seen.add(why)
            continue
        assert isinstance(got, Pass) and isinstance(zero, Pass)
        assert response(got) == response(zero) == uncut.response.tolist()
        assert len(got.ids) == min(limit, full) == full - got.cut_shots
        assert (got.cut_prompt, got.cut_response) == (0, 0)
        assert got.ids.tolist() == [1, *whole["shown"].ids[1 + got.cut_shots :].tolist()]
        assert got.shots == 1 + whole_shot - got.cut_shots
        seen.add(got.cut_shots)
    assert seen == {*range(whole_shot), "no room for the worked example: ", "no response token left: "}


@pytest.mark.parametrize("template", ["alpaca", "chat", "plain"])
def test_shots_begin_all_passes_alike(template: str) -> None:
    """`shots` counts the tokens of the shot's own zero-shot sequence, whatever follows it."""
    made = renderer(tokenizer(bos=True, chat=CHATML), max_length=10_000, template=template)
    shot = encoded(made, example("Name three colours.", "Red, green and blue."))
    system = dialogue(("system", "Hm."), ("user", "Add."), ("assistant", "Four."))
    others = [encoded(made, one) for one in (example("Add.", "Four."), system)]
    passes = [made.build("shown", one, [shot]) for one in others]
    own = made.build("given", shot)
    assert isinstance(own, Pass) and all(isinstance(each, Pass) for each in passes)
    for each in passes:
        assert isinstance(each, Pass)
        assert each.shots == len(own.ids)
        assert each.ids[: each.shots].tolist() == own.ids.tolist()


def test_of_several_shots_the_first_gives_way_first() -> None:
    made = renderer(tokenizer(bos=True), max_length=10_000, template="plain")
    one, far, near = (encoded(made, example(*texts)) for texts in (("Add.", "4"), ("Far?", "Yes"), ("Near?", "No")))
    whole = made.build("shown", one, [far, near])
    assert isinstance(whole, Pass) and whole.cut_shots == 0
    tight = renderer(tokenizer(bos=True), max_length=len(whole.ids) - len(far.prompt), template="plain")
    got = tight.build("shown", one, [far, near])
    assert isinstance(got, Pass)
    assert got.cut_shots == len(far.prompt) and got.ids[1:].tolist() == whole.ids[1 + got.cut_shots :].tolist()


def test_reasons_name_both_numbers() -> None:
    one = example("Add. " * 20, "Four. " * 20)
    n = len(passes(renderer(max_length=9999), one)["given"].ids)
    reasons = {}
    for mode in get_args(Truncation):
        made = renderer(max_length=20, truncation=mode)
        out = made.build("given", encoded(made, one))
        assert isinstance(out, Problem)
        reasons[mode] = out.reason
    assert reasons["problem"] == f"longer than max length: {n} > 20 tokens"
    assert reasons["response"].startswith("no response token left: the prompt alone has ")
    assert reasons["response"].endswith(" tokens, max length is 20")
    assert reasons["prompt"].startswith("the response alone is longer than max length: ")


def test_settings_that_cannot_be() -> None:
    with pytest.raises(SettingsError, match="max length 2048 is more than the model's context window of 512 tokens"):
        make_renderer(tokenizer(), RenderSettings(), context_window=512)
    with pytest.raises(SettingsError, match="at least 1 token, not 0"):
        renderer(max_length=0)
    with pytest.raises(SettingsError, match="unknown truncation `left`"):
        renderer(truncation="left")


# Hard texts and other tokenizers


@pytest.mark.parametrize("text", ["a\x00b", "👩‍👩‍👧 ok", "שלום עולם", "e\u0301", "\ufeffx", "x" * 100_000])
@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_hard_texts_go_through(text: str, template: str) -> None:
    made = renderer(tokenizer(chat=CHATML), template=template, max_length=10**6)
    whole = encoded(made, example(text, text))
    assert made._tokens._backend().decode(whole.response.tolist()) == text


@pytest.mark.parametrize("template", ["alpaca", "chat"])
def test_lone_surrogates_are_a_problem(template: str) -> None:
    made = renderer(tokenizer(chat=CHATML), template=template)
    good, bad, worse = made.encode([example(), example(answer="a\ud800"), example("\udfff")])
    assert isinstance(good, EncodedExample)
    assert isinstance(bad, Problem) and "lone surrogate U+D800" in bad.reason
    assert isinstance(worse, Problem) and "lone surrogate U+DFFF" in worse.reason


def test_slow_tokenizer() -> None:
    made = renderer(Letters(), template="wizardlm")
    got = passes(made, example("Add.", "Four."), example())
    assert "".join(map(chr, got["given"].ids)) == "Add.\n\n### Response:Four."
    assert response(got["shown"]) == [ord(c) for c in "Four."]


def test_the_users_tokenizer_stays_as_it_is() -> None:
    tok = tokenizer(bos=True)
    tok.backend_tokenizer.enable_truncation(5)
    tok.backend_tokenizer.enable_padding(length=50)
    got = passes(renderer(tok, template="alpaca"), example())["given"]
    assert got.ids.tolist() == passes(renderer(tokenizer(bos=True), template="alpaca"), example())["given"].ids.tolist()
    assert tok.backend_tokenizer.truncation["max_length"] == 5
    assert tok.backend_tokenizer.padding["length"] == 50


def test_empty_batch_and_problems_keep_their_places() -> None:
    made = renderer()
    assert made.encode([]) == []
    outs = made.encode([example(answer=answer) for answer in ("a", " ", "b", "")])
    assert [isinstance(out, Problem) for out in outs] == [False, True, False, True]


def test_describe_names_everything_that_changes_ids() -> None:
    plain = renderer(tokenizer(bos=True)).describe()
    assert plain == {
        "template": "plain", "template_hash": plain["template_hash"], "max_length": 2048, "bos": "auto", "eos": False,
        "alone_header": "", "truncation": "response", "lead_ids": [1],
    }  # fmt: skip
    chat = renderer(tokenizer(chat=CHATML)).describe()
    assert (chat["template"], chat["template_date"]) == ("chat", "2024-07-26")
    assert chat["template_hash"] != renderer(tokenizer(chat=CHATML + " ")).describe()["template_hash"]


# Real templates on real tokenizers


@shared
@needs_tokenizers
@pytest.mark.parametrize(("path", "name"), pairs(REAL, NAMES, lambda path: path.stem))
def test_real_templates_on_real_tokenizers(path: Any, name: str) -> None:
    made = renderer(real(name), template=str(path))
    backend = made._tokens._backend()
    scored = 0
    for one, out in zip(DIALOGUES.values(), made.encode(list(DIALOGUES.values())), strict=True):
        if isinstance(out, Problem):
            continue
        scored += 1
        got, text = passes(made, one, DIALOGUES["single"]), made.render(one)
        assert isinstance(text, Rendered)
        assert response(got["given"]) == response(got["alone"]) == response(got["shown"])
        found = backend.decode(response(got["given"]), skip_special_tokens=False)
        assert found.strip() == text.response.strip().replace("▁", " " if name.startswith("mistral") else "▁")
        assert not np.array_equal(got["given"].ids, got["alone"].ids)
        bos = made._frame._leads[0]
        if len(bos):
            assert got["given"].ids.tolist()[:2] != [bos[0]] * 2
    assert scored >= 3


@shared
@needs_tokenizers
@pytest.mark.parametrize("name", NAMES)
def test_small_corpus_on_real_tokenizers(name: str) -> None:
    made = renderer(real(name), template="alpaca")
    for whole, words in zip(made.encode([example(words, words) for words in CORPUS]), CORPUS, strict=True):
        assert isinstance(whole, EncodedExample)
        assert (
            made._tokens._backend()
            .decode([*made._tokens.encode(["### Response:"])[0], *whole.response])
            .endswith(words)
        )

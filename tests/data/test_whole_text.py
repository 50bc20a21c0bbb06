"""The ids of a pass equal those of the whole text as transformers renders and tokenises it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import normalizers
from transformers.utils.chat_template_utils import render_jinja_template

from tests.data.small import CHATML, dialogue, example, tokenizer
from tests.data.test_render import NAMES, encoded, needs_tokenizers, passes, real, renderer, response
from tests.data.test_templates import CALL, DIALOGUES, REAL, TOOL, WEATHER
from tests.matrix import pairs
from tests.shared import SHARED
from tithe.data.chat import ChatTemplate
from tithe.data.paper_renderers import CherryRenderer, CpqsRenderer, SuperfilteringRenderer
from tithe.data.render import EncodedExample, RenderSettings
from tithe.data.rendered import Rendered
from tithe.errors import TemplateError
from tithe.records import Example, Message, Pass, Problem

THINKING = "<think>\nI add two and two.\n</think>\n\nIt is four."
ASKED = Message("user", "What is 2+2?")
MORE = {
    **DIALOGUES,
    "inline thinking": Example("g", 0, 1, (ASKED,), Message("assistant", THINKING)),
    "text beside a call": Example(
        "h", 0, 1, WEATHER[:1], Message("assistant", "Let me look.", None, (CALL,)), tools=(TOOL,)
    ),
    "blank lines": Example(
        "i", 0, 1, (Message("user", "Write code."),), Message("assistant", "if x:\n\n\n    y = 1\n")
    ),
    "other scripts": Example("j", 0, 1, (Message("user", "你好 e\u0301 👩‍👧"),), Message("assistant", "שלום 雨.")),
}


def whole_text(template: ChatTemplate, one: Example, special: dict[str, Any]) -> str:
    """Return the dialogue as transformers renders it."""
    messages = [message.as_dict() for message in (*one.prompt, one.response)]
    if template._parts:
        for message in messages:
            message["content"] = [{"type": "text", "text": message["content"]}]
    (text,), _ = render_jinja_template(
        [messages],
        [dict(tool) for tool in one.tools] or None,
        chat_template=template.source,
        **{"bos_token": "", "eos_token": "", **special},
    )
    return str(text)


@pytest.mark.shared
@needs_tokenizers
@pytest.mark.parametrize(("path", "name"), pairs(REAL, NAMES, lambda path: path.stem))
def test_ids_are_those_of_the_whole_text(path: Path, name: str) -> None:
    tok = real(name)
    made = renderer(tok, template=str(path))
    template, checked = made.template, 0
    assert isinstance(template, ChatTemplate)
    for one, out in zip(MORE.values(), made.encode(list(MORE.values())), strict=True):
        text = template.render(one)
        if isinstance(out, Problem) or "strftime_now" in template.source:
            continue
        assert isinstance(text, Rendered)
        before = text.prompt + text.response
        try:
            assert whole_text(template, one, tok.special_tokens_map).startswith(before)
        except TypeError:
            assert one.tools  # this template needs arguments as text, which transformers leaves to the caller
        expected = tok(before, add_special_tokens=False)["input_ids"]
        given = passes(made, one)["given"]
        assert out.remarks.apart == (given.ids.tolist() != expected)
        checked += not out.remarks.apart
    assert checked >= 3 or "strftime_now" in template.source


@pytest.mark.shared
@needs_tokenizers
@pytest.mark.parametrize(("path", "name"), pairs(REAL, NAMES, lambda path: path.stem))
def test_a_worked_example_is_an_earlier_turn_of_the_whole_text(path: Path, name: str) -> None:
    """With a template that allows further turns, the pass reads as one dialogue of four turns."""
    tok = real(name)
    made = renderer(tok, template=str(path))
    template = made.template
    assert isinstance(template, ChatTemplate)
    if template.turns.between is None or "strftime_now" in template.source:
        return
    first, second = example("Name a river.", "The Rhine.\n"), example("\nAnd a sea?", "The North Sea.")
    four = dialogue(
        ("user", "Name a river."),
        ("assistant", "The Rhine.\n"),
        ("user", "\nAnd a sea?"),
        ("assistant", "The North Sea."),
    )
    asked, shot = template.render(second), template.render(first)
    text = whole_text(template, four, tok.special_tokens_map)
    assert isinstance(asked, Rendered) and isinstance(shot, Rendered)
    until = text[: text.rindex("The North Sea.") + len("The North Sea.")]
    if not (until.startswith(shot.prompt + shot.response) and asked.prompt.startswith(template.turns.opening)):
        return  # this template writes earlier turns differently from the last
    if encoded(made, first).remarks.apart or encoded(made, second).remarks.apart:
        return  # one token would span prompt and response
    given = passes(made, second, first)
    assert given["shown"].ids.tolist() == tok(until, add_special_tokens=False)["input_ids"]
    assert response(given["shown"]) == response(given["given"]) == response(given["alone"])


@pytest.mark.shared
@needs_tokenizers
@pytest.mark.parametrize("template", ["plain", "alpaca", "superfiltering", "wizardlm"])
@pytest.mark.parametrize("name", NAMES)
def test_texts_without_roles(name: str, template: str) -> None:
    tok = real(name)
    made = renderer(tok, template=template)
    first, second = example("Name a river.", "The Rhine."), example("And a sea?", "The North Sea.")
    got = passes(made, second, first)
    one, shot = made.render(second), made.render(first)
    assert isinstance(one, Rendered) and isinstance(shot, Rendered)
    if encoded(made, second).remarks.apart:  # Qwen's tokenizer makes one token of `:The`
        assert (name, one.prompt[-1]) == ("qwen2.5", ":")
        return
    assert got["given"].ids.tolist() == tok(one.prompt + one.response)["input_ids"]
    text = f"{shot.prompt}{shot.response}\n\n{one.prompt}{one.response}"
    assert got["shown"].ids.tolist() == tok(text)["input_ids"]


@pytest.mark.shared
@needs_tokenizers
def test_a_blank_line_before_a_word_is_two_tokens_of_gpt2() -> None:
    made = renderer(real("gpt2"), template="plain")
    whole = encoded(made, example("Name a river.", "The Danube."))
    assert real("gpt2").convert_ids_to_tokens(whole.prompt.tolist())[-3:] == [".", "Ċ", "Ċ"]
    assert real("gpt2").convert_ids_to_tokens(whole.response.tolist())[0] == "The"


@pytest.mark.shared
@needs_tokenizers
@pytest.mark.parametrize(
    ("name", "asked", "answer"),
    [("qwen2.5", "x", "\nHello"), ("gpt2", "x", "::")],  # `:\n`, `:::` are one token
)
def test_a_token_over_the_boundary_is_counted(name: str, asked: str, answer: str) -> None:
    tok = real(name)
    made = renderer(tok, template="alpaca")
    one = example(asked, answer)
    text = made.render(one)
    assert isinstance(text, Rendered)
    out = encoded(made, one)
    assert out.remarks.apart
    assert out.ids.tolist() != tok(text.prompt + text.response)["input_ids"]
    assert tok.decode(out.prompt.tolist()).endswith("### Response:")  # nothing of the response is in the prompt


@pytest.mark.parametrize("answer", ["\x00red", "\u200bred", "\u0301red"])
def test_what_a_normalizer_leaves_out_is_not_counted_as_tokenised_apart(answer: str) -> None:
    """A dropped character has no offset, but the ids are those of the whole text."""
    tok = tokenizer("spaces")
    tok.backend_tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    made = renderer(tok, template="plain")
    one = example("Name a colour.", answer)
    text, out = made.render(one), encoded(made, one)
    assert isinstance(text, Rendered)
    assert out.ids.tolist() == tok(text.prompt + text.response)["input_ids"]
    assert not out.remarks.apart


def test_white_space_before_a_word_belongs_to_the_response() -> None:
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    out = encoded(renderer(tokenizer("spaces", chat=template)), example("Hi", "over again"))
    assert not out.remarks.apart
    assert tokenizer("spaces").convert_ids_to_tokens(int(out.response[0])).startswith("▁")


# BOS and EOS

TURNS = "{% for m in messages %}<s>{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"


def test_bos_that_opens_turns_is_no_lead() -> None:
    """SmolLM2's BOS is `<|im_start|>`, which opens each turn, so `alone` does not begin with it."""
    made = renderer(tokenizer(chat=TURNS))
    got = passes(made, example("Add.", "Four."), dialogue(("system", "Hm."), ("user", "Name."), ("assistant", "Red.")))
    decode = made._tokens._backend().decode
    assert decode(got["alone"].ids.tolist(), skip_special_tokens=False) == "Four."
    assert decode(got["shown"].ids.tolist(), skip_special_tokens=False) == (
        "<s>system\nHm.</s>\n<s>user\nName.</s>\n<s>assistant\nRed.</s>\n<s>user\nAdd.</s>\n<s>assistant\nFour."
    )


def test_bos_of_a_second_dialogue_stays_where_it_opens_turns() -> None:
    made = renderer(tokenizer(bos=True, chat=TURNS))
    got = passes(made, dialogue(("system", "Hm."), ("user", "Add."), ("assistant", "Four.")), example("Name.", "Red."))
    text = made._tokens._backend().decode(got["shown"].ids.tolist(), skip_special_tokens=False)
    assert text.startswith("<s>user\nName.</s>\n<s>assistant\nRed.</s>\n<s>system\nHm.")


@pytest.mark.parametrize("template", ["plain", "chat"])
def test_an_end_in_the_text_is_not_doubled_and_counted(template: str) -> None:
    chat = "{% for m in messages %}{{ m.role }}\n{{ m.content }}</s>\n{% endfor %}"
    made = renderer(tokenizer(chat=chat), template=template, eos=True)
    own, usual = encoded(made, example("Add.", "Four.</s>")), encoded(made, example("Add.", "Four."))
    assert (own.remarks.own_end, usual.remarks.own_end) == (True, False)
    ends = own.response.tolist().count(2)
    assert ends == (1 if template == "plain" else 2)  # a chat template writes its own, and that is said


# What a template leaves out


def left_out(source: str, one: Example) -> tuple[str, ...]:
    out = ChatTemplate("chat", source, {}).render(one)
    assert isinstance(out, Rendered), out
    return out.remarks.left_out


BARE = "{% for m in messages %}{% if m.role != 'system' %}[{{ m.role }}]{{ m.content }};{% endif %}{% endfor %}"


def test_a_system_message_that_is_dropped_is_named_though_its_words_stand_elsewhere() -> None:
    one = dialogue(("system", "yes"), ("user", "Say yes."), ("assistant", "yes"))
    assert left_out(BARE, one) == ("system message",)
    assert left_out(CHATML, one) == ()


def test_reasoning_calls_schemas_and_results() -> None:
    call = Message("assistant", "Let me look.", "They want it.", (CALL,))
    one = Example("x", 0, 3, (Message("user", "Weather?"), call, Message("tool", "22C")), call, tools=(TOOL,))
    assert left_out(BARE, one) == (
        "earlier reasoning", "earlier tool call", "reasoning", "tool call", "tool schema",
    )  # fmt: skip
    quiet = BARE.replace("'system'", "'tool'")
    assert "tool result" in left_out(quiet, one)


def test_thinking_that_is_cut_out_of_the_text() -> None:
    source = "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }};{% endfor %}"
    assert left_out(source, dialogue(("user", "Hi"), ("assistant", THINKING))) == ("reasoning",)


def test_an_outline_that_is_refused_is_looked_for_by_its_words() -> None:
    picky = "messages|length > 2 and messages[0].content|length != 17"  # no outline is as long
    source = f"{BARE}{{% if {picky} %}}{{{{ raise_exception('short') }}}}{{% endif %}}"
    assert left_out(source, dialogue(("system", "Be ever so brief."), ("user", "Hi"), ("assistant", "Ho"))) == (
        "system message",
    )


@pytest.mark.shared
@pytest.mark.skipif(not REAL, reason="no ../shared/data/templates beside the checkout")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_real_templates_write_what_is_not_named_as_left_out(path: Path) -> None:
    """Give each part words of its own: they occur in the text if and only if it is not reported as left out."""
    template = ChatTemplate(path.stem, path.read_text(encoding="utf-8"), {"bos_token": "<s>", "eos_token": "</s>"})
    call = {"type": "function", "id": "abcdefgh1", "function": {"name": "fnord", "arguments": {"plonk": "quux"}}}
    tool = {"type": "function", "function": {**TOOL["function"], "name": "zibble"}}
    before = (
        Message("system", "Sysword."), Message("user", "Hi?"), Message("assistant", "", None, (call,)),
        Message("tool", "Toolword", name="fnord", tool_call_id="abcdefgh1"), Message("assistant", "Okay."),
        Message("user", "And now?"),
    )  # fmt: skip
    out = template.render(Example("x", 0, 6, before, Message("assistant", "Answerword.", "Thinkword."), tools=(tool,)))
    if isinstance(out, Problem):
        assert out.reason.startswith("the template refuses the dialogue: ")
        return
    text = out.prompt + out.response + out.tail
    words = {
        "system message": "Sysword", "tool result": "Toolword", "reasoning": "Thinkword", "earlier tool call": "quux",
        "tool schema": "zibble", "response text": "Answerword",
    }  # fmt: skip
    assert {kind for kind, word in words.items() if word not in text} == set(out.remarks.left_out) & words.keys()


@pytest.mark.shared
@pytest.mark.skipif(not REAL, reason="no ../shared/data/templates beside the checkout")
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem)
def test_what_renders_alike_is_cut_alike(path: Path) -> None:
    """Compare `<think>` inside the text with reasoning beside it."""
    template = ChatTemplate(path.stem, path.read_text(encoding="utf-8"), {"bos_token": "<s>", "eos_token": "</s>"})
    inline, apart = template.render(MORE["inline thinking"]), template.render(MORE["thinking"])
    assert isinstance(inline, Rendered) and isinstance(apart, Rendered)
    if inline.prompt + inline.response + inline.tail == apart.prompt + apart.response + apart.tail:
        assert (inline.prompt, inline.response) == (apart.prompt, apart.response)


@pytest.mark.shared
@pytest.mark.skipif(not (SHARED / "data" / "tokenizers").exists(), reason="no ../shared/data/tokenizers")
def test_ids_of_calls_reach_the_template() -> None:
    """Mistral's own template refuses a tool result without the nine-character id of its call."""
    tok = real("mistral-7b-instruct-v0.3")
    made = renderer(tok)
    call = {"id": "aB3dE5fG7", "type": "function", "function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}
    said = (ASKED, Message("assistant", "", None, (call,)), Message("tool", "4", None, (), "get_weather", "aB3dE5fG7"))
    one = Example("x", 0, 3, said, Message("assistant", "It is 4 degrees."), tools=(TOOL,))
    assert "aB3dE5fG7" in tok.decode(encoded(made, one).prompt.tolist())
    lost = Example("x", 0, 3, (*said[:2], Message("tool", "4")), one.response, tools=(TOOL,))
    (out,) = made.encode([lost])
    assert isinstance(out, Problem) and "Tool call IDs" in out.reason


# Templates are foreign code


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "steps"),
        ("{% macro f(n) %}{{ f(n) if n < 99 }}{{ f(n + 1) if n < 99 }}{% endmacro %}{{ f(0) }}", "steps|recursion"),
        (
            "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
            "characters",
        ),
        (
            "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
            "characters",
        ),
        ("{{ 'a' * 10000000000 }}", "characters"),
        ("{{ 'a'.ljust(10000000000) }}", "characters"),
        ("{{ 'a' | center(10000000000) }}", "characters"),
        ("{{ 10 ** (10 ** 10) }}", "digits"),
    ],
)
def test_a_template_without_end_is_a_problem_of_its_record(body: str, why: str) -> None:
    usual = "{% for m in messages %}[{{ m.role }}]{{ m.content }};{% endfor %}"
    source = f"{{% if messages[0].content == 'no end' %}}{body}{{% endif %}}{usual}"
    template = ChatTemplate("chat", source, {})
    out = template.render(example("no end", "a"))
    assert isinstance(out, Problem)
    assert any(word in out.reason for word in why.split("|")), out.reason
    assert isinstance(template.render(example("Hi", "a")), Rendered)
    with pytest.raises(TemplateError):
        ChatTemplate("chat", body + usual, {})


@pytest.mark.parametrize("body", ["{{ range(100) | random }}", "{{ lipsum() }}", "{% set x = messages | random %}"])
def test_a_template_that_draws_at_random_is_refused(body: str) -> None:
    with pytest.raises(TemplateError, match="differently each time"):
        ChatTemplate("chat", "\n" + body + CHATML, {})
    named = "{% set random = 'x' %}{% for m in messages %}{{ m.random }}[{{ m.role }}]{{ m.content }};{% endfor %}"
    assert ChatTemplate("chat", named, {}).source_hash


@pytest.mark.parametrize(
    "source", ["{{" * 2000, "(" * 2000 + "{{ " + "(" * 2000, "{% if 1 %}" * 500, "{{ 'x'|nothing }}"]
)
def test_what_cannot_be_compiled_is_one_sentence(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        ChatTemplate("chat", source, {})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_a_text_of_all_private_characters_is_a_problem_of_its_record() -> None:
    every = "".join(map(chr, range(0xE000, 0xF900)))
    out = ChatTemplate("chat", CHATML, {}).render(example(every, "a"))
    assert isinstance(out, Problem) and "private-use" in out.reason


def test_what_a_template_says_is_cut() -> None:
    source = "{% if messages|length > 2 %}{{ raise_exception('x' * 70000) }}{% endif %}" + CHATML
    out = ChatTemplate("chat", source, {}).render(dialogue(("user", "a"), ("assistant", "b"), ("user", "c"), ("", "d")))
    assert isinstance(out, Problem) and len(out.reason) < 300


def test_passes_agree_in_the_response_whatever_is_shown() -> None:
    for template in ("plain", "alpaca", "chat"):
        made = renderer(tokenizer(chat=CHATML), template=template)
        got = passes(made, example("Add.", "\n\n  Four."), example("Name.", "Red.\n"))
        assert response(got["given"]) == response(got["alone"]) == response(got["shown"])
        shown = made.build("shown", encoded(made, example()), [encoded(made, example("a", "b"))] * 3)
        assert isinstance(shown, Pass) and not np.array_equal(shown.ids, got["shown"].ids)


# Thinking in the text, in every place


SPLITS = "{% for m in messages %}[{{ m.role }}]{{ m.content.split('</think>')[-1] }};{% endfor %}"


@pytest.mark.parametrize(
    ("content", "lost"),
    [
        ("<think>a</think>b<think>c</think>d", ("reasoning", "response text")),
        ("Before. <think>a</think>b", ("reasoning", "response text")),
        ("a</think>b", ("reasoning",)),
        ("<think>\n\n</think>b", ()),
        ("<think>never closed", ()),
        ("<think>a</think>b" * 500, ("reasoning", "response text")),
    ],
)
def test_each_piece_between_the_tags_of_thinking_is_looked_for(content: str, lost: tuple[str, ...]) -> None:
    assert left_out(SPLITS, dialogue(("user", "Hi"), ("assistant", content))) == lost
    everything = SPLITS.replace(".split('</think>')[-1]", "")
    assert left_out(everything, dialogue(("user", "Hi"), ("assistant", content))) == ()


def test_tags_of_thinking_in_a_question_are_no_thinking() -> None:
    one = dialogue(("user", "<think>a</think>b"), ("assistant", "c"))
    assert left_out(SPLITS, one) == ("user message",)


# The presets report what they leave out, too


FULL = Example(
    "x", 0, 1, (Message("system", "Be brief."), Message("user", "Weather?\n\nOslo")),
    Message("assistant", "It is cold.", "They want it.", (CALL,)), "Weather?", "Oslo", (TOOL,),
)  # fmt: skip


@pytest.mark.parametrize(
    ("made", "lost"),
    [
        (CherryRenderer, ("reasoning", "system message", "tool call", "tool schema")),
        (SuperfilteringRenderer, ("reasoning", "system message", "tool call", "tool schema")),
        (CpqsRenderer, ("reasoning", "system message", "tool call", "tool schema")),
    ],
)
def test_presets_name_what_they_leave_out(made: Any, lost: tuple[str, ...]) -> None:
    (out,) = made(tokenizer(chat=CHATML), RenderSettings(template="chat" if made is CpqsRenderer else "auto")).encode(
        [FULL]
    )
    assert isinstance(out, EncodedExample)
    assert out.remarks.left_out == lost
    bare = Example("y", 0, 1, (Message("user", "Weather?\n\nOslo"),), Message("assistant", "Cold."), "Weather?", "Oslo")
    (out,) = made(tokenizer(chat=CHATML), RenderSettings(template="chat" if made is CpqsRenderer else "auto")).encode(
        [bare]
    )
    assert isinstance(out, EncodedExample)
    assert out.remarks.left_out == ()

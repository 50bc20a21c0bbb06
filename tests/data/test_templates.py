from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from tests.data.small import CHATML, dialogue, example, tokenizer
from tests.matrix import pairs
from tests.shared import SHARED
from tithe.data.chat import ChatTemplate
from tithe.data.rendered import Rendered
from tithe.data.templates import TEMPLATE_NAMES, TEXT_TEMPLATES, message_text, resolve_template
from tithe.errors import TemplateError
from tithe.records import Example, Message, Problem

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}
CALL = {"type": "function", "id": "abcdefgh1", "function": {"name": "get_weather", "arguments": {"city": "Paris"}}}


def chat(source: str) -> ChatTemplate:
    return ChatTemplate("chat", source, SPECIAL)


def rendered(template: Any, one: Example) -> Rendered:
    out = template.render(one)
    assert isinstance(out, Rendered), out
    return out


def reason(template: Any, one: Example) -> str:
    out = template.render(one)
    assert isinstance(out, Problem), out
    return out.reason


# Texts


def test_alpaca_is_the_well_known_text() -> None:
    out = rendered(TEXT_TEMPLATES["alpaca"], example("Add.", "Four.", "2 2"))
    assert out.prompt == (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        "Write a response that appropriately completes the request.\n\n"
        "### Instruction:\nAdd.\n\n### Input:\n2 2\n\n### Response:"
    )
    assert (out.response, out.tail, out.anchor) == ("Four.", "", "### Response:")
    bare = rendered(TEXT_TEMPLATES["alpaca"], example("Add.", "Four.")).prompt
    assert bare == (
        "Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n### Instruction:\nAdd.\n\n### Response:"
    )


@pytest.mark.parametrize(
    ("name", "bare", "with_input"),
    [
        ("wizardlm", "Add.\n\n### Response:", "Add.\nInput:2 2\n\n### Response:"),
        ("superfiltering", "Add.\n", "Add.\n2 2\n"),
        ("plain", "Add.\n\n", "Add.\n\n2 2\n\n"),
    ],
)
def test_text_templates(name: str, bare: str, with_input: str) -> None:
    assert rendered(TEXT_TEMPLATES[name], example("Add.", "Four.")).prompt == bare
    assert rendered(TEXT_TEMPLATES[name], example("Add.", "Four.", None)).prompt == bare
    assert rendered(TEXT_TEMPLATES[name], example("Add.", "Four.", "2 2")).prompt == with_input


def test_text_template_of_a_dialogue_keeps_every_turn() -> None:
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Ho"), ("tool", "22C"), ("user", "Add."), ("", "4")]
    out = rendered(TEXT_TEMPLATES["wizardlm"], dialogue(*turns))
    assert out.prompt == "Be brief.\n\nHi\n\n### Response:Ho\n\n22C\n\nAdd.\n\n### Response:"


def test_system_message_stands_before_the_records_own_instruction() -> None:
    prompt = (Message("system", "Be brief."), Message("user", "Add.\n2 2"))
    one = Example("x", 0, 2, prompt, Message("assistant", "4"), "Add.", "2 2")
    assert rendered(TEXT_TEMPLATES["superfiltering"], one).prompt == "Be brief.\n\nAdd.\n2 2\n"


@given(st.text(), st.text(), st.text(min_size=1))
def test_text_templates_take_any_text_as_it_is(asked: str, given_input: str, answer: str) -> None:
    for template in TEXT_TEMPLATES.values():
        out = template.render(example(asked, answer, given_input))
        if not answer.strip():
            assert out == Problem("empty response")
            continue
        assert isinstance(out, Rendered)
        assert asked in out.prompt and given_input in out.prompt
        assert out.response == answer
        assert out.prompt.endswith(out.anchor)


def test_message_text_keeps_thinking_and_calls() -> None:
    assert message_text(Message("assistant", "4", "2 and 2")) == "<think>\n2 and 2\n</think>\n\n4"
    assert (
        message_text(Message("assistant", "", None, (CALL,)))
        == '{"name": "get_weather", "arguments": {"city": "Paris"}}'
    )
    assert message_text(Message("assistant", "")) == ""


# Names and files


def test_names_resolve() -> None:
    bare, own = tokenizer(), tokenizer(chat=CHATML)
    assert resolve_template("auto", bare).name == "plain"
    assert resolve_template("auto", own).name == "chat"
    assert {name for name in TEMPLATE_NAMES if name not in TEXT_TEMPLATES} == {"auto", "chat"}
    hashes = {resolve_template(name, own).source_hash for name in TEMPLATE_NAMES if name != "auto"}
    assert len(hashes) == len(TEMPLATE_NAMES) - 1


def test_unknown_name_gets_a_suggestion() -> None:
    with pytest.raises(TemplateError, match="unknown template `alpacca`") as caught:
        resolve_template("alpacca", tokenizer())
    assert "did you mean `alpaca`?" in str(caught.value.hint)


def test_missing_file_and_missing_chat_template(tmp_path: Path) -> None:
    with pytest.raises(TemplateError, match=r"template file .* not found"):
        resolve_template(str(tmp_path / "no.jinja"), tokenizer())
    with pytest.raises(TemplateError, match="has no chat template") as caught:
        resolve_template("chat", tokenizer())
    assert "plain" in str(caught.value.hint)


def test_file_and_its_faults(tmp_path: Path) -> None:
    path = tmp_path / "my.jinja"
    path.write_text(CHATML, encoding="utf-8")
    assert rendered(resolve_template(str(path), tokenizer()), example()).response == "Red, green and blue."
    path.write_text("one\n{% for x %}", encoding="utf-8")
    with pytest.raises(TemplateError, match=r"my.jinja`, line 2: "):
        resolve_template(str(path), tokenizer())
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(TemplateError, match="cannot be read"):
        resolve_template(str(path), tokenizer())


def test_several_named_templates_use_default() -> None:
    assert resolve_template("chat", tokenizer(chat={"default": CHATML, "rag": "x"})).name == "chat"
    with pytest.raises(TemplateError, match="named `default`, only `rag`"):
        resolve_template("chat", tokenizer(chat={"rag": CHATML}))


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("{{ raise_exception('never again') }}", "never again"),
        ("{{ messages.nothing.there }}", "undefined|no attribute"),
        ("{{ messages[0].content }}", "leaves the assistant's messages out"),
        ("{{ ''.__class__.__mro__ }}", "unsafe|undefined"),
    ],
)
def test_a_template_that_never_renders_stops_the_run(source: str, why: str) -> None:
    with pytest.raises(TemplateError, match=why):
        chat(source)


def test_import_needs_no_torch() -> None:
    code = "import sys, tithe.data.paper_renderers; print('torch' in sys.modules, 'transformers' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


# Chat


def test_chat_cuts_where_the_response_is() -> None:
    out = rendered(chat(CHATML), dialogue(("user", "Hi"), ("assistant", "  Ho \n")))
    assert (
        out.prompt == "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert (out.response, out.tail) == ("Ho", "<|im_end|>\n")
    assert out.anchor == "<|im_end|>\n<|im_start|>assistant\n"


def test_chat_turns() -> None:
    turns = chat(CHATML).turns
    assert turns.opening == "<|im_start|>system\nBe good.<|im_end|>\n<|im_start|>user\n"
    assert (turns.between, turns.tail) == ("<|im_end|>\n<|im_start|>user\n", "<|im_end|>\n")


def test_refusal_is_the_templates_own_sentence() -> None:
    source = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system here!') }}{% endif %}"
    template = chat(source + "{{ m.role }}:{{ m.content }}\n{% endfor %}")
    one = dialogue(("system", "s"), ("user", "u"), ("assistant", "a"))
    assert reason(template, one) == "the template refuses the dialogue: No system here!"


def test_empty_and_left_out_responses() -> None:
    template = chat(CHATML)
    assert reason(template, dialogue(("user", "Hi"), ("assistant", " \n"))) == "empty response"
    picky = chat(
        "{% for m in messages %}{% if m.content != 'no' %}{{ m.role }}:{{ m.content }};{% endif %}{% endfor %}"
    )
    assert reason(picky, dialogue(("user", "Hi"), ("assistant", "no"))) == "the template leaves the response out"


def test_the_date_stands_still() -> None:
    template = chat("{{ strftime_now('%d %b %Y') }}{% for m in messages %}|{{ m.content }}{% endfor %}")
    assert rendered(template, dialogue(("user", "Hi"), ("assistant", "Ho"))).prompt == "26 Jul 2024|Hi|"
    assert template.describe()["template_date"] == "2024-07-26"


def test_a_template_that_wants_parts_gets_them() -> None:
    template = chat("{% for m in messages %}|{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}")
    assert rendered(template, dialogue(("user", "Hi"), ("assistant", "Ho"))).response == "Ho"


def test_one_space_before_the_response_belongs_to_it() -> None:
    template = chat("{% for m in messages %}[{{ m.role }}]   {{ m.content }}{% endfor %}")
    out = rendered(template, dialogue(("user", "Hi   "), ("assistant", "Ho")))
    assert (out.prompt, out.response) == ("[user]   Hi   [assistant]  ", " Ho")
    bare = chat("{% for m in messages %}{{ m.content }}{% endfor %}")  # here the spaces are the user's
    assert rendered(bare, dialogue(("user", "Hi   "), ("assistant", "Ho"))).response == "Ho"


def test_a_marker_is_never_halved() -> None:
    source = (
        "{% for m in messages %}<|h|>{{ m.role }}\n{{ m.content }}{% if m.tool_calls %}"
        "{{ m.tool_calls[0].function | tojson }}<|eom_id|>{% else %}<|eot_id|>{% endif %}{% endfor %}"
    )
    one = Example("x", 0, 1, (Message("user", "Hi"),), Message("assistant", "", None, (CALL,)))
    out = rendered(chat(source), one)
    assert out.response == '{"name": "get_weather", "arguments": {"city": "Paris"}}'
    assert out.tail == "<|eom_id|>"


def test_thinking_is_part_of_the_response_from_where_the_model_begins() -> None:
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "<think>\n{{ m.reasoning_content or '' }}\n</think>\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    ask = (Message("user", "Hi"),)
    thought = rendered(chat(source), Example("x", 0, 1, ask, Message("assistant", "Ho", "Hm")))
    assert thought.response == "<think>\nHm\n</think>\nHo"
    plain = rendered(chat(source), Example("x", 0, 1, ask, Message("assistant", "Ho")))
    assert plain.response == "Ho"
    assert plain.prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n")


def test_arguments_as_text_where_the_template_joins_them() -> None:
    source = (
        "{% for m in messages %}|{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ 'call ' + c.function.arguments }}{% endfor %}{% endfor %}"
    )
    one = Example("x", 0, 1, (Message("user", "Hi"),), Message("assistant", "", None, (CALL,)))
    assert rendered(chat(source), one).response == 'call {"city": "Paris"}'


@given(st.text(alphabet=st.characters(categories=("L", "Co", "Cc", "Zs", "P")), min_size=1))
def test_the_sentinel_never_meets_the_text(answer: str) -> None:
    template = chat("{% for m in messages %}|{{ m.role }}:{{ m.content }};{% endfor %}")
    out = template.render(dialogue(("user", answer), ("assistant", answer)))
    if answer.strip():
        assert isinstance(out, Rendered)
        assert (out.prompt, out.response, out.tail) == (f"|user:{answer};|assistant:", answer, ";")


# Real templates

USER, ANSWER = Message("user", "What is 2+2?"), Message("assistant", "It is four.")
WEATHER = (Message("user", "Weather in Paris?"), Message("assistant", "", None, (CALL,)), Message("tool", "22C"))
DIALOGUES = {
    "single": Example("a", 0, 1, (USER,), ANSWER),
    "system": Example("b", 0, 2, (Message("system", "Be terse."), USER), ANSWER),
    "several turns": Example("c", 0, 3, (Message("user", "Hi"), Message("assistant", "Hello!"), USER), ANSWER),
    "thinking": Example("d", 0, 1, (USER,), Message("assistant", "It is four.", "I add two and two.")),
    "tool call": Example("e", 0, 1, WEATHER[:1], Message("assistant", "", None, (CALL,)), tools=(TOOL,)),
    "after a tool": Example("f", 0, 3, WEATHER, ANSWER, tools=(TOOL,)),
}
REFUSALS = ("System role not supported", "alternate", "Only user and assistant roles are supported")
REAL = sorted((SHARED / "data" / "templates").glob("*.jinja"))


@pytest.mark.shared
@pytest.mark.skipif(not REAL, reason="no ../shared/data/templates beside the checkout")
def test_there_are_the_real_templates() -> None:
    assert len(REAL) == 71


@pytest.mark.shared
@pytest.mark.parametrize(("path", "name"), pairs(REAL, list(DIALOGUES), lambda path: path.stem))
def test_real_templates(path: Path, name: str) -> None:
    template, one = chat(path.read_text(encoding="utf-8")), DIALOGUES[name]
    out = template.render(one)
    if isinstance(out, Problem):
        assert name not in ("single", "several turns", "thinking"), out
        left_out = name == "tool call" and out.reason == "the template leaves the response out"
        assert left_out or any(words in out.reason for words in REFUSALS), out
        return
    expected = {"Paris", "get_weather"} if name == "tool call" else {"It is four."}
    assert all(words in out.response for words in expected)
    if name in ("single", "system", "several turns", "after a tool"):
        assert out.response in ("It is four.", " It is four.")
    if name != "after a tool":  # some templates leave out the roles they do not know
        assert one.prompt[-1].content in out.prompt
    assert not out.prompt.endswith(" ") or out.prompt.endswith("  ")
    _same_as_transformers(template, one, out)


def _same_as_transformers(template: ChatTemplate, one: Example, out: Rendered) -> None:
    if "strftime_now" in template.source:
        return  # transformers takes the date from the clock
    whole = out.prompt + out.response + out.tail
    messages = [message.as_dict() for message in (*one.prompt, one.response)]
    if template._parts:
        for message in messages:
            message["content"] = [{"type": "text", "text": message["content"]}]
    try:
        (theirs,), _ = render_jinja_template(
            [messages], [dict(t) for t in one.tools] or None, chat_template=template.source, **SPECIAL
        )
    except TypeError:
        assert one.tools  # this template needs arguments as text, which transformers leaves to the caller
        return
    assert whole == theirs

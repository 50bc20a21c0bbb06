from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.small import Letters, dialogue, example, tokenizer
from tests.shared import SHARED
from tithe.data.paper_renderers import NO_RESPONSE, CherryRenderer, SeparatelyEncoded, SuperfilteringRenderer
from tithe.data.render import Renderer, RenderSettings
from tithe.errors import SettingsError
from tithe.records import Example, Message, Pass, Problem


def both(made: Renderer, one: Example) -> tuple[Pass | Problem, Pass | Problem]:
    (encoded,) = made.encode([one])
    assert isinstance(encoded, SeparatelyEncoded), encoded
    return made.build("given", encoded), made.build("alone", encoded)


def text(one: Pass | Problem) -> str:
    assert isinstance(one, Pass), one
    return "".join(map(chr, one.ids))


def test_cherry_texts() -> None:
    given_, alone = both(CherryRenderer(Letters(), RenderSettings("wizardlm")), example("Add.", "Four.", "2 2"))
    assert text(given_) == "Add.\nInput:2 2\n\n### Response:Four."
    assert text(alone) == "### Response:Four."
    assert isinstance(given_, Pass) and isinstance(alone, Pass)
    assert (given_.response_tokens, alone.response_tokens) == (5, 5)
    auto = CherryRenderer(Letters(), RenderSettings())
    assert text(both(auto, example())[0]).startswith("Below is an instruction that describes a task. Write")
    assert auto.describe()["template"] == "alpaca"


def test_superfiltering_texts() -> None:
    made = SuperfilteringRenderer(Letters(), RenderSettings())
    given_, alone = both(made, example("Add.", "Four.", "2 2"))
    assert (text(given_), text(alone)) == ("Add.\n2 2\nFour.", "Four.")
    assert isinstance(given_, Pass) and isinstance(alone, Pass)
    assert (given_.start, alone.start) == (9, 0)


def test_bos_is_context_in_both_passes() -> None:
    for renderer in (CherryRenderer, SuperfilteringRenderer):
        for one in both(renderer(tokenizer(bos=True), RenderSettings()), example()):
            assert isinstance(one, Pass)
            assert one.start >= 1 and one.ids[0] == 1


@settings(max_examples=100, deadline=None)
@given(limit=st.integers(1, 60), asked=st.integers(0, 30), answer=st.integers(0, 40))
def test_cherry_cuts_as_the_paper_does(limit: int, asked: int, answer: int) -> None:
    """Compute the specification's lengths by hand, for one token per character and no BOS."""
    given_, alone = both(
        CherryRenderer(Letters(), RenderSettings("wizardlm", limit)), example("q" * asked, "a" * answer)
    )
    prompt, header = asked + len("\n\n### Response:"), len("### Response:")
    il = min(prompt, limit)
    alone_ids = min(header + answer, limit - il + 4)
    given_ids = min(prompt + answer, limit)
    skipped = limit - il <= 0 or alone_ids <= header or given_ids <= prompt or il + alone_ids - header > limit
    assert isinstance(given_, Problem) == isinstance(alone, Problem) == skipped
    if isinstance(given_, Pass) and isinstance(alone, Pass):
        assert (len(given_.ids), given_.start) == (given_ids, prompt)
        assert (len(alone.ids), alone.start) == (alone_ids, header)
        assert given_.cut_response == prompt + answer - given_ids
        assert alone.cut_response == header + answer - alone_ids


@settings(max_examples=100, deadline=None)
@given(limit=st.integers(1, 60), asked=st.integers(0, 30), answer=st.integers(0, 40))
def test_superfiltering_cuts_as_the_paper_does(limit: int, asked: int, answer: int) -> None:
    given_, alone = both(
        SuperfilteringRenderer(Letters(), RenderSettings(max_length=limit)), example("q" * asked, "a" * answer)
    )
    prompt = min(asked + 1, limit)
    alone_ids = min(answer, limit - prompt + 1)
    skipped = min(asked + 1 + answer, limit) <= prompt or alone_ids <= 1
    assert isinstance(given_, Problem) == isinstance(alone, Problem) == skipped
    if isinstance(given_, Pass) and isinstance(alone, Pass):
        assert (given_.start, given_.response_tokens) == (prompt, min(answer, limit - prompt))
        assert (alone.start, alone.response_tokens) == (0, alone_ids)


def test_reasons() -> None:
    cherry = CherryRenderer(Letters(), RenderSettings("wizardlm", 30))
    assert both(cherry, example("Add.", "")) == (Problem(NO_RESPONSE),) * 2
    assert both(cherry, example("Add." * 9, "Four.")) == (Problem(NO_RESPONSE),) * 2
    # In this tokenizer the header takes fewer than the 4 tokens that it takes in Llama's.
    short = CherryRenderer(tokenizer(), RenderSettings("wizardlm", 20))
    short._header = short._header[:1]
    assert any(
        "do not fit" in out.reason for out in both(short, example("Add.", "Four. " * 9)) if isinstance(out, Problem)
    )
    (surrogate,) = cherry.encode([example(answer="\ud800")])
    assert isinstance(surrogate, Problem) and "lone surrogate" in surrogate.reason


def test_a_dialogue_without_instruction_uses_all_its_turns() -> None:
    one = dialogue(("user", "Hi"), ("assistant", "Ho"), ("user", "Add."), ("assistant", "Four."))
    assert text(both(SuperfilteringRenderer(Letters(), RenderSettings()), one)[0]) == "Hi\nHo\n\nAdd.\nFour."


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (RenderSettings(template="plain"), "preset `cherry` has no template `plain`"),
        (RenderSettings(eos=True), "preset `cherry` fixes `eos`"),
        (RenderSettings(bos="never", truncation="prompt"), "fixes `bos`, `truncation`"),
        (RenderSettings(max_length=9999), "max length 9999 is more than"),
    ],
)
def test_settings_that_the_preset_fixes(settings: RenderSettings, why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        CherryRenderer(tokenizer(), settings, context_window=4096)


def test_no_shots() -> None:
    made = CherryRenderer(tokenizer(bos=True), RenderSettings())
    (encoded,) = made.encode([example()])
    assert isinstance(encoded, SeparatelyEncoded)
    with pytest.raises(SettingsError, match="no passes with shots"):
        made.build("shown", encoded)


# Numbers from the papers' own code

TINY, POOL = SHARED / "data" / "weights" / "tinystories-656k", SHARED / "data" / "sft" / "alpaca_20k.jsonl"


@pytest.fixture(scope="module")
def tiny() -> Iterator[Any]:
    """Return the model and tokenizer that produced the reference numbers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()
    yield model, AutoTokenizer.from_pretrained(TINY)
    torch.set_num_threads(threads)


def mean_nll(model: Any, one: Pass) -> tuple[float, int]:
    """Return nats per token and number of tokens, one record at a time with full logits."""
    import torch

    ids, start = torch.from_numpy(one.ids).long(), max(one.start, 1)
    with torch.no_grad():
        logits = model(ids[None]).logits[0, start - 1 : -1]
    losses = torch.nn.functional.cross_entropy(logits, ids[start:], reduction="none")
    return losses.double().mean().item(), len(losses)


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.skipif(not (TINY.exists() and POOL.exists()), reason="no ../shared/data beside the checkout")
@pytest.mark.parametrize("renderer", [CherryRenderer, SuperfilteringRenderer])
def test_numbers_of_the_authors_code(renderer: Any, tiny: Any) -> None:
    model, tok = tiny
    path = SHARED / "reference" / "ifd" / f"{renderer.preset}.jsonl"
    wanted = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    wanted = [row for i, row in enumerate(wanted) if i % 5 == 0 or row.get("nll_given") is None]
    pool = POOL.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(pool[row["row"]]) for row in wanted]
    made = renderer(tok, RenderSettings(max_length=512), context_window=512)
    examples = [
        Example(str(i), i, 1, (), Message("assistant", r["output"]), r["instruction"], r["input"])
        for i, r in enumerate(rows)
    ]
    dropped = 0
    for row, one in zip(wanted, examples, strict=True):
        passes = both(made, one)
        if row.get("nll_given") is None:
            dropped += 1
            assert passes == (Problem(NO_RESPONSE), Problem(NO_RESPONSE))
            continue
        for kind, got in zip(("given", "alone"), passes, strict=True):
            assert isinstance(got, Pass)
            mean, tokens = mean_nll(model, got)
            assert mean == pytest.approx(row[f"nll_{kind}"], rel=2e-4)
            assert tokens == row.get(f"response_tokens_{kind}", tokens)
    assert dropped == 1 and len(wanted) > 200

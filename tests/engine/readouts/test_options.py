"""Likelihoods of replies against the model's own logits, and replies that one token cannot tell apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from tests.engine.models import EACH_FAMILY, VOCABULARY, load, plain
from tests.engine.readouts.test_pooled import REMEMBERS
from tests.scorers.bench import example
from tithe.data.render import RenderSettings, make_renderer
from tithe.engine.engine import Engine
from tithe.engine.readouts.base import READOUTS, View
from tithe.engine.readouts.options import ROWS, OptionsReadout, Replies, find_replies
from tithe.errors import ModelError, SettingsError
from tithe.records import Options, Pass, PassSpec, Problem

FIRST = np.array([11, 5, 9], dtype=np.int32)  # `5` is the token that differs, `9` ends the turn
REPLIES = Replies(FIRST, 1, (5, 6, 7))


def passes(lengths: Sequence[int] = (1, 7, 40, 2, 33, 12)) -> list[Pass]:
    rng = np.random.default_rng(0)
    return [Pass(np.append(rng.integers(0, VOCABULARY, n), FIRST).astype(np.int32), n) for n in lengths]


def twin(model: Any, pass_: Pass) -> list[float]:
    """Return log p of 5, 6 and 7 after the tokens before the 5; the rest is read too, as some scalings count it."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([pass_.ids.tolist()])).logits[0, pass_.start].double().tolist()
    total = math.log(math.fsum(math.exp(x - max(logits)) for x in logits)) + max(logits)
    return [logits[i] - total for i in (5, 6, 7)]


def read(engine: Engine, some: Sequence[Pass], nll: bool = False) -> dict[int, list[float]]:
    readout, found = OptionsReadout(REPLIES), dict[int, list[float]]()
    asked = [[readout, READOUTS["nll"]] if nll else [readout]] * len(some)
    for batch, results in engine.read(some, engine.batches(some), asked):
        for i, result in zip(batch.index, results, strict=True):
            assert not isinstance(result, Problem), result
            row = readout.read(View(some[i], result.nll, result.found[readout.name]))
            assert isinstance(row, dict)
            answer = readout.answer(row)
            assert isinstance(answer, Options) and answer.log_probs.dtype == np.float32
            found[i] = answer.log_probs.tolist()
    return found


@pytest.mark.parametrize("name", EACH_FAMILY)
def test_every_family_on_its_forward_path(name: str, family: Callable[[str], Path]) -> None:
    """The result includes the head's soft caps, scales and biases."""
    some, model = passes(), plain(family(name))
    engine = Engine(load(family(name)), budget=80, workers=1)
    got = read(engine, some)
    for i, one in enumerate(some):
        wanted = twin(plain(family(name)) if name in REMEMBERS else model, one)
        assert got[i] == pytest.approx(wanted, rel=1e-5, abs=1e-5), (name, i)


@pytest.mark.parametrize("nll", [False, True])
@pytest.mark.parametrize("forward_path", ["packed", "padded", "single"])
def test_all_forward_paths_and_any_batch(forward_path: str, nll: bool, family: Callable[[str], Path]) -> None:
    loaded, some = load(family("llama")), passes()
    if forward_path != "packed":
        loaded.model.set_attn_implementation("sdpa")
        loaded.forward_path = forward_path
    wanted = [twin(plain(family("llama")), one) for one in some]
    for budget in (1, 50, 10_000):
        got = read(Engine(loaded, budget=budget, workers=1), some, nll)
        assert all(got[i] == pytest.approx(wanted[i], abs=1e-5) for i in range(len(some)))


def test_more_passes_than_are_multiplied_together(family: Callable[[str], Path]) -> None:
    some = passes([3] * (ROWS + 5))
    got, model = read(Engine(load(family("llama")), budget=10_000, workers=1), some), plain(family("llama"))
    assert all(got[i] == pytest.approx(twin(model, some[i]), abs=1e-5) for i in range(len(some)))


def test_a_head_that_cannot_be_run_apart(family: Callable[[str], Path]) -> None:
    loaded = load(family("llama"))
    loaded.head = None
    loaded.forward_path = "single"
    with pytest.raises(ModelError, match="the likelihood of single replies cannot be read"):
        read(Engine(loaded, workers=1), passes())


def test_a_head_that_is_not_the_models_own_is_not_used(family: Callable[[str], Path]) -> None:
    """Forward paths that do not use the head may be correct all the same."""
    loaded = load(family("llama"))
    assert loaded.reader_context.head is loaded.head is not None
    other = load(family("llama"))
    assert other.head is not None
    real = other.head.logits
    other.head.logits = lambda hidden: real(hidden) * 1.1  # type: ignore[method-assign]
    other.forward_path = "single"
    with pytest.raises(ModelError, match="the likelihood of single replies cannot be read"):
        read(Engine(other, workers=1), passes())


def test_another_token_or_beginning_has_another_folder() -> None:
    names = {REPLIES.name, Replies(FIRST, 1, (5, 6, 8)).name, Replies(FIRST + 1, 1, (5, 6, 7)).name}
    assert len(names) == 3 and all(name.replace("-", "").isalnum() for name in names)


# Which tokens the replies are


def tokenizer(model_dir: Path) -> Any:
    return AutoTokenizer.from_pretrained(model_dir)


@pytest.mark.parametrize("template", ["chat", "plain", "alpaca"])
@pytest.mark.parametrize("eos", [False, True])
def test_replies_stand_in_the_pass_as_they_were_found(model_dir: Path, template: str, eos: bool) -> None:
    one = tokenizer(model_dir)
    renderer = make_renderer(one, RenderSettings(template=template, eos=eos))
    replies = find_replies(renderer, one, ("1", "2", "3"))
    assert one.convert_ids_to_tokens(list(replies.ids)) == ["1", "2", "3"]
    spec = PassSpec("rated", example("a"), question="How good is {this}?", options=("1", "2", "3"))
    (encoded,) = renderer.encode([spec.dialogue])
    assert not isinstance(encoded, Problem)
    pass_ = renderer.build("rated", encoded)
    assert isinstance(pass_, Pass)
    span = OptionsReadout(replies).span(pass_)
    assert len(span) == 1 and pass_.ids[span.stop] == replies.ids[0] == one.convert_tokens_to_ids("1")


def test_replies_that_begin_alike_differ_where_they_do(model_dir: Path) -> None:
    one = tokenizer(model_dir)
    replies = find_replies(make_renderer(one, RenderSettings()), one, ("grade 1", "grade 2"))
    assert replies.at == len(one.tokenize("grade ")) and one.convert_ids_to_tokens(list(replies.ids)) == ["1", "2"]


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (
            ("9", "10"),
            "the replies `9`, `10` must differ in one token, but this tokenizer splits them into: `9`; `1` `0`",
        ),
        (("12", "21"), "must differ in one token, but this tokenizer splits them into: `1` `2`; `2` `1`"),
        (("1",), "replies to choose from must be two or more, and all different, not `1`"),
        (("1", "1"), "must be two or more, and all different"),
        (("1", ""), "the reply `` cannot be written in this template: empty response"),
    ],
)
def test_replies_that_one_token_cannot_tell_apart(model_dir: Path, texts: tuple[str, ...], message: str) -> None:
    one = tokenizer(model_dir)
    with pytest.raises(SettingsError) as error:
        find_replies(make_renderer(one, RenderSettings(template="plain")), one, texts)
    assert message in str(error.value)


def test_a_tokenizer_that_knows_no_digits() -> None:
    """Both digits are the unknown token and cannot be told apart."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "How": 1, "many": 2}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    one = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]")
    with pytest.raises(SettingsError, match="this tokenizer splits them into: `\\[UNK\\]`; `\\[UNK\\]`"):
        find_replies(make_renderer(one, RenderSettings(template="plain")), one, ("1", "2"))


def test_the_same_question_with_other_replies_is_another_pass() -> None:
    """A pass must contain the first reply."""
    specs = [PassSpec("rated", example("a"), question="q", options=o) for o in (("1", "2"), ("2", "1"), ("1", "3"))]
    ids = [spec.dialogue.id for spec in specs]
    assert ids[0] == ids[2] != ids[1]
    assert PassSpec("rated", example("a"), question="r", options=("1", "2")).dialogue.id != ids[0]

"""A batched prompt gets the same answer as a single one, and greedy answers are transformers' own."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from tests.engine.models import CONFIGS, save
from tests.matrix import thinned
from tests.small_model import change_config, make_model
from tithe.engine import generate
from tithe.engine.generate import (
    AnswerGenerator,
    GenerationRequest,
    draw,
    load_for_generation,
    nucleus,
    padded,
    stop_ids,
)
from tithe.engine.model_source import find_model, load_tokenizer
from tithe.records import Problem


def make(folder, **settings):
    source = find_model(str(folder))
    tokenizer = load_tokenizer(source)
    model = load_for_generation(source, device="cpu", dtype="fp32")
    return AnswerGenerator(
        model, tokenizer, stop_ids(source, tokenizer), **{"max_new_tokens": 12, "window": 512, **settings}
    )


def prompts(n=9, seed=0):
    rng = np.random.default_rng(seed)
    return [GenerationRequest(rng.integers(10, 300, 3 + (i * 5) % 23).astype(np.int32), 1000 + i) for i in range(n)]


def answer_all(generator, wanted):
    found = [None] * len(wanted)
    for batch in generator.batches(wanted):
        for i, got in zip(batch, generator.answer([wanted[i] for i in batch]), strict=True):
            found[i] = got
    return found


@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_in_a_batch_as_one_by_one(model_dir, temperature):
    wanted = prompts()
    generator = make(model_dir, temperature=temperature, top_p=0.95)
    together = answer_all(generator, wanted)
    alone = [generator.answer([one])[0] for one in wanted]
    assert together == alone
    assert len(generator.batches(wanted)) == 1  # it was one batch, indeed
    assert len({one.text for one in together}) > len(wanted) // 2


class Numbers:
    """A stub tokenizer that returns ids unchanged."""

    def decode(self, ids, skip_special_tokens):
        return " ".join(map(str, ids))


REPRESENTATIVES = ("gpt2", "gemma2", "llama-dynamic", "gpt-oss", "mamba", "recurrent-gemma")


@pytest.mark.parametrize("temperature", [0.0, 0.9])
@pytest.mark.parametrize("family", thinned(CONFIGS, REPRESENTATIVES))
def test_every_family_in_a_batch_as_one_by_one(tmp_path, family, temperature):
    model = load_for_generation(find_model(str(save(tmp_path / family, CONFIGS[family]()))), device="cpu", dtype="fp32")
    generator = AnswerGenerator(model, Numbers(), frozenset({2}), temperature=temperature, max_new_tokens=12, window=60)
    rng = np.random.default_rng(3)
    wanted = [GenerationRequest(rng.integers(3, 199, n).astype(np.int32), n) for n in (31, 4, 4, 17, 9, 25, 4)]
    together = answer_all(generator, wanted)
    assert together == [generator.answer([one])[0] for one in wanted]
    assert len(generator.batches(wanted)) < len(wanted)


def test_greedy_is_what_transformers_gives(model_dir):
    generator = make(model_dir)
    one = prompts(1)[0]
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    out = model.generate(torch.tensor(one.ids[None].astype(np.int64)), max_new_tokens=12, do_sample=False)
    new = out[0, len(one.ids) :].tolist()
    kept = new[: new.index(1)] if 1 in new else new
    (got,) = generator.answer([one])
    assert got.text == generator.tokenizer.decode(kept, skip_special_tokens=True).strip()
    assert got.tokens == len(kept) and got.finished == (1 in new)


def test_a_seed_draws_the_same_and_another_draws_another(model_dir):
    generator = make(model_dir, temperature=1.0)
    ids = prompts(1)[0].ids
    first, again, other = generator.answer(
        [GenerationRequest(ids, 5), GenerationRequest(ids, 5), GenerationRequest(ids, 6)]
    )
    assert first == again and first.text != other.text


def test_temperature_near_zero_is_greedy(model_dir):
    one = prompts(1)
    assert make(model_dir, temperature=1e-4).answer(one) == make(model_dir).answer(one)


def test_what_the_models_own_config_suggests_is_not_applied(model_dir, tmp_path):
    folder = tmp_path / "odd"
    shutil.copytree(model_dir, folder)
    odd = {"do_sample": True, "top_k": 3, "temperature": 5.0, "repetition_penalty": 9.0, "eos_token_id": [1, 7]}
    (folder / "generation_config.json").write_text(json.dumps(odd))
    generator = make(folder)
    assert generator.stops == {1, 7}  # but what ends an answer is
    generator.stops = frozenset({1})
    assert generator.answer(prompts(2)) == make(model_dir).answer(prompts(2))


def test_an_answer_ends_at_a_stop_or_is_marked(model_dir):
    generator = make(model_dir)
    (long,) = generator.answer(prompts(1))
    assert not long.finished and long.tokens == 12
    third = generator.run(prompts(1), max_new_tokens=12)[0, -12:].tolist()[3]
    generator.stops = frozenset({third})
    (short,) = generator.answer(prompts(1))
    assert short.finished and short.tokens <= 3


def test_the_window_is_kept(model_dir):
    generator = make(model_dir, window=20, max_new_tokens=12)
    lengths = (25, 20, 19, 15, 8, 4)
    wanted = [GenerationRequest(np.arange(10, 10 + n, dtype=np.int32)) for n in lengths]
    found = answer_all(generator, wanted)
    assert [isinstance(one, Problem) for one in found] == [True, True, False, False, False, False]
    assert "25 tokens of 20" in found[0].reason
    assert [one.tokens for one in found[2:]] == [1, 5, 12, 12]


def test_batches_hold_every_prompt_once_longest_first(model_dir):
    generator = make(model_dir, budget=64)
    wanted = prompts(20)
    batches = generator.batches(wanted)
    assert sorted(i for batch in batches for i in batch) == list(range(20)) and len(batches) > 3
    lengths = [len(wanted[i].ids) for batch in batches for i in batch]
    assert lengths == sorted(lengths, reverse=True)
    assert all(len(b) * (max(len(wanted[i].ids) for i in b) + 12) <= 64 or len(b) == 1 for b in batches)


@pytest.mark.slow
def test_out_of_memory_halves_the_batch(model_dir, monkeypatch):
    generator = make(model_dir)
    expected, real = generator.answer(prompts(8)), AnswerGenerator.generate

    def tight(self, wanted):
        if len(wanted) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, wanted)

    monkeypatch.setattr(AnswerGenerator, "generate", tight)
    assert generator.answer(prompts(8)) == expected and generator.halved == 3
    monkeypatch.setattr(AnswerGenerator, "generate", lambda self, wanted: (_ for _ in ()).throw(MemoryError()))
    assert generator.answer(prompts(2)) == [generate.OUT_OF_MEMORY] * 2


def test_other_errors_are_not_swallowed(model_dir, monkeypatch):
    monkeypatch.setattr(AnswerGenerator, "generate", lambda self, wanted: (_ for _ in ()).throw(RuntimeError("shape")))
    with pytest.raises(RuntimeError, match="shape"):
        make(model_dir).answer(prompts(2))


def test_a_model_that_padding_changes_is_not_padded(model_dir, monkeypatch):
    generator = make(model_dir)
    assert generator.pads
    honest = AnswerGenerator.run

    def without_mask(self, wanted, **more):
        ids, _ = padded([one.ids for one in wanted], self.pad)
        with torch.inference_mode():
            tensor = torch.from_numpy(ids)
            return self.model.model.generate(
                input_ids=tensor, attention_mask=torch.ones_like(tensor), do_sample=False, pad_token_id=0, **more
            )

    monkeypatch.setattr(AnswerGenerator, "run", without_mask)
    broken = make(model_dir)
    assert not broken.pads
    lengths = [{len(prompts()[i].ids) for i in batch} for batch in broken.batches(prompts())]
    assert all(len(one) == 1 for one in lengths)
    monkeypatch.setattr(AnswerGenerator, "run", honest)


def test_ids_beyond_the_vocabulary_stop_nothing(tmp_path):
    folder = make_model(tmp_path / "m")
    change_config(folder, eos_token_id=[1, 99_999])
    assert 99_999 not in make(folder).stops


def test_markers_count_where_they_are_one_token(model_dir):
    source = find_model(str(model_dir))
    tokenizer = load_tokenizer(source)
    user = tokenizer.convert_tokens_to_ids("<|user|>")
    assert stop_ids(source, tokenizer, ["<|user|>", "no marker", ""]) == {1, user}


def test_draws_follow_the_probabilities():
    scores = torch.log(torch.tensor([[0.5, 0.2, 0.3]], dtype=torch.float64))
    numbers = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = draw(scores.expand(1000, 3), numbers, 1.0)
    assert drawn.bincount().tolist() == [500, 200, 300]
    drawn = draw(scores.expand(1000, 3), numbers, 0.7)  # 0.5 + 0.3 reach it
    assert drawn.bincount(minlength=3).tolist() == [625, 0, 375]
    assert draw(scores, torch.tensor([1.0], dtype=torch.float64), 0.7).tolist() == [2]


@pytest.mark.parametrize("size", [5, 1000])
def test_the_nucleus_is_the_least_set_that_reaches_top_p(size):
    rng = np.random.default_rng(size)
    p = torch.tensor(rng.dirichlet(np.ones(size) * 0.5, 20))
    for top_p in (0.01, 0.5, 0.9, 0.999):
        kept = nucleus(p, top_p)
        for row, out in zip(p.tolist(), kept.tolist(), strict=True):
            total, expected = 0.0, set()
            for i in sorted(range(size), key=lambda i: -row[i]):
                if total >= top_p:
                    break
                expected.add(i)
                total += row[i]
            assert {i for i, value in enumerate(out) if value > 0} == expected


def test_equals_stay_together():
    kept = nucleus(torch.tensor([[0.4, 0.2, 0.2, 0.2]], dtype=torch.float64), 0.5)
    assert (kept > 0).tolist() == [[True] * 4]

"""Tiny models of many families with random weights, passes to read, and the slow twin of the engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from tests.matrix import thinned
from tithe.engine.engine import Engine
from tithe.engine.loaded_model import LoadedModel
from tithe.engine.loading import load_model
from tithe.engine.model_source import find_model
from tithe.records import Pass, Problem

VOCABULARY = 199
LIMIT = 32  # where the rotary scalings below begin to look at a sequence's length
WINDOW = 8

SPECIAL: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
HEADS: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128, **SPECIAL,
}  # fmt: skip
GROUPED: dict[str, Any] = {**HEADS, "num_key_value_heads": 2}
OLD: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
FALCON: dict[str, Any] = {
    k: HEADS[k] for k in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads")
}
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
LOCAL: dict[str, Any] = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
MAMBA: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 32, "state_size": 8, "num_hidden_layers": 2}
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0], "factor": 4.0,
    "original_max_position_embeddings": LIMIT, "rope_theta": 1e4,
}  # fmt: skip


def llama(rope: str, **rest: Any) -> Any:
    return transformers.LlamaConfig(
        **{**GROUPED, "rope_parameters": {"rope_type": rope, "rope_theta": 1e4, "factor": 4.0} | rest}
    )


def dynamic() -> Any:
    return transformers.LlamaConfig(
        **{**GROUPED, "max_position_embeddings": LIMIT},
        rope_parameters={"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4},
    )


t = transformers
CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": partial(t.LlamaConfig, **GROUPED),
    "llama-tied": partial(t.LlamaConfig, **GROUPED, tie_word_embeddings=True),
    "llama-yarn": partial(llama, "yarn", original_max_position_embeddings=LIMIT),
    "llama-llama3": partial(
        llama, "llama3", low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=LIMIT
    ),
    "llama-dynamic": dynamic,
    "llama-longrope": partial(t.LlamaConfig, **GROUPED, rope_parameters=LONGROPE),
    "phi3-longrope": partial(
        t.Phi3Config, **GROUPED, rope_parameters=LONGROPE, original_max_position_embeddings=LIMIT
    ),
    "qwen2": partial(t.Qwen2Config, **GROUPED),
    "qwen3": partial(t.Qwen3Config, **GROUPED, head_dim=8),
    "mistral": partial(t.MistralConfig, **GROUPED, sliding_window=WINDOW),
    "gemma": partial(t.GemmaConfig, **GROUPED, head_dim=8),
    "gemma2": partial(
        t.Gemma2Config, **GROUPED, head_dim=8, sliding_window=WINDOW, query_pre_attn_scalar=8,
        attn_logit_softcapping=1.0, final_logit_softcapping=2.0,
    ),
    "gemma3": partial(t.Gemma3TextConfig, **GROUPED, **LOCAL, head_dim=8, query_pre_attn_scalar=8),
    "phi": partial(t.PhiConfig, **HEADS),
    "phi3": partial(t.Phi3Config, **GROUPED),
    "gpt2": partial(t.GPT2Config, **OLD, bos_token_id=1, eos_token_id=2),
    "gptj": partial(t.GPTJConfig, **OLD, rotary_dim=4, bos_token_id=1, eos_token_id=2),
    "gpt-neo": partial(
        t.GPTNeoConfig, vocab_size=VOCABULARY, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=128,
        window_size=WINDOW, attention_types=[[["global", "local"], 1]], bos_token_id=1, eos_token_id=2,
    ),
    "gpt-neox": partial(t.GPTNeoXConfig, **HEADS),
    "falcon": partial(t.FalconConfig, **FALCON, new_decoder_architecture=True, num_kv_heads=2, eos_token_id=2),
    "falcon-alibi": partial(t.FalconConfig, **FALCON, alibi=True, parallel_attn=False, eos_token_id=2),
    "opt": partial(
        t.OPTConfig, vocab_size=VOCABULARY, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=128, word_embed_proj_dim=32, **SPECIAL,
    ),
    "bloom": partial(t.BloomConfig, vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "cohere": partial(t.CohereConfig, **GROUPED, logit_scale=0.3),
    "cohere2": partial(t.Cohere2Config, **GROUPED, logit_scale=0.3, sliding_window=WINDOW),
    "granite": partial(
        t.GraniteConfig, **GROUPED, logits_scaling=3.0, attention_multiplier=0.3, embedding_multiplier=2.0
    ),
    "olmo2": partial(t.Olmo2Config, **GROUPED),
    "stablelm": partial(t.StableLmConfig, **GROUPED),
    "starcoder2": partial(t.Starcoder2Config, **GROUPED, sliding_window=WINDOW),
    "mixtral": partial(t.MixtralConfig, **GROUPED, **EXPERTS, sliding_window=None),
    "gpt-oss": partial(
        t.GptOssConfig, **GROUPED, **EXPERTS, **LOCAL, head_dim=8,
        rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    ),
    "mamba": partial(t.MambaConfig, **MAMBA, **SPECIAL),
    "recurrent-gemma": partial(
        t.RecurrentGemmaConfig,
        **{k: v for k, v in HEADS.items() if k != "max_position_embeddings"} | {"num_hidden_layers": 3},
        num_key_value_heads=1, attention_window_size=WINDOW, lru_width=32,
    ),
}  # fmt: skip

# One for each way that a family is unlike Llama: scalings of the rotary, windows and soft caps, learnt places, biases
# for distance, another block, experts with sinks, state instead of attention.
REPRESENTATIVES = (
    "llama", "llama-dynamic", "phi3-longrope", "gemma2", "gpt2", "gpt-neox", "falcon-alibi", "cohere", "gpt-oss",
    "mamba", "recurrent-gemma",
)  # fmt: skip
EACH_FAMILY = thinned(CONFIGS, REPRESENTATIVES)


def save(folder: Path, config: Any, *, model: Any = None, seed: int = 0) -> Path:
    """Save random weights large enough for every token to matter."""
    torch.manual_seed(seed)
    model = model(config) if model is not None else t.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for weight in model.parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
    model.save_pretrained(folder)
    return folder


def load(folder: Path, dtype: str = "fp32", device: str = "cpu", **more: Any) -> LoadedModel:
    return load_model(find_model(str(folder)), device=device, dtype=dtype, **more)


def plain(folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    """Load the model as transformers does; older versions need `eager` to cap attention."""
    capped = hasattr(t.AutoConfig.from_pretrained(folder), "attn_logit_softcapping")
    attention = "eager" if capped else None
    return t.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation=attention).eval()


def twin(model: Any, pass_: Pass) -> list[float]:
    """Return the NLL of each response token with context, one by one in float64, from the model's plain logits."""
    if len(pass_.ids) < 2:
        return []
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([pass_.ids.tolist()])).logits[0].double()
    found = []
    for place in range(pass_.start, len(pass_.ids)):
        if place == 0:
            continue
        row = logits[place - 1]
        found.append(float(torch.logsumexp(row, 0) - row[int(pass_.ids[place])]))
    return found


def make_pass(ids: npt.NDArray[Any] | list[int], start: int) -> Pass:
    return Pass(np.asarray(ids, dtype=np.int32), start)


def shown_passes(rng: np.random.Generator, shots: int, each: int) -> list[Pass]:
    """Make passes that show others, and most of those too: cut or whole, with or without a common preamble."""
    preamble, passes = rng.integers(0, VOCABULARY, 18), []
    for _ in range(shots):
        length = int(rng.integers(20, 40))
        shot = rng.integers(0, VOCABULARY, length)
        if rng.random() < 0.7:
            shot[:18] = preamble
        if rng.random() < 0.7:
            passes.append(make_pass(shot, int(rng.integers(18, length))))
        for _ in range(int(rng.integers(0, each + 1))):
            ids = np.concatenate([shot, rng.integers(0, VOCABULARY, rng.integers(1, 20))]).astype(np.int32)
            passes.append(Pass(ids, int(rng.integers(length, len(ids))), shots=length))
    return [passes[i] for i in rng.permutation(len(passes))]


def nested_passes(rng: np.random.Generator, each: int) -> list[Pass]:
    """Make passes with one of two system prompts, or none, after one preamble; some have equal questions."""
    preamble, *prompts = (rng.integers(0, VOCABULARY, length) for length in (18, 40, 33, 0))
    questions = [rng.integers(0, VOCABULARY, 25) for _ in range(2)]
    passes = []
    for prompt in prompts:
        for i in range(each):
            tail = rng.integers(0, VOCABULARY, rng.integers(8, 30))
            question = questions[i % 2] if i < 6 else questions[0][: i % 4]
            ids = np.concatenate([preamble, prompt, question, tail])
            passes.append(make_pass(ids, int(rng.integers(len(ids) - len(tail) + 1, len(ids)))))
    return [passes[i] for i in rng.permutation(len(passes))]


def random_passes(count: int = 25, *, longest: int = 60, seed: int = 0) -> list[Pass]:
    """Make passes of many lengths, some with a common prefix, and the special ones: start 0, length 2, length 1."""
    rng = np.random.default_rng(seed)

    def ids(n: int) -> npt.NDArray[np.int32]:
        return rng.integers(0, VOCABULARY, n).astype(np.int32)

    common = ids(20)
    found = [make_pass(ids(2), 0), make_pass(ids(2), 1), make_pass(ids(longest), 0), make_pass(ids(1), 0)]
    while len(found) < count:
        length = int(rng.integers(2, longest))
        row = ids(length)
        start = int(rng.integers(0, length))
        if length > 24 and len(found) % 2:
            row[:20], start = common, max(start, 21)
        found.append(make_pass(row, start))
    return found


def run(engine: Engine, passes: list[Pass]) -> list[npt.NDArray[np.float32]]:
    """Read every pass once; return results in input order."""
    found: dict[int, npt.NDArray[np.float32]] = {}
    for batch, results in engine.run(passes, engine.batches(passes)):
        for i, result in zip(batch.index, results, strict=True):
            assert i not in found
            assert not isinstance(result, Problem), result
            found[i] = result
    return [found[i] for i in range(len(passes))]


def worst(got: list[npt.NDArray[np.float32]], wanted: list[list[float]]) -> float:
    """Return the largest relative difference of a pass's mean NLL."""
    assert [len(a) for a in got] == [len(b) for b in wanted]
    off = [
        abs(float(a.mean(dtype=np.float64)) - float(np.mean(b))) / float(np.mean(b))
        for a, b in zip(got, wanted, strict=True)
        if len(b)
    ]
    return max(off, default=0.0)

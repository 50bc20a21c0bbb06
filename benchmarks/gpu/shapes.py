"""Models of known shapes with random weights, made on the device, and what they cost in multiplications."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from job import Work

QWEN = 151_936  # rows of Qwen2.5's embedding, also for a shape whose own vocabulary is too small for the tokenizer
SCORES = 2.0


@dataclass(frozen=True)
class Shape:
    """Args: `spread` is the standard deviation of the weights: small models need more to say anything."""

    name: str
    family: str
    hidden: int
    layers: int
    heads: int
    key_heads: int
    intermediate: int
    vocabulary: int
    tied: bool
    spread: float = 0.02


SHAPES = {
    "full": (
        Shape("Qwen2.5-0.5B", "qwen2", 896, 24, 14, 2, 4864, QWEN, tied=True),
        Shape("Llama-3-8B", "llama", 4096, 32, 32, 8, 14_336, 128_256, tied=False),
    ),
    "tiny": (
        Shape("tiny-qwen2", "qwen2", 56, 2, 14, 2, 96, 256, tied=True, spread=0.3),
        Shape("tiny-llama", "llama", 64, 2, 4, 2, 96, 256, tied=False, spread=0.3),
    ),
}


def vocabulary(shape: Shape, ids: int) -> int:
    """Rows of the embedding: the shape's own, or more where the tokenizer has more ids."""
    if ids <= shape.vocabulary:
        return shape.vocabulary
    return QWEN if shape.vocabulary > 10_000 and ids <= QWEN else -(-ids // 64) * 64


def build(shape: Shape, rows: int, device: torch.device, dtype: torch.dtype) -> Any:
    """The model in evaluation mode; the same weights on the same device every time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        shape.family,
        vocab_size=rows,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.key_heads,
        max_position_embeddings=8192,
        tie_word_embeddings=shape.tied,
        initializer_range=shape.spread,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(0)
    with device:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.eval().requires_grad_(False)
    soften(model, shape)
    return model


def soften(model: Any, shape: Shape) -> None:
    """Queries and keys smaller, so that scores have a standard deviation near `SCORES`.

    Weights drawn alike give 18 for the shape of 8B: attention would be a choice of one token, rounding would decide it,
    and contenders that are all true would disagree.
    """
    drawn = shape.spread**2 * shape.hidden * (shape.hidden / shape.heads) ** 0.5
    for layer in model.model.layers:
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj):
            part.weight.mul_((SCORES / drawn) ** 0.5)


def weigh(model: Any, shape: Shape, rows: int) -> dict[str, Any]:
    """Parameters of all, of the body (all but embedding and head), and of the head, as used in each multiplication."""
    whole = sum(p.numel() for p in model.parameters())
    embedding = rows * shape.hidden
    body = whole - embedding * (1 if shape.tied else 2)
    return {**asdict(shape), "vocabulary": rows, "vocabulary_of_the_original": shape.vocabulary,
            "parameters": whole, "body": body, "head": embedding}  # fmt: skip


def flops(weights: dict[str, Any], work: Work) -> int:
    """2 x body x tokens read + 2 x head x tokens scored + queries times keys and weights times values."""
    attention = 4 * weights["hidden"] * weights["layers"] * work.pairs  # heads x their size is the hidden size
    return int(2 * weights["body"] * work.read + 2 * weights["head"] * work.scored + attention)

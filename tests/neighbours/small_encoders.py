"""Tiny encoders with random weights, and examples to embed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from tithe.records import Example, Message

WORDS = ["name", "three", "colours", "of", "the", "rainbow", "what", "is", "sum", "and", "write", "a", "letter", "to"]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, *"0123456789?.,", *"bcdefghijklmnopqrsuvxyz"]
DIM = 16


def ask(text: str, number: int = 0, *, system: str = "") -> Example:
    before = (Message("system", system),) if system else ()
    where = f"data.jsonl:{number + 1}"
    return Example(f"id{number}", number, 1, (*before, Message("user", text)), Message("assistant", "42"), where=where)


def asks(texts: Sequence[str]) -> list[Example]:
    return [ask(text, number) for number, text in enumerate(texts)]


def random_texts(count: int, seed: int = 0, longest: int = 30) -> list[str]:
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, int(rng.integers(1, longest)))) + f" {i}" for i in range(count)]


def tokenizer() -> Any:
    """WordPiece over a few words, lower case, `[CLS] ... [SEP]` as BERT has it."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = {word: i for i, word in enumerate(TOKENS)}
    made = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", pieces["[CLS]"]), ("[SEP]", pieces["[SEP]"])]
    )
    return made


def make_bert(folder: Path, *, seed: int = 0) -> Path:
    """A plain transformer: no word about pooling."""
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    config = BertConfig(
        vocab_size=len(TOKENS), hidden_size=DIM, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, initializer_range=0.5,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        BertModel(config).save_pretrained(folder)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer(), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=64,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def make_sentence(folder: Path, *, pooling: str = "cls", prompt: str | None = None, length: int = 64) -> Path:
    """The same as a sentence-transformers model, written as the library writes it."""
    make_bert(folder)
    kind = "sentence_transformers.models."
    modules = [("", f"{kind}Transformer"), ("1_Pooling", f"{kind}Pooling"), ("2_Normalize", f"{kind}Normalize")]
    listed = [{"idx": i, "name": str(i), "path": path, "type": type_} for i, (path, type_) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length, "do_lower_case": False}))
    modes = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
    on = {f"pooling_mode_{name}": mode == pooling for mode, name in modes.items()}
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": DIM, **on}))
    (folder / "2_Normalize").mkdir()
    if prompt is not None:
        config = {"prompts": {"query": prompt}, "default_prompt_name": "query"}
        (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    return folder


def make_static(folder: Path, *, dtype: str = "float32", seed: int = 0) -> Path:
    """A model2vec folder, as on the hub."""
    folder.mkdir()
    table = np.random.default_rng(seed).normal(size=(len(TOKENS), DIM)) * 20
    save_file({"embeddings": table.astype(dtype)}, folder / "model.safetensors")
    tokenizer().save(str(folder / "tokenizer.json"))
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "hidden_dim": DIM, "normalize": True}
    (folder / "config.json").write_text(json.dumps(config))
    return folder

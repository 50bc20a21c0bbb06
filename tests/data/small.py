"""Small tokenizers and examples, built in memory for tests that need no files."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizer, PreTrainedTokenizerFast

from tithe.records import Example, Message

CORPUS = [
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
    "### Instruction:\nName three colours.\n\n### Response:\nRed, green and blue are three colours.",
    "### Input:\nthe quick brown fox jumps over the lazy dog\n\n\tand   over    again\r\n",
] * 3
CHATML = (
    "{% if messages[0].role != 'system' %}<|im_start|>system\nBe good.<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def _backend(kind: str, bos: bool) -> str:
    backend = Tokenizer(models.BPE(unk_token=None if kind == "bytes" else "<unk>"))
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    if kind == "bytes":
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
        backend.decoder = decoders.Metaspace(prepend_scheme="always")
        alphabet = [chr(code) for code in range(32, 127)] + ["\n", "\t"]
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=[AddedToken(t, special=True) for t in special], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    backend.train_from_iterator(CORPUS, trainer)
    if bos:
        backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return backend.to_str()


def tokenizer(kind: str = "bytes", *, bos: bool = False, chat: Any = None, **named: Any) -> PreTrainedTokenizerFast:
    """Return a byte-level (`bytes`) or SentencePiece-like (`spaces`) BPE tokenizer, with or without a leading BOS."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"} | named
    made = PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_backend(kind, bos)), **names)
    made.chat_template = chat
    return made


class Letters(PreTrainedTokenizer):
    """A slow tokenizer with one token per character."""

    def __init__(self, **kwargs: Any) -> None:
        self._vocab = {"<unk>": 0} | {chr(i): i for i in range(1, 256)}
        super().__init__(unk_token="<unk>", **kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self._vocab)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._vocab)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self._vocab.get(token, 0)

    def _convert_id_to_token(self, index: int) -> str:
        return chr(index)


def example(
    asked: str = "Name three colours.", answer: str = "Red, green and blue.", given: str | None = ""
) -> Example:
    """Return an example in the instruction/input shape."""
    words = f"{asked}\n{given}" if given else asked
    return Example("x", 0, 1, (Message("user", words),), Message("assistant", answer), asked, given)


def dialogue(*turns: tuple[str, str]) -> Example:
    """Return an example made of (role, content) pairs; the last is the response."""
    messages = [Message(role, content) for role, content in turns]
    return Example("x", 0, len(messages) - 1, tuple(messages[:-1]), messages[-1])

"""Text to token ids, many texts at once, without touching the tokenizer's own settings."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tithe.records import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tried in turn after the caller's own anchor. A newline stops tokenizers that mark the beginning of a text with a
# space from inventing one; the empty anchor always fits.
_SPARE_ANCHORS = ("\n", "")


class Tokens:
    """A tokenizer as the renderers use it.

    Args:
        tokenizer: a loaded tokenizer, fast or slow; it is only read.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._clean: Any = None
        self._anchors: dict[str, IntArray] = {}
        plain, special = self.encode(["a"])[0].tolist(), self.encode(["a"], special=True)[0].tolist()
        at = next((i for i in range(len(special)) if special[i : i + len(plain)] == plain), 0)
        self.lead = np.array(special[:at], dtype=np.int32)
        """What the tokenizer by itself puts before every text: BOS, two tokens, or nothing."""

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[IntArray]:
        """The ids of each text; with `special` framed by what the tokenizer adds to every text.

        Special tokens written out in a text become their ids, as everywhere in transformers.
        """
        backend = self._backend()
        if backend is not None:
            encodings = backend.encode_batch_fast(list(texts), add_special_tokens=special)
            return [np.array(encoding.ids, dtype=np.int32) for encoding in encodings]
        encode = self._tokenizer.encode
        return [np.array(encode(text, add_special_tokens=special), dtype=np.int32) for text in texts]

    def encode_after(self, anchors: Sequence[str], texts: Sequence[str]) -> list[IntArray]:
        """The ids of each text as they are right after its anchor, without the anchor's own ids.

        Where a token would reach over the boundary, the text is tokenised after a newline, else by itself: the ids
        never depend on more than the text and its anchor.
        """
        out: list[IntArray] = [np.empty(0, dtype=np.int32)] * len(texts)
        todo = list(range(len(texts)))
        for pick in (None, *_SPARE_ANCHORS):
            before = [anchors[i] or "\n" if pick is None else pick for i in todo]
            joined = self.encode([anchor + texts[i] for anchor, i in zip(before, todo, strict=True)])
            left = []
            for i, anchor, ids in zip(todo, before, joined, strict=True):
                head = self._anchor(anchor)
                if np.array_equal(ids[: len(head)], head) and (len(ids) > len(head) or not texts[i]):
                    out[i] = ids[len(head) :]
                else:
                    left.append(i)
            todo = left
            if not todo:
                break
        return out

    def _backend(self) -> Any:
        """The fast tokenizer without padding and truncation, or None for a slow one.

        Any call of a tokenizer with padding or truncation leaves them switched on: then a copy is used.
        """
        if not self._tokenizer.is_fast:
            return None
        backend = self._tokenizer.backend_tokenizer
        if backend.padding is None and backend.truncation is None:
            return backend
        if self._clean is None:
            self._clean = copy.deepcopy(backend)
            self._clean.no_padding()
            self._clean.no_truncation()
        return self._clean

    def _anchor(self, anchor: str) -> IntArray:
        if anchor not in self._anchors:
            self._anchors[anchor] = self.encode([anchor])[0]
        return self._anchors[anchor]


def bad_unicode(text: str) -> str | None:
    """Why a text cannot be tokenised, or None: half of a character (a lone surrogate) has no UTF-8."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"not valid text: lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
    return None

"""Text to token ids, many texts at once, without touching the tokenizer's own settings.

A text that has a prompt and a response in it is tokenised as a whole, and cut where the tokenizer's offsets say that
the response begins. Tokenised by itself, a prompt would end in tokens that the model never sees before a word: GPT-2's
tokenizer writes a blank line as one token only at the end of a text.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from tithe.records import IntArray

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Tried in turn after the caller's own anchor. A newline stops tokenizers that mark the beginning of a text with a
# space from inventing one; the empty anchor always fits.
_SPARE_ANCHORS = ("\n", "")


@dataclass(frozen=True, slots=True)
class TextCut:
    """A text in ids, cut where the response begins.

    Args:
        ids: (tokens,) of the whole text.
        start: index of the first token that holds something of the response; None where a token reaches over the
            place with more than white space on the prompt's side, so that there is no cut between tokens.
        mark: index of the first token that reaches over a second place.
    """

    ids: IntArray
    start: int | None
    mark: int


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

    def encode_cut(
        self, texts: Sequence[str], starts: Sequence[int], marks: Sequence[int] | None = None
    ) -> list[TextCut]:
        """Return each text in ids, cut at a place.

        A token that begins with the white space before the place and goes on into the response (`▁Hello`) is the
        response's. A special token that swallows the white space behind it is the prompt's.

        Args:
            texts: prompt and response in one.
            starts: index of the character where each response begins.
            marks: index of another character each; the texts' ends where left out.
        """
        places = [len(text) for text in texts] if marks is None else marks
        backend = self._backend()
        if backend is None:
            return [self._slow_cut(*one) for one in zip(texts, starts, places, strict=True)]
        encodings = backend.encode_batch(list(texts), add_special_tokens=False)
        return [
            TextCut(np.array(one.ids, dtype=np.int32), self._first(one, text, start), self._reaching(one, text, place))
            for one, text, start, place in zip(encodings, texts, starts, places, strict=True)
        ]

    def _first(self, encoding: Any, text: str, start: int) -> int | None:
        if start == 0:
            return 0
        index = encoding.char_to_token(start)
        if index is None:
            index = self._reaching(encoding, text, start)
            until = encoding.offsets[index][0] if index < len(encoding.ids) else len(text)
            if text[start:until].strip():  # a mark that the normalizer has joined to the prompt's last letter
                return None
            return index  # white space, which some tokenizers leave out of their offsets
        first, end = encoding.token_to_chars(index)
        if first >= start or not text[first:start].strip():
            return int(index)
        swallowed = not text[start:end].strip() and encoding.ids[index] in self.specials
        return int(index) + 1 if swallowed else None

    def _reaching(self, encoding: Any, text: str, place: int) -> int:
        """Index of the first token that ends behind the place."""
        if place >= len(text):
            return len(encoding.ids)
        return next((i for i, (_, end) in enumerate(encoding.offsets) if end > place), len(encoding.ids))

    def _slow_cut(self, text: str, start: int, place: int) -> TextCut:
        """Cut where the prompt's own ids end, if the text begins with them: a slow tokenizer knows no offsets."""
        whole, head, before = self.encode([text, text[:start], text[:place]])
        agree = np.array_equal(whole[: len(head)], head)
        return TextCut(whole, len(head) if agree else None, min(len(before), len(whole)))

    @cached_property
    def specials(self) -> frozenset[int]:
        """Ids of the tokens that are found in a text before anything else is tokenised."""
        return frozenset(self._tokenizer.added_tokens_decoder)

    @cached_property
    def walls(self) -> dict[str, int]:
        """Texts of special tokens that leave what stands on both sides as it is -> their ids.

        Texts on both sides of one are tokenised as if the other were not there, so that ids can be joined there.
        """
        plain = {
            token.content: index
            for index, token in self._tokenizer.added_tokens_decoder.items()
            if token.content.strip() and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        }
        tried = self.encode([f"a{content}a" for content in plain])
        return {
            content: index
            for (content, index), ids in zip(plain.items(), tried, strict=True)
            if ids.tolist().count(index) == 1
        }

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

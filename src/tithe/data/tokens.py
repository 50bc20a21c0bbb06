"""Tokenise batches of texts without changing the tokenizer's own settings.

Prompt and response are tokenised as one text, which is split where the tokenizer's offsets put the response. A prompt
tokenised alone could end in tokens that never precede a word: GPT-2's tokenizer makes a blank line one token only at
the end of a text.
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

# Tried in this order after the caller's own anchor. After a newline, SentencePiece-like tokenizers do not add the space
# that they put before a text; the empty anchor always fits.
_SPARE_ANCHORS = ("\n", "")


@dataclass(frozen=True, slots=True)
class TextCut:
    """The token ids of a text, with the place where the response begins.

    Args:
        ids: (tokens,) of the whole text.
        start: index of the response's first token; None if one token spans the boundary and holds more than white
            space of the prompt, so that the text cannot be split between tokens.
        mark: index of the first token that ends after a second place in the text.
    """

    ids: IntArray
    start: int | None
    mark: int


class TextTokenizer:
    """A tokenizer without padding and truncation, as the renderers use it.

    Args:
        tokenizer: a loaded tokenizer, fast or slow; it is not changed.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._clean: Any = None
        self._anchors: dict[str, IntArray] = {}
        # The lead is what the tokenizer puts before "a" when it adds its special tokens.
        plain, special = self.encode(["a"])[0].tolist(), self.encode(["a"], special=True)[0].tolist()
        at = next((i for i in range(len(special)) if special[i : i + len(plain)] == plain), 0)
        self.lead = np.array(special[:at], dtype=np.int32)
        """The ids that the tokenizer puts before every text: BOS, two tokens, or nothing."""

    def encode(self, texts: Sequence[str], *, special: bool = False) -> list[IntArray]:
        """Return the ids of each text; with `special`, including what the tokenizer adds to every text.

        Special tokens spelt out in a text become their ids, as always in transformers.
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
        """Return the ids of each text and the token at which its response begins.

        A token that starts with white space of the prompt and continues into the response (`▁Hello`) belongs to the
        response. A special token that swallows the white space after it belongs to the prompt.

        Args:
            texts: prompt and response in one.
            starts: index of the character where each response begins.
            marks: index of a second character in each text; the end of the text by default.
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
            if text[start:until].strip():  # a combining mark that the normalizer merged into the prompt's last letter
                return None
            return index  # white space that this tokenizer leaves out of its offsets
        first, end = encoding.token_to_chars(index)
        if first >= start or not text[first:start].strip():
            return int(index)
        swallowed = not text[start:end].strip() and encoding.ids[index] in self.specials
        return int(index) + 1 if swallowed else None

    def _reaching(self, encoding: Any, text: str, place: int) -> int:
        """Return the index of the first token that ends after the place."""
        if place >= len(text):
            return len(encoding.ids)
        return next((i for i, (_, end) in enumerate(encoding.offsets) if end > place), len(encoding.ids))

    def _slow_cut(self, text: str, start: int, place: int) -> TextCut:
        """Split after the prompt's own ids if the text's ids begin with them; a slow tokenizer has no offsets."""
        whole, head, before = self.encode([text, text[:start], text[:place]])
        agree = np.array_equal(whole[: len(head)], head)
        return TextCut(whole, len(head) if agree else None, min(len(before), len(whole)))

    @cached_property
    def specials(self) -> frozenset[int]:
        """The ids of added tokens, which the tokenizer finds in a text before it tokenises the rest."""
        return frozenset(self._tokenizer.added_tokens_decoder)

    @cached_property
    def boundary_tokens(self) -> dict[str, int]:
        """Special tokens (text -> id) that do not affect how the text on either side is tokenised.

        Ids can be joined at such a token, because each side tokenises as if the other side were not there.
        """
        plain = {
            token.content: index
            for index, token in self._tokenizer.added_tokens_decoder.items()
            if token.content.strip() and not (token.lstrip or token.rstrip or token.single_word or token.normalized)
        }
        # Some tokenizers do not find a token that touches a letter.
        tried = self.encode([f"a{content}a" for content in plain])
        return {
            content: index
            for (content, index), ids in zip(plain.items(), tried, strict=True)
            if ids.tolist().count(index) == 1
        }

    def encode_after(self, anchors: Sequence[str], texts: Sequence[str]) -> list[IntArray]:
        """Return the ids of each text as tokenised right after its anchor, without the anchor's own ids.

        If a token would span the boundary, the text is tokenised after a newline instead, and if that fails too, by
        itself. The ids depend on the text and its anchor only.
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
        """Return the fast tokenizer without padding and truncation; None for a slow one.

        Calling a tokenizer with padding or truncation leaves them switched on for later calls; then use a copy.
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
    """Return why a text cannot be tokenised: a lone surrogate has no UTF-8. None if it can."""
    if text.isascii():
        return None
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"not valid text: lone surrogate U+{ord(text[error.start]):04X} at character {error.start}"
    return None

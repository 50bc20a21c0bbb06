"""The encoder `self`: the scoring model's hidden states of the raw prompt, so that no second model is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from tithe.data.tokens import TextTokenizer
from tithe.errors import ModelError, SettingsError, demand
from tithe.neighbours.encoder import Encoder, ScoringModel, TextEncoder, TextSettings, TextVectors
from tithe.specs import read_settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DEFAULT_LENGTH = 512


@dataclass(frozen=True)
class OwnSettings(TextSettings):
    """How the last hidden states, after the model's final norm, become one vector.

    Args:
        pooling: the `mean` over all tokens, or the `last` token, which has seen all the others.
        max_length: read at most this many first tokens of a text, special tokens included; None is 512, or the model's
            context window if that is shorter.
        prefix: put before every text.
    """

    pooling: Literal["mean", "last"] = "mean"
    max_length: int | None = None
    prefix: str = ""


class OwnEncoder(TextEncoder):
    """Pools the hidden states of the scoring model.

    Args:
        name: the spec.
        settings: how to pool.
        own: the scoring model.
    """

    libraries = ("torch", "transformers", "tokenizers")

    def __init__(self, name: str, settings: OwnSettings, own: ScoringModel) -> None:
        super().__init__(name)
        self.settings: OwnSettings = settings
        self.own = own

    @cached_property
    def limit(self) -> int:
        """Return how many tokens of a text to read.

        Raises:
            SettingsError: `max_length` is more than the model can read.
        """
        window, wanted = self.own.window, self.settings.max_length
        if wanted is None:
            return min(DEFAULT_LENGTH, window or DEFAULT_LENGTH)
        if wanted < 1 or (window is not None and wanted > window):
            raise SettingsError(
                f"`{self.name}`: `max_length` must be from 1 to the model's {window} tokens, not {wanted}"
            )
        return wanted

    def identity(self) -> dict[str, Any]:
        from tithe.engine.readouts.pooled import NUMERICS

        return {
            "kind": "self",
            "fingerprint": self.own.fingerprint,
            "tokenizer": tokenizer_print(self.own.tokenizer),
            "dtype": self.own.dtype,
            "pooling": self.settings.pooling,
            "max_length": self.limit,
            "prefix": self.settings.prefix,
            "numerics": NUMERICS,
        }

    def encode(self, texts: Sequence[str], have: Sequence[bool]) -> Iterator[TextVectors]:
        from tithe.engine.readouts.pooled import pooled_vectors

        whole = TextTokenizer(self.own.tokenizer).encode([self.settings.prefix + text for text in texts], special=True)
        cut = [max(0, len(ids) - self.limit) for ids in whole]
        engine = self.own.engine.in_this_process()
        blank = [i for i, ids in enumerate(whole) if len(ids) == 0 and not have[i]]
        if blank:  # a tokenizer may drop every character of a text
            width = engine.model.model.get_input_embeddings().weight.shape[1]
            yield TextVectors(blank, np.zeros((len(blank), width), dtype=np.float32), [0] * len(blank))
        read = [i for i, ids in enumerate(whole) if len(ids)]
        rows, done = [whole[i][: self.limit] for i in read], [have[i] for i in read]
        for index, vectors in pooled_vectors(engine, rows, done, pooling=self.settings.pooling):
            if vectors is None:
                raise ModelError(
                    f"encoder `{self.name}` is out of memory on a text of {len(rows[index[0]])} tokens",
                    hint="`max_length=` cuts long texts",
                )
            places = [read[i] for i in index]
            yield TextVectors(places, vectors, [cut[i] for i in places])


def tokenizer_print(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash what turns text into ids to 16 hex digits."""
    if tokenizer.is_fast:
        import json

        state = json.loads(tokenizer.backend_tokenizer.to_str())
        state["padding"] = state["truncation"] = None  # callers switch these on and off
        text = json.dumps(state, sort_keys=True)
    else:
        text = f"{type(tokenizer).__name__} {tokenizer.init_kwargs} {sorted(tokenizer.get_vocab().items())}"
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def make_own(spec: str, settings: Mapping[str, str], own: ScoringModel | None) -> Encoder:
    chosen = OwnSettings(**read_settings(OwnSettings, "self", settings))
    if own is None:
        raise SettingsError(
            "encoder `self` embeds with the scoring model, and no model is given",
            hint="`--model` takes a folder or a hub id; `tfidf` needs no model",
        )
    encoder = OwnEncoder(spec, chosen, own)
    demand(encoder.limit)  # raises now if `max_length` is wrong, not in the middle of a run
    return encoder

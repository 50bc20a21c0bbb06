"""Static models (model2vec): a table of token vectors and their mean. Fast on any machine."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from tithe.engine.model_source import ModelSource
from tithe.errors import ModelError
from tithe.foreign import foreign
from tithe.neighbours.encoder import Encoded, Encoder, TextEncoder, TextSettings
from tithe.neighbours.sources import demand_package, fingerprint
from tithe.specs import read_settings

BLOCK = 1024


@dataclass(frozen=True)
class StaticSettings(TextSettings):
    """The mean over all tokens of a text that the model knows; nothing is cut.

    Args:
        prefix: put before every text.
    """

    prefix: str = ""


class Static(TextEncoder):
    libraries = ("model2vec", "tokenizers", "numpy")

    def __init__(self, name: str, source: ModelSource, settings: StaticSettings) -> None:
        super().__init__(name)
        self.source = source
        self.settings: StaticSettings = settings

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.source)

    def identity(self) -> dict[str, Any]:
        return {"kind": "static", "fingerprint": self.fingerprint, "prefix": self.settings.prefix}

    @cached_property
    def model(self) -> Any:
        from model2vec import StaticModel

        with foreign(ModelError, f"cannot load encoder `{self.name}`", f"looked in `{self.source.folder}`"):
            model = StaticModel.from_pretrained(self.source.folder)
        model.embedding = model.embedding.astype(np.float32)  # means of a smaller type would be rounded to it
        return model

    def encode(self, texts: Sequence[str], have: Sequence[bool]) -> Iterator[Encoded]:
        wanted = [i for i, there in enumerate(have) if not there]
        for start in range(0, len(wanted), BLOCK):
            part = wanted[start : start + BLOCK]
            vectors = self.model.encode(
                [self.settings.prefix + texts[i] for i in part],
                max_length=None,
                batch_size=BLOCK,
                use_multiprocessing=False,  # it would switch the tokenizers' own threads off, for good
            )
            yield Encoded(part, np.asarray(vectors, dtype=np.float32), [0] * len(part))


def make_static(spec: str, source: ModelSource, settings: Mapping[str, str]) -> Encoder:
    demand_package("model2vec", "model2vec", source)
    return Static(spec, source, StaticSettings(**read_settings(StaticSettings, source.name, settings)))

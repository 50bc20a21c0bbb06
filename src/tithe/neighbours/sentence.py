"""Sentence encoders: whatever sentence-transformers can load from safetensors without running the model's own code."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tithe.engine.model_files import first_line
from tithe.engine.model_source import ModelSource
from tithe.errors import ModelError, SettingsError
from tithe.foreign import foreign, read_json
from tithe.neighbours.encoder import Encoded, Encoder, TextEncoder, TextSettings, Vectors
from tithe.neighbours.sources import config_of, demand_package, fingerprint
from tithe.specs import read_settings

MODES = {"mean": "mean", "cls": "cls", "last": "lasttoken"}


@dataclass(frozen=True)
class SentenceSettings(TextSettings):
    """How a model is read.

    Args:
        pooling: `model` is what the model was made with; `mean`, `cls` and `last` (token) replace it.
        max_length: tokens of a text that are read; None is the model's own limit.
        prefix: put before every text, for models that want `query: `; None is the model's own default prompt.
        dtype: of the weights and the computation; half precision rounds the vectors to it, too.
        batch_size: texts at a time; moves vectors by rounding alone.
    """

    pooling: Literal["model", "mean", "cls", "last"] = "model"
    max_length: int | None = None
    prefix: str | None = None
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch_size: int = 32


class Sentence(TextEncoder):
    libraries = ("sentence-transformers", "transformers", "torch", "tokenizers")

    def __init__(self, name: str, source: ModelSource, settings: SentenceSettings, device: str) -> None:
        super().__init__(name)
        self.source, self.device = source, device
        self.settings: SentenceSettings = settings

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.source)

    def identity(self) -> dict[str, Any]:
        chosen = {name: getattr(self.settings, name) for name in ("pooling", "max_length", "prefix", "dtype")}
        return {"kind": "sentence", "fingerprint": self.fingerprint, **chosen}

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"pooling_used": pooling_of(self.source, self.settings)}

    @cached_property
    def model(self) -> Any:
        """Loaded whole, on its device.

        Raises:
            ModelError: sentence-transformers cannot load it, or its pooling cannot be replaced.
            SettingsError: the maximal length is more than the model has places for.
        """
        from sentence_transformers import SentenceTransformer

        from tithe.engine.devices import DTYPES, choose_device

        device = choose_device(self.device)
        weights = {"dtype": DTYPES[self.settings.dtype], "use_safetensors": True}
        with foreign(ModelError, f"cannot load encoder `{self.name}`", f"looked in `{self.source.folder}`"):
            model = SentenceTransformer(
                str(self.source.folder), device=str(device), trust_remote_code=False, model_kwargs=weights
            )
        if self.settings.pooling != "model":
            replace_pooling(model, MODES[self.settings.pooling], self.name)
        if self.settings.max_length is not None:
            model.max_seq_length = self.settings.max_length
        return model.eval()

    def encode(self, texts: Sequence[str], have: Sequence[bool]) -> Iterator[Encoded]:
        for start in range(0, len(texts), self.settings.batch_size):
            stop = min(start + self.settings.batch_size, len(texts))
            part = [i for i in range(start, stop) if not have[i]]
            if part:
                chosen = [texts[i] for i in part]
                yield Encoded(part, self.read(chosen), self.cut(chosen))

    def read(self, texts: list[str]) -> Vectors:
        """One batch; out of memory halves it and goes on."""
        from tithe.engine.engine import is_out_of_memory, release

        model, prefix = self.model, self.settings.prefix
        try:
            found = model.encode(
                texts, prompt=prefix, batch_size=len(texts), show_progress_bar=False, convert_to_tensor=True
            )
            return np.asarray(found.float().cpu().numpy())
        except (RuntimeError, MemoryError, IndexError, ValueError) as error:
            if not is_out_of_memory(error):
                raise ModelError(
                    f"encoder `{self.name}` cannot read its texts: {first_line(error)}",
                    hint="where they are too long for it, `max_length=` cuts them",
                ) from error
        release(model.device)  # outside the handler: the traceback, and with it the batch, is gone
        if len(texts) == 1:
            raise ModelError(
                f"encoder `{self.name}` is out of memory on a text of {len(texts[0])} characters",
                hint="`max_length=` cuts long texts; `dtype=bf16` halves the model",
            )
        middle = len(texts) // 2
        return np.concatenate([self.read(texts[:middle]), self.read(texts[middle:])])

    def cut(self, texts: Sequence[str]) -> list[int]:
        """How many tokens of each text the model does not read."""
        from transformers import PreTrainedTokenizerBase

        limit, tokenizer = self.model.max_seq_length, self.model.tokenizer
        if not isinstance(limit, int) or not isinstance(tokenizer, PreTrainedTokenizerBase):
            return [0] * len(texts)  # static tables and bags of words read all
        prefix = self.settings.prefix
        before = self.model.prompts.get(self.model.default_prompt_name, "") if prefix is None else prefix
        found = [0] * len(texts)
        for i, text in enumerate(texts):
            if len((before + text).encode("utf-8", "surrogatepass")) + 8 > limit:  # a token is a byte at least
                ids = tokenizer(before + text, truncation=False, verbose=False)["input_ids"]
                found[i] = max(0, len(ids) - limit)
        return found


def replace_pooling(model: Any, mode: str, name: str) -> None:
    """Put another pooling in the place of the model's own; what comes after it stays."""
    for place, module in model.named_children():
        if type(module).__name__ == "Pooling":  # by name: its place in the package has moved
            known = vars(module)
            width = known.get("embedding_dimension") or known["word_embedding_dimension"]
            model._modules[place] = type(module)(width, mode)
            return
    raise SettingsError(f"encoder `{name}` has no pooling that could be replaced", hint="leave `pooling` out")


def parts_of(source: ModelSource) -> list[dict[str, Any]] | None:
    """What sentence-transformers will put together, or None where the folder is a plain transformer.

    Raises:
        ModelError: the list is damaged, or wants code of its own to be run.
    """
    path = source.folder / "modules.json"
    if not path.is_file():
        return None
    again = f"download or copy `{source.folder}` again"
    with foreign(ModelError, f"cannot read `modules.json` of encoder `{source.name}`", again):
        parts = [{"type": str(part["type"]), "path": str(part["path"])} for part in json.loads(path.read_text("utf-8"))]
    for part in parts:
        if not part["type"].startswith("sentence_transformers."):
            raise ModelError(
                f"encoder `{source.name}` wants code of its own to be run (`{part['type']}`)",
                hint="take another encoder, or compute vectors with it and give them as `file:vectors.npy`",
            )
    return parts


def pooling_of(source: ModelSource, settings: SentenceSettings) -> str:
    """The pooling in force, in sentence-transformers' words."""
    if settings.pooling != "model":
        return MODES[settings.pooling]
    for part in parts_of(source) or []:
        path = source.folder / part["path"] / "config.json"
        if part["type"].endswith(".Pooling") and path.is_file():
            config = read_json(path, ModelError, f"download or copy `{source.folder}` again")
            old = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
            return str(config.get("pooling_mode") or "+".join(key.removeprefix("pooling_mode_") for key in old))
    return "none"


def make_sentence(spec: str, source: ModelSource, settings: Mapping[str, str], device: str) -> Encoder:
    demand_package("sentence_transformers", "sentence-transformers", source)
    chosen = SentenceSettings(**read_settings(SentenceSettings, source.name, settings))
    for name in ("max_length", "batch_size"):
        if (value := getattr(chosen, name)) is not None and value < 1:
            raise SettingsError(f"`{spec}`: `{name}` is at least 1, not {value}")
    places = config_of(source).get("max_position_embeddings")
    if isinstance(places, int) and (chosen.max_length or 0) > places:
        raise SettingsError(f"`{source.name}` reads at most {places} tokens, `max_length` is {chosen.max_length}")
    if parts_of(source) is None and chosen.pooling == "model":
        raise SettingsError(
            f"`{source.name}` does not say how its vectors are pooled",
            hint=f"`{source.name}(pooling=mean)`, or cls, last",
        )
    return Sentence(spec, source, chosen, device)

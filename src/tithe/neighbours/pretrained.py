"""Load pretrained encoders: sentence-transformers models, and static model2vec models.

Both are safetensors in a folder or on the hub; no code of the model's own is ever run.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tithe.engine.model_files import demand_model_files, first_line
from tithe.engine.model_source import BUNDLED, HUB_ID, TEXT_FILES, ModelSource, content_hash
from tithe.errors import MissingExtraError, ModelError, SettingsError
from tithe.extras import install_hint
from tithe.foreign import foreign, read_json
from tithe.neighbours.encoder import Encoder, TextEncoder, TextSettings, TextVectors, Vectors
from tithe.specs import read_settings

NAMES = ("self", "tfidf")
ENDINGS = (".json", ".txt", ".model", ".safetensors")  # files that a vector may depend on
OTHER_BACKENDS = ("onnx", "openvino")
MODES = {"mean": "mean", "cls": "cls", "last": "lasttoken"}  # our word -> that of sentence-transformers
STATIC_BATCH = 1024


def make_pretrained(spec: str, name: str, settings: Mapping[str, str], device: str) -> Encoder:
    """Make a static or a transformer encoder, as the model's config says."""
    source = find_encoder(name)
    if config_of(source).get("model_type") == "model2vec":
        demand_package("model2vec", "model2vec", source)
        return StaticEncoder(spec, source, StaticSettings(**read_settings(StaticSettings, source.name, settings)))
    demand_package("sentence_transformers", "sentence-transformers", source)
    chosen = SentenceSettings(**read_settings(SentenceSettings, source.name, settings))
    for option in ("max_length", "batch_size"):
        if (value := getattr(chosen, option)) is not None and value < 1:
            raise SettingsError(f"`{spec}`: `{option}` must be at least 1, not {value}")
    places = config_of(source).get("max_position_embeddings")
    if isinstance(places, int) and (chosen.max_length or 0) > places:
        raise SettingsError(f"`{source.name}` reads at most {places} tokens, `max_length` is {chosen.max_length}")
    if parts_of(source) is None and chosen.pooling == "model":
        raise SettingsError(
            f"`{source.name}` does not say how its vectors are pooled",
            hint=f"`{source.name}(pooling=mean)`, or cls, last",
        )
    return SentenceEncoder(spec, source, chosen, device)


class PretrainedEncoder(TextEncoder):
    """An encoder with weights of its own.

    Args:
        name: the spec.
        source: its files.
    """

    def __init__(self, name: str, source: ModelSource) -> None:
        super().__init__(name)
        self.source = source

    @cached_property
    def fingerprint(self) -> str:
        return fingerprint(self.source)


@dataclass(frozen=True)
class StaticSettings(TextSettings):
    """The vector is the mean over all tokens of a text that the model knows; no text is cut.

    Args:
        prefix: put before every text.
    """

    prefix: str = ""


class StaticEncoder(PretrainedEncoder):
    """A table of token vectors, and their mean: fast on any machine."""

    libraries = ("model2vec", "tokenizers", "numpy")

    def __init__(self, name: str, source: ModelSource, settings: StaticSettings) -> None:
        super().__init__(name, source)
        self.settings: StaticSettings = settings

    def identity(self) -> dict[str, Any]:
        return {"kind": "static", "fingerprint": self.fingerprint, "prefix": self.settings.prefix}

    @cached_property
    def model(self) -> Any:
        from model2vec import StaticModel

        with foreign(ModelError, f"cannot load encoder `{self.name}`", f"looked in `{self.source.folder}`"):
            model = StaticModel.from_pretrained(self.source.folder)
        model.embedding = model.embedding.astype(np.float32)  # in a smaller type, means would be rounded to it
        return model

    def encode(self, texts: Sequence[str], have: Sequence[bool]) -> Iterator[TextVectors]:
        wanted = [i for i, there in enumerate(have) if not there]
        for start in range(0, len(wanted), STATIC_BATCH):
            part = wanted[start : start + STATIC_BATCH]
            vectors = self.model.encode(
                [self.settings.prefix + texts[i] for i in part],
                max_length=None,
                batch_size=STATIC_BATCH,
                use_multiprocessing=False,  # it would switch off the tokenizers' own threads, for good
            )
            yield TextVectors(part, np.asarray(vectors, dtype=np.float32), [0] * len(part))


@dataclass(frozen=True)
class SentenceSettings(TextSettings):
    """How a sentence-transformers model reads texts.

    Args:
        pooling: `model` keeps the model's own; `mean`, `cls` and `last` (token) replace it.
        max_length: read at most this many tokens of a text; None is the model's own limit.
        prefix: put before every text, for models that want `query: `; None is the model's own default prompt.
        dtype: of the weights and the computation; half precision rounds the vectors to it, too.
        batch_size: texts at a time; changes vectors by rounding only.
    """

    pooling: Literal["model", "mean", "cls", "last"] = "model"
    max_length: int | None = None
    prefix: str | None = None
    dtype: Literal["fp32", "bf16", "fp16"] = "fp32"
    batch_size: int = 32


class SentenceEncoder(PretrainedEncoder):
    libraries = ("sentence-transformers", "transformers", "torch", "tokenizers")

    def __init__(self, name: str, source: ModelSource, settings: SentenceSettings, device: str) -> None:
        super().__init__(name, source)
        self.device = device
        self.settings: SentenceSettings = settings

    def identity(self) -> dict[str, Any]:
        chosen = {name: getattr(self.settings, name) for name in ("pooling", "max_length", "prefix", "dtype")}
        return {"kind": "sentence", "fingerprint": self.fingerprint, **chosen}

    def describe(self) -> dict[str, Any]:
        return super().describe() | {"pooling_used": pooling_of(self.source, self.settings)}

    @cached_property
    def model(self) -> Any:
        """Load the model onto its device.

        Raises:
            ModelError: sentence-transformers cannot load it.
            SettingsError: its pooling cannot be replaced.
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

    def encode(self, texts: Sequence[str], have: Sequence[bool]) -> Iterator[TextVectors]:
        for start in range(0, len(texts), self.settings.batch_size):
            stop = min(start + self.settings.batch_size, len(texts))
            part = [i for i in range(start, stop) if not have[i]]
            if part:
                chosen = [texts[i] for i in part]
                yield TextVectors(part, self.read(chosen), self.cut(chosen))

    def read(self, texts: list[str]) -> Vectors:
        """Encode one batch; if it does not fit into memory, encode its halves."""
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
                    hint="if they are too long for it, cut them with `max_length=`",
                ) from error
        release(model.device)  # after the handler, where the traceback no longer holds the batch
        if len(texts) == 1:
            raise ModelError(
                f"encoder `{self.name}` is out of memory on a text of {len(texts[0])} characters",
                hint="`max_length=` cuts long texts; `dtype=bf16` halves the model",
            )
        middle = len(texts) // 2
        return np.concatenate([self.read(texts[:middle]), self.read(texts[middle:])])

    def cut(self, texts: Sequence[str]) -> list[int]:
        """Count the tokens of each text beyond the model's limit."""
        from transformers import PreTrainedTokenizerBase

        limit, tokenizer = self.model.max_seq_length, self.model.tokenizer
        if not isinstance(limit, int) or not isinstance(tokenizer, PreTrainedTokenizerBase):
            return [0] * len(texts)  # static tables and bags of words have no limit
        prefix = self.settings.prefix
        before = self.model.prompts.get(self.model.default_prompt_name, "") if prefix is None else prefix
        found = [0] * len(texts)
        for i, text in enumerate(texts):
            # A token is at least one byte, and at most 8 are special: shorter texts need not be tokenised.
            if len((before + text).encode("utf-8", "surrogatepass")) + 8 > limit:
                ids = tokenizer(before + text, truncation=False, verbose=False)["input_ids"]
                found[i] = max(0, len(ids) - limit)
        return found


def replace_pooling(model: Any, mode: str, name: str) -> None:
    """Replace the model's pooling layer and keep the layers after it."""
    for place, module in model.named_children():
        if type(module).__name__ == "Pooling":  # by name, as versions of the package differ in where the class is
            known = vars(module)
            width = known.get("embedding_dimension") or known["word_embedding_dimension"]
            model._modules[place] = type(module)(width, mode)
            return
    raise SettingsError(f"encoder `{name}` has no pooling layer to replace", hint="leave `pooling` out")


def parts_of(source: ModelSource) -> list[dict[str, Any]] | None:
    """Return the modules that sentence-transformers will chain, or None if the folder is a plain transformer.

    Raises:
        ModelError: the list is damaged, or a module needs custom code.
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
                f"encoder `{source.name}` needs custom code (`{part['type']}`), which is never run",
                hint="take another encoder, or compute vectors with it and give them as `file:vectors.npy`",
            )
    return parts


def pooling_of(source: ModelSource, settings: SentenceSettings) -> str:
    """Return the pooling in force, by sentence-transformers' name for it."""
    if settings.pooling != "model":
        return MODES[settings.pooling]
    for part in parts_of(source) or []:
        path = source.folder / part["path"] / "config.json"
        if part["type"].endswith(".Pooling") and path.is_file():
            config = read_json(path, ModelError, f"download or copy `{source.folder}` again")
            old = [key for key, on in config.items() if key.startswith("pooling_mode_") and on is True]
            return str(config.get("pooling_mode") or "+".join(key.removeprefix("pooling_mode_") for key in old))
    return "none"


def find_encoder(name: str) -> ModelSource:
    """Turn a folder or a hub id into local files.

    Raises:
        ModelError: there is no such encoder, it has no safetensors, or the hub does not answer.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        return demand_files(ModelSource(name, path.resolve()))
    if path.suffix in (".npy", ".parquet"):
        raise ModelError(f"there is no encoder `{name}`", hint=f"a file of vectors is `file:{name}`")
    if name in BUNDLED:
        raise ModelError(
            f"`{name}` is a language model, not an encoder",
            hint=f"`--model {name} --encoder self` embeds with it",
        )
    if near := difflib.get_close_matches(name, NAMES, n=1, cutoff=0.6):
        raise ModelError(f"there is no encoder `{name}`", hint=f"did you mean `{near[0]}`?")
    if name.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name):
        raise ModelError(f"there is no encoder folder `{name}`", hint=suggestion(path))
    return demand_files(fetch(name, path))


def suggestion(path: Path) -> str:
    """Suggest a folder with a similar name, or else list what an encoder can be."""
    parent = path.parent
    while not parent.is_dir():
        parent, path = parent.parent, parent
    try:
        folders = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    except OSError:  # we may not read it
        folders = []
    near = difflib.get_close_matches(path.name, folders, n=1, cutoff=0.6)
    if near:
        return f"did you mean `{parent / near[0]}`?"
    return "an encoder is `self`, `tfidf`, a folder, a hub id (`owner/name`) or `file:` and a path"


def fetch(name: str, path: Path) -> ModelSource:
    """Download an encoder's text files and safetensors into the hub's cache; no code, nothing pickled."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    others = [f"{backend}/*" for backend in OTHER_BACKENDS]
    try:
        folder = Path(snapshot_download(name, allow_patterns=[*TEXT_FILES, "*.safetensors"], ignore_patterns=others))
    except RepositoryNotFoundError as error:
        hint = suggestion(path) if "/" in name else f"`sentence-transformers/{name}`, or another owner?"
        raise ModelError(f"the hub has no encoder `{name}`, and there is no such folder", hint=hint) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"no folder `{name}`, and the hub could not be asked for an encoder of that name: {first_line(error)}",
            hint=suggestion(path),
        ) from error
    return ModelSource(name, folder, revision=folder.name)


def demand_files(source: ModelSource) -> ModelSource:
    """Refuse a folder that holds no encoder."""
    demand_model_files(source.name, source.folder)
    here = sorted(entry.name for entry in source.folder.iterdir())
    if not {"config.json", "modules.json"} & set(here):
        held = f"it holds: {', '.join(here[:8])}" if here else "it is empty"
        raise ModelError(f"encoder `{source.name}` has no `config.json`", hint=held)
    if not any(source.folder.rglob("*.safetensors")):
        old = [name for name in here if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        hint = "convert the pickled weights to safetensors first" if old else "the folder has no weights"
        raise ModelError(f"encoder `{source.name}` has no `.safetensors` file", hint=hint)
    return source


def config_of(source: ModelSource) -> dict[str, Any]:
    """Return the model's config; empty for a chain of modules whose configs are all in subfolders."""
    return source.config if (source.folder / "config.json").is_file() else {}


def demand_package(module: str, package: str, source: ModelSource) -> None:
    """Name the missing extra before anything is read.

    Raises:
        MissingExtraError: the package is not installed.
    """
    if find_spec(module) is None:
        raise MissingExtraError(f"encoder `{source.name}` needs the package `{package}`", hint=install_hint("encoders"))


def fingerprint(source: ModelSource) -> str:
    """Hash all files that a vector may depend on to 16 hex digits: weights, tokenizer, configs, subfolders included."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(source.folder.rglob("*")):
        place = file.relative_to(source.folder)
        if file.suffix in ENDINGS and place.parts[0] not in OTHER_BACKENDS and file.is_file():
            digest.update(place.as_posix().encode(errors="surrogateescape") + b"\0" + content_hash(file))
    return digest.hexdigest()

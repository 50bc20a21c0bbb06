"""Find a model by bundled name, folder, GGUF file or hub id: its local files, tokenizer and fingerprint.

Imports no torch; transformers does so for a GGUF file.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.engine.gguf_file import SUFFIX, demand_gguf_package, read_header
from tithe.engine.held_model import HeldModel, borrowed
from tithe.engine.model_files import (
    PICKLED,
    Tensors,
    demand_model_files,
    first_line,
    read_config,
    read_object,
    reading_folder,
    tensors_in,
)
from tithe.errors import MissingExtraError, ModelError, demand
from tithe.extras import install_hint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IN_MEMORY: dict[str, ModelSource] = {}  # models that callers have lent for the time of a call, by name
BUNDLED = {"pocket": Path(__file__).parent.parent / "pocket" / "model"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")
HUB_FILE = re.compile(r"(?P<repo>[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*)/(?P<file>[^\\]+\.gguf)", re.IGNORECASE)
TEXT_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
HASHED_AT_ONCE = 4  # files, each in a thread
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
UNBOUNDED = 10**9  # tokenizers without a limit carry a huge number
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Adapter settings that do not change the merged weights, so they are not part of its fingerprint.
PLACES = ("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode")


@dataclass(frozen=True)
class ModelSource:
    """A model's files on the local disk.

    Args:
        name: as the user wrote it.
        folder: holds config, tokenizer and weights; for an adapter, those of its base model.
        revision: the hub commit, for hub models.
        adapter: folder of a LoRA adapter, to be merged into the weights when they are read.
        held: the model itself, if the caller has it in memory; the folder then has no weights.
        gguf: a GGUF file, which holds config, tokenizer and weights; nothing else in `folder` is read.
    """

    name: str
    folder: Path
    revision: str | None = None
    adapter: Path | None = None
    held: HeldModel | None = None
    gguf: Path | None = None

    @property
    def config(self) -> dict[str, Any]:
        if self.gguf is not None:
            from tithe.engine.gguf_model import gguf_config

            return gguf_config(self.gguf, self.name)
        return read_config(self.folder, self.name)

    @property
    def weights(self) -> list[Path]:
        return [self.gguf] if self.gguf is not None else sorted(self.folder.glob("*.safetensors"))

    @property
    def tensors(self) -> Tensors:
        """All tensors of the weights, from the files' headers; those of a GGUF file have its own names and types."""
        if self.gguf is None:
            return tensors_in(self.folder, self.name)
        header = read_header(self.gguf, self.name)
        return {tensor.name: (str(tensor.kind), tensor.shape) for tensor in header.tensors}

    @property
    def place(self) -> Path:
        """Where the model is: its GGUF file, or its folder."""
        return self.gguf or self.folder


def find_model(name: str, *, weights: bool = True) -> ModelSource:
    """Resolve a bundled name, a folder, a GGUF file or a hub id to local files.

    Args:
        name: `pocket`, a path, or `owner/name` on the hub; `owner/name/file.gguf` is one file of a repository.
        weights: whether the weights are needed too; a plan needs only the tokenizer.

    Raises:
        ModelError: there is no such model, it has no safetensors, or the hub cannot be reached.
    """
    if name in IN_MEMORY:
        return IN_MEMORY[name]
    try:
        path = BUNDLED.get(name) or Path(name).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # name too long, or `~user` of an unknown user
        reason = getattr(error, "strerror", None) or first_line(error)
        hint = "give a folder, a GGUF file or a hub id"
        raise ModelError(f"`{name[:100]}` cannot name a model: {reason}", hint=hint) from error
    if is_folder:
        return at_folder(name, path.resolve(), weights=weights)
    if path.suffix.lower() == SUFFIX and path.exists():
        return at_gguf(name, path.resolve())
    if is_file:
        raise ModelError(f"model `{name}` is a file", hint="give the folder that holds `config.json`, or a GGUF file")
    if name in BUNDLED:  # its folder is missing; the hub must not be asked for a model of that name
        raise ModelError(f"the bundled model `{name}` is not in `{path.parent}`", hint="install tithe again")
    if (asked := HUB_FILE.fullmatch(name)) and not path.parent.is_dir():
        return fetch_gguf(name, asked["repo"], asked["file"], path)
    if name.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name) or path.suffix.lower() == SUFFIX:
        kind = "GGUF file" if path.suffix.lower() == SUFFIX else "model folder"
        raise ModelError(f"no {kind} `{name}`", hint=suggestion(path))
    return fetch(name, path, weights=weights)


@contextmanager
def lent_model(given: Any, tokenizer: Any) -> Iterator[str]:
    """Yield a name under which `find_model` finds a model in memory, while the block lasts.

    Raises:
        TitheError: see `borrowed`.
    """
    with borrowed(given, tokenizer) as held:
        kind = type(held.model).__name__
        names = (f"{kind} in memory" + (f" ({n})" if n > 1 else "") for n in count(1))
        name = next(name for name in names if name not in IN_MEMORY)
        IN_MEMORY[name] = ModelSource(name, held.folder, held=held)
        try:
            yield name
        finally:
            del IN_MEMORY[name]


def at_gguf(name: str, file: Path, *, revision: str | None = None) -> ModelSource:
    """Return the model in a GGUF file.

    Raises:
        ModelError: the file is damaged, or holds no causal language model that transformers reads.
        MissingExtraError: the package `gguf` is not installed.
    """
    source = ModelSource(name, file.parent, revision, gguf=file)
    demand(read_header(file, name), source.config)
    return source


def at_folder(name: str, folder: Path, *, weights: bool, revision: str | None = None) -> ModelSource:
    """Return the model in a folder; for an adapter, its base model with the adapter attached."""
    if is_adapter(folder):
        return base_of(name, folder, weights=weights)
    if (file := only_gguf(name, folder)) is not None:
        return at_gguf(name, file, revision=revision)
    source = ModelSource(name, folder, revision)
    demand_layout(source, weights=weights)
    return source


def only_gguf(name: str, folder: Path) -> Path | None:
    """Return the GGUF file of a folder that holds no other weights; None if it holds no such file.

    Raises:
        ModelError: there are several.
    """
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() == SUFFIX)
    if not files or any(folder.glob("*.safetensors")):
        return None
    if len(files) > 1:
        raise several_gguf(name, [file.name for file in files])
    return files[0].resolve() if not files[0].is_symlink() else files[0]


def several_gguf(name: str, files: Sequence[str]) -> ModelError:
    names = ", ".join(f"`{file}`" for file in files[:6]) + (", ..." if len(files) > 6 else "")
    return ModelError(
        f"`{name}` holds {len(files)} GGUF files: {names}", hint=f"name one of them: `{name.rstrip('/')}/{files[0]}`"
    )


def suggestion(path: Path) -> str:
    """Return a hint: a folder with a similar name, or how far the path exists."""
    parent = path.parent
    while not parent.is_dir():  # up to the first folder that exists
        parent, path = parent.parent, parent
    try:
        folders = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    except OSError:  # no permission
        folders = []
    bundled = difflib.get_close_matches(path.name, BUNDLED, n=1, cutoff=0.6)
    if bundled and parent == Path():
        return f"did you mean `{bundled[0]}`, the bundled model?"
    near = difflib.get_close_matches(path.name, folders, n=1, cutoff=0.6)
    if near:
        return f"did you mean `{parent / near[0]}`?"
    return f"`{parent}` has no `{path.name}`; bundled: {', '.join(BUNDLED)}"


def demand_layout(source: ModelSource, *, weights: bool) -> None:
    """Raise if a folder cannot hold a causal language model, before anything heavy is loaded."""
    demand_model_files(source.name, source.folder)
    here = {entry.name for entry in source.folder.iterdir()}
    if "config.json" not in here:
        raise ModelError(f"`{source.name}` has no `config.json`", hint=f"it holds: {', '.join(sorted(here)[:8])}")
    if weights and not source.weights:
        old = [name for name in here if name.endswith(PICKLED)]
        hint = "convert the pickled weights to safetensors first" if old else "the folder has no weights"
        raise ModelError(f"`{source.name}` has no `.safetensors` file", hint=hint)
    demand_decoder(source)
    if weights:
        tensors_in(source.folder, source.name)


def demand_decoder(source: ModelSource) -> None:
    """Raise if the config describes anything but a decoder with a language-model head."""
    config = source.config
    kind = ", ".join(config.get("architectures") or []) or config.get("model_type", "unknown")
    if config.get("is_encoder_decoder"):
        raise ModelError(f"`{source.name}` is an encoder-decoder model ({kind})", hint="give a causal language model")
    heads = ("CausalLM", "LMHeadModel", "ConditionalGeneration", "DoubleHeadsModel")
    if config.get("architectures") and not kind.endswith(heads):
        raise ModelError(
            f"`{source.name}` is not a causal language model but {kind}", hint="its architecture must end in CausalLM"
        )


def fetch(name: str, path: Path, *, weights: bool) -> ModelSource:
    """Download a hub model's files (without weights for a plan) into the hub's own cache."""
    from huggingface_hub import snapshot_download

    patterns = (
        [*TEXT_FILES, "*.py", "*.safetensors"] if weights else [*TEXT_FILES, "*.py"]
    )  # downloaded code is not run
    with asking_hub(name, path):
        folder = Path(snapshot_download(name, allow_patterns=patterns))
        files = [] if (folder / "config.json").exists() else gguf_files(name)
    if len(files) > 1:  # one repository often holds a model in twenty quantisations
        raise several_gguf(name, files)
    if files:
        return fetch_gguf(name, name, files[0], path)
    return at_folder(name, folder, weights=weights, revision=folder.name)


def gguf_files(repo: str) -> list[str]:
    """List the GGUF files of a hub repository."""
    from huggingface_hub import HfApi

    return sorted(file for file in HfApi().list_repo_files(repo) if file.lower().endswith(SUFFIX))


def fetch_gguf(name: str, repo: str, file: str, path: Path) -> ModelSource:
    """Download one GGUF file of a hub repository into the hub's own cache."""
    from huggingface_hub import hf_hub_download

    demand_gguf_package(name)  # before gigabytes are downloaded
    with asking_hub(name, path):
        local = Path(hf_hub_download(repo, file))
    # The cache holds links to files that are named by their hash: `snapshots/COMMIT/FILE`.
    return at_gguf(name, local, revision=local.parts[-1 - len(Path(file).parts)])


@contextmanager
def asking_hub(name: str, path: Path) -> Iterator[None]:
    """Turn the hub's errors into one sentence.

    Raises:
        ModelError: the hub has no such model, or could not be asked.
    """
    from huggingface_hub.errors import (
        EntryNotFoundError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    try:
        yield
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no model `{name}`, and there is no such folder", hint=suggestion(path)
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise ModelError(f"the hub has no file `{name}`", hint="look at the repository's list of files") from error
        raise ModelError(
            f"no folder `{name}`, and the hub could not be asked for a model of that name: {first_line(error)}",
            hint=suggestion(path),
        ) from error


def load_tokenizer(source: ModelSource, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the model's own tokenizer; there is no fallback to another model's.

    Raises:
        ModelError: the folder has no tokenizer, or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    if source.held is not None:
        held: PreTrainedTokenizerBase = source.held.tokenizer
        return held
    folder = source.folder
    if source.adapter is not None and (source.adapter / TOKENIZER_SETTINGS[0]).is_file():
        folder = source.adapter  # the tokenizer that the adapter was trained with
    elif source.gguf is not None:
        from tithe.engine.gguf_model import gguf_tokenizer

        return demand_vocabulary(gguf_tokenizer(source.gguf, source.name), source)
    demand_model_files(source.name, folder)
    with reading_folder(f"cannot load the tokenizer of `{source.name}`", folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        demand_vocabulary(tokenizer, source)
    for name in TOKENIZER_SETTINGS:  # refuse duplicate fields, of which transformers would take the last
        if (folder / name).is_file():
            read_object(folder / name, f"model `{source.name}`")
    return tokenizer


def demand_vocabulary(tokenizer: PreTrainedTokenizerBase, source: ModelSource) -> PreTrainedTokenizerBase:
    """Return the tokenizer; raise if it has nothing but special tokens."""
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"the tokenizer of `{source.name}` has no vocabulary", hint=f"looked in `{source.place}`")
    return tokenizer


def embedded_ids(source: ModelSource) -> int | None:
    """Return the number of token ids that the model embeds, from its config; None if the config does not say."""
    text = source.config.get("text_config") or {}
    rows = text.get("vocab_size", source.config.get("vocab_size"))
    return rows if isinstance(rows, int) and not isinstance(rows, bool) else None


def demand_known_ids(name: str, top: int, rows: int | None) -> None:
    """Raise if a token id lies beyond the embedding.

    The model itself would fail with an index error deep inside, or on a GPU silently read another row.

    Args:
        name: of the model.
        top: the largest id.
        rows: number of ids that the model embeds; None if unknown.

    Raises:
        ModelError: the id is not one of them.
    """
    if rows is not None and top >= rows:
        raise ModelError(
            f"the tokenizer gives id {top}, but `{name}` embeds {rows} ids",
            hint="tokenizer and model do not belong together, or the embedding was not resized for added tokens",
        )


def context_window(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the model's longest sequence in tokens, from its config and tokenizer; None if neither says."""
    config = source.config
    text = config.get("text_config") or {}
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
    said = [place.get(name) for place in (config, text) for name in names]
    limits = [limit for limit in said if isinstance(limit, int) and not isinstance(limit, bool) and limit > 0]
    if isinstance(tokenizer.model_max_length, int) and 0 < tokenizer.model_max_length < UNBOUNDED:
        limits.append(tokenizer.model_max_length)
    return min(limits) if limits else None


def fingerprint(source: ModelSource) -> str:
    """Return 16 hex digits that identify the weights' bytes (an adapter's included), the config and the model's code.

    They do not depend on where the model is stored. Of a GGUF file they identify the bytes.
    """
    if source.held is not None:
        return source.held.fingerprint
    digest = hashlib.blake2b(digest_size=8)
    if source.gguf is not None:
        digest.update(b"gguf" + content_hash(source.gguf))
        if source.adapter is not None:
            digest.update(adapter_identity(source.adapter))
        return digest.hexdigest()
    # These two keys change when a model is saved again, and do not affect its numbers.
    config = {k: v for k, v in source.config.items() if k not in ("_name_or_path", "transformers_version")}
    digest.update(json.dumps(config, sort_keys=True).encode())
    files = [*source.weights, *sorted(source.folder.glob("*.py"))]
    for file, content in zip(files, content_hashes(files), strict=True):
        digest.update(file.name.encode(errors="surrogateescape") + content)
    if source.adapter is not None:
        digest.update(adapter_identity(source.adapter))
    return digest.hexdigest()


def content_hash(file: Path) -> bytes:
    """Hash a file's actual bytes; the hashes in the hub's file names are not trusted."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest().encode()


def content_hashes(files: Sequence[Path]) -> list[bytes]:
    """Hash several files in threads, as hashing releases the GIL."""
    with ThreadPoolExecutor(HASHED_AT_ONCE) as pool:
        return list(pool.map(content_hash, files))


def is_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter and not a whole model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(name: str, folder: Path, *, weights: bool) -> ModelSource:
    """Return the base model of an adapter, with the adapter attached.

    Args:
        name: as the user wrote it.
        folder: of the adapter.
        weights: whether the weights of both are needed; a plan needs neither.

    Raises:
        ModelError: it is not a LoRA adapter, has no safetensors, or its base model is missing.
        MissingExtraError: the weights are needed and PEFT is not installed.
    """
    demand_model_files(name, folder)
    config = adapter_config(name, folder)
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"the adapter `{name}` is of type {config.get('peft_type')}", hint="only LoRA adapters can be merged"
        )
    if weights:
        demand_adapter_weights(name, folder)
    base = config.get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"the adapter `{name}` does not say which model it belongs to",
            hint=f"set `base_model_name_or_path` in `{folder / ADAPTER_CONFIG}` to what `--model` takes",
        )
    try:
        source = find_model(place_of(str(base), folder), weights=weights)
    except ModelError as error:
        raise ModelError(
            f"the base model `{base}` of the adapter `{name}` cannot be used: {error}",
            hint=f"`base_model_name_or_path` in `{folder / ADAPTER_CONFIG}` says where it is",
        ) from error
    if source.adapter is not None:
        raise ModelError(
            f"the adapter `{name}` belongs to `{base}`, which is an adapter itself",
            hint="merge the first one into its base model",
        )
    return replace(source, name=name, adapter=folder)


def place_of(base: str, folder: Path) -> str:
    """Return the base model's name or path; a relative path is also tried from the adapter's folder."""
    beside = folder / base
    there = beside.is_dir() or (beside.is_file() and beside.suffix.lower() == SUFFIX)
    return str(beside) if base not in BUNDLED and not Path(base).exists() and there else base


def adapter_config(name: str, folder: Path) -> dict[str, Any]:
    return read_object(folder / ADAPTER_CONFIG, f"the adapter `{name}`")


def demand_adapter_weights(name: str, folder: Path) -> None:
    if find_spec("peft") is None:
        raise MissingExtraError(
            f"`{name}` is an adapter, and merging it needs the package `peft`", hint=install_hint("tune")
        )
    if not (folder / ADAPTER_WEIGHTS).is_file():
        old = (folder / "adapter_model.bin").exists()
        hint = "convert the pickled weights to safetensors first" if old else "the folder has no weights"
        raise ModelError(f"the adapter `{name}` has no `{ADAPTER_WEIGHTS}`", hint=hint)


def adapter_identity(folder: Path) -> bytes:
    """Return what an adapter adds to a fingerprint: its settings and weights' bytes, but no paths."""
    config = {key: value for key, value in adapter_config(folder.name, folder).items() if key not in PLACES}
    for key in ("target_modules", "exclude_modules", "modules_to_save"):  # sets, saved in arbitrary order
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    return json.dumps(config, sort_keys=True).encode() + content_hash(folder / ADAPTER_WEIGHTS)

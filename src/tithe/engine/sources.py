"""Where a model is: bundled name, folder or hub id -> local files, tokenizer, fingerprint. No torch here."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BUNDLED = {"pocket": Path(__file__).parent.parent / "pocket" / "model"}
HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")
TEXT_FILES = ["*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
UNBOUNDED = 10**9  # tokenizers without a limit carry a huge number


@dataclass(frozen=True)
class ModelSource:
    """A model's files on this disk.

    Args:
        name: as the user wrote it.
        folder: where config, tokenizer and weights lie; of an adapter, those of its base model.
        revision: the hub commit, for hub models.
        adapter: folder of a LoRA adapter, which is merged into the weights when they are read.
    """

    name: str
    folder: Path
    revision: str | None = None
    adapter: Path | None = None

    @property
    def config(self) -> dict[str, Any]:
        again = f"download or copy `{self.folder}` again"
        try:
            config = json.loads((self.folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ModelError(f"cannot read `config.json` of model `{self.name}`: {error}", hint=again) from error
        if not isinstance(config, dict):
            raise ModelError(f"`config.json` of model `{self.name}` holds no JSON object", hint=again)
        return config

    @property
    def weights(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))


def find_model(name: str, *, weights: bool = True) -> ModelSource:
    """Turn a bundled name, a folder or a hub id into local files.

    Args:
        name: `pocket`, a path, or `owner/name` on the hub.
        weights: also fetch or demand the weights; a plan needs only the tokenizer.

    Raises:
        ModelError: there is no such model, it has no safetensors, or the hub does not answer.
    """
    try:
        path = BUNDLED.get(name) or Path(name).expanduser()
        is_folder, is_file = path.is_dir(), path.is_file()
    except (OSError, RuntimeError, ValueError) as error:  # too long, the home of a user who is not there
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ModelError(f"`{name[:100]}` cannot name a model: {reason}", hint="give a folder or a hub id") from error
    if is_folder:
        return at_folder(name, path.resolve(), weights=weights)
    if is_file:
        raise ModelError(f"model `{name}` is a file", hint="give the folder that holds `config.json`")
    if name in BUNDLED:
        raise ModelError(f"the bundled model `{name}` is not in `{path.parent}`", hint="install tithe again")
    if name.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name):
        raise ModelError(f"no model folder `{name}`", hint=suggestion(path))
    return fetch(name, path, weights=weights)


def at_folder(name: str, folder: Path, *, weights: bool, revision: str | None = None) -> ModelSource:
    """The model in a folder; of an adapter, its base model with the adapter beside it."""
    from tithe.engine.adapters import base_of, is_adapter

    if is_adapter(folder):
        return base_of(name, folder, weights=weights)
    source = ModelSource(name, folder, revision)
    demand_layout(source, weights=weights)
    return source


def suggestion(path: Path) -> str:
    """Name folders that are nearly the missing one, or where looking stopped."""
    parent = path.parent
    while not parent.is_dir():
        parent, path = parent.parent, parent
    try:
        folders = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    except OSError:  # not ours to look into
        folders = []
    bundled = difflib.get_close_matches(path.name, BUNDLED, n=1, cutoff=0.6)
    if bundled and parent == Path():
        return f"did you mean `{bundled[0]}`, the bundled model?"
    near = difflib.get_close_matches(path.name, folders, n=1, cutoff=0.6)
    if near:
        return f"did you mean `{parent / near[0]}`?"
    return f"`{parent}` has no `{path.name}`; bundled: {', '.join(BUNDLED)}"


def demand_layout(source: ModelSource, *, weights: bool) -> None:
    """Refuse folders that cannot be a causal language model, before anything heavy is loaded."""
    here = {entry.name for entry in source.folder.iterdir()}
    if "config.json" not in here:
        raise ModelError(f"`{source.name}` has no `config.json`", hint=f"it holds: {', '.join(sorted(here)[:8])}")
    if weights and not source.weights:
        old = [name for name in here if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
        hint = "convert the pickled weights to safetensors first" if old else "the folder has no weights"
        raise ModelError(f"`{source.name}` has no `.safetensors` file", hint=hint)
    demand_decoder(source)


def demand_decoder(source: ModelSource) -> None:
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
    """Download a hub model's files (text files alone for a plan) into the hub's own cache."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    patterns = [*TEXT_FILES, "*.py", "*.safetensors"] if weights else [*TEXT_FILES, "*.py"]  # code is not run unasked
    try:
        folder = Path(snapshot_download(name, allow_patterns=patterns))
    except RepositoryNotFoundError as error:
        raise ModelError(
            f"the hub has no model `{name}`, and there is no such folder", hint=suggestion(path)
        ) from error
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        raise ModelError(
            f"no folder `{name}`, and the hub could not be asked for a model of that name: {first_line(error)}",
            hint=suggestion(path),
        ) from error
    return at_folder(name, folder, weights=weights, revision=folder.name)


def load_tokenizer(source: ModelSource, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The model's own tokenizer; never another one's.

    Raises:
        ModelError: the folder holds none, or transformers cannot read it.
    """
    from transformers import AutoTokenizer

    folder = source.folder
    if source.adapter is not None and (source.adapter / "tokenizer_config.json").is_file():
        folder = source.adapter  # saved with it, as it was trained
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers raises whatever the reader of the day raises
        raise ModelError(
            f"cannot load the tokenizer of `{source.name}`: {first_line(error)}", hint=f"looked in `{folder}`"
        ) from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ModelError(f"the tokenizer of `{source.name}` has no vocabulary", hint=f"looked in `{folder}`")
    return tokenizer


def first_line(error: Exception) -> str:
    """What a foreign error says first, for our own sentence."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200].rstrip(".") if lines else type(error).__name__


def context_window(source: ModelSource, tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The longest sequence the model was made for, in tokens; None where neither file says so."""
    config = source.config
    text = config.get("text_config") or {}
    names = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
    limits = [place[name] for place in (config, text) for name in names if isinstance(place.get(name), int)]
    if isinstance(tokenizer.model_max_length, int) and 0 < tokenizer.model_max_length < UNBOUNDED:
        limits.append(tokenizer.model_max_length)
    return min(limits) if limits else None


def fingerprint(source: ModelSource) -> str:
    """16 hex digits of the weights' bytes, an adapter's included, the config and code of its own.

    The same model has the same, wherever it lies.
    """
    digest = hashlib.blake2b(digest_size=8)
    config = {k: v for k, v in source.config.items() if k not in ("_name_or_path", "transformers_version")}
    digest.update(json.dumps(config, sort_keys=True).encode())
    for file in [*source.weights, *sorted(source.folder.glob("*.py"))]:
        digest.update(file.name.encode(errors="surrogateescape") + content_hash(file))
    if source.adapter is not None:
        from tithe.engine.adapters import identity

        digest.update(identity(source.adapter))
    return digest.hexdigest()


def content_hash(file: Path) -> bytes:
    """Hash of a file's bytes; the hub's cache already names its files by theirs."""
    real = file.resolve()
    if real.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name.encode()
    with real.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest().encode()

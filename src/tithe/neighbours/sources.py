"""Where an encoder's files are: folder or hub id -> local files and their fingerprint."""

from __future__ import annotations

import difflib
import hashlib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tithe.engine.model_files import demand_model_files, first_line
from tithe.engine.model_source import BUNDLED, HUB_ID, TEXT_FILES, ModelSource, content_hash
from tithe.errors import MissingExtraError, ModelError
from tithe.extras import install_hint

NAMES = ("self", "tfidf")
ENDINGS = (".json", ".txt", ".model", ".safetensors")  # what a vector may depend on
OTHER_BACKENDS = ("onnx", "openvino")


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
            f"`{name}` is no encoder but a language model",
            hint=f"`--model {name} --encoder self` embeds with it",
        )
    if near := difflib.get_close_matches(name, NAMES, n=1, cutoff=0.6):
        raise ModelError(f"there is no encoder `{name}`", hint=f"did you mean `{near[0]}`?")
    if name.startswith((".", "/", "~")) or not HUB_ID.fullmatch(name):
        raise ModelError(f"there is no encoder folder `{name}`", hint=suggestion(path))
    return demand_files(fetch(name, path))


def suggestion(path: Path) -> str:
    """A folder that is nearly the missing one, or what else an encoder can be."""
    parent = path.parent
    while not parent.is_dir():
        parent, path = parent.parent, parent
    try:
        folders = [entry.name for entry in parent.iterdir() if entry.is_dir()]
    except OSError:  # not ours to look into
        folders = []
    near = difflib.get_close_matches(path.name, folders, n=1, cutoff=0.6)
    if near:
        return f"did you mean `{parent / near[0]}`?"
    return "an encoder is `self`, `tfidf`, a folder, a hub id (`owner/name`) or `file:` and a path"


def fetch(name: str, path: Path) -> ModelSource:
    """Download an encoder's texts and safetensors into the hub's own cache; no code, nothing pickled."""
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
    """Refuse folders that hold no encoder."""
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
    """The config of a transformer or a static model; empty where a list of modules has parts in folders alone."""
    return source.config if (source.folder / "config.json").is_file() else {}


def demand_package(module: str, package: str, source: ModelSource) -> None:
    """Say which extra is missing before anything is read.

    Raises:
        MissingExtraError: the package is not installed.
    """
    if find_spec(module) is None:
        raise MissingExtraError(f"encoder `{source.name}` needs the package `{package}`", hint=install_hint("encoders"))


def fingerprint(source: ModelSource) -> str:
    """16 hex digits of all files that a vector may depend on: weights, tokenizer, configs, in subfolders too."""
    digest = hashlib.blake2b(digest_size=8)
    for file in sorted(source.folder.rglob("*")):
        place = file.relative_to(source.folder)
        if file.suffix in ENDINGS and place.parts[0] not in OTHER_BACKENDS and file.is_file():
            digest.update(place.as_posix().encode(errors="surrogateescape") + b"\0" + content_hash(file))
    return digest.hexdigest()

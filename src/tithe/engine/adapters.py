"""LoRA adapters as models: the base model that one belongs to, and the merge of the two."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

from tithe.engine.sources import BUNDLED, ModelSource, content_hash, find_model, first_line
from tithe.errors import MissingExtraError, ModelError
from tithe.extras import install_hint

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLACES = ("base_model_name_or_path", "revision", "auto_mapping", "peft_version", "inference_mode")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no whole model."""
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def base_of(name: str, folder: Path, *, weights: bool) -> ModelSource:
    """The base model of an adapter, with the adapter beside it.

    Args:
        name: as the user wrote it.
        folder: of the adapter.
        weights: also demand the weights of both; a plan needs neither.

    Raises:
        ModelError: it is no LoRA adapter, has no safetensors, or its base model is not there.
        MissingExtraError: PEFT is not installed, and the weights are needed.
    """
    config = read_config(name, folder)
    if config.get("peft_type") != "LORA":
        raise ModelError(
            f"the adapter `{name}` is of type {config.get('peft_type')}", hint="only LoRA adapters are merged here"
        )
    if weights:
        demand_weights(name, folder)
    base = config.get("base_model_name_or_path")
    if not base:
        raise ModelError(
            f"the adapter `{name}` does not say which model it belongs to",
            hint=f"`base_model_name_or_path` in `{folder / CONFIG}` is a folder, a hub id or a bundled name",
        )
    try:
        source = find_model(place_of(str(base), folder), weights=weights)
    except ModelError as error:
        raise ModelError(
            f"the base model `{base}` of the adapter `{name}` is not there: {error}",
            hint=f"`base_model_name_or_path` in `{folder / CONFIG}` says where it is",
        ) from error
    if source.adapter is not None:
        raise ModelError(
            f"the adapter `{name}` belongs to `{base}`, which is an adapter itself",
            hint="merge the first one into its base model",
        )
    return ModelSource(name, source.folder, source.revision, folder)


def place_of(base: str, folder: Path) -> str:
    """A relative path is looked for beside the adapter, too."""
    beside = folder / base
    return str(beside) if base not in BUNDLED and not Path(base).exists() and beside.is_dir() else base


def read_config(name: str, folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot read `{CONFIG}` of the adapter `{name}`: {error}") from error
    if not isinstance(config, dict):
        raise ModelError(f"`{CONFIG}` of the adapter `{name}` holds no JSON object")
    return config


def demand_weights(name: str, folder: Path) -> None:
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError(
            f"`{name}` is an adapter, and merging it needs the package `peft`", hint=install_hint("tune")
        )
    if not (folder / WEIGHTS).is_file():
        old = (folder / "adapter_model.bin").exists()
        hint = "convert the pickled weights to safetensors first" if old else "the folder has no weights"
        raise ModelError(f"the adapter `{name}` has no `{WEIGHTS}`", hint=hint)


def merged(model: Any, source: ModelSource) -> Any:
    """The base model with the adapter's part added to its weights.

    Raises:
        ModelError: the adapter does not fit the model.
    """
    assert source.adapter is not None
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT asks transformers in an old way
            warnings.filterwarnings("error", message="Found missing adapter keys")  # those would stay as if untrained
            both: Any = PeftModel.from_pretrained(model, str(source.adapter), use_safetensors=True)
            return both.merge_and_unload(safe_merge=False)
    except Exception as error:  # PEFT raises whatever comes up
        raise ModelError(
            f"the adapter `{source.name}` does not fit its base model `{source.folder}`: {first_line(error)}",
            hint="it was trained on a model of another shape",
        ) from error


def identity(folder: Path) -> bytes:
    """What an adapter adds to a fingerprint: its settings and the bytes of its weights, not where things lie."""
    config = {key: value for key, value in read_config(folder.name, folder).items() if key not in PLACES}
    for key in ("target_modules", "exclude_modules", "modules_to_save"):  # sets, written in any order
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    return json.dumps(config, sort_keys=True).encode() + content_hash(folder / WEIGHTS)

"""LoRA adapters as models: the base model that one belongs to, and the merge of the two."""

from __future__ import annotations

import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

from tithe.engine.model_files import demand_model_files, read_object, reading_folder
from tithe.engine.sources import BUNDLED, ModelSource, content_hash, find_model
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
    demand_model_files(name, folder)
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
    return read_object(folder / CONFIG, f"the adapter `{name}`")


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
        ModelError: the adapter does not fit the model, or holds tensors for which the model has no place.
    """
    assert source.adapter is not None
    from peft import PeftModel

    folder, does_not_fit = str(source.adapter), f"does not fit its base model `{source.folder}`"
    with reading_folder(f"the adapter `{source.name}` {does_not_fit}", source.adapter), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)  # PEFT asks transformers in an old way
        warnings.filterwarnings("ignore", message="Model (with|has) `tie_word_embeddings=True`")  # see `untie`
        warnings.filterwarnings("error", message="Found missing adapter keys")  # those would stay as if untrained
        mapping = getattr(model, "_checkpoint_conversion_mapping", {})
        both: Any = PeftModel.from_pretrained(model, folder, use_safetensors=True)
        surplus = both.load_adapter(folder, "default", key_mapping=mapping, use_safetensors=True).unexpected_keys
        if surplus:  # PEFT leaves them out without a word
            raise ModelError(
                f"the adapter `{source.name}` {does_not_fit}: {len(surplus)} of its tensors have no place there, "
                f"e.g. `{surplus[0]}`",
                hint="it was trained on another model, or its `adapter_config.json` is of another training",
            )
        untie(both)
        return both.merge_and_unload(safe_merge=False)


def untie(both: Any) -> None:
    """Give the output head a matrix of its own, where it is the embedding's and the adapter changes one of the two.

    Beside the base model an adapter of the embedding leaves the head as it is; added to one matrix it changes both.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper
    from torch.nn import Parameter

    base = both.get_base_model()
    table, head = (inner(part) for part in (base.get_input_embeddings(), base.get_output_embeddings()))
    changed = [inner(part) for part in both.modules() if isinstance(part, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    if head is None or head.weight is not table.weight or not any(part in (table, head) for part in changed):
        return
    head.weight = Parameter(table.weight.detach().clone(), requires_grad=False)
    for config in (base.config, base.config.get_text_config()):
        config.tie_word_embeddings = False


def inner(part: Any) -> Any:
    """The layer of the base model inside PEFT's wrappers."""
    while (within := getattr(part, "base_layer", None) or getattr(part, "original_module", None)) is not None:
        part = within
    return part


def identity(folder: Path) -> bytes:
    """What an adapter adds to a fingerprint: its settings and the bytes of its weights, not where things lie."""
    config = {key: value for key, value in read_config(folder.name, folder).items() if key not in PLACES}
    for key in ("target_modules", "exclude_modules", "modules_to_save"):  # sets, written in any order
        if isinstance(config.get(key), list):
            config[key] = sorted(config[key])
    return json.dumps(config, sort_keys=True).encode() + content_hash(folder / WEIGHTS)

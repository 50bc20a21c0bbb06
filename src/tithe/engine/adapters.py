"""The merge of a LoRA adapter with its base model."""

from __future__ import annotations

import warnings
from typing import Any

from tithe.engine.model_files import reading_folder
from tithe.engine.sources import ModelSource
from tithe.errors import ModelError


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

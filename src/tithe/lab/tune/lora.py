"""LoRA through PEFT: which modules get an adapter, and what base model it belongs to."""

from __future__ import annotations

from typing import Any

from tithe.errors import SettingsError, did_you_mean
from tithe.lab.tune.recipe import Recipe

ALL = "all-linear"


def adapter(model: Any, recipe: Recipe) -> Any:
    """The adapter's settings in PEFT's words; None where all weights are trained.

    Raises:
        SettingsError: the model has no such module, or none that can have an adapter.
    """
    if not recipe.use_peft:
        return None
    from peft import LoraConfig

    names = recipe.lora_target_modules
    if names is not None and names != (ALL,):
        demand_modules(model, names)
    return LoraConfig(
        r=recipe.lora_r,
        lora_alpha=recipe.lora_alpha,
        lora_dropout=recipe.lora_dropout,
        target_modules=ALL if names in (None, (ALL,)) else list(names or ()),
        task_type="CAUSAL_LM",
    )


def demand_modules(model: Any, names: tuple[str, ...]) -> None:
    """Whether each name is that of modules with weights.

    Raises:
        SettingsError: with the nearest name that there is.
    """
    there = [name for name, module in model.named_modules() if hasattr(module, "weight") and not is_norm(name)]
    output = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    for wanted in names:
        found = [name for name in there if name == wanted or name.endswith(f".{wanted}")]
        if not found:
            known = {name.rpartition(".")[2] for name in there} - {name.rpartition(".")[2] for name in output}
            raise SettingsError(f"the model has no module `{wanted}`", hint=did_you_mean(wanted, known))
        if set(found) & set(output):
            raise SettingsError(
                f"`{wanted}` is the model's output layer, which gets no adapter", hint=f"`{ALL}` takes all the others"
            )


def is_norm(name: str) -> bool:
    return "norm" in name.rpartition(".")[2].lower()

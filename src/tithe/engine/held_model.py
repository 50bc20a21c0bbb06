"""A model that the caller holds in memory: what identifies it, and how it is lent for a run and given back as it was.

It is read in place: no copy of the weights is made. Imports no torch until a model is there.
"""

from __future__ import annotations

import copy
import hashlib
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tithe.errors import ModelError, SettingsError

DTYPES = {"torch.float32": "fp32", "torch.bfloat16": "bf16", "torch.float16": "fp16"}
UNSTABLE = ("_name_or_path", "transformers_version", "_attn_implementation_autoset")  # keys of a config
CONTAINERS = ("_parameters", "_buffers", "_modules")  # dicts that torch gives every module


@dataclass(frozen=True)
class HeldModel:
    """A model and its tokenizer in memory.

    Args:
        given: the model as the caller has it; for PEFT the wrapper.
        tokenizer: a copy of the caller's.
        folder: holds the config and the tokenizer's files, for what reads files.
    """

    given: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    folder: Path

    @property
    def model(self) -> Any:
        """The causal language model itself, whose layers have PEFT's adapters in them if there are any."""
        return self.given.get_base_model() if is_peft(self.given) else self.given

    @property
    def dtype(self) -> str:
        """`fp32`, `bf16` or `fp16`."""
        return DTYPES[str(self.model.dtype)]

    @property
    def device(self) -> str:
        return str(self.model.device)

    @cached_property
    def fingerprint(self) -> str:
        """Hash of all tensors, of how adapters are applied, and of the config and the tokenizer; 16 hex digits."""
        import torch

        digest = hashlib.blake2b(digest_size=8)
        config = {key: value for key, value in self.model.config.to_dict().items() if key not in UNSTABLE}
        digest.update(f"in memory\n{type(self.model).__qualname__}\n".encode())
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        for name, tensor in self.model.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            # Viewed as bytes: NumPy has no bfloat16.
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        for name, part in self.model.named_modules():  # an adapter's scale is no tensor
            facts = [getattr(part, key, None) for key in ("scaling", "active_adapters", "disable_adapters", "merged")]
            if isinstance(facts[0], dict):
                digest.update(f"{name} {facts}\n".encode())
        for file in sorted(path for path in self.folder.iterdir() if path.name != "config.json"):
            digest.update(file.name.encode() + file.read_bytes())
        return digest.hexdigest()

    def ready(self) -> Any:
        """Set the model up as a loaded one is, and return it; `borrowed` undoes this."""
        self.model.config.return_dict, self.model.config.output_hidden_states = True, False
        return self.model.eval()


@contextmanager
def borrowed(given: Any, tokenizer: Any) -> Iterator[HeldModel]:
    """Lend a model for a run; afterwards its modes, attention, buffers, hooks and config are as they were.

    Raises:
        SettingsError: there is no tokenizer, or it is none.
        ModelError: it is no causal language model that can be read in place.
    """
    demand_readable(given, tokenizer)
    with tempfile.TemporaryDirectory(prefix="tithe-model-") as scratch:
        model = given.get_base_model() if is_peft(given) else given
        model.config.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        before, configs = snapshot(model), configs_of(model)
        try:
            yield HeldModel(given, copy.deepcopy(tokenizer), Path(scratch))
        finally:
            give_back(before, configs)


def demand_readable(given: Any, tokenizer: Any) -> None:
    """Check that a model and its tokenizer can be read in place.

    Raises:
        SettingsError: there is no tokenizer, or it is none.
        ModelError: the model is no causal language model, has prompts of its own, or is not wholly in memory.
    """
    import torch

    kind = type(given).__name__
    if tokenizer is None:
        raise SettingsError(f"a model in memory (`{kind}`) needs its tokenizer", hint="`tokenizer=...` beside `model=`")
    if not callable(tokenizer) or not hasattr(tokenizer, "save_pretrained"):
        raise SettingsError(
            f"`tokenizer` cannot be a {type(tokenizer).__name__}", hint="give a tokenizer of transformers"
        )
    if not isinstance(given, torch.nn.Module) or not hasattr(given, "config"):
        raise ModelError(
            f"`model` cannot be a {kind}", hint="a folder, a hub id, or a causal language model of transformers"
        )
    held: Any = given
    if is_peft(held) and getattr(held.active_peft_config, "is_prompt_learning", False):
        raise ModelError(
            f"the adapter in memory is of type {held.active_peft_config.peft_type.value}, which puts its own tokens "
            "before each prompt",
            hint="adapters inside the layers, such as LoRA, can be read",
        )
    model = held.get_base_model() if is_peft(held) else held
    if getattr(model.config, "is_encoder_decoder", False) or model.get_output_embeddings() is None:
        raise ModelError(
            f"`{type(model).__name__}` is not a causal language model", hint="give one with an output head"
        )
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ModelError(
            f"a part of the `{type(model).__name__}` is not in memory but offloaded", hint="give its folder instead"
        )
    if str(model.dtype) not in DTYPES:
        raise ModelError(f"a model in memory cannot be read in {model.dtype}", hint="fp32, bf16 or fp16")


def is_peft(given: Any) -> bool:
    """Tell whether a model is wrapped by PEFT."""
    return hasattr(given, "peft_config") and hasattr(given, "get_base_model")


def snapshot(model: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Return every module with all its attributes; of the dicts of tensors and submodules, copies."""
    found = []
    for part in model.modules():
        own = vars(part)
        found.append((part, {**own, **{name: dict(own[name]) for name in CONTAINERS}}))
    return found


def configs_of(model: Any) -> list[tuple[Any, dict[str, Any]]]:
    """Return every config of the model with all its attributes."""
    own = [part.config for part in model.modules() if hasattr(part, "config") and hasattr(part.config, "to_dict")]
    inner = [one.get_text_config() for one in own if hasattr(one, "get_text_config")]
    found = {id(one): one for one in (*own, *inner)}
    return [(one, dict(vars(one))) for one in found.values()]


def give_back(modules: list[tuple[Any, dict[str, Any]]], configs: list[tuple[Any, dict[str, Any]]]) -> None:
    """Set all modules and configs back to what they were."""
    from tithe.engine.measure.cpu_kernels import put_back

    for part, before in modules:
        own = vars(part)
        containers = {name: own[name] for name in CONTAINERS}  # the same dicts as before, with their old entries
        for name, now in containers.items():
            now.clear()
            now.update(before[name])
        own.clear()
        own.update({**before, **containers})
    for config, before in configs:
        vars(config).clear()
        vars(config).update(before)
    put_back()

"""lm-eval's tasks on a model of ours."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

import numpy as np

from tithe.engine.devices import DTYPES, choose_device, choose_dtype, dtype_name
from tithe.engine.loading import read_weights
from tithe.engine.model_files import first_line
from tithe.engine.model_source import ModelSource, context_window, demand_known_ids, load_tokenizer
from tithe.errors import ModelError, SettingsError, TemplateError, TitheError
from tithe.lab.evaluate.task_names import quiet
from tithe.lab.evaluate.task_values import Found, found
from tithe.lab.evaluate.tasks import Asked, Built


@dataclass(frozen=True)
class Recipe:
    """How tasks are run.

    Args:
        limit: only so many items of each task, the first ones.
        batch_size: of lm-eval: a number, or `auto`.
        seed: all of lm-eval's.
        apply_chat_template: put prompts to the model by its chat template.
    """

    limit: int | None = None
    batch_size: int | str = 8
    seed: int = 0
    apply_chat_template: bool = False


@dataclass
class Harness:
    """A model as lm-eval sees it, loaded when first used.

    Args:
        source: where it lies.
        device: `auto`, `cuda`, `mps`, `cpu`.
        dtype: `auto`, `fp32`, `bf16`, `fp16`.
        recipe: how tasks are run.
        trust_remote_code: run code that comes with the model.
    """

    source: ModelSource
    device: str = "auto"
    dtype: str = "auto"
    recipe: Recipe = field(default_factory=Recipe)
    trust_remote_code: bool = False

    @cached_property
    def where(self) -> tuple[str, str]:
        """Device and dtype that are taken."""
        device = choose_device(self.device)
        return str(device), dtype_name(choose_dtype(self.dtype, device))

    def check(self, built: Iterable[Built]) -> None:
        """Raise what can be known to be wrong before the weights are loaded.

        Raises:
            TemplateError: a chat template is wanted, and the tokenizer has none.
            SettingsError: an answer may be longer than the model's window.
        """
        tokenizer = load_tokenizer(self.source, trust_remote_code=self.trust_remote_code)
        if self.recipe.apply_chat_template and not tokenizer.chat_template:
            raise TemplateError(
                f"the tokenizer of `{self.source.name}` has no chat template", hint="leave out `--apply-chat-template`"
            )
        window = context_window(self.source, tokenizer)
        for one in built:
            longest = new_tokens(one.task)
            if window is not None and longest is not None and longest >= window:
                raise SettingsError(
                    f"task `{one.leaf.name}` takes answers of up to {longest:,} tokens, and the model reads {window:,}",
                    hint=f"`--max-new-tokens` below {window}, so that there is room for the prompt",
                )

    @cached_property
    def model(self) -> Any:
        """lm-eval's `HFLM`.

        Raises:
            ModelError: it cannot be loaded.
        """
        device, dtype = self.where
        remote = self.trust_remote_code
        try:
            model = read_weights(self.source, DTYPES[dtype], remote).to(device)  # an adapter merged, no tensor left out
            watch_ids(model, self.source.name)
            with quiet():
                from lm_eval.models.huggingface import HFLM

                return HFLM(
                    pretrained=model,
                    tokenizer=load_tokenizer(self.source, trust_remote_code=remote),
                    batch_size=self.recipe.batch_size,
                    trust_remote_code=remote,
                )
        except TitheError:
            raise
        except Exception as error:  # lm-eval raises whatever comes up
            raise ModelError(
                f"lm-eval cannot load `{self.source.name}`: {first_line(error)}",
                hint=f"looked in `{self.source.folder}`",
            ) from error

    def run(self, asked: Asked, built: Sequence[Built]) -> Found:
        """Run the tasks behind one name."""
        recipe = self.recipe
        seed_all(recipe.seed)
        model = self.model
        with quiet():
            from lm_eval.evaluator import evaluate

            results = evaluate(
                lm=model,
                task_dict={"tasks": {one.leaf.name: one.task for one in built}, "groups": {}},
                limit=recipe.limit,
                bootstrap_iters=0,
                log_samples=True,
                apply_chat_template=recipe.apply_chat_template,
                fewshot_as_multiturn=True,
            )
            cut = cut_prompts(model, results["samples"], {one.leaf.name: one.task for one in built})
        return found(asked, built, results, self.about(built, cut), cut)

    def about(self, built: Sequence[Built], cut: int) -> dict[str, Any]:
        """What the values depend on, besides the task."""
        device, dtype = self.where
        first = built[0]
        out: dict[str, Any] = {
            "lm_eval": version("lm-eval"),
            "task_version": (first.leaf.config.get("metadata") or {}).get("version"),
            "num_fewshot": first.task.get_config("num_fewshot"),
            "limit": self.recipe.limit,
            "seed": self.recipe.seed,
            "batch_size": self.recipe.batch_size,
            "apply_chat_template": self.recipe.apply_chat_template,
            "device": device,
            "dtype": dtype,
            "generation": first.task.get_config("generation_kwargs"),
            "cut_prompts": cut,
            "data": source_of(first),
        }
        graders = [one.grader for one in built if one.grader is not None]
        return out | ({"execution": graders[0].about()} if graders else {})


def seed_all(seed: int) -> None:
    """As lm-eval's own command does."""
    import torch

    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  (it is lm-eval that draws)
    torch.manual_seed(seed)


def source_of(one: Built) -> dict[str, Any]:
    """Local files with their digests, or the hub's names."""
    if one.leaf.data is not None:
        return {"files": one.leaf.data.digest()}
    return {"hub": one.leaf.config.get("dataset_path"), "subset": one.leaf.config.get("dataset_name")}


def new_tokens(task: Any) -> int | None:
    """How long an answer may become; None where nothing is generated."""
    if task.get_config("output_type") != "generate_until":
        return None
    given = task.get_config("generation_kwargs") or {}
    return int(given.get("max_gen_toks", 256))  # lm-eval's own default


def cut_prompts(model: Any, samples: Mapping[str, Sequence[Mapping[str, Any]]], tasks: Mapping[str, Any]) -> int:
    """How many items do not fit the model's window; lm-eval leaves out their beginning."""
    cut = 0
    for name, items in samples.items():
        room = model.max_length - (new_tokens(tasks[name]) or -1)  # the last token of all is not read
        seen: dict[Any, bool] = {}
        for item in items:
            if item["doc_id"] not in seen:
                seen[item["doc_id"]] = any(longer(model, text_of(call), room) for call in item["arguments"])
        cut += sum(seen.values())
    return cut


def text_of(call: Sequence[Any]) -> str:
    """All that the model reads: a prompt, and the continuation that is judged."""
    return "".join(part for part in call if isinstance(part, str))


def longer(model: Any, text: str, room: int) -> bool:
    """Whether a text has more tokens than there is room for; few bytes are never many tokens."""
    return len(text.encode("utf-8", "surrogatepass")) + 8 > room and len(model.tok_encode(text)) > room


def watch_ids(model: Any, name: str) -> None:
    """Have the model refuse token ids that it does not embed.

    Args:
        model: of transformers.
        name: for the sentence.
    """
    table = model.get_input_embeddings()

    def look(_: Any, given: tuple[Any, ...]) -> None:
        if given and given[0].numel():
            demand_known_ids(name, int(given[0].max()), int(table.weight.shape[0]))

    table.register_forward_pre_hook(look)

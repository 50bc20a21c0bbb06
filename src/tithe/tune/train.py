"""One training, from rows to a trained model."""

from __future__ import annotations

import importlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.errors import MissingExtraError, SettingsError
from tithe.tune.batches import Batches, StepOrder
from tithe.tune.recipe import Recipe
from tithe.tune.rows import UNREAD, TrainRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PACKAGES = ("trl", "peft", "accelerate", "datasets")


@dataclass
class Job:
    """What is trained, on what, and who listens.

    Args:
        model: a causal language model in fp32, or in the recipe's dtype.
        tokenizer: its own.
        rows: the examples.
        recipe: the settings.
        batches: their layout.
        steps: optimiser steps in all.
        seed: of the order, the adapter's first weights and dropout.
        device: `cpu`, `cuda` or `mps`.
        place: folder for checkpoints.
        progress: is told after every step how many examples it took, and the tokens read so far.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[TrainRow]
    recipe: Recipe
    batches: Batches
    steps: int
    seed: int
    device: str
    place: Path
    progress: Callable[[int, int], None] = lambda examples, tokens: None
    resume: Path | None = None


@dataclass
class Trained:
    """A trained model, and how the training went.

    Args:
        model: the model, or its adapter's wrapping.
        losses: mean NLL of the response tokens of every optimiser step, before that step, nats per token.
        learning_rates: of every step.
        seconds: of the training alone.
        tokens: read by the model, prompts included.
    """

    model: Any
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    seconds: float = 0.0
    tokens: int = 0


def demand_packages() -> None:
    """Whether the extra is installed; looks before anything is read.

    Raises:
        MissingExtraError: a package of it is not there.
    """
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            raise MissingExtraError(f"training needs the package `{name}`", hint="pip install 'tithe[tune]'") from None


def train(job: Job) -> Trained:
    """Train a model.

    Raises:
        ModelError: the loss is not a number at some step.
        SettingsError: what PEFT or TRL do not allow.
    """
    from tithe.tune.trainer import ResponseTrainer, head_is_true

    with quiet():
        trainer = ResponseTrainer(
            model=job.model,
            args=arguments(job),
            train_dataset=dataset_of(job),
            processing_class=job.tokenizer,
            data_collator=collator(job.tokenizer),
            peft_config=adapter(job),
            order=order_of(job),
        )
        if trainer.narrow and not head_is_true(trainer.model, job.rows[0].ids, job.rows[0].first):
            trainer.narrow = False
        log = add_listener(trainer, job)
        began = time.monotonic()
        trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
    return Trained(trainer.model, log.losses, log.learning_rates, time.monotonic() - began, log.tokens)


def order_of(job: Job) -> StepOrder:
    blank = len(job.rows) if job.batches.devices > 1 else None
    return StepOrder([len(row.ids) for row in job.rows], job.batches, job.seed, blank)


def dataset_of(job: Job) -> Any:
    """The rows as `datasets` holds them; with a blank one last where devices need it to have equal shares."""
    from datasets import Dataset

    columns = {"input_ids": [row.ids for row in job.rows], "labels": [row.labels for row in job.rows]}
    if job.batches.devices > 1:
        columns["input_ids"].append(job.rows[0].ids[:2])
        columns["labels"].append([UNREAD] * 2)
    return Dataset.from_dict(columns)


def collator(tokenizer: PreTrainedTokenizerBase) -> Any:
    """TRL's own; what pads is never read, so that any id will do."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return DataCollatorForLanguageModeling(pad_token_id=pad if pad is not None else 0)


def arguments(job: Job) -> Any:
    """The recipe in TRL's words."""
    from trl import SFTConfig

    recipe, batches = job.recipe, job.batches
    return SFTConfig(
        output_dir=str(job.place),
        per_device_train_batch_size=batches.each,
        gradient_accumulation_steps=batches.passes,
        learning_rate=recipe.learning_rate,
        num_train_epochs=recipe.num_train_epochs,
        max_steps=recipe.max_steps,
        warmup_steps=recipe.warmup_ratio,  # below 1 it is a share
        lr_scheduler_type=recipe.lr_scheduler_type,
        weight_decay=recipe.weight_decay,
        adam_beta1=recipe.adam_beta1,
        adam_beta2=recipe.adam_beta2,
        adam_epsilon=recipe.adam_epsilon,
        max_grad_norm=recipe.max_grad_norm,
        max_length=recipe.max_length,
        gradient_checkpointing=recipe.gradient_checkpointing,
        bf16=bool(recipe.bf16),
        use_cpu=job.device == "cpu",
        seed=job.seed,
        data_seed=job.seed,
        save_strategy="no",
        eval_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        push_to_hub=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=job.device == "cuda",
        remove_unused_columns=True,
        dataset_kwargs={"skip_prepare_dataset": True},
    )


def adapter(job: Job) -> Any:
    """The LoRA adapter's settings in PEFT's words; None where all weights are trained."""
    if not job.recipe.use_peft:
        return None
    from peft import LoraConfig

    names = job.recipe.lora_target_modules
    return LoraConfig(
        r=job.recipe.lora_r,
        lora_alpha=job.recipe.lora_alpha,
        lora_dropout=job.recipe.lora_dropout,
        target_modules=list(names) if names else "all-linear",
        task_type="CAUSAL_LM",
    )


def add_listener(trainer: Any, job: Job) -> Any:
    """Put our ear in TRL's place: losses and progress, nothing on stdout."""
    from transformers import PrinterCallback, ProgressCallback

    from tithe.tune.listener import Listener

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    listener = Listener(trainer.order, job.progress)
    trainer.add_callback(listener)
    return listener


@contextmanager
def quiet() -> Iterator[None]:
    """The libraries' own talk kept from the terminal; ours says what matters."""
    import datasets
    import transformers

    level = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        transformers.logging.set_verbosity(level)
        datasets.enable_progress_bars()


def devices() -> int:
    """Processes that `accelerate launch` or `torchrun` started for this training.

    Raises:
        SettingsError: their number is not one.
    """
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdigit() or int(given) < 1:
        raise SettingsError(f"the environment variable WORLD_SIZE is `{given}`", hint="a launcher sets it to a number")
    return int(given)

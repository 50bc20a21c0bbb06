"""Train a model on rows of ids, with TRL."""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tithe.errors import MissingExtraError, SettingsError, did_you_mean
from tithe.extras import install_hint
from tithe.lab.tune.files import Checkpoint
from tithe.lab.tune.optimiser_steps import Batches, StepOrder
from tithe.lab.tune.settings import TrainingRecipe
from tithe.lab.tune.train_rows import UNREAD, TrainRow, collate, demand_boundaries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from tithe.lab.tune.trackers import Tracking

PACKAGES = ("trl", "peft", "accelerate", "datasets")
ALL = "all-linear"


@dataclass
class TrainJob:
    """The inputs of a training.

    Args:
        model: a causal language model, in the recipe's dtype.
        tokenizer: of the model.
        rows: the sequences.
        recipe: the settings, with `bf16` and `dtype` decided.
        batches: layout of an optimiser step.
        seed: random seed of the order, the adapter's initial weights and dropout.
        device: `cpu`, `cuda` or `mps`.
        place: folder for checkpoints.
        progress: called after every step with its sequences, and the tokens read so far.
        resume: the checkpoint to resume from.
        tracking: trackers that log the training.
        say: called with a sentence if one of them fails.
    """

    model: Any
    tokenizer: PreTrainedTokenizerBase
    rows: Sequence[TrainRow]
    recipe: TrainingRecipe
    batches: Batches
    seed: int
    device: str
    place: Path
    progress: Callable[[int, int], None] = lambda sequences, tokens: None
    resume: Checkpoint | None = None
    tracking: Tracking | None = None
    say: Callable[[str], None] = lambda sentence: None

    @property
    def order(self) -> StepOrder:
        blank = len(self.rows) if self.batches.devices > 1 else None
        return StepOrder([len(row.ids) for row in self.rows], self.batches, self.seed, blank)


@dataclass(frozen=True)
class Trained:
    """A trained model, and facts about the training.

    Args:
        model: the model, or PEFT's wrapper of it.
        losses: mean NLL of the response tokens of every optimiser step, before that step; nats per token.
        learning_rates: of every step.
        seconds: of training, summed over interruptions.
        narrow: whether logits were computed for response tokens only.
    """

    model: Any
    losses: list[float]
    learning_rates: list[float]
    seconds: float
    narrow: bool


def demand_packages() -> None:
    """Check that the packages for training are installed, before anything is read.

    Raises:
        MissingExtraError: a package is missing.
    """
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MissingExtraError(f"training needs the package `{name}`", hint=install_hint("tune"))


def train(job: TrainJob) -> Trained:
    """Train a model.

    Raises:
        ModelError: the loss or the gradient of a step is not finite.
        SettingsError: the model has no such modules, or its attention does not support packing.
    """
    from tithe.lab.tune.response_trainer import Listener, ResponseTrainer, heads_agree

    config, generation = copy.deepcopy(job.model.config), copy.deepcopy(job.model.generation_config)
    base = job.model
    with silent_libraries():
        trainer: Any = ResponseTrainer(
            model=job.model,
            args=trl_config(job),
            train_dataset=dataset_of(job),
            processing_class=copy.deepcopy(job.tokenizer),  # a trainer changes it
            data_collator=None if job.recipe.packing else collator(job),
            peft_config=adapter_config(job.model, job.recipe),
            order=job.order,
        )
        first = collate(trainer, [trainer.train_dataset[0]])
        trainer.model.eval()  # dropout would make the two heads differ; `train` switches it on again
        trainer.narrow = trainer.narrow and heads_agree(trainer.model, first)
        if job.recipe.packing:
            demand_boundaries(trainer, job.rows)
        listener = Listener(
            trainer.order, job.recipe.save_steps, job.resume.seconds if job.resume else 0.0, job.progress
        )
        remove_printers(trainer)
        trainer.add_callback(listener)
        with track(job, trainer):
            trainer.train(resume_from_checkpoint=str(job.resume.folder) if job.resume else None)
    base.config, base.generation_config = config, generation  # a trainer writes its special tokens into them
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    losses, rates = [float(one["loss"]) for one in steps], [float(one["learning_rate"]) for one in steps]
    return Trained(trainer.accelerator.unwrap_model(trainer.model), losses, rates, listener.seconds, trainer.narrow)


def dataset_of(job: TrainJob) -> Any:
    """Return the rows as a `datasets.Dataset`; for several devices with a blank one last, see `StepOrder`."""
    from datasets import Dataset

    columns = {"input_ids": [row.ids for row in job.rows], "labels": [row.labels for row in job.rows]}
    if job.recipe.packing:
        columns["seq_lengths"] = [list(row.parts) for row in job.rows]
    if job.batches.devices > 1:
        columns["input_ids"].append(job.rows[0].ids[:2])  # any ids: no token of it has a loss
        columns["labels"].append([UNREAD] * 2)
        if job.recipe.packing:
            columns["seq_lengths"].append([2])
    return Dataset.from_dict(columns)


def collator(job: TrainJob) -> Any:
    """Return TRL's collator. Padding is masked, so any id that the model embeds will do."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    rows = job.model.get_input_embeddings().weight.shape[0]
    said = (job.tokenizer.pad_token_id, job.tokenizer.eos_token_id)
    return DataCollatorForLanguageModeling(pad_token_id=next((one for one in said if one in range(rows)), 0))


def trl_config(job: TrainJob) -> Any:
    """Return the recipe as TRL's config."""
    from trl.trainer.sft_config import SFTConfig

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
        packing=recipe.packing,
        gradient_checkpointing=recipe.gradient_checkpointing,
        bf16=bool(recipe.bf16),
        use_cpu=job.device == "cpu",
        seed=job.seed,
        data_seed=job.seed,
        save_strategy="no",  # `Listener` decides when
        save_total_limit=2,  # keep the previous one until the new one is complete
        eval_strategy="no",
        logging_steps=1,
        logging_nan_inf_filter=False,  # else transformers would log the last finite loss instead of NaN
        report_to="none",  # `track` adds the trackers, so that one that fails ends no training
        run_name=job.tracking.run_name if job.tracking else None,
        project=job.tracking.project if job.tracking else "tithe",
        push_to_hub=False,
        disable_tqdm=True,
        dataloader_num_workers=0,
        dataloader_pin_memory=job.device == "cuda",
        ddp_find_unused_parameters=False,  # all weights are used, and searching for others is slow
        dataset_kwargs={"skip_prepare_dataset": True},  # rows are tokenised already
    )


@contextmanager
def track(job: TrainJob, trainer: Any) -> Iterator[None]:
    """Log what the trainer does to the trackers."""
    if job.tracking is None or not job.tracking.names:
        yield
        return
    from tithe.lab.tune.trackers import tracker_callbacks, tracker_variables

    with tracker_variables(job.tracking):
        for callback in tracker_callbacks(job.tracking, job.say):
            trainer.add_callback(callback)
        yield


def adapter_config(model: Any, recipe: TrainingRecipe) -> Any:
    """Return PEFT's config of the adapter; None if all weights are trained.

    Raises:
        SettingsError: the model has no such module, or it is the output layer.
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
    """Check that each name is that of some module with weights.

    Raises:
        SettingsError: a name matches no module (with a suggestion), or only the output layer.
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


def remove_printers(trainer: Any) -> None:
    """Remove the callbacks that print to stdout."""
    from transformers import PrinterCallback, ProgressCallback

    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)


@contextmanager
def silent_libraries() -> Iterator[None]:
    """Silence the messages of transformers and datasets."""
    import datasets
    import transformers

    logs: Any = transformers.logging
    level = logs.get_verbosity()
    logs.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=UserWarning)
            warnings.filterwarnings("ignore", category=FutureWarning)
            yield
    finally:
        logs.set_verbosity(level)
        datasets.enable_progress_bars()

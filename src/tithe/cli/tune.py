"""Commands that train: tune, warmup."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from tithe.cli.app import Usage, app, print_json
from tithe.cli.options import (
    Bos,
    Config,
    Data,
    DataFlag,
    Device,
    Encoder,
    Format,
    Json,
    Limit,
    MaxLength,
    Model,
    Output,
    Overwrite,
    RemoteCode,
    Seed,
    Split,
    Strict,
    Template,
    Turns,
)
from tithe.errors import TitheError

Recipe = Annotated[str | None, typer.Option("--recipe", "-r", help="`alpaca`, `cpqs-lora`, `warmup`, or a YAML file.")]
Truncation = Annotated[
    str | None, typer.Option(help="What gives way to the maximal length: `response`, `prompt` or `problem`.")
]
Eos = Annotated[bool | None, typer.Option("--eos/--no-eos", help="Train the end-of-turn marker too; the default.")]
BatchSize = Annotated[int | None, typer.Option(help="Sequences of an optimiser step, over all devices.")]
DeviceBatch = Annotated[int | None, typer.Option(help="Sequences of one forward pass; it changes no result.")]
Accumulation = Annotated[int | None, typer.Option(help="Forward passes of an optimiser step; follows from the others.")]
Rate = Annotated[float | None, typer.Option(help="Learning rate, at its highest.")]
Epochs = Annotated[float | None, typer.Option(help="Passes over the data.")]
Steps = Annotated[int | None, typer.Option(help="Optimiser steps, whatever the epochs.")]
Warmup = Annotated[float | None, typer.Option(help="Share of the steps in which the learning rate rises.")]
Schedule = Annotated[str | None, typer.Option(help="`linear`, `cosine`, `constant` or `constant_with_warmup`.")]
Decay = Annotated[float | None, typer.Option(help="Weight decay.")]
Norm = Annotated[float | None, typer.Option(help="Gradients are scaled down to this norm; 0 leaves them.")]
Packing = Annotated[bool | None, typer.Option("--packing/--no-packing", help="Several examples in a row.")]
Checkpointing = Annotated[
    bool | None,
    typer.Option("--gradient-checkpointing/--no-gradient-checkpointing", help="Less memory, about a third slower."),
]
Weights = Annotated[str | None, typer.Option(help="Of the weights in memory: `auto`, `fp32` or `bf16`.")]
Mixed = Annotated[bool | None, typer.Option("--bf16/--no-bf16", help="Multiply in bf16 (mixed precision).")]
SaveSteps = Annotated[
    int | None, typer.Option(help="Steps between checkpoints; 0 for none, by default one every ten minutes.")
]
Peft = Annotated[bool | None, typer.Option("--use-peft/--no-use-peft", help="Train a LoRA adapter.")]
Rank = Annotated[int | None, typer.Option(help="Rank of the adapter.")]
Alpha = Annotated[int | None, typer.Option(help="Scale of the adapter, over its rank.")]
Dropout = Annotated[float | None, typer.Option(help="On the adapter's input.")]
Modules = Annotated[
    list[str] | None, typer.Option(help="Modules that get an adapter; all linear ones by default. May be repeated.")
]


@app.command()
def tune(
    data: Data = None,
    dataset: DataFlag = None,
    model: Model = None,
    recipe: Recipe = None,
    output: Output = None,
    overwrite: Overwrite = False,
    template: Template = None,
    max_length: MaxLength = None,
    truncation: Truncation = None,
    bos: Bos = None,
    eos: Eos = None,
    train_batch_size: BatchSize = None,
    per_device_train_batch_size: DeviceBatch = None,
    gradient_accumulation_steps: Accumulation = None,
    learning_rate: Rate = None,
    num_train_epochs: Epochs = None,
    max_steps: Steps = None,
    warmup_ratio: Warmup = None,
    lr_scheduler_type: Schedule = None,
    weight_decay: Decay = None,
    max_grad_norm: Norm = None,
    packing: Packing = None,
    gradient_checkpointing: Checkpointing = None,
    dtype: Weights = None,
    bf16: Mixed = None,
    save_steps: SaveSteps = None,
    use_peft: Peft = None,
    lora_r: Rank = None,
    lora_alpha: Alpha = None,
    lora_dropout: Dropout = None,
    lora_target_modules: Modules = None,
    device: Device = None,
    seed: Seed = None,
    trust_remote_code: RemoteCode = None,
    format: Format = None,
    turns: Turns = None,
    split: Split = None,
    limit: Limit = None,
    strict: Strict = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Fine-tune a model on the responses of a data set, all weights or a LoRA adapter."""
    given = dict(locals())
    from tithe.lab.tune.settings import TuneSettings
    from tithe.lab.tune.tune import tune as carry_out

    train(TuneSettings, carry_out, given)


@app.command()
def warmup(
    data: Data = None,
    dataset: DataFlag = None,
    model: Model = None,
    output: Output = None,
    overwrite: Overwrite = False,
    records: Annotated[int | None, typer.Option(help="Examples to be trained on; 1,000 by default.")] = None,
    choose: Annotated[str | None, typer.Option(help="How they are chosen: `kmeans`, `distance` or `random`.")] = None,
    clusters: Annotated[int | None, typer.Option(help="Of like prompts; 100 by default.")] = None,
    encoder: Encoder = None,
    recipe: Recipe = None,
    template: Template = None,
    max_length: MaxLength = None,
    truncation: Truncation = None,
    bos: Bos = None,
    eos: Eos = None,
    train_batch_size: BatchSize = None,
    per_device_train_batch_size: DeviceBatch = None,
    learning_rate: Rate = None,
    num_train_epochs: Epochs = None,
    max_steps: Steps = None,
    dtype: Weights = None,
    bf16: Mixed = None,
    save_steps: SaveSteps = None,
    use_peft: Peft = None,
    device: Device = None,
    seed: Seed = None,
    trust_remote_code: RemoteCode = None,
    format: Format = None,
    turns: Turns = None,
    split: Split = None,
    limit: Limit = None,
    strict: Strict = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Give a model IFD's brief experience: one epoch on some of the data that it will score."""
    given = dict(locals())
    from tithe.lab.tune.warmup import warm_up
    from tithe.lab.tune.warmup_settings import WarmupSettings

    train(WarmupSettings, warm_up, given)


def train(settings: type[Any], carry_out: Callable[..., Any], given: dict[str, Any]) -> None:
    """The one call, and what is printed of it."""
    from tithe.lab.tiers.settings import settings_of
    from tithe.lab.tune.processes import is_main
    from tithe.lab.tune.screen import make_reporter, show_tuned

    output, config = given["output"], given["config"]
    given["dataset"] = one_dataset(given["data"], given["dataset"], config is not None)
    if output is None:
        raise Usage("no place for the trained model is given", hint="`-o tuned`")
    with one_voice():
        made = settings_of(settings, given, config)
        result = carry_out(made, output, overwrite=given["overwrite"], talk=make_reporter())
        show_tuned(result)
        print_json(result.record, given["as_json"] and is_main())


@contextmanager
def one_voice() -> Iterator[None]:
    """Of several processes that find the same fault, the main one names it."""
    from tithe.lab.tune.processes import is_main

    try:
        yield
    except TitheError:
        if is_main():
            raise
        raise typer.Exit(1) from None


def one_dataset(data: str | None, dataset: str | None, may_lack: bool) -> str | None:
    """The data set, however it was given."""
    if data is not None and dataset is not None:
        raise Usage(f"two data sets: `{data}` and `--dataset {dataset}`", hint="give one")
    if data is None and dataset is None and not may_lack:
        raise Usage("no data set is given", hint="`tithe tune data.jsonl ...`; `starter` is bundled")
    return data if dataset is None else dataset

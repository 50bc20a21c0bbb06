"""Commands over heads: train, import, evaluate."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tithe.cli.app import group, print_json
from tithe.cli.options import (
    BatchTokens,
    Bos,
    Compile,
    Config,
    Data,
    DataFlag,
    Device,
    Eos,
    Format,
    Json,
    Limit,
    MaxLength,
    Model,
    Overwrite,
    RemoteCode,
    Seed,
    Shard,
    Strict,
    Template,
    Truncation,
    Turns,
    Weights,
    Workers,
)
from tithe.cli.runs import settings_from

head = group("head", "Heads that tell a strong model's responses from a weak one's by hidden states.")

Kind = Annotated[
    str | None, typer.Option("--head", "--kind", help="`probe`, linear, or `cnn`, the CPQS paper's network.")
]
Layers = Annotated[str | None, typer.Option(help="`all`, `last`, `front`, `middle` or `back`; a probe chooses itself.")]
Preset = Annotated[str | None, typer.Option(help="`cpqs-paper`: the authors' prompt, with the template's tail.")]
Place = Annotated[Path, typer.Option("--output", "-o", help="Folder of the head.")]
TierColumn = Annotated[str | None, typer.Option(help="Column that names the tier; `tier` by default.")]
HighTier = Annotated[str | None, typer.Option(help="Names of the high tier; `high` by default.")]
LowTier = Annotated[str | None, typer.Option(help="Names of the low tier; `low` by default.")]
Resamples = Annotated[int | None, typer.Option(help="Of the bootstrap, 2,000 by default.")]


@head.command()
def train(
    output: Place,
    data: Data = None,
    dataset: DataFlag = None,
    model: Model = None,
    kind: Kind = None,
    layers: Layers = None,
    tier_column: TierColumn = None,
    high_tier: HighTier = None,
    low_tier: LowTier = None,
    split_column: Annotated[
        str | None, typer.Option(help="Column that names the side: train, validation, test.")
    ] = None,
    validation_share: Annotated[float | None, typer.Option(help="Of the prompts; 0.1 by default.")] = None,
    test_share: Annotated[float | None, typer.Option(help="Of the prompts; 0.1 by default, 0 for no report.")] = None,
    num_train_epochs: Annotated[int | None, typer.Option(help="Passes of a cnn, at most.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of a cnn; 1e-4 by default.")] = None,
    per_device_train_batch_size: Annotated[int | None, typer.Option(help="Responses a step; 16 by default.")] = None,
    resamples: Resamples = None,
    preset: Preset = None,
    template: Template = None,
    max_length: MaxLength = None,
    truncation: Truncation = None,
    bos: Bos = None,
    eos: Eos = None,
    dtype: Weights = None,
    device: Device = None,
    shard: Shard = None,
    batch_tokens: BatchTokens = None,
    workers: Workers = None,
    compile: Compile = None,
    seed: Seed = None,
    trust_remote_code: RemoteCode = None,
    format: Format = None,
    turns: Turns = None,
    limit: Limit = None,
    strict: Strict = None,
    overwrite: Overwrite = False,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Train a head on tiers, and judge it on prompts that it never saw."""
    given = dict(locals())
    from tithe.config import HeadSettings
    from tithe.lab.heads.screen import show_head
    from tithe.lab.heads.train_head import train_head
    from tithe.report.terminal import Screen

    result = train_head(settings_from(HeadSettings, given), output, overwrite=overwrite, talk=Screen())
    show_head(result)
    print_json(result.record, as_json)


@head.command()
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="HEAD", help="Folder of the head.")],
    data: Data = None,
    dataset: DataFlag = None,
    model: Model = None,
    tier_column: TierColumn = None,
    high_tier: HighTier = None,
    low_tier: LowTier = None,
    drop_seen: Annotated[bool | None, typer.Option("--drop-seen", help="Leave out prompts it was trained on.")] = None,
    resamples: Resamples = None,
    preset: Preset = None,
    template: Template = None,
    max_length: MaxLength = None,
    truncation: Truncation = None,
    bos: Bos = None,
    eos: Eos = None,
    dtype: Weights = None,
    device: Device = None,
    shard: Shard = None,
    batch_tokens: BatchTokens = None,
    workers: Workers = None,
    compile: Compile = None,
    seed: Seed = None,
    trust_remote_code: RemoteCode = None,
    format: Format = None,
    turns: Turns = None,
    limit: Limit = None,
    strict: Strict = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Judge a head on tiers of another source."""
    given = dict(locals())
    from tithe.config import HeadSettings
    from tithe.lab.heads.screen import show_head
    from tithe.lab.heads.train_head import evaluate_head
    from tithe.report.terminal import Screen

    result = evaluate_head(folder, settings_from(HeadSettings, given), talk=Screen())
    show_head(result)
    print_json(result.record, as_json)


@head.command("import")
def import_weights(
    weights: Annotated[Path, typer.Argument(metavar="WEIGHTS", help="A .safetensors file of the authors' network.")],
    output: Place,
    model: Model = None,
    kind: Annotated[str, typer.Option(help="`cnn` is the only one that there is to import.")] = "cnn",
    layers: Annotated[str | None, typer.Option(help="`all`, `last`, `front`, `middle` or `back`.")] = None,
    preset: Preset = None,
    template: Template = None,
    max_length: MaxLength = None,
    dtype: Weights = None,
    device: Device = None,
    shard: Shard = None,
    trust_remote_code: RemoteCode = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Make a head of a network that was trained with the CPQS authors' scripts."""
    given = {**locals(), "dataset": str(weights)}
    from tithe.config import HeadSettings
    from tithe.lab.heads.screen import show_head
    from tithe.lab.heads.train_head import import_head
    from tithe.report.terminal import Screen

    result = import_head(weights, settings_from(HeadSettings, given), output, overwrite=overwrite, talk=Screen())
    show_head(result)
    print_json(result.record, as_json)

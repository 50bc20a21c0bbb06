"""How fast a run would be: measured on the user's model and a sample of their data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tithe.cli.app import app, print_json
from tithe.cli.options import (
    BatchTokens,
    Bos,
    Compile,
    Config,
    Data,
    DataFlag,
    Device,
    Dtype,
    Encoder,
    Eos,
    Exclude,
    Format,
    Head,
    Header,
    Json,
    MaxLength,
    Model,
    Overwrite,
    Preset,
    RemoteCode,
    Scorer,
    Seed,
    Shard,
    ShotPool,
    Shots,
    Split,
    Strict,
    Target,
    Template,
    Truncation,
    Turns,
    Workers,
)
from tithe.cli.runs import settings_from


@app.command()
def bench(
    data: Data = None,
    dataset: DataFlag = None,
    scorer: Scorer = None,
    model: Model = None,
    limit: Annotated[int | None, typer.Option(help="Records of the sample, 200 by default.")] = None,
    records: Annotated[int | None, typer.Option(help="Records of the job; all of DATA by default.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Readings of the sample, 3 by default.")] = None,
    seconds: Annotated[float | None, typer.Option(help="About how long one reading may take, 8 by default.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="JSON file of the record.")] = None,
    overwrite: Overwrite = False,
    preset: Preset = None,
    encoder: Encoder = None,
    shots: Shots = None,
    exclude_similarity: Exclude = None,
    shot_pool: ShotPool = None,
    head: Head = None,
    target: Target = None,
    template: Template = None,
    max_length: MaxLength = None,
    truncation: Truncation = None,
    bos: Bos = None,
    eos: Eos = None,
    alone_header: Header = None,
    dtype: Dtype = None,
    device: Device = None,
    shard: Shard = None,
    batch_tokens: BatchTokens = None,
    workers: Workers = None,
    compile: Compile = None,
    seed: Seed = None,
    trust_remote_code: RemoteCode = None,
    format: Format = None,
    turns: Turns = None,
    split: Split = None,
    strict: Strict = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Measure how fast a run would be here: speed, time and memory of the whole job."""
    given = dict(locals())
    from tithe.lab.speed.settings import BenchSettings
    from tithe.lab.speed.speed import bench as measure
    from tithe.report.terminal import Screen
    from tithe.run.folder import check_places

    settings, screen = settings_from(BenchSettings, given), Screen()
    check_places(output, overwrite, settings.dataset, None)
    result = measure(settings, screen)
    for line in str(result).splitlines():
        screen.say(line)
    if output is not None:
        result.write(output, overwrite=overwrite)
        screen.say(f"written: {output}")
    print_json(result.record, as_json)

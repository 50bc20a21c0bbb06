"""Commands over a data set: select, score, plan, export."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from tithe.cli.app import Usage, app, print_json
from tithe.cli.options import (
    Answers,
    BatchTokens,
    Bos,
    Compile,
    Config,
    Data,
    DataFlag,
    Device,
    Encoder,
    Eos,
    Exclude,
    Format,
    Head,
    Header,
    Json,
    Limit,
    MaxLength,
    Model,
    Output,
    Overwrite,
    PerToken,
    Preset,
    RemoteCode,
    Residualise,
    RunDir,
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
    Warmup,
    Weights,
    Workers,
)
from tithe.printable import printable


@app.command()
def select(
    data: Data = None,
    dataset: DataFlag = None,
    scorer: Scorer = None,
    model: Model = None,
    keep: Annotated[str | None, typer.Option("--keep", "-k", help="Rows `500`, share `5%` or `200k-tokens`.")] = None,
    selector: Annotated[str | None, typer.Option(help="A name from `tithe selectors`.")] = None,
    by: Annotated[str | None, typer.Option(help="The scorer that ranks; the first by default.")] = None,
    drop: Annotated[list[str] | None, typer.Option(help='Filter, e.g. "ifd > 1"; may be repeated.')] = None,
    no_drop: Annotated[bool, typer.Option("--no-drop", help="Not even the scorer's own filter.")] = False,
    drop_duplicates: Annotated[bool | None, typer.Option("--drop-duplicates", help="Keep the first of equals.")] = None,
    drop_contaminated: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Drop what shares 13 words in a row with this evaluation file; repeatable."),
    ] = None,
    keep_of: Annotated[str | None, typer.Option(help="A share is of the `input`, or of what is left (`kept`).")] = None,
    pipeline: Annotated[
        str | None, typer.Option(help='Stages instead of one scorer: "superfiltering:20% -> ifd:5%".')
    ] = None,
    shape: Annotated[str | None, typer.Option(help="Records as `same`, messages, alpaca, prompt-completion.")] = None,
    output: Output = None,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
    preset: Preset = None,
    encoder: Encoder = None,
    shots: Shots = None,
    exclude_similarity: Exclude = None,
    shot_pool: ShotPool = None,
    head: Head = None,
    residualise: Residualise = None,
    target: Target = None,
    warmup: Warmup = None,
    answers: Answers = None,
    template: Template = None,
    max_length: MaxLength = None,
    truncation: Truncation = None,
    bos: Bos = None,
    eos: Eos = None,
    alone_header: Header = None,
    dtype: Weights = None,
    device: Device = None,
    shard: Shard = None,
    batch_tokens: BatchTokens = None,
    workers: Workers = None,
    compile: Compile = None,
    per_token: PerToken = None,
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
    """Score a data set and keep the best part of it."""
    given = dict(locals())
    if no_drop and drop:
        raise Usage("`--no-drop` and `--drop` exclude each other")
    given["drop"] = () if no_drop else drop
    from tithe import run
    from tithe.config import SelectSettings
    from tithe.report.terminal import Screen
    from tithe.run.folder import default_folder
    from tithe.run.summaries import show_selected

    settings = settings_from(SelectSettings, given)
    output, run_dir = places(output, run_dir, settings.dataset, default_folder, "kept.jsonl")
    result = run.select(settings, folder=run_dir, output=output, overwrite=overwrite, talk=Screen())
    show_selected(result, output, run_dir)
    print_json(result.record, as_json)


@app.command()
def score(
    data: Data = None,
    dataset: DataFlag = None,
    scorer: Scorer = None,
    model: Model = None,
    output: Output = None,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
    preset: Preset = None,
    encoder: Encoder = None,
    shots: Shots = None,
    exclude_similarity: Exclude = None,
    shot_pool: ShotPool = None,
    head: Head = None,
    residualise: Residualise = None,
    target: Target = None,
    warmup: Warmup = None,
    answers: Answers = None,
    template: Template = None,
    max_length: MaxLength = None,
    truncation: Truncation = None,
    bos: Bos = None,
    eos: Eos = None,
    alone_header: Header = None,
    dtype: Weights = None,
    device: Device = None,
    shard: Shard = None,
    batch_tokens: BatchTokens = None,
    workers: Workers = None,
    compile: Compile = None,
    per_token: PerToken = None,
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
    """Score every example of a data set."""
    given = dict(locals())
    from tithe import run
    from tithe.config import ScoreSettings
    from tithe.report.terminal import Screen
    from tithe.run.folder import default_folder
    from tithe.run.summaries import show_scores

    settings = settings_from(ScoreSettings, given)
    output, run_dir = places(output, run_dir, settings.dataset, default_folder, "scores.parquet")
    result = run.score(settings, folder=run_dir, output=output, overwrite=overwrite, talk=Screen())
    show_scores(result, output, run_dir)
    print_json(result.record, as_json)


@app.command()
def plan(
    data: Data = None,
    dataset: DataFlag = None,
    scorer: Scorer = None,
    model: Model = None,
    preset: Preset = None,
    encoder: Encoder = None,
    shots: Shots = None,
    exclude_similarity: Exclude = None,
    shot_pool: ShotPool = None,
    head: Head = None,
    residualise: Residualise = None,
    target: Target = None,
    template: Template = None,
    max_length: MaxLength = None,
    truncation: Truncation = None,
    bos: Bos = None,
    eos: Eos = None,
    alone_header: Header = None,
    trust_remote_code: RemoteCode = None,
    format: Format = None,
    turns: Turns = None,
    split: Split = None,
    limit: Limit = None,
    strict: Strict = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Count passes, tokens and cost; needs only the model's tokenizer."""
    given = dict(locals())
    from tithe import run
    from tithe.config import ScoreSettings
    from tithe.report.terminal import Screen
    from tithe.run.summaries import show_plan

    result = run.plan(settings_from(ScoreSettings, given), talk=Screen())
    show_plan(result)
    print_json(result.record, as_json)


@app.command()
def export(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A kept file, or any data set that can be read.")],
    to: Annotated[str, typer.Option("--to", help="messages, alpaca, prompt-completion, llamafactory, axolotl or trl.")],
    output: Output = None,
    overwrite: Overwrite = False,
    format: Format = None,
    turns: Turns = None,
) -> None:
    """Rewrite records in another shape, or print what a trainer needs to read the file."""
    from tithe.lab.exports import export as carry_out
    from tithe.report.terminal import Screen

    text = carry_out(
        data, to, output=output, overwrite=overwrite, format=format or "auto", turns=turns or "last", talk=Screen()
    )
    if text is not None:
        print(printable(text.rstrip("\n"), keep="\n"))


def settings_from(model: Any, given: Mapping[str, Any]) -> Any:
    """What was given on the command line as settings."""
    from tithe.config import from_flags

    # Typer gives an empty list for an option that was left out; `--no-drop` has made a tuple of it.
    flags = {key: None if value == [] else value for key, value in given.items()}
    data, dataset = flags.get("data"), flags.get("dataset")
    if data is not None and dataset is not None:
        raise Usage(f"two data sets: `{data}` and `--dataset {dataset}`", hint="give one")
    flags["dataset"] = dataset if data is None else data
    if flags["dataset"] is None and flags.get("config") is None:
        raise Usage("no data set is given", hint="`tithe select data.jsonl ...`; `starter` is bundled")
    return from_flags(model, flags, flags.get("config"))


def places(
    output: Path | None, run_dir: Path | None, dataset: str, default: Any, example: str
) -> tuple[Path | None, Path]:
    """Where the result and the run folder go."""
    if output is None and run_dir is None:
        stem = Path(dataset).name.partition(".")[0]
        raise Usage("no place for the result is given", hint=f"`-o {stem}-{example}`, or `--run-dir`")
    return output, run_dir or default(output)

"""Commands about quality tiers: build, import, look."""

from __future__ import annotations

from typing import Annotated

import typer

from tithe.cli.app import Usage, group, print_json
from tithe.cli.options import (
    BatchTokens,
    Config,
    Device,
    Dtype,
    Format,
    Json,
    Limit,
    Output,
    Overwrite,
    RemoteCode,
    RunDir,
    Seed,
    Split,
    Strict,
    Template,
)

tiers = group("tiers", "Strong responses and weaker ones to the same prompts, for a head to be trained on.")

Prompts = Annotated[
    str | None, typer.Argument(metavar="PROMPTS", help="File, folder or hub id with the prompts; `starter` is bundled.")
]
Files = Annotated[
    list[str] | None,
    typer.Argument(metavar="FILE", help="Data sets with a column `tier`, or with columns `high` and `low`."),
]
NO_PLACE = "no place for the tiers is given"


@tiers.command()
def build(
    prompts: Prompts = None,
    dataset: Annotated[str | None, typer.Option("--dataset", "--dataset-name", help="The same as PROMPTS.")] = None,
    strong: Annotated[
        str | None, typer.Option(help="Data set with the strong responses; PROMPTS holds them by default.")
    ] = None,
    strong_model: Annotated[str | None, typer.Option(help="Who gave the strong responses.")] = None,
    weak_model: Annotated[
        list[str] | None,
        typer.Option("--weak-model", "-w", metavar="MODEL", help="Answers the prompts again; may be repeated."),
    ] = None,
    sample: Annotated[int | None, typer.Option(help="Draw so many prompts by chance.")] = None,
    output: Output = None,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
    temperature: Annotated[float | None, typer.Option(help="0 takes the likeliest token each time.")] = None,
    top_p: Annotated[float | None, typer.Option(help="Share of probability that is drawn from.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Where an answer is cut off.")] = None,
    template: Template = None,
    dtype: Dtype = None,
    device: Device = None,
    batch_tokens: BatchTokens = None,
    trust_remote_code: RemoteCode = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask an OpenAI-compatible server for the weak models.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with its key; `TITHE_API_KEY` by default.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(help="Requests at once.")] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds for all of a request, to the last byte of its answer.")
    ] = None,
    retries: Annotated[int | None, typer.Option(help="How often a failed request is tried again.")] = None,
    seed: Seed = None,
    format: Format = None,
    split: Split = None,
    limit: Limit = None,
    strict: Strict = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Let weak models answer the prompts of strong responses again."""
    given = dict(locals())
    if prompts is not None and dataset is not None:
        raise Usage(f"two data sets: `{prompts}` and `--dataset {dataset}`", hint="give one")
    given["dataset"] = dataset if prompts is None else prompts
    if given["dataset"] is None and config is None:
        raise Usage("no prompts are given", hint="`tithe tiers build data.jsonl ...`; `starter` is bundled")
    if not weak_model and config is None:
        raise Usage("no weak model is given", hint="`--weak-model NAME`, more than once for several")
    if output is None:
        raise Usage(NO_PLACE, hint="`-o tiers.jsonl`")
    from tithe.lab.tiers import tiers as run
    from tithe.lab.tiers.screen import show_built
    from tithe.lab.tiers.settings import TierSettings, settings_of
    from tithe.report.terminal import Screen
    from tithe.run.folder import default_folder

    settings, folder = settings_of(TierSettings, given, config), run_dir or default_folder(output)
    result = run.build(settings, output=output, folder=folder, overwrite=overwrite, talk=Screen())
    show_built(result, output, folder)
    print_json(result.record, as_json)


@tiers.command("import")
def import_(
    files: Files = None,
    high_file: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Data set whose responses are all high; may be repeated.")
    ] = None,
    low_file: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Data set whose responses are all low; may be repeated.")
    ] = None,
    high_tier: Annotated[
        str | None, typer.Option(metavar="NAME[,NAME]", help="Labels of `tier` that mean high.")
    ] = None,
    low_tier: Annotated[str | None, typer.Option(metavar="NAME[,NAME]", help="Labels of `tier` that mean low.")] = None,
    high_model: Annotated[str | None, typer.Option(help="Who gave the responses of the high file.")] = None,
    low_model: Annotated[str | None, typer.Option(help="Who gave the responses of the low file.")] = None,
    output: Output = None,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
    format: Format = None,
    split: Split = None,
    limit: Limit = None,
    strict: Strict = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Bring tiers that are already there into one form."""
    given = dict(locals())
    if not (files or high_file or low_file) and config is None:
        raise Usage("no file is given", hint="`tithe tiers import FILE`, or `--high-file FILE --low-file FILE`")
    if output is None:
        raise Usage(NO_PLACE, hint="`-o tiers.jsonl`")
    from tithe.lab.tiers import tiers as run
    from tithe.lab.tiers.screen import show_imported
    from tithe.lab.tiers.settings import TierImportSettings, settings_of
    from tithe.report.terminal import Screen

    settings = settings_of(TierImportSettings, given, config)
    result = run.import_tiers(settings, output=output, folder=run_dir, overwrite=overwrite, talk=Screen())
    show_imported(result, output)
    print_json(result.record, as_json)


@tiers.command()
def look(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A tier file.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Count lengths in the tokens of this model, too.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers to stdout.")] = False,
) -> None:
    """Say what is in a tier file: counts, lengths, duplicates, refusals."""
    from tithe.lab.tiers import tiers as run
    from tithe.lab.tiers.screen import show_look

    result = run.look(file, model=model)
    show_look(result)
    print_json(result.record, as_json)

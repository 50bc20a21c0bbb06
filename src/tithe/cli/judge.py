"""Commands about pairwise judging: answer, compare, tally."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tithe.cli.app import Usage, group, print_json
from tithe.cli.options import (
    BatchTokens,
    Config,
    Device,
    Dtype,
    Json,
    Limit,
    Output,
    Overwrite,
    RemoteCode,
    RunDir,
    Seed,
    Template,
)

judge = group("judge", "Which of two models answers a prompt set better, as a third one sees it.")

Temperature = Annotated[float | None, typer.Option(help="0, the default, takes the likeliest token each time.")]
TopP = Annotated[float | None, typer.Option(help="Share of probability that is drawn from.")]
MaxNew = Annotated[int | None, typer.Option(help="Where a reply is cut off.")]
KeyEnv = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Environment variable with the server's key; `TITHE_API_KEY` by default."),
]
Concurrency = Annotated[int | None, typer.Option(help="Requests at once.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds for all of a request, to the last byte of its answer.")]
Retries = Annotated[int | None, typer.Option(help="How often a failed request is tried again.")]
Level = Annotated[float | None, typer.Option(help="Of confidence, for the interval; 0.95 by default.")]


@judge.command()
def answer(
    prompts: Annotated[
        str | None, typer.Argument(metavar="PROMPTS", help="File of prompts, in the shape it was published in.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "--model-name-or-path", "-m", help="Folder or hub id, or a server's name for it."),
    ] = None,
    output: Output = None,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_new_tokens: MaxNew = None,
    template: Template = None,
    dtype: Dtype = None,
    device: Device = None,
    batch_tokens: BatchTokens = None,
    trust_remote_code: RemoteCode = None,
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask an OpenAI-compatible server for the model.")
    ] = None,
    api_key_env: KeyEnv = None,
    concurrency: Concurrency = None,
    timeout: Timeout = None,
    retries: Retries = None,
    seed: Seed = None,
    limit: Limit = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Let a model answer a prompt set."""
    given = dict(locals())
    if prompts is None and config is None:
        raise Usage("no prompts are given", hint="`tithe judge answer prompts.jsonl --model M -o answers.jsonl`")
    if model is None and config is None:
        raise Usage("no model is given", hint="`--model`, a folder or hub id")
    if output is None:
        raise Usage("no place for the answers is given", hint="`-o answers.jsonl`")
    from tithe.lab.judge.answers import answer as carry_out
    from tithe.lab.judge.screen import show_answered
    from tithe.lab.judge.settings import AnswerSettings
    from tithe.lab.tiers.settings import settings_of
    from tithe.report.terminal import Screen
    from tithe.run.folder import default_folder

    settings, folder = settings_of(AnswerSettings, given, config), run_dir or default_folder(output)
    result = carry_out(settings, output, folder=folder, overwrite=overwrite, talk=Screen())
    show_answered(result, folder)
    print_json(result.record, as_json)


@judge.command()
def compare(
    a: Annotated[Path, typer.Argument(metavar="A", help="Answers of one model: JSON lines with prompt and response.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Answers of the other one to the same prompts.")],
    judge: Annotated[
        str | None, typer.Option(metavar="MODEL_OR_URL", help="Folder or hub id, or the address of a server.")
    ] = None,
    judge_model: Annotated[str | None, typer.Option(metavar="NAME", help="What the server calls the judge.")] = None,
    output: Output = None,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
    name: Annotated[str | None, typer.Option(help="Of the prompt set; by default the file of A's.")] = None,
    attempts: Annotated[int | None, typer.Option(help="How often it is asked for a verdict; 3 by default.")] = None,
    level: Level = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    max_new_tokens: MaxNew = None,
    template: Template = None,
    dtype: Dtype = None,
    device: Device = None,
    batch_tokens: BatchTokens = None,
    trust_remote_code: RemoteCode = None,
    api_key_env: KeyEnv = None,
    concurrency: Concurrency = None,
    timeout: Timeout = None,
    retries: Retries = None,
    seed: Seed = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Let a judge compare two models' answers, each pair in both orders."""
    given = dict(locals())
    if judge is None and config is None:
        raise Usage("no judge is given", hint="`--judge`, a folder or hub id, or a URL with `--judge-model NAME`")
    if output is None:
        raise Usage("no place for the reviews is given", hint="`-o reviews.jsonl`")
    from tithe.lab.judge.judge import compare as carry_out
    from tithe.lab.judge.screen import show_compared
    from tithe.lab.judge.settings import JudgeSettings
    from tithe.lab.tiers.settings import settings_of
    from tithe.report.terminal import Screen
    from tithe.run.folder import default_folder

    settings, folder = settings_of(JudgeSettings, given, config), run_dir or default_folder(output)
    result = carry_out(settings, a, b, output, folder=folder, overwrite=overwrite, talk=Screen())
    show_compared(result, output, folder)
    print_json(result.record, as_json)


@judge.command()
def tally(
    reviews: Annotated[
        Path, typer.Argument(metavar="REVIEWS", help="What `compare` wrote, or a review file of Cherry_LLM.")
    ],
    level: Level = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the numbers to stdout.")] = False,
) -> None:
    """Count wins, ties and losses."""
    from tithe.lab.judge.judge import tally as count
    from tithe.lab.judge.screen import show_tally
    from tithe.lab.judge.tally import LEVEL

    found = count(reviews, level=LEVEL if level is None else level)
    show_tally(found)
    print_json(found.as_dict(), as_json)

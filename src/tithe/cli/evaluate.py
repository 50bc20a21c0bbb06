"""The command that measures a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tithe.cli.app import Usage, app, print_json
from tithe.cli.options import Bos, Config, Device, Dtype, Eos, Json, RemoteCode, Seed

ModelPlace = Annotated[
    str | None, typer.Argument(metavar="MODEL", help="Folder or hub id; `pocket` is bundled, for trying out.")
]


@app.command()
def evaluate(
    model: ModelPlace = None,
    model_flag: Annotated[
        str | None, typer.Option("--model", "--model-name-or-path", "-m", help="The same as MODEL.")
    ] = None,
    holdout: Annotated[
        str | None, typer.Option(metavar="FILE", help="Data set whose responses' likelihood is measured.")
    ] = None,
    holdout_group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="Column of it that tells groups apart, e.g. `category`.")
    ] = None,
    tasks: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=FILE],...", help="lm-eval's tasks; FILE, or a folder, holds a task's data."),
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder where the results go.")] = None,
    num_fewshot: Annotated[
        int | None, typer.Option(help="Worked examples before each item of a task; the task's own number by default.")
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only so many items of each task.")] = None,
    batch_size: Annotated[str | None, typer.Option(help="Of lm-eval: a number, or `auto`.")] = None,
    max_new_tokens: Annotated[int | None, typer.Option(help="Where an answer to a task is cut off.")] = None,
    apply_chat_template: Annotated[
        bool | None, typer.Option("--apply-chat-template", help="Put the tasks' prompts by the model's chat template.")
    ] = None,
    allow_code_execution: Annotated[
        bool | None,
        typer.Option("--allow-code-execution", help="Run the code that the model writes, in a sandbox."),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Of the held-out file: a name from `tithe templates`, or a Jinja file.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="Of the held-out file: tokens of the longest pass.")] = None,
    truncation: Annotated[
        str | None, typer.Option(help="What gives way to it: `response`, `prompt` or `problem`.")
    ] = None,
    bos: Bos = None,
    eos: Eos = None,
    dtype: Dtype = None,
    device: Device = None,
    seed: Seed = None,
    trust_remote_code: RemoteCode = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Measure a model: likelihood of held-out responses, lm-eval's tasks."""
    given = dict(locals())
    if model is not None and model_flag is not None:
        raise Usage(f"two models: `{model}` and `--model {model_flag}`", hint="give one")
    given["model"] = model or model_flag
    if given["model"] is None and config is None:
        raise Usage("no model is given", hint="`tithe evaluate FOLDER ...`; `pocket` is bundled, for trying out")
    if not (holdout or tasks) and config is None:
        raise Usage("nothing is given to evaluate by", hint="`--holdout FILE`, `--tasks NAMES`, or both")
    if output is None:
        raise Usage("no place for the results is given", hint="`-o results`")
    from tithe.lab.evaluate.evaluate import evaluate as run
    from tithe.lab.evaluate.screen import show_evaluation
    from tithe.lab.evaluate.settings import EvaluateSettings
    from tithe.lab.tiers.settings import settings_of
    from tithe.report.terminal import Screen

    result = run(settings_of(EvaluateSettings, given, config), output, talk=Screen())
    show_evaluation(result)
    print_json(result.record, as_json)

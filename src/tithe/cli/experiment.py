"""The command that compares ways of choosing data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tithe.cli.app import Usage, app, print_json
from tithe.cli.options import Device, Json, Limit, Model, Overwrite, RemoteCode


@app.command()
def experiment(
    recipe: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="Arms, budgets, seeds and the rest.")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the experiment.")] = None,
    budgets: Annotated[str | None, typer.Option(help="Instead of the file's, e.g. `1%,2%,5%,10%,20%,100%`.")] = None,
    seeds: Annotated[int | None, typer.Option(help="How many, instead of the file's; at least 3.")] = None,
    model: Model = None,
    dataset: Annotated[str | None, typer.Option("--dataset", "--dataset-name", help="Instead of the file's.")] = None,
    limit: Limit = None,
    parallel: Annotated[
        int | None, typer.Option(help="Trainings at once; one per GPU by default, one on a CPU.")
    ] = None,
    drop_contaminated: Annotated[
        bool | None, typer.Option("--drop-contaminated", help="Leave out of the pool what the evaluation has, too.")
    ] = None,
    keep_models: Annotated[bool | None, typer.Option("--keep-models", help="Keep all trained models.")] = None,
    allow_code_execution: Annotated[
        bool | None, typer.Option("--allow-code-execution", help="Run the code that models write, where a task does.")
    ] = None,
    trust_remote_code: RemoteCode = None,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with the key of the judge's server.")
    ] = None,
    device: Device = None,
    plan: Annotated[bool, typer.Option("--plan", help="Choose, and look for contamination; train nothing.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train on every arm's choice at every budget with every seed, and say which arms beat random."""
    flags = {
        "budgets": budgets,
        "seeds": seeds,
        "model": model,
        "dataset": dataset,
        "limit": limit,
        "parallel": parallel,
        "drop_contaminated": drop_contaminated,
        "keep_models": keep_models,
        "allow_code_execution": allow_code_execution,
        "trust_remote_code": trust_remote_code,
        "api_key_env": api_key_env,
        "device": device,
    }
    if output is None:
        raise Usage("no folder for the experiment is given", hint="`-o my-experiment`")
    from tithe.lab.experiment.conduct import experiment as conduct
    from tithe.lab.experiment.screen import show_experiment
    from tithe.lab.experiment.settings import read_experiment
    from tithe.report.terminal import Screen

    result = conduct(read_experiment(recipe, flags), output, overwrite=overwrite, plan=plan, talk=Screen())
    show_experiment(result)
    print_json(result.record, as_json)

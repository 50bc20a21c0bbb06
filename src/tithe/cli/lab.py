"""Commands of the lab: measure speed, train, build tiers, train heads, judge, evaluate, compare."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from tithe.cli.app import Json, Output, Overwrite, Place, RunDir, app, group, print_json
from tithe.cli.core import NO_DATA
from tithe.cli.from_settings import Takes
from tithe.errors import TitheError

tiers = group("tiers", "Strong responses and weaker ones to the same prompts, for a head to be trained on.")
head = group("head", "Heads that tell a strong model's responses from a weak one's by hidden states.")
judge = group("judge", "Compare two models' answers to a prompt set, with a third model as the judge.")

NO_TRAINING_DATA = {"dataset": ("no data set is given", "`tithe tune data.jsonl ...`; `starter` is bundled")}
NO_TUNED = {"output": ("no place for the trained model is given", "`-o tuned`")}
NO_TIERS = {"output": ("no place for the tiers is given", "`-o tiers.jsonl`")}
# Settings that only scoring reads, that a head's evaluation does not read, and that the warm-up's recipe fixes.
SCORING = "scorer encoder shots exclude_similarity shot_pool head residualise target warmup answers alone_header"
SCORING += " per_token split"
TRAINED = "kind layers split_column validation_share test_share num_train_epochs learning_rate"
TRAINED += " per_device_train_batch_size"
FIXED = "gradient_accumulation_steps warmup_ratio lr_scheduler_type weight_decay max_grad_norm packing"
FIXED += " gradient_checkpointing lora_r lora_alpha lora_dropout lora_target_modules"
NEEDED: Any = None  # no default that a command could get: `Takes` refuses a command line without it
LevelOption = Annotated[float | None, typer.Option(help="Confidence of the interval; 0.95 by default.")]


@app.command()
@Takes(
    "tithe.lab.speed.settings:BenchSettings",
    argument="dataset",
    several=True,
    without="warmup answers residualise per_token",
    needs=NO_DATA,
)
def bench(settings: Any, output: Output = None, overwrite: Overwrite = False, as_json: Json = False) -> None:
    """Measure how fast a run would be here, and what limits it."""
    from tithe.lab.speed.speed import bench as measure
    from tithe.report.terminal import TerminalReporter
    from tithe.run.folder import check_places

    reporter = TerminalReporter()
    check_places(output, overwrite, settings.dataset, None)
    result = measure(settings, reporter)
    for line in str(result).splitlines():
        reporter.say(line)
    if output is not None:
        result.write(output, overwrite=overwrite)
        reporter.say(f"written: {output}")
    print_json(result.record, as_json)


@app.command()
@Takes(
    "tithe.settings:ExampleSettings",
    argument="dataset",
    several=True,
    about="a kept file, or any data set that can be read",
    only="dataset format columns turns",
    needs=NO_DATA,
    config=False,
)
def export(
    settings: Any,
    to: Annotated[
        str,
        typer.Option(
            "--to",
            help="messages, alpaca, prompt-completion, llamafactory, axolotl, trl, ms-swift, unsloth or torchtune.",
        ),
    ],
    output: Output = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="SCORE", help="Weigh examples by `rank(SCORE)` or SCORE of a run, for ms-swift or messages."
        ),
    ] = None,
    run: Annotated[
        Path | None, typer.Option("--run", help="Run folder with the score; by default the one beside DATA.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Rewrite records in another shape, or print what a trainer needs to read the file."""
    from tithe.lab.exports import export as carry_out
    from tithe.printable import printable
    from tithe.report.terminal import TerminalReporter

    form, turns = settings.format, settings.turns
    text = carry_out(
        settings.dataset,
        to,
        output=output,
        overwrite=overwrite,
        format=form,
        turns=turns,
        columns=settings.columns,
        weights=weights,
        run=run,
        reporter=TerminalReporter(),
    )
    if text is not None:
        print(printable(text.rstrip("\n"), keep="\n"))


@app.command()
@Takes(
    "tithe.settings:ExampleSettings",
    argument="dataset",
    several=True,
    only="dataset format columns",
    needs={"dataset": NO_DATA["dataset"], "against": ("no evaluation file given", "`--against FILE`; repeat it")},
    config=False,
)
def contamination(
    settings: Any,
    against: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Evaluation file of any shape; may be repeated.")
    ] = None,
    ngram: Annotated[int, typer.Option(help="Words in a row that count as shared.")] = 13,
    output: Output = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Say what a data set shares with evaluation sets, word for word."""
    from tithe.lab.contamination_report import report, show_contamination
    from tithe.report.terminal import TerminalReporter

    data, form = settings.dataset, settings.format
    result = report(
        data,
        against or [],
        n=ngram,
        format=form,
        columns=settings.columns,
        output=output,
        overwrite=overwrite,
        reporter=TerminalReporter(),
    )
    show_contamination(result)
    print_json(result.record, as_json)


@tiers.command()
@Takes(
    "tithe.lab.tiers.settings:TierSettings",
    argument="dataset",
    metavar="PROMPTS",
    needs={
        "dataset": ("no prompts are given", "`tithe tiers build data.jsonl ...`; `starter` is bundled"),
        "weak_model": ("no weak model is given", "`--weak-model NAME`, more than once for several"),
        **NO_TIERS,
    },
)
def build(
    settings: Any, output: Place = NEEDED, run_dir: RunDir = None, overwrite: Overwrite = False, as_json: Json = False
) -> None:
    """Let weak models answer the prompts of strong responses again."""
    from tithe.lab.tiers import building as run
    from tithe.lab.tiers.reporter import show_built
    from tithe.report.terminal import TerminalReporter
    from tithe.run.folder import default_folder

    folder = run_dir or default_folder(output)
    result = run.build(settings, output=output, folder=folder, overwrite=overwrite, reporter=TerminalReporter())
    show_built(result, output, folder)
    print_json(result.record, as_json)


@tiers.command("import")
@Takes(
    "tithe.lab.tiers.settings:TierImportSettings",
    needs={
        "files high_file low_file": (
            "no file is given",
            "`tithe tiers import FILE`, or `--high-file FILE --low-file FILE`",
        ),
        **NO_TIERS,
    },
)
def import_tiers(
    settings: Any, output: Place = NEEDED, run_dir: RunDir = None, overwrite: Overwrite = False, as_json: Json = False
) -> None:
    """Convert existing tiers to one form."""
    from tithe.lab.tiers import building as run
    from tithe.lab.tiers.reporter import show_imported
    from tithe.report.terminal import TerminalReporter

    result = run.import_tiers(settings, output=output, folder=run_dir, overwrite=overwrite, reporter=TerminalReporter())
    show_imported(result, output)
    print_json(result.record, as_json)


@tiers.command()
def look(
    file: Annotated[str, typer.Argument(metavar="FILE", help="A tier file.")],
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Count lengths in the tokens of this model, too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say what is in a tier file: counts, lengths, duplicates, refusals."""
    from tithe.lab.tiers import building as run
    from tithe.lab.tiers.reporter import show_look

    result = run.look(file, model=model)
    show_look(result)
    print_json(result.record, as_json)


@head.command("train")
@Takes("tithe.lab.heads.settings:HeadSettings", argument="dataset", without=f"{SCORING} drop_seen", needs=NO_DATA)
def train_head(settings: Any, output: Place, overwrite: Overwrite = False, as_json: Json = False) -> None:
    """Train a head on tiers, and judge it on prompts that it never saw."""
    from tithe.lab.heads.train_head import show_head
    from tithe.lab.heads.train_head import train_head as carry_out
    from tithe.report.terminal import TerminalReporter

    result = carry_out(settings, output, overwrite=overwrite, reporter=TerminalReporter())
    show_head(result)
    print_json(result.record, as_json)


@head.command("evaluate")
@Takes(
    "tithe.lab.heads.settings:HeadSettings",
    argument="dataset",
    without=f"{SCORING} {TRAINED}",
    needs=NO_DATA,
)
def evaluate_head(
    settings: Any,
    folder: Annotated[Path, typer.Argument(metavar="HEAD", help="Folder of the head.")],
    as_json: Json = False,
) -> None:
    """Judge a head on tiers of another source."""
    from tithe.lab.heads.train_head import evaluate_head as carry_out
    from tithe.lab.heads.train_head import show_head
    from tithe.report.terminal import TerminalReporter

    result = carry_out(folder, settings, reporter=TerminalReporter())
    show_head(result)
    print_json(result.record, as_json)


@head.command("import")
@Takes(
    "tithe.lab.heads.settings:HeadSettings",
    argument="dataset",
    metavar="WEIGHTS",
    about="a .safetensors file of the authors' network",
    only="dataset kind layers preset model template max_length dtype device shard trust_remote_code",
    needs={"dataset": ("no weights are given", "`tithe head import head.safetensors --model M -o head`")},
    config=False,
)
def import_head(settings: Any, output: Place, overwrite: Overwrite = False, as_json: Json = False) -> None:
    """Make a head of a network that was trained with the CPQS authors' scripts."""
    from tithe.lab.heads.train_head import import_head as carry_out
    from tithe.lab.heads.train_head import show_head
    from tithe.report.terminal import TerminalReporter

    result = carry_out(Path(settings.dataset), settings, output, overwrite=overwrite, reporter=TerminalReporter())
    show_head(result)
    print_json(result.record, as_json)


@contextmanager
def errors_once() -> Iterator[None]:
    """Let only the main process report an error that all processes of a training raise."""
    from tithe.lab.tune.processes import is_main

    try:
        yield
    except TitheError:
        if is_main():
            raise
        raise typer.Exit(1) from None


@app.command()
@Takes(
    "tithe.lab.tune.settings:TuneSettings",
    argument="dataset",
    several=True,
    needs=NO_TRAINING_DATA | NO_TUNED,
    within=errors_once,
)
def tune(settings: Any, output: Place = NEEDED, overwrite: Overwrite = False, as_json: Json = False) -> None:
    """Fine-tune a model on the responses of a data set, all weights or a LoRA adapter."""
    from tithe.lab.tune.tune import tune as carry_out

    train(carry_out, settings, output, overwrite, as_json)


@app.command()
@Takes(
    "tithe.lab.tune.settings:WarmupSettings",
    argument="dataset",
    without=FIXED,
    needs=NO_TRAINING_DATA | NO_TUNED,
    within=errors_once,
)
def warmup(settings: Any, output: Place = NEEDED, overwrite: Overwrite = False, as_json: Json = False) -> None:
    """Give a model IFD's warm-up: one epoch on some of the data that it will score."""
    from tithe.lab.tune.warmup import warm_up

    train(warm_up, settings, output, overwrite, as_json)


def train(carry_out: Any, settings: Any, output: Path, overwrite: bool, as_json: bool) -> None:
    """Train, and print the result once, whatever the number of processes."""
    from tithe.lab.tune.processes import is_main
    from tithe.lab.tune.tune import make_reporter, show_tuned

    result = carry_out(settings, output, overwrite=overwrite, reporter=make_reporter())
    show_tuned(result)
    print_json(result.record, as_json and is_main())


@judge.command()
@Takes(
    "tithe.lab.judge.settings:AnswerSettings",
    needs={
        "prompts": ("no prompts are given", "`tithe judge answer prompts.jsonl --model M -o answers.jsonl`"),
        "model": ("no model is given", "`--model`, a folder or hub id"),
        "output": ("no place for the answers is given", "`-o answers.jsonl`"),
    },
)
def answer(
    settings: Any, output: Place = NEEDED, run_dir: RunDir = None, overwrite: Overwrite = False, as_json: Json = False
) -> None:
    """Let a model answer a prompt set."""
    from tithe.lab.judge.prompt_answers import answer as carry_out
    from tithe.lab.judge.reporter import show_answered
    from tithe.report.terminal import TerminalReporter
    from tithe.run.folder import default_folder

    folder = run_dir or default_folder(output)
    result = carry_out(settings, output, folder=folder, overwrite=overwrite, reporter=TerminalReporter())
    show_answered(result, folder)
    print_json(result.record, as_json)


@judge.command()
@Takes(
    "tithe.lab.judge.settings:JudgeSettings",
    needs={
        "judge": ("no judge is given", "`--judge`, a folder or hub id, or a URL with `--judge-model NAME`"),
        "output": ("no place for the reviews is given", "`-o reviews.jsonl`"),
    },
)
def compare(
    settings: Any,
    a: Annotated[Path, typer.Argument(metavar="A", help="Answers of one model: JSON lines with prompt and response.")],
    b: Annotated[Path, typer.Argument(metavar="B", help="Answers of the other one to the same prompts.")],
    output: Place = NEEDED,
    run_dir: RunDir = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Let a judge compare two models' answers, each pair in both orders."""
    from tithe.lab.judge.pairwise import compare as carry_out
    from tithe.lab.judge.reporter import show_compared
    from tithe.report.terminal import TerminalReporter
    from tithe.run.folder import default_folder

    folder = run_dir or default_folder(output)
    result = carry_out(settings, a, b, output, folder=folder, overwrite=overwrite, reporter=TerminalReporter())
    show_compared(result, output, folder)
    print_json(result.record, as_json)


@judge.command()
def tally(
    reviews: Annotated[
        Path, typer.Argument(metavar="REVIEWS", help="What `compare` wrote, or a review file of Cherry_LLM.")
    ],
    level: LevelOption = None,
    as_json: Json = False,
) -> None:
    """Count wins, ties and losses."""
    from tithe.lab.judge.pairwise import tally as count
    from tithe.lab.judge.reporter import show_tally
    from tithe.lab.judge.tally import LEVEL

    found = count(reviews, level=LEVEL if level is None else level)
    show_tally(found)
    print_json(found.as_dict(), as_json)


@app.command()
@Takes(
    "tithe.lab.evaluate.settings:EvaluateSettings",
    argument="model",
    metavar="MODEL",
    needs={
        "model": ("no model is given", "`tithe evaluate FOLDER ...`; `pocket` is bundled, for trying out"),
        "holdout tasks": ("nothing is given to evaluate by", "`--holdout FILE`, `--tasks NAMES`, or both"),
        "output": ("no place for the results is given", "`-o results`"),
    },
)
def evaluate(settings: Any, output: Place = NEEDED, as_json: Json = False) -> None:
    """Measure a model: likelihood of held-out responses, lm-eval's tasks."""
    from tithe.lab.evaluate.evaluation import evaluate as carry_out
    from tithe.lab.evaluate.reporter import show_evaluation
    from tithe.report.terminal import TerminalReporter

    result = carry_out(settings, output, reporter=TerminalReporter())
    show_evaluation(result)
    print_json(result.record, as_json)


@app.command()
@Takes(
    "tithe.lab.experiment.settings:ExperimentSettings",
    only="budgets seeds model dataset limit parallel drop_contaminated keep_models device allow_code_execution "
    "trust_remote_code report_to project",
    needs={"output": ("no folder for the experiment is given", "`-o my-experiment`")},
    config=False,
    raw=True,
)
def experiment(
    flags: Any,
    recipe: Annotated[Path, typer.Argument(metavar="EXPERIMENT.yaml", help="Arms, budgets, seeds and the rest.")],
    output: Place = NEEDED,
    api_key_env: Annotated[
        str | None, typer.Option(metavar="NAME", help="Environment variable with the key of the judge's server.")
    ] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Choose, and look for contamination; train nothing.")] = False,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train on every arm's choice at every budget with every seed, and say which arms beat random."""
    from tithe.lab.experiment.conduct import experiment as carry_out
    from tithe.lab.experiment.reporter import show_experiment
    from tithe.lab.experiment.settings import read_experiment
    from tithe.report.terminal import TerminalReporter

    settings = read_experiment(recipe, {**flags, "api_key_env": api_key_env})
    result = carry_out(settings, output, overwrite=overwrite, plan=plan, reporter=TerminalReporter())
    show_experiment(result)
    print_json(result.record, as_json)

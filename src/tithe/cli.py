"""The command line: parse, call one library function, print. stdout is data, stderr is talk."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from tithe import __version__
from tithe.errors import SettingsError, TitheError

INTERRUPTED = 130  # as shells say for Ctrl-C
ParserError: type[Exception] = typer.BadParameter.__mro__[2]  # `ClickException`: Typer may bring its own Click


class Usage(SettingsError):
    """A command line that cannot be meant."""


app = typer.Typer(
    help="Pick the few percent of an instruction-tuning set that teach a given language model most.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)

Data = Annotated[str | None, typer.Argument(metavar="DATA", help="File, folder or hub id; `starter` is bundled.")]
DataFlag = Annotated[str | None, typer.Option("--dataset", "--dataset-name", help="The same as DATA.")]
Scorer = Annotated[
    list[str] | None, typer.Option("--scorer", "-s", help="Scorers, e.g. `ifd,length` or `random(seed=1)`.")
]
Model = Annotated[
    str | None,
    typer.Option(
        "--model", "--model-name-or-path", "-m", help="Folder or hub id; `pocket` is bundled, for trying out."
    ),
]
Preset = Annotated[str | None, typer.Option(help="A paper's own settings: `cherry`, `superfiltering` or `miwv-paper`.")]
Encoder = Annotated[
    str | None, typer.Option(help="What makes vectors of prompts: `self`, `tfidf`, a folder or hub id, `file:x.npy`.")
]
Shots = Annotated[int | None, typer.Option(help="Worked examples before each prompt.")]
Exclude = Annotated[
    float | None, typer.Option(help="No worked example with a prompt of this cosine or more; 0.999 leaves out equals.")
]
ShotPool = Annotated[str | None, typer.Option(help="Data set to take worked examples from.")]
Template = Annotated[str | None, typer.Option(help="A name from `tithe templates`, or a Jinja file.")]
MaxLength = Annotated[int | None, typer.Option(help="Tokens of the longest pass; the model's context by default.")]
Truncation = Annotated[
    str | None,
    typer.Option(help="What gives way to it: `response`, `prompt` or `problem`; by default what the scorers need."),
]
Bos = Annotated[str | None, typer.Option(help="`auto`, `always` or `never`.")]
Eos = Annotated[bool | None, typer.Option("--eos/--no-eos", help="Score the end-of-turn marker too.")]
Header = Annotated[str | None, typer.Option(help="Text before the response where it stands without its prompt.")]
Dtype = Annotated[str | None, typer.Option(help="`auto`, `fp32`, `bf16` or `fp16`.")]
Device = Annotated[str | None, typer.Option(help="`auto`, `cuda`, `mps` or `cpu`.")]
BatchTokens = Annotated[int | None, typer.Option(help="Tokens a batch holds.")]
Workers = Annotated[
    int | None, typer.Option(help="Forward passes at once on a CPU; one per core by default, eight at most.")
]
PerToken = Annotated[bool | None, typer.Option("--per-token", help="Keep every response token's NLL.")]
Seed = Annotated[int | None, typer.Option(help="Of everything drawn at random.")]
RemoteCode = Annotated[bool | None, typer.Option("--trust-remote-code", help="Run code that comes with the model.")]
Format = Annotated[str | None, typer.Option(help="Record shape: alpaca, prompt-completion, messages, sharegpt.")]
Turns = Annotated[str | None, typer.Option(help="Score the `last` assistant turn of a dialogue, or `all`.")]
Split = Annotated[str | None, typer.Option(help="Split of a hub data set; `train` by default.")]
Limit = Annotated[int | None, typer.Option(help="Read only so many records.")]
Strict = Annotated[bool | None, typer.Option("--strict", help="Stop at the first bad row.")]
RunDir = Annotated[Path | None, typer.Option(help="Run folder; beside the output by default.")]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Where the result goes.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the output if it is there.")]
Json = Annotated[bool, typer.Option("--json", help="Print the run record to stdout.")]
Listing = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Config = Annotated[Path | None, typer.Option("--config", "-c", help="YAML file of settings; flags win.")]


@app.callback(invoke_without_command=True)
def root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


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
    template: Template = None,
    max_length: MaxLength = None,
    truncation: Truncation = None,
    bos: Bos = None,
    eos: Eos = None,
    alone_header: Header = None,
    dtype: Dtype = None,
    device: Device = None,
    batch_tokens: BatchTokens = None,
    workers: Workers = None,
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
    from tithe.run.folder import default_folder
    from tithe.run.outcome_screen import show_selected
    from tithe.run.screen import Screen

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
    template: Template = None,
    max_length: MaxLength = None,
    truncation: Truncation = None,
    bos: Bos = None,
    eos: Eos = None,
    alone_header: Header = None,
    dtype: Dtype = None,
    device: Device = None,
    batch_tokens: BatchTokens = None,
    workers: Workers = None,
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
    from tithe.run.folder import default_folder
    from tithe.run.screen import Screen, show_scores

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
    from tithe.run.screen import Screen, show_plan

    result = run.plan(settings_from(ScoreSettings, given), talk=Screen())
    show_plan(result)
    print_json(result.record, as_json)


@app.command()
def scorers(as_json: Listing = False) -> None:
    """List the scorers: what a high value says, unit, what is read."""
    from tithe.run.screen import show_list
    from tithe.run.shelf import scorer_rows

    show_list(scorer_rows(), as_json)


@app.command()
def selectors(as_json: Listing = False) -> None:
    """List the selectors and their settings."""
    from tithe.run.screen import show_list
    from tithe.run.shelf import selector_rows

    show_list(selector_rows(), as_json)


@app.command()
def templates(as_json: Listing = False) -> None:
    """List the templates by name."""
    from tithe.run.screen import show_list
    from tithe.run.shelf import template_rows

    show_list(template_rows(), as_json)


@app.command()
def doctor(as_json: Listing = False) -> None:
    """Say what this machine and installation can do."""
    from tithe.run.screen import show_list
    from tithe.run.shelf import doctor_rows

    show_list(doctor_rows(), as_json)


@app.command()
def export(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A kept file, or any data set that can be read.")],
    to: Annotated[str, typer.Option("--to", help="messages, alpaca, prompt-completion, llamafactory, axolotl or trl.")],
    output: Output = None,
    overwrite: Overwrite = False,
    format: Format = None,
) -> None:
    """Rewrite records in another shape, or print what a trainer needs to read the file."""
    from tithe.run.exports import export as carry_out
    from tithe.run.screen import Screen

    text = carry_out(data, to, output=output, overwrite=overwrite, format=format or "auto", talk=Screen())
    if text is not None:
        print(text.rstrip("\n"))


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


def print_json(record: Mapping[str, Any], wanted: bool) -> None:
    if wanted:
        print(json.dumps(record, indent=2, ensure_ascii=False, default=str))


def dashed(arguments: list[str]) -> list[str]:
    """`--max_length=5` is `--max-length=5`."""
    out: list[str] = []
    for i, argument in enumerate(arguments):
        if argument == "--":
            return out + arguments[i:]
        name, equals, value = argument.partition("=")
        out.append(name.replace("_", "-") + equals + value if argument.startswith("--") else argument)
    return out


def main() -> None:
    """Entry point: 0 done, 1 an error of ours or of the input, 2 wrong usage, 130 interrupted."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        code = app(dashed(sys.argv[1:]), prog_name="tithe", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except TitheError as error:
        fail(str(error), error.hint, code=2 if isinstance(error, Usage) else 1)
    except ParserError as error:
        wrong_usage(error)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    except Exception as error:
        if os.environ.get("TITHE_DEBUG"):
            raise
        fail(f"unexpected {type(error).__name__}: {error}", "this is a fault in tithe; TITHE_DEBUG=1 shows where")
    if code == INTERRUPTED:
        fail("interrupted", "what was scored is kept: the same command goes on from there", code=INTERRUPTED)
    sys.exit(code)


def wrong_usage(error: Any) -> NoReturn:
    """One sentence for what the parser says; its help where nothing was given."""
    text = error.format_message()
    if text.startswith("Usage:"):
        print(text, file=sys.stderr)
        sys.exit(2)
    where = getattr(error.ctx, "command_path", "tithe")
    fail(text[:1].lower() + text[1:].rstrip("."), f"`{where} --help` lists what there is", code=2)


def fail(message: str, hint: str | None, code: int = 1) -> NoReturn:
    """Two lines, whatever the message brings along."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    if hint:
        print(f"hint: {' '.join(hint.split())}", file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()

"""Options of one meaning everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
Preset = Annotated[
    str | None, typer.Option(help="A paper's own settings: `cherry`, `superfiltering`, `miwv-paper` or `cpqs-paper`.")
]
Encoder = Annotated[
    str | None, typer.Option(help="What makes vectors of prompts: `self`, `tfidf`, a folder or hub id, `file:x.npy`.")
]
Shots = Annotated[int | None, typer.Option(help="Worked examples before each prompt.")]
Exclude = Annotated[
    float | None, typer.Option(help="No worked example with a prompt of this cosine or more; 0.999 leaves out equals.")
]
ShotPool = Annotated[str | None, typer.Option(help="Data set to take worked examples from.")]
Head = Annotated[str | None, typer.Option(help="Folder of a head that `cpqs` reads hidden states with.")]
Residualise = Annotated[
    str | None, typer.Option(help="`length`: rank by what is left of the score when length is taken away.")
]
Target = Annotated[str | None, typer.Option(help="Data set that shows what the selection is to be like, for `rds`.")]
Warmup = Annotated[
    bool | None, typer.Option("--warmup", help="Give the model IFD's brief experience first, in the run folder.")
]
Answers = Annotated[str | None, typer.Option(help="Another run's folder: what it has answered is not read again.")]
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
Weights = Annotated[
    str | None, typer.Option(help="`auto`, `fp32`, `bf16`, `fp16`, or `fp8` on a GPU that multiplies it.")
]
Device = Annotated[
    str | None,
    typer.Option(help="`auto`, `cuda`, `mps`, `cpu`; for scoring also several: `cuda:0,cuda:1`, `cuda:all`."),
]
Shard = Annotated[
    bool | None,
    typer.Option("--shard/--no-shard", help="Spread the model over the GPUs; by default where one is too small."),
]
BatchTokens = Annotated[int | None, typer.Option(help="Tokens a batch holds.")]
Workers = Annotated[
    int | None, typer.Option(help="Forward passes at once on a CPU; one per core by default, eight at most.")
]
Compile = Annotated[str | None, typer.Option(help="Norms, MLPs and rotations by torch.compile: `auto`, `on` or `off`.")]
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

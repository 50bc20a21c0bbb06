"""The public functions beside scoring: training, evaluation, experiments, judging, tiers, heads, export.

Each takes the settings of the command of its name, and returns what the command prints. Nothing heavy is imported
before a function is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tithe.api import Source, folder, hold_data, make_settings
from tithe.data.dataset import Dataset
from tithe.data.named_columns import read_columns
from tithe.errors import SettingsError

if TYPE_CHECKING:
    from tithe.contamination.overlap import ContaminationResult
    from tithe.lab.evaluate.evaluation import EvaluateResult
    from tithe.lab.experiment.comparisons import ExperimentResult
    from tithe.lab.heads.train_head import HeadResult
    from tithe.lab.judge.pairwise import JudgeResult
    from tithe.lab.judge.prompt_answers import AnswerResult
    from tithe.lab.judge.tally import Tally
    from tithe.lab.tiers.building import TierResult
    from tithe.lab.tune.files import TuneResult

Place = str | Path


def tune(data: Source, *, output: Place, overwrite: bool = False, **settings: Any) -> TuneResult:
    """Fine-tune a model on the responses of a data set, all weights or a LoRA adapter.

    Args:
        data: what `load` gives, or what it takes.
        output: folder of the trained model; a training that has finished there is returned, an interrupted one resumed.
        overwrite: train anew, whatever is there.
        settings: those of `tithe tune`: `model`, `recipe`, `use_peft`, `num_train_epochs`, `learning_rate`, ...

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    from tithe.lab.tune.settings import TuneSettings
    from tithe.lab.tune.tune import tune as carry_out

    data = hold_data(data)
    return carry_out(make_settings(TuneSettings, data, None, settings), place(output), overwrite=overwrite)


def warmup(data: Source, *, output: Place, overwrite: bool = False, **settings: Any) -> TuneResult:
    """Give a model IFD's warm-up: one epoch on some of the data that it will score.

    Args:
        data: what `load` gives, or what it takes.
        output: folder of the trained model.
        overwrite: train anew, whatever is there.
        settings: those of `tithe warmup`: `model`, `records`, `choose`, `clusters`, ...

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    from tithe.lab.tune.settings import WarmupSettings
    from tithe.lab.tune.warmup import warm_up

    data = hold_data(data)
    return warm_up(make_settings(WarmupSettings, data, None, settings), place(output), overwrite=overwrite)


def evaluate(
    model: Place,
    *,
    output: Place,
    holdout: Place | None = None,
    tasks: str | Sequence[str] = (),
    **settings: Any,
) -> EvaluateResult:
    """Measure a model: likelihood of held-out responses, lm-eval's tasks.

    Args:
        model: folder or hub id; `pocket` is bundled.
        output: folder of the results; those of the same model and settings are used again.
        holdout: data set whose responses' likelihood is measured.
        tasks: lm-eval's tasks.
        settings: those of `tithe evaluate`: `holdout_group`, `limit`, `num_fewshot`, `allow_code_execution`, ...

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    from tithe.lab.evaluate.evaluation import evaluate as carry_out
    from tithe.lab.evaluate.settings import EvaluateSettings

    values = {**settings, "model": text(model, "a model"), "tasks": tasks if isinstance(tasks, str) else tuple(tasks)}
    if holdout is not None:
        values["holdout"] = text(holdout, "`holdout`")
    return carry_out(EvaluateSettings.of(values), place(output))


def experiment(
    recipe: Place | Mapping[str, Any],
    *,
    output: Place,
    overwrite: bool = False,
    plan: bool = False,
    **settings: Any,
) -> ExperimentResult:
    """Train on every arm's choice at every budget with every seed, and say which arms beat random.

    Args:
        recipe: the YAML file, or what it would say, as a dict.
        output: folder of the experiment; the same call goes on with an interrupted one.
        overwrite: start over if the folder holds an experiment of another design.
        plan: choose, and look for contamination; train nothing.
        settings: take precedence over the recipe: `budgets`, `seeds`, `model`, `dataset`, `limit`, ...

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    from tithe.lab.experiment.conduct import experiment as carry_out
    from tithe.lab.experiment.settings import experiment_from, read_experiment

    if isinstance(recipe, Mapping):
        found = experiment_from({**recipe, **settings})
    else:
        found = read_experiment(Path(text(recipe, "an experiment")), settings)
    return carry_out(found, place(output), overwrite=overwrite, plan=plan)


def answer(
    prompts: Place,
    *,
    model: Place,
    output: Place,
    run_dir: Place | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> AnswerResult:
    """Let a model answer a prompt set, for a judge to compare.

    Args:
        prompts: file of prompts.
        model: folder or hub id; with `endpoint`, the server's name for it.
        output: file of the answers, JSON lines.
        run_dir: folder that keeps answers; beside the output by default.
        overwrite: replace `output`.
        settings: those of `tithe judge answer`: `endpoint`, `temperature`, `max_new_tokens`, ...

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    from tithe.lab.judge.prompt_answers import answer as carry_out
    from tithe.lab.judge.settings import AnswerSettings

    found = AnswerSettings.of({**settings, "prompts": text(prompts, "a prompt set"), "model": text(model, "a model")})
    return carry_out(found, place(output), folder=folder(run_dir), overwrite=overwrite)


def judge(
    a: Place,
    b: Place,
    *,
    judge: str,
    output: Place,
    run_dir: Place | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> JudgeResult:
    """Let a judge compare two models' answers, each pair in both orders.

    Args:
        a: answers of one model, as `answer` writes them.
        b: answers of the other one to the same prompts.
        judge: the model that judges, a folder or hub id; or the address of an OpenAI-compatible server.
        output: file of the reviews, JSON lines.
        run_dir: folder that keeps the judge's replies; beside the output by default.
        overwrite: replace `output`.
        settings: those of `tithe judge compare`: `judge_model`, `attempts`, `level`, `api_key_env`, ...

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    from tithe.lab.judge.pairwise import compare
    from tithe.lab.judge.settings import JudgeSettings

    found = JudgeSettings.of({**settings, "judge": judge})
    one, other = (Path(text(side, "a file of answers")) for side in (a, b))
    return compare(found, one, other, place(output), folder=folder(run_dir), overwrite=overwrite)


def tally(reviews: Place, *, level: float | None = None) -> Tally:
    """Count wins, ties and losses in a file of reviews.

    Args:
        reviews: what `judge` wrote, or a review file of Cherry_LLM.
        level: confidence of the win rate's interval; 0.95 by default.

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    from tithe.lab.judge.pairwise import tally as count
    from tithe.lab.judge.tally import LEVEL

    return count(Path(text(reviews, "a file of reviews")), level=LEVEL if level is None else level)


def build_tiers(
    data: Source,
    *,
    weak_model: str | Sequence[str],
    output: Place,
    run_dir: Place | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> TierResult:
    """Let weak models answer the prompts of strong responses again.

    Args:
        data: the prompts: what `load` gives, or what it takes.
        weak_model: one or more models that answer them.
        output: the tier file, JSON lines.
        run_dir: folder that keeps answers; beside the output by default.
        overwrite: replace `output`.
        settings: those of `tithe tiers build`: `strong`, `sample`, `endpoint`, `max_new_tokens`, ...

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    from tithe.lab.tiers.building import build
    from tithe.lab.tiers.settings import TierSettings
    from tithe.run.folder import default_folder

    weak = (weak_model,) if isinstance(weak_model, str) else tuple(weak_model)
    data = hold_data(data)
    found = make_settings(TierSettings, data, None, {**settings, "weak_model": weak})
    where = place(output)
    return build(found, output=where, folder=folder(run_dir) or default_folder(where), overwrite=overwrite)


def import_tiers(
    files: Place | Sequence[Place] = (),
    *,
    output: Place,
    run_dir: Place | None = None,
    overwrite: bool = False,
    **settings: Any,
) -> TierResult:
    """Convert existing tiers to one form.

    Args:
        files: data sets with a column `tier`, or with columns `high` and `low`.
        output: the tier file, JSON lines.
        run_dir: folder of the run record; beside the output by default.
        overwrite: replace `output`.
        settings: those of `tithe tiers import`: `high_file`, `low_file`, `high_tier`, `low_tier`, ...

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    from tithe.lab.tiers.building import import_tiers as carry_out
    from tithe.lab.tiers.settings import TierImportSettings

    several = [files] if isinstance(files, str | PathLike) else files
    found = TierImportSettings.of({**settings, "files": tuple(text(one, "a tier file") for one in several)})
    return carry_out(found, output=place(output), folder=folder(run_dir), overwrite=overwrite)


def train_head(data: Source, *, output: Place, overwrite: bool = False, **settings: Any) -> HeadResult:
    """Train a head on tiers, and judge it on prompts that it never saw.

    Args:
        data: the tier file: what `load` gives, or what it takes.
        output: folder of the head.
        overwrite: replace it.
        settings: those of `tithe head train`: `model`, `kind`, `layers`, `test_share`, ...

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    from tithe.lab.heads.settings import HeadSettings
    from tithe.lab.heads.train_head import train_head as carry_out

    data = hold_data(data)
    return carry_out(make_settings(HeadSettings, data, None, settings), place(output), overwrite=overwrite)


def evaluate_head(head: Place, data: Source, **settings: Any) -> HeadResult:
    """Judge a head on tiers of another source.

    Args:
        head: folder of the head.
        data: a tier file: what `load` gives, or what it takes.
        settings: those of `tithe head evaluate`: `model`, `drop_seen`, `resamples`, ...

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    from tithe.lab.heads.settings import HeadSettings
    from tithe.lab.heads.train_head import evaluate_head as carry_out

    data = hold_data(data)
    return carry_out(Path(text(head, "a head")), make_settings(HeadSettings, data, None, settings))


def export(
    data: Source,
    to: str,
    *,
    output: Place | None = None,
    overwrite: bool = False,
    format: str = "auto",
    turns: Literal["last", "all"] = "last",
    columns: Mapping[str, str] | Sequence[str] | str = (),
) -> str | None:
    """Rewrite records in another shape, or return what a trainer needs to read the file.

    Args:
        data: what `load` gives, or what it takes.
        to: messages, alpaca, prompt-completion, llamafactory, axolotl or trl.
        output: file to write; without one, settings and programs for trainers are returned.
        overwrite: replace `output`.
        format: shape of the records.
        turns: the `last` assistant turn of a dialogue, or `all` of them.
        columns: which column is what, if the names are not the usual ones.

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    from tithe.lab.exports import export as carry_out
    from tithe.settings import ExampleSettings

    given = {"format": format, "turns": turns, "columns": read_columns(columns)}
    fixed = isinstance(data, Dataset)
    if fixed:
        given = {name: value for name, value in given.items() if value not in ("auto", "last", ())}
    data = hold_data(data)
    found = make_settings(ExampleSettings, data, None, given)
    unread = next((name for name in ("split", "limit", "strict") if getattr(found, name)), None)
    if unread is not None:
        raise SettingsError(f"an export reads the whole data set, without `{unread}`", hint="leave it out of `load`")
    return carry_out(
        found.dataset,
        to,
        output=None if output is None else place(output),
        overwrite=overwrite,
        format=found.format,
        turns=found.turns,
        columns=found.columns,
    )


def find_contamination(
    data: Place,
    against: Place | Sequence[Place],
    *,
    ngram: int = 13,
    format: str = "auto",
    columns: Mapping[str, str] | Sequence[str] | str = (),
    output: Place | None = None,
    overwrite: bool = False,
) -> ContaminationResult:
    """Say what a data set shares with evaluation files, word for word.

    Args:
        data: file, folder or hub id.
        against: one or more evaluation files.
        ngram: words in a row that count as shared.
        format: shape of the records.
        columns: which column is what, if the names are not the usual ones.
        output: JSON file with every example hit.
        overwrite: replace `output`.

    Raises:
        TitheError: with one sentence, and often a hint.
    """
    from tithe.lab.contamination_report import report

    files = [against] if isinstance(against, str | PathLike) else against
    return report(
        text(data, "a data set"),
        [Path(text(one, "an evaluation file")) for one in files],
        n=ngram,
        format=format,
        columns=read_columns(columns),
        output=None if output is None else place(output),
        overwrite=overwrite,
    )


def place(output: object) -> Path:
    """Return an output as a path.

    Raises:
        SettingsError: it is no path, or empty, which would mean the current folder.
    """
    found = text(output, "`output`")
    if not found.strip():
        raise SettingsError("`output` is empty", hint="an unset variable? name a file or a folder")
    return Path(found)


def text(value: object, what: str) -> str:
    """Return a path or a name as text.

    Raises:
        SettingsError: it is something else.
    """
    if not isinstance(value, str | PathLike):
        raise SettingsError(f"{what} is a path or a name, not a {type(value).__name__}")
    return str(value)

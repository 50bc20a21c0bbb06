"""Settings of an experiment: arms, budgets, seeds, one recipe, one evaluation, a judge."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from tithe.errors import SettingsError, did_you_mean
from tithe.foreign import shown
from tithe.lab.judge.settings import AnswerSettings, JudgeSettings
from tithe.selectors.budget import Budget
from tithe.selectors.mean_rank import MeanRank, is_mean_rank
from tithe.settings import NAMED_MODEL, Columns, DatasetName, ModelUse, SelectSettings, Settings, Truncation, read_yaml
from tithe.settings_file import check_powers, underscored
from tithe.typed import Count, Flag, Seed, Texts

LEAST_SEEDS, MOST_SEEDS = 3, 1000
BARE = ("random", "random-like", "full", "base")  # arms without settings
COMMON = (
    "dataset",
    "format",
    "columns",
    "split",
    "limit",
    "strict",
    "keep",
    "shape",
    "seed",
    "turns",
)  # set once for all arms
ALL = "100%"
JUDGE_ONLY = ("prompts", "answers")  # keys of `judge` that `tithe judge compare` does not have
NAME = re.compile(r"\w[\w.+-]{0,59}")


class ArmSettings(Settings):
    """One way of choosing data.

    Args:
        name: of the arm.
        kind: `scored` by a selection of its own, drawn at `random`, `random-like` another arm's lengths, `full`,
            `base` (the untrained model), or a `file` of records chosen elsewhere.
        select: settings of `tithe select`, for a `scored` arm.
        like: arm whose response lengths a `random-like` arm matches.
        file: of records of the data set.
        allow_fewer: train an arm that selects fewer examples than the budget, instead of refusing it.
    """

    name: str
    kind: Literal["scored", "random", "random-like", "full", "base", "file"]
    select: dict[str, Any] = Field(default_factory=dict)
    like: str | None = None
    file: str | None = None
    allow_fewer: bool = False

    @property
    def drawn(self) -> bool:
        """Whether each seed draws its own examples."""
        return self.kind in ("random", "random-like")

    @property
    def budgeted(self) -> bool:
        """Whether the arm is trained at every budget."""
        return self.kind not in ("full", "base")


class ExperimentSettings(ModelUse, DatasetName):
    """An experiment.

    Args:
        dataset: file, folder or hub id to choose from.
        model: the model that is trained, and that scores unless an arm names another.
        arms: name -> settings of a selection; `random`, `random-like`, `full` and `base` need none.
        holdout: how many examples are held out by prompt, or a file of its own.
        holdout_group: column of the held-out examples with their group, e.g. `category`.
        budgets: budgets of every arm, rows, shares or tokens, e.g. `1%,2%,5%,10%,20%,100%`.
        seeds: random seeds of training and of random arms: how many, or a list; at least three different ones.
        recipe: name of a training recipe, or a YAML file.
        training: more settings of `tithe tune`, such as `num_train_epochs`.
        against: the arm that the others are compared with.
        tasks: of `tithe evaluate`.
        evaluation: more settings of `tithe evaluate`.
        judge: prompt sets and settings of the pairwise judge; none by default.
        contamination: evaluation files that the pool is compared with, besides the held-out examples.
        drop_contaminated: leave out examples of the pool that share text with the evaluation.
        scoring: settings of `tithe select` for all scored arms.
        format: shape of the records, or `auto`.
        columns: which column is what, if the names are not the usual ones, as in `tithe select`.
        split: split of a hub data set; `train` by default.
        limit: read only so many records.
        template: a name from `tithe templates`, a Jinja file, or `auto`; in scoring, training and evaluation alike.
        max_length: most tokens of an example; the recipe's number by default.
        truncation: what is cut from longer examples, the `response`'s end or the `prompt`'s beginning; `problem` leaves
            them out of the pool and of the evaluation.
        dtype: of training and evaluation: `auto`, `fp32`, `bf16` or `fp16`; `float32`, `bfloat16` and `float16` mean
            the same.
        parallel: trainings at once; one per GPU by default, one on a CPU.
        report_to: tracker that logs every training and the verdicts, by transformers' name: `trackio`, `wandb`,
            `mlflow`, `tensorboard`, or `all` that are installed; may be repeated; none by default.
        project: what the trackers call the project; the folder's name by default.
        keep_models: keep the trained models instead of deleting them after their evaluation.
        allow_code_execution: run code that models write, for tasks that need it.
    """

    model: Annotated[str, NAMED_MODEL]
    arms: tuple[ArmSettings, ...]
    holdout: int | str = 1000
    holdout_group: str | None = None
    budgets: Annotated[tuple[str, ...], Flag(kind=str)] = ("5%",)
    seeds: Annotated[tuple[Seed, ...], Flag(kind=int)] = (0, 1, 2)
    recipe: str = "alpaca"
    training: dict[str, Any] = Field(default_factory=dict)
    against: str = "random"
    tasks: tuple[str, ...] = ()
    evaluation: dict[str, Any] = Field(default_factory=dict)
    judge: dict[str, Any] | None = None
    contamination: tuple[str, ...] = ()
    drop_contaminated: bool = False
    scoring: dict[str, Any] = Field(default_factory=dict)
    format: str = "auto"
    columns: Columns = ()
    split: str | None = None
    limit: Count | None = None
    max_length: Count | None = None
    truncation: Truncation = "response"
    parallel: Count | None = None
    report_to: Texts = ()
    project: str | None = None
    keep_models: bool = False
    allow_code_execution: bool = False

    @field_validator("arms", mode="before")
    @classmethod
    def read_arms(cls, value: Any) -> Any:
        """Read `{ifd: {warmup: true}, random: null}`, or a list of names."""
        if isinstance(value, (list, tuple)) and all(isinstance(one, ArmSettings) for one in value):
            return tuple(value)
        listed = isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
        twice = next((one for i, one in enumerate(value) if one in value[:i]), None) if listed else None
        if twice is not None:
            raise ValueError(f"the arm `{shown(twice)}` is named twice")
        named = dict.fromkeys(value) if listed else value
        if not isinstance(named, Mapping) or not named:
            raise ValueError("name at least one arm, such as `ifd:` or `random:`")
        return tuple(read_arm(str(name), given) for name, given in named.items())

    @field_validator("budgets", mode="before")
    @classmethod
    def read_budgets(cls, value: Any) -> Any:
        """Read `1%,5%`, a list, or one number; each budget once, as it was written."""
        parts = value.split(",") if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]
        if not all(isinstance(one, str | int | float) and not isinstance(one, bool) for one in parts):
            raise ValueError("a budget is rows (`500`), a share (`5%`) or tokens (`200k-tokens`)")
        texts = [str(one).strip() for one in parts]
        amounts = [(one.amount, one.unit) for one in map(Budget.parse, texts)]
        if not texts or len(set(amounts)) < len(texts):
            raise ValueError("name each budget once, at least one")
        return tuple(texts)

    @field_validator("seeds", mode="before")
    @classmethod
    def read_seeds(cls, value: Any) -> Any:
        """Read a number of seeds, or a list of them."""
        if isinstance(value, int) and not isinstance(value, bool):
            value = range(min(value, MOST_SEEDS + 1))
        seeds = tuple(value) if isinstance(value, (list, tuple, range)) else value
        if not isinstance(seeds, tuple) or not all(type(seed) is int for seed in seeds):
            raise ValueError("it must be a number of seeds, or a list of whole numbers")
        if len(seeds) > MOST_SEEDS:
            raise ValueError(f"at most {MOST_SEEDS:,} seeds")
        if len(set(seeds)) < LEAST_SEEDS:
            raise ValueError(
                f"a verdict needs at least {LEAST_SEEDS} different seeds: with fewer, chance in training "
                "cannot be told from the way the data was chosen"
            )
        return seeds

    @field_validator("tasks", "contamination", mode="before")
    @classmethod
    def one_by_one(cls, value: Any) -> Any:
        return tuple(one.strip() for one in value.split(",")) if isinstance(value, str) else value

    @field_validator("holdout")
    @classmethod
    def some(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("it must be at least 1, or a file")
        return value

    @model_validator(mode="after")
    def fit_together(self) -> ExperimentSettings:
        for name in ("report_to", "run_name", "project"):
            if name in self.training:
                raise SettingsError(
                    f"`{name}` under `training` would be the same for all trainings",
                    hint="`report_to` and `project` stand beside `arms`, and every training has a name of its own",
                )
        names = [arm.name for arm in self.arms]
        if self.against not in names:
            raise SettingsError(
                f"`against` names `{self.against}`, which is not an arm: {', '.join(names)}",
                hint=f"add `{self.against}:` to `arms`, or name another arm",
            )
        known = {arm.name: arm for arm in self.arms}
        if not known[self.against].budgeted:
            raise SettingsError(f"`against` names `{self.against}`, which has no budget", hint="for example `random`")
        for arm in self.arms:
            if arm.like is not None and (arm.like not in known or known[arm.like].kind not in ("scored", "file")):
                scored = [one.name for one in self.arms if one.kind in ("scored", "file")]
                raise SettingsError(
                    f"arm `{arm.name}` repeats the lengths of `{arm.like}`, which has no selection of its own",
                    hint=did_you_mean(arm.like, scored),
                )
        return self

    def arm(self, name: str) -> ArmSettings:
        return next(arm for arm in self.arms if arm.name == name)


def read_arm(name: str, given: Any) -> ArmSettings:
    """Make an arm from its name and its settings.

    Raises:
        SettingsError: an unknown key (with a suggestion), or one that only the experiment may set.
    """
    if not NAME.fullmatch(name):
        raise SettingsError(
            f"`{shown(name)}` cannot be the name of an arm: it is also a folder name",
            hint="letters, digits, `-`, `_`, `+` and `.`, up to 60, a letter or digit first",
        )
    if given is None:
        given = {}
    if isinstance(given, str):
        given = {"pipeline": given} if "->" in given else scoring_of(given)
    if not isinstance(given, Mapping):
        raise SettingsError(f"arm `{name}` cannot be `{shown(given)}`", hint="`key: value` lines, or a scorer's name")
    own = underscored(given, f"arm `{name}`")
    arm = {"name": name, "allow_fewer": own.pop("allow_fewer", False)}
    if "recipe" in own:
        raise SettingsError(
            f"arm `{name}` has a `recipe` of its own: then the recipes are compared and not the data",
            hint="one `recipe` for all arms, beside `arms`",
        )
    sole = next((key for key in ("file", "random_like") if key in own), None)
    if sole is not None and len(own) > 1:
        others = shown(", ".join(sorted(own.keys() - {sole})))
        raise SettingsError(f"arm `{name}` has other keys beside `{sole}`: {others}", hint="keep one of them")
    if "file" in own:
        return ArmSettings.of({**arm, "kind": "file", "file": own["file"]})
    if "random_like" in own or name == "random-like":
        return ArmSettings.of({**arm, "kind": "random-like", "like": own.get("random_like")})
    if not own and name in BARE:
        return ArmSettings.of({**arm, "kind": name})
    for key in own:
        if key in COMMON:
            raise SettingsError(f"arm `{name}` cannot have a `{key}` of its own", hint="it belongs to the experiment")
        if key not in SelectSettings.model_fields:
            raise SettingsError(
                f"arm `{name}`: unknown setting `{shown(key)}`",
                hint=did_you_mean(key, [*SelectSettings.model_fields, "file", "random_like", "allow_fewer"]),
            )
    if "scorer" not in own and "pipeline" not in own and "preset" not in own:
        own["scorer"] = name
    return ArmSettings.of({**arm, "kind": "scored", "select": own})


def scoring_of(text: str) -> dict[str, Any]:
    """Return the settings that a scorer's name, or a mean of ranks with its scorers, stands for."""
    if not is_mean_rank(text):
        return {"scorer": text}
    ranks = MeanRank.parse(text)
    return {"scorer": tuple(term.spec for term in ranks.terms), "by": str(ranks)}


def read_experiment(path: Path, flags: Mapping[str, Any]) -> ExperimentSettings:
    """Read an experiment from its YAML file; flags override it.

    Raises:
        SettingsError: an unknown key, or a value that cannot be.
    """
    values = read_yaml(path)
    check_powers(values, flags, path)
    given = {key: value for key, value in flags.items() if value is not None}
    if (key_env := given.pop("api_key_env", None)) is not None and isinstance(values.get("judge"), Mapping):
        values["judge"] = {**values["judge"], "api_key_env": key_env}
    return experiment_from(values | given)


def experiment_from(values: Mapping[str, Any]) -> ExperimentSettings:
    """Make an experiment's settings from its values, as the YAML file has them.

    Raises:
        SettingsError: an unknown key, or a value that cannot be.
    """
    return fill_in_like(ExperimentSettings.of(underscored(values, "the experiment")))


def fill_in_like(settings: ExperimentSettings) -> ExperimentSettings:
    """Let a `random-like` arm that names no other match the first arm with a selection of its own."""
    first = next((arm.name for arm in settings.arms if arm.kind in ("scored", "file")), None)
    arms = []
    for arm in settings.arms:
        if arm.kind == "random-like" and arm.like is None:
            if first is None:
                raise SettingsError(f"arm `{arm.name}` has no arm whose lengths it could repeat", hint="add one")
            arm = arm.model_copy(update={"like": first})
        arms.append(arm)
    return settings.model_copy(update={"arms": tuple(arms)})


def prompt_sets(judge: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the files of `judge: {prompts: ...}`.

    Raises:
        SettingsError: there are none, or two have the same name.
    """
    given = judge.get("prompts") or ()
    files = (given,) if isinstance(given, str) else given
    if not isinstance(files, list | tuple) or not all(isinstance(file, str) and file.strip() for file in files):
        raise SettingsError(f"`prompts` of `judge` cannot be `{shown(files)}`: it must be a list of files")
    files = tuple(files)
    if not files:
        raise SettingsError("`judge` names no prompts", hint="`prompts: [questions.jsonl]` beside the judge's name")
    stems = [Path(name).stem for name in files]
    if len(set(stems)) < len(stems):
        raise SettingsError(f"two prompt sets of `judge` have the same name: {', '.join(stems)}", hint="rename one")
    return files


def judge_settings(judge: Mapping[str, Any], name: str) -> JudgeSettings:
    return JudgeSettings.of({**{key: value for key, value in judge.items() if key not in JUDGE_ONLY}, "name": name})


def answer_settings(judge: Mapping[str, Any], prompts: str, model: str) -> AnswerSettings:
    given = judge.get("answers", {})
    if not isinstance(given, Mapping):
        raise SettingsError(f"`answers` of `judge` cannot be `{shown(given)}`: it must be `key: value` lines")
    return AnswerSettings.of({**given, "prompts": prompts, "model": model})


def check_judge(judge: Mapping[str, Any], model: str) -> None:
    """Check the settings of the judge before hours of training.

    Raises:
        SettingsError: no prompt set, two of the same name, or an invalid setting.
    """
    judge_settings(judge, "-")
    for prompts in prompt_sets(judge):
        answer_settings(judge, prompts, model)

"""The settings of a run, read from flags, a YAML file or Python into frozen models; an unknown key is an error.

Each setting is one field with its line under `Args`; the command line and the page of settings are made from these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, ValidationError, field_validator

from tithe import plugins
from tithe.data.named_columns import read_columns
from tithe.errors import SettingsError, brief, did_you_mean
from tithe.foreign import shown
from tithe.settings_file import check_powers, read_settings_file
from tithe.typed import Count, Dtype, Flag, Seed, Texts, Typed, WeightDtype, checked, split_by, wrong_value

FLAGS = {"output", "run_dir", "overwrite", "json", "config"}  # say where results go, and never change them
SHOWN = 60  # characters of a setting
ONE_BY_ONE = "only `tithe select` runs a pipeline; plan and score its scorers one by one with `--scorer`"
INHERITED = ("encoder", "shots", "exclude_similarity", "shot_pool", "head", "target")  # by scorers, selectors
NAMED_MODEL = Flag(("-m", "--model-name-or-path"))
NAMED_DATASET = Flag(("--dataset-name",))
Keyed = TypeVar("Keyed", bound="Settings")
Chosen = TypeVar("Chosen", bound="ScoreSettings")
Cosine = Annotated[float, checked(lambda x: -1 <= x <= 1, "a cosine is between -1 and 1")]
Columns = Annotated[tuple[str, ...], BeforeValidator(read_columns), Flag(metavar="ROLE=COLUMN,...")]
Truncation = Literal["response", "prompt", "problem"]


def join_names(names: Sequence[Any]) -> str:
    """Join the names of several files of a data set to one.

    Raises:
        SettingsError: a name has a comma in it.
    """
    for name in map(str, names):
        if "," in name and len(names) > 1:
            raise SettingsError(f"`{shown(name)}` has a comma in its name", hint="rename it, or use a pattern: `d/*`")
    return ",".join(map(str, names))


class Settings(Typed):
    """Base of all settings."""

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """Yield the settings that differ from their defaults, each on one line."""
        for name, one in type(self).model_fields.items():
            value = getattr(self, name)
            if one.is_required() or value != one.get_default(call_default_factory=True):
                yield name, value if len(repr(value)) <= SHOWN else brief(value, SHOWN)

    @classmethod
    def of(cls: type[Keyed], values: Mapping[str, Any]) -> Keyed:
        """Check values and build the settings.

        Raises:
            SettingsError: an unknown key (the hint suggests a known one) or a value that does not fit.
        """
        for key in map(str, values):
            if key not in cls.model_fields:
                flag = f"`--{key.replace('_', '-')}` works only on the command line" if key in FLAGS else None
                flag = ONE_BY_ONE if key == "pipeline" else flag
                raise SettingsError(f"unknown setting `{shown(key)}`", hint=flag or did_you_mean(key, cls.model_fields))
        try:
            return cls(**values)
        except ValidationError as error:
            raise wrong_value(error, cls) from error


class DatasetName(Settings):
    """The data set to read.

    Args:
        dataset: file, several with commas between, a pattern such as `data/*.parquet`, folder, hub id, address such as
            `https://...` or `s3://...`, or `-` for the standard input; `starter` is bundled.
    """

    dataset: Annotated[str, NAMED_DATASET]

    @field_validator("dataset", mode="before")
    @classmethod
    def join_names(cls, value: Any) -> Any:
        """Join a list of names, as in YAML or Python.

        Raises:
            SettingsError: a name has a comma in it.
        """
        return join_names(value) if isinstance(value, list | tuple) else value


class RecordSettings(Settings):
    """Settings that say how records are read.

    Args:
        format: shape of the records: alpaca, prompt-completion, messages, sharegpt, or `auto`.
        columns: which column is what, if the names are not the usual ones: `prompt=question,response=answer`; also
            `context`, `system`, `tools`, `messages`, and of a message `role`, `content`, `user`, `assistant`.
        split: split of a hub data set; `train` by default.
        limit: read only so many records.
        strict: stop at the first bad row.
    """

    format: str = "auto"
    columns: Columns = ()
    split: str | None = None
    limit: Count | None = None
    strict: bool = False


class ExampleSettings(RecordSettings, DatasetName):
    """Settings that say which examples a record becomes.

    Args:
        turns: the `last` assistant turn of a dialogue, or `all` of them.
    """

    turns: Literal["last", "all"] = "last"


class SeedSettings(Settings):
    """The setting that makes a run repeatable.

    Args:
        seed: random seed.
    """

    seed: Seed = 0


class ModelUse(Settings):
    """Settings that say how a model is loaded and prompted.

    Args:
        template: a name from `tithe templates`, a Jinja file, or `auto`.
        dtype: `auto`, `fp32`, `bf16` or `fp16`; `float32`, `bfloat16` and `float16` mean the same.
        device: `auto`, `cuda`, `mps` or `cpu`.
        trust_remote_code: run code that comes with the model.
    """

    template: str = "auto"
    dtype: Dtype = "auto"
    device: str = "auto"
    trust_remote_code: bool = False


class PassSettings(ModelUse):
    """Settings that say how an example becomes tokens.

    Args:
        max_length: tokens of the longest pass; the model's context window by default.
        truncation: what is cut to fit `max_length`: the end of the `response`, the start of the `prompt`, or `problem`
            to leave the example out; by default `response`.
        bos: whether a pass begins with the BOS token: `auto`, `always` or `never`.
        eos: score the end-of-turn marker too.
    """

    max_length: Count | None = None
    truncation: Truncation | None = None
    bos: Literal["auto", "always", "never"] = "auto"
    eos: Annotated[bool, Flag(negative=True)] = False


class ScorerSettings(Settings):
    """The scorers, and the settings that scorers and selectors inherit.

    Args:
        scorer: scorers with their settings, e.g. `ifd,length` or `random(seed=1)`.
        preset: a paper's own settings: `cherry`, `superfiltering`, `miwv-paper` or `cpqs-paper`.
        encoder: encoder of prompts: `self`, `tfidf`, a folder or hub id, `file:x.npy`; by default the scorer's or
            selector's own.
        shots: worked examples before each prompt; the scorer's own number by default.
        exclude_similarity: show no worked example whose prompt is this similar to the example's (cosine); 0.999 leaves
            out only equal prompts.
        shot_pool: data set to take worked examples from; the scored one by default.
        head: folder of the head that `cpqs` reads hidden states with.
        residualise: `length`: rank by the score minus what response length predicts.
        target: data set that the selection should resemble, for `rds`.
    """

    scorer: Annotated[tuple[str, ...], split_by(plugins.split_specs), Flag(("-s",))] = ("ifd",)
    preset: str | None = None
    encoder: str | None = None
    shots: Count | None = None
    exclude_similarity: Cosine | None = None
    shot_pool: str | None = None
    head: str | None = None
    residualise: Literal["length"] | None = None
    target: str | None = None


class ScoreSettings(SeedSettings, PassSettings, ScorerSettings, ExampleSettings):
    """All settings of scoring.

    Args:
        model: folder or hub id, also of a LoRA adapter; `pocket` is bundled, for trying out.
        warmup: give the model IFD's warm-up first: one epoch on 1,000 examples, in the run folder.
        answers: another run's folder, whose stored answers are used as well.
        truncation: what is cut to fit `max_length`: the end of the `response`, the start of the `prompt`, or `problem`
            to leave the example out; by default `prompt` where a scorer shows worked examples, else `response`.
        alone_header: text before a response that is scored without its prompt.
        dtype: `auto`, `fp32`, `bf16` or `fp16`, or `fp8` for the weights, on a GPU that multiplies it; `float32`,
            `bfloat16` and `float16` mean the same.
        device: `auto`, `cuda`, `mps` or `cpu`, or several of one kind with a process on each: `cuda:0,cuda:1`,
            `cuda:all`, `cpu,cpu`; `auto` takes all GPUs that are like the first.
        shard: spread one model over the GPUs instead of loading one on each; by default if it does not fit into one.
        batch_tokens: tokens per batch; chosen for the device by default.
        workers: forward passes at once on a CPU; one per core by default, eight at most.
        compile: compile norms, MLPs and rotations with torch.compile: `on`, `off`, or `auto`, which compiles for long
            jobs on a GPU.
        per_token: keep every response token's NLL.
    """

    model: Annotated[str | None, NAMED_MODEL] = None
    warmup: bool = False
    answers: str | None = None
    alone_header: str = ""
    dtype: WeightDtype = "auto"  # type: ignore[assignment]
    shard: bool | None = None
    batch_tokens: Count | None = None
    workers: Count | None = None
    compile: Literal["auto", "on", "off"] = "auto"
    per_token: bool = False

    @field_validator("compile", mode="before")
    @classmethod
    def read_switch(cls, value: Any) -> Any:
        """Read `true` and `false`, as in YAML or Python, as `on` and `off`."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


class SelectSettings(ScoreSettings):
    """All settings of a selection.

    Args:
        keep: budget: rows `500`, share `5%` of the records, or `200k-tokens` of their responses.
        keep_of: base of a share: the whole `input`, or what is left (`kept`) after filters and problems.
        by: the scorer that ranks, the first by default; or a mean of ranks, e.g. `rank(ifd)+rank(length)`, with weights
            `2*rank(ifd)+rank(miwv)`; `-rank(length)` prefers low scores.
        selector: a name from `tithe selectors`, with its settings.
        drop: filter, e.g. `ifd > 1`; may be repeated; by default the ranking scorer's own.
        drop_duplicates: keep the first of examples with the same prompt and response.
        drop_near_duplicates: drop exact duplicates, and examples this similar to a better one (0.5 to 1; 0.8 is usual):
            the share of the runs of five characters that both have, in the whole text and in the response.
        drop_contaminated: drop examples that share 13 words in a row with this evaluation file; may be repeated.
        pipeline: stages instead of one scorer, e.g. `superfiltering@gpt2:20% -> ifd:5%`.
        gate: first keep this share by `sound`, so that damaged records are not chosen for being hard: `50%`, or `auto`
            for the loosest gate behind which the selection is estimated to hold little damage.
        gate_damage: most damage in the selection, for `--gate auto`.
        gate_within: keep the gate's share of each value of this column, not of the whole.
        gate_check: after a selection without a gate, look for damage in it, if that costs little.
        shape: shape of the kept records: `same`, `messages`, `alpaca` or `prompt-completion`.
        with_scores: add every scorer's score and rank to the kept records, as `tithe_score_...` and `tithe_rank_...`.
    """

    keep: Annotated[str | int | float, Flag(("-k",))] = "5%"
    keep_of: Literal["input", "kept"] = "input"
    by: str | None = None
    selector: str = "top"
    drop: Annotated[Texts | None, Flag(emptied="turn all filters off, the scorer's own too")] = None
    drop_duplicates: bool = False
    drop_near_duplicates: Annotated[float | None, Flag(metavar="THRESHOLD")] = None
    drop_contaminated: Annotated[Texts, Flag(metavar="FILE")] = ()
    pipeline: str | None = None
    gate: str | None = None
    gate_damage: Annotated[float, checked(lambda x: 0 < x < 1, "a share is between 0 and 1")] = 0.05
    gate_within: str | None = None
    gate_check: Annotated[bool, Flag(negative=True)] = True
    shape: Literal["same", "messages", "alpaca", "prompt-completion"] = "same"
    with_scores: bool = False


# The settings of the papers' own code, where they differ from our defaults.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "cherry": {
        "scorer": ("ifd(same_tokens=false)",),
        "template": "alpaca",
        "max_length": 512,
        "dtype": "fp32",
        "selector": "top(ties=last)",
        "keep_of": "kept",
        "drop": ("ifd > 1",),
    },
    "superfiltering": {
        "scorer": ("superfiltering(same_tokens=false)",),
        "template": "superfiltering",
        "max_length": 512,
        "dtype": "fp32",
        "selector": "top",
        "keep_of": "input",
        "drop": ("superfiltering >= 1",),
    },
    "cpqs-paper": {
        "scorer": ("cpqs",),
        "template": "chat",
        "selector": "top",
        "keep_of": "input",
    },
    "miwv-paper": {
        "scorer": ("miwv",),
        "encoder": "BAAI/bge-large-en(pooling=mean)",
        "template": "alpaca",
        "max_length": 512,
        "selector": "top",
        "keep_of": "input",
    },
}


def with_preset(model: type[Chosen], values: Mapping[str, Any]) -> Chosen:
    """Make settings from a preset and the given values, which take precedence.

    A scorer without settings of its own gets the preset's: with `cherry`, `ifd` means `ifd(same_tokens=false)`.

    Raises:
        SettingsError: there is no such preset, or the given scorers leave out the preset's own.
    """
    name = values.get("preset")
    if name is None:
        return model.of(values)
    if not isinstance(name, str) or name not in PRESETS:
        raise SettingsError(f"no preset `{shown(name)}`", hint=did_you_mean(str(name), PRESETS))
    known = {key: value for key, value in PRESETS[name].items() if key in model.model_fields}
    settings = model.of({**known, **values})  # checks the scorers before they are compared with the preset's
    (own,) = PRESETS[name]["scorer"]
    bare = own.partition("(")[0]
    scorers = tuple(own if spec == bare else spec for spec in settings.scorer)
    if not any(spec.partition("(")[0].strip() == bare for spec in scorers):
        given = ",".join(settings.scorer)
        raise SettingsError(
            f"preset `{name}` scores with `{own}`, `--scorer {given}` leaves that out",
            hint=f"""`--scorer "{",".join([own, *scorers])}"`, or leave one of the two out""",
        )
    return settings if scorers == settings.scorer else model.of({**known, **values, "scorer": scorers})


def settings_from(model: type[Keyed], flags: Mapping[str, Any], config: Path | None = None) -> Keyed:
    """Make settings from a preset, a YAML file and flags; the later one takes precedence.

    Args:
        model: class of the settings.
        flags: flags of the command line; omitted ones are None or an empty list, and flags without a field are ignored.
        config: a YAML file of settings.

    Raises:
        SettingsError: an unknown setting, an impossible value, or one that a file may not set alone.
    """
    values = read_yaml(config) if config is not None else {}
    if config is not None:
        check_powers(values, flags, config)
    given = {key: value for key, value in flags.items() if value is not None and value != []}
    given = {key: value for key, value in given.items() if key in model.model_fields}
    if not issubclass(model, ScoreSettings):
        return model.of(values | given)
    if values.get("pipeline") is not None and "pipeline" not in model.model_fields:
        raise SettingsError(f"`{config}` has a `pipeline`, which only `tithe select` runs", hint=ONE_BY_ONE)
    # One file may serve several commands: those that do not select ignore the settings of a selection.
    values = {k: v for k, v in values.items() if k in model.model_fields or k not in SelectSettings.model_fields}
    return with_preset(model, values | given)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read settings from a YAML file; keys may have dashes or underscores.

    Raises:
        SettingsError: the file is missing, not YAML, or not a mapping.
    """
    return {key: tuple(v) if isinstance(v, list) else v for key, v in read_settings_file(path).items()}


def check_inherited(settings: ScoreSettings, used: Sequence[Any]) -> None:
    """Refuse an inherited setting that no scorer or selector of the run reads.

    Args:
        settings: settings of the run.
        used: its scorers and selectors.

    Raises:
        SettingsError: nothing reads a given setting; the hint names what would.
    """
    for name in INHERITED:
        given = getattr(settings, name)
        reading = [one for one in used if name in plugins.setting_names(type(one))]
        if given is None or any(getattr(one, name) == given for one in reading):
            continue
        if reading:
            own = ", ".join(f"`{one.name}({name}={getattr(one, name)})`" for one in reading)
            raise SettingsError(
                f"`{name}` is given as `{given}`, and nothing reads it: {own}", hint="leave one of the two out"
            )
        raise SettingsError(
            f"`{name}` is given, and nothing reads it: not {', '.join(f'`{one.name}`' for one in used)}",
            hint=f"it is read by {', '.join(readers_of(name))}",
        )


def readers_of(setting: str) -> list[str]:
    """Return the names of all scorers and selectors with this setting."""
    classes: list[tuple[str, type]] = [(name, plugins.scorer(name)) for name in plugins.names(plugins.SCORERS)]
    classes += [(name, plugins.selector(name)) for name in plugins.names(plugins.SELECTORS)]
    return [f"`{name}`" for name, cls in classes if setting in plugins.setting_names(cls)]

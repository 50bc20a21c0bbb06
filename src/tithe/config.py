"""Settings: from flags, a YAML file or Python into frozen models; an unknown key is an error with a suggestion."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import ValidationError, field_validator

from tithe.errors import SettingsError, brief, did_you_mean
from tithe.foreign import shown
from tithe.plugins import split_specs
from tithe.powers import check_powers
from tithe.typed import Count, Seed, Typed, wrong_value

FLAGS = {"output", "run_dir", "overwrite", "json", "config"}  # where results go is no part of what they are
SHOWN = 60  # characters of a setting
ONE_BY_ONE = "a pipeline is `tithe select`'s; its scorers can be planned and scored one by one with `--scorer`"
Keyed = TypeVar("Keyed", bound="Settings")
Chosen = TypeVar("Chosen", bound="ScoreSettings")


class Settings(Typed):
    """Base of all settings."""

    def __repr_args__(self) -> Iterator[tuple[str, Any]]:
        """Yield what is not the default, each on one line."""
        for name, one in type(self).model_fields.items():
            value = getattr(self, name)
            if one.is_required() or value != one.get_default(call_default_factory=True):
                yield name, value if len(repr(value)) <= SHOWN else brief(value, SHOWN)

    @classmethod
    def of(cls: type[Keyed], values: Mapping[str, Any]) -> Keyed:
        """Check values and build the settings.

        Raises:
            SettingsError: an unknown key (with a suggestion) or a value that does not fit (with what was given).
        """
        for key in map(str, values):
            if key not in cls.model_fields:
                flag = f"`--{key.replace('_', '-')}` is a flag of the command line alone" if key in FLAGS else None
                flag = ONE_BY_ONE if key == "pipeline" else flag
                raise SettingsError(f"unknown setting `{shown(key)}`", hint=flag or did_you_mean(key, cls.model_fields))
        try:
            return cls(**values)
        except ValidationError as error:
            raise wrong_value(error, cls) from error


class ScoreSettings(Settings):
    """What is scored and how.

    Args:
        dataset: file, folder or hub id.
        format: record shape, or `auto`.
        turns: `last` assistant turn of a dialogue, or `all` of them.
        split: split of a hub data set.
        limit: read only so many records.
        strict: stop at the first bad row.
        scorer: scorer specs, e.g. `["ifd", "length"]`.
        preset: `cherry`, `superfiltering`, `miwv-paper` or `cpqs-paper`: the papers' own settings, oddities included.
        encoder: what makes vectors of prompts, for scorers and selectors that look at likeness; None takes theirs.
        shots: worked examples before each prompt; None takes the scorer's own number.
        exclude_similarity: cosine from which a prompt is too alike to be shown as a worked example.
        shot_pool: data set to take worked examples from; None takes them from the one that is scored.
        head: folder of the head that `cpqs` reads hidden states with.
        residualise: `length` adds to every score what is left of it when the response's length is taken away; a
            selection then ranks by that.
        target: data set whose examples show what the selection is to be like.
        model: bundled name, folder or hub id; of a LoRA adapter, its folder or hub id.
        warmup: give the model IFD's brief experience first: one epoch on 1,000 examples, in the run folder.
        answers: another run's folder, whose answers are read as well: what it holds is not computed again.
        template: `auto`, a named template or a Jinja file.
        max_length: tokens of the longest pass; None takes the model's context window.
        truncation: what gives way to `max_length`: the `response`'s end, the `prompt`'s beginning, or `problem`. None
            takes `prompt` where a scorer shows worked examples, which must leave the response whole, else `response`.
        bos: `auto`, `always`, `never`.
        eos: score the end-of-turn marker too.
        alone_header: text before the response where it is scored without its prompt.
        dtype: `auto`, `fp32`, `bf16`, `fp16`, or `fp8` (weights; on GPUs that multiply it; its error is measured).
        device: `auto`, `cuda`, `mps`, `cpu`; or several of one kind, a process on each: `cuda:0,cuda:1`, `cuda:all`,
            `cpu,cpu`. `auto` takes all GPUs that are like the first.
        shard: spread one model over the GPUs instead of one on each; None does so where it does not fit into one.
        batch_tokens: tokens a batch holds; None takes the device's default.
        workers: forward passes at once on a CPU; None takes one per core, eight at most, and one in each of several
            processes.
        compile: norms, MLPs and rotations by torch.compile: `on`, `off`, or `auto`, which takes it on a GPU
            for jobs that repay some seconds of compiling.
        per_token: keep every response token's NLL.
        seed: of everything drawn at random.
        trust_remote_code: run code that comes with the model.
    """

    dataset: str
    format: str = "auto"
    turns: Literal["last", "all"] = "last"
    split: str | None = None
    limit: Count | None = None
    strict: bool = False
    scorer: tuple[str, ...] = ("ifd",)
    preset: str | None = None
    encoder: str | None = None
    shots: Count | None = None
    exclude_similarity: float | None = None
    shot_pool: str | None = None
    head: str | None = None
    residualise: Literal["length"] | None = None
    target: str | None = None
    model: str | None = None
    warmup: bool = False
    answers: str | None = None
    template: str = "auto"
    max_length: Count | None = None
    truncation: Literal["response", "prompt", "problem"] | None = None
    bos: Literal["auto", "always", "never"] = "auto"
    eos: bool = False
    alone_header: str = ""
    dtype: Literal["auto", "fp32", "bf16", "fp16", "fp8"] = "auto"
    device: str = "auto"
    shard: bool | None = None
    batch_tokens: Count | None = None
    workers: Count | None = None
    compile: Literal["auto", "on", "off"] = "auto"
    per_token: bool = False
    seed: Seed = 0
    trust_remote_code: bool = False

    @field_validator("scorer", mode="before")
    @classmethod
    def one_by_one(cls, value: Any) -> Any:
        """`"ifd,length"` is two specs."""
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
            return value
        return tuple(spec for text in texts for spec in split_specs(text))

    @field_validator("compile", mode="before")
    @classmethod
    def words_of_yaml(cls, value: Any) -> Any:
        """YAML reads `on` and `off` as true and false."""
        return {True: "on", False: "off"}[value] if isinstance(value, bool) else value

    @field_validator("exclude_similarity")
    @classmethod
    def cosine(cls, value: float | None) -> float | None:
        if value is not None and not -1 <= value <= 1:
            raise ValueError("a cosine is between -1 and 1")
        return value


class SelectSettings(ScoreSettings):
    """What is kept.

    Args:
        keep: budget: rows (`500`), share (`5%`) or response tokens (`200k-tokens`).
        keep_of: what a share is a share of: the `input`, or what is left (`kept`) after filters and problems.
        by: the scorer that ranks; None takes the first.
        selector: selector spec.
        drop: filters such as `ifd > 1`; None takes the ranking scorer's own.
        drop_duplicates: drop later occurrences of the same prompt and response.
        drop_contaminated: evaluation files; examples that share 13 words in a row with one are dropped first of all.
        pipeline: stages instead of one scorer, e.g. `"superfiltering@gpt2:20% -> ifd:5%"`.
        shape: shape of the kept file's records.
    """

    keep: str | int | float = "5%"
    keep_of: Literal["input", "kept"] = "input"
    by: str | None = None
    selector: str = "top"
    drop: tuple[str, ...] | None = None
    drop_duplicates: bool = False
    drop_contaminated: tuple[str, ...] = ()
    pipeline: str | None = None
    shape: Literal["same", "messages", "alpaca", "prompt-completion"] = "same"

    @field_validator("drop", "drop_contaminated", mode="before")
    @classmethod
    def one_filter(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


class HeadSettings(ScoreSettings):
    """How a head is trained and judged.

    Args:
        kind: `probe`, a linear one over mean states, or `cnn`, the network of the CPQS paper.
        layers: `all`, `last`, `front`, `middle` or `back`; None lets a probe choose, a cnn reads all.
        tier_column: column that says which tier a response belongs to.
        high_tier: names in it that count as the high tier.
        low_tier: names in it that count as the low tier.
        split_column: column that says on which side a prompt is: `train`, `validation` (`valid`, `dev`) or `test`; None
            splits by chance.
        validation_share: of the prompts, to stop a cnn by; a probe trains on them too.
        test_share: of the prompts, to judge the head by; 0 takes no report.
        num_train_epochs: passes of a cnn, at most; it stops when the validation side gets no better.
        learning_rate: of a cnn.
        per_device_train_batch_size: responses a step of a cnn.
        drop_seen: leave out prompts that the head was trained on, instead of refusing to judge.
        resamples: of the bootstrap.
    """

    scorer: tuple[str, ...] = ("perplexity",)
    kind: Literal["probe", "cnn"] = "probe"
    layers: Literal["all", "last", "front", "middle", "back"] | None = None
    tier_column: str = "tier"
    high_tier: tuple[str, ...] = ("high",)
    low_tier: tuple[str, ...] = ("low",)
    split_column: str | None = None
    validation_share: float = 0.1
    test_share: float = 0.1
    num_train_epochs: Count = 1
    learning_rate: float = 1e-4
    per_device_train_batch_size: Count = 16
    drop_seen: bool = False
    resamples: Count = 2000

    @field_validator("high_tier", "low_tier", mode="before")
    @classmethod
    def names(cls, value: Any) -> Any:
        """`"gpt4,claude"` is two names."""
        return labels(value)

    @field_validator("validation_share", "test_share")
    @classmethod
    def part(cls, value: float) -> float:
        if not 0 <= value <= 0.9:
            raise ValueError("a share of the prompts is between 0 and 0.9")
        return value

    @field_validator("learning_rate")
    @classmethod
    def above_zero(cls, value: float) -> float:
        if not 0 < value < 1:
            raise ValueError("it must be above 0 and below 1")
        return value


def labels(value: Any) -> Any:
    """Return the labels that `good,fair`, a list, or YAML's `true` and `1` stand for; what are none as it is."""
    many = value if isinstance(value, list | tuple) else [value]
    if not all(isinstance(one, str | int) for one in many):
        return value
    texts = [str(one).lower() if isinstance(one, bool) else str(one) for one in many]
    return tuple(label.strip() for text in texts for label in text.split(",") if label.strip())


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
    """Settings from a preset and what was given beside it; what was given wins.

    Raises:
        SettingsError: no such preset, or the scorers given leave out the one that the preset is about.
    """
    name = values.get("preset")
    if name is None:
        return model.of(values)
    if not isinstance(name, str) or name not in PRESETS:
        raise SettingsError(f"no preset `{shown(name)}`", hint=did_you_mean(str(name), PRESETS))
    known = {key: value for key, value in PRESETS[name].items() if key in model.model_fields}
    settings = model.of({**known, **values})
    (own,) = PRESETS[name]["scorer"]
    if own not in settings.scorer:
        given = ",".join(settings.scorer)
        others = [spec for spec in settings.scorer if spec.partition("(")[0] != own.partition("(")[0]]
        raise SettingsError(
            f"preset `{name}` scores with `{own}`, `--scorer {given}` leaves that out",
            hint=f"""`--scorer "{",".join([own, *others])}"`, or leave one of the two out""",
        )
    return settings


def from_flags(model: type[Chosen], flags: Mapping[str, Any], config: Path | None = None) -> Chosen:
    """Preset, then YAML, then flags.

    Args:
        model: which settings.
        flags: of the command line, those left out as None; what is no setting is passed over.
        config: a YAML file of settings.
    """
    values = read_yaml(config) if config is not None else {}
    if config is not None:
        check_powers(values, flags, config)
    if values.get("pipeline") is not None and "pipeline" not in model.model_fields:
        raise SettingsError(f"`{config}` has a `pipeline`, which `tithe select` alone carries out", hint=ONE_BY_ONE)
    # One file may serve all commands: what only a selection reads is passed over by the others.
    values = {k: v for k, v in values.items() if k in model.model_fields or k not in SelectSettings.model_fields}
    values |= {key: value for key, value in flags.items() if value is not None and key in model.model_fields}
    return with_preset(model, values)


def read_yaml(path: Path) -> dict[str, Any]:
    """Settings from a YAML file; keys with dashes or underscores.

    Raises:
        SettingsError: no such file, not YAML, or not a mapping.
    """
    from tithe.settings_file import read_settings_file

    return {key: tuple(v) if isinstance(v, list) else v for key, v in read_settings_file(path).items()}

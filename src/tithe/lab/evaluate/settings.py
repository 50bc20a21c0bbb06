"""Settings of `tithe evaluate`."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import field_validator, model_validator

from tithe.config import Settings
from tithe.errors import SettingsError
from tithe.typed import Count, Seed

OF_TASKS = ("num_fewshot", "limit", "batch_size", "max_new_tokens", "apply_chat_template", "allow_code_execution")


class EvaluateSettings(Settings):
    """What a model is measured by.

    Args:
        model: bundled name, folder or hub id.
        holdout: data set whose responses the model has not seen; their likelihood is measured.
        holdout_group: column of it whose values are groups, such as `category`.
        tasks: lm-eval's names, or `name=file` where the task's data lie in a file or folder here.
        num_fewshot: worked examples before each item of a task; None takes each task's own number.
        limit: only so many items of each task, the first ones.
        batch_size: items at once in lm-eval: a number, or `auto`.
        max_new_tokens: tokens at which an answer to a task is cut off; None takes each task's own number.
        seed: of everything drawn at random.
        device: `auto`, `cuda`, `mps`, `cpu`.
        dtype: `auto`, `fp32`, `bf16`, `fp16`.
        template: of the held-out file: `auto`, a named template or a Jinja file.
        max_length: of the held-out file: tokens of the longest pass; None takes the model's context window.
        eos: of the held-out file: measure the end-of-turn marker too.
        bos: of the held-out file: `auto`, `always`, `never`.
        truncation: of the held-out file: what gives way to `max_length`: the `response`'s end, the `prompt`'s
            beginning, or `problem`; None takes `response`.
        apply_chat_template: put the tasks' prompts to the model by its chat template.
        allow_code_execution: run the code that the model writes, in a sandbox.
        trust_remote_code: run code that comes with the model.
    """

    model: str
    holdout: str | None = None
    holdout_group: str | None = None
    tasks: tuple[str, ...] = ()
    num_fewshot: int | None = None
    limit: Count | None = None
    batch_size: int | Literal["auto"] = 8
    max_new_tokens: Count | None = None
    seed: Seed = 0
    device: str = "auto"
    dtype: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    template: str = "auto"
    max_length: Count | None = None
    eos: bool = False
    bos: Literal["auto", "always", "never"] = "auto"
    truncation: Literal["response", "prompt", "problem"] | None = None
    apply_chat_template: bool = False
    allow_code_execution: bool = False
    trust_remote_code: bool = False

    @field_validator("tasks", mode="before")
    @classmethod
    def one_by_one(cls, value: Any) -> Any:
        """`"gsm8k,humaneval"` is two tasks."""
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            return value
        return tuple(name.strip() for text in texts for name in text.split(",") if name.strip())

    @field_validator("batch_size", mode="before")
    @classmethod
    def number_or_auto(cls, value: Any) -> Any:
        if isinstance(value, str) and value.isdecimal():
            return int(value)
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError("it must be a whole number, or `auto`")
        return value

    @field_validator("batch_size")
    @classmethod
    def positive(cls, value: Any) -> Any:
        if isinstance(value, int) and value < 1:
            raise ValueError("it must be at least 1")
        return value

    @field_validator("num_fewshot")
    @classmethod
    def not_negative(cls, value: int | None) -> int | None:
        if value is not None and value < 0:
            raise ValueError("it must be 0 or more")
        return value

    @model_validator(mode="after")
    def possible(self) -> Self:
        if self.holdout is None and not self.tasks:
            raise SettingsError(
                "nothing is given to evaluate the model by", hint="`--holdout FILE`, `--tasks NAMES`, or both"
            )
        if self.holdout_group is not None and self.holdout is None:
            raise SettingsError("`holdout_group` is given without `holdout`", hint="it is a column of that file")
        unread = [name for name in OF_TASKS if getattr(self, name) != type(self).model_fields[name].default]
        if unread and not self.tasks:
            raise SettingsError(f"`{unread[0]}` is given, and there are no tasks that read it", hint="`--tasks NAMES`")
        return self

"""Settings of `tithe evaluate`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import field_validator, model_validator

from tithe.errors import SettingsError
from tithe.settings import NAMED_MODEL, Columns, PassSettings, SeedSettings
from tithe.typed import Count, Flag, Names, WholeNumber

OF_TASKS = ("num_fewshot", "limit", "batch_size", "max_new_tokens", "apply_chat_template", "allow_code_execution")


class EvaluateSettings(SeedSettings, PassSettings):
    """What to measure a model by.

    Args:
        model: folder or hub id; `pocket` is bundled, for trying out.
        holdout: data set whose responses' likelihood is measured.
        columns: which column of the held-out file is what, if the names are not the usual ones:
            `prompt=question,response=answer`.
        holdout_group: column of that data set that holds each record's group, e.g. `category`.
        tasks: lm-eval's tasks, `NAME,NAME`, or `NAME=FILE` to read a task's data from files; may be repeated.
        num_fewshot: worked examples before each item of a task; each task's own number by default.
        limit: use only the first so many items of each task.
        batch_size: items at once in lm-eval: a number, or `auto`.
        max_new_tokens: tokens at which an answer to a task is cut off; each task's own number by default.
        template: a name from `tithe templates`, a Jinja file, or `auto`; for the held-out file.
        max_length: tokens of the held-out file's longest pass; the model's context window by default.
        truncation: what gives way to `max_length`: the `response`'s end, the `prompt`'s beginning, or `problem`, which
            leaves the example out; by default `response`.
        eos: measure the end-of-turn marker of the held-out responses too.
        apply_chat_template: wrap the tasks' prompts in the model's chat template.
        allow_code_execution: run the code that the model writes, in a sandbox.
    """

    model: Annotated[str, NAMED_MODEL]
    holdout: Annotated[str | None, Flag(metavar="FILE")] = None
    columns: Columns = ()
    holdout_group: Annotated[str | None, Flag(metavar="COLUMN")] = None
    tasks: Annotated[Names, Flag(metavar="NAME[=FILE],...")] = ()
    num_fewshot: WholeNumber | None = None
    limit: Count | None = None
    batch_size: int | Literal["auto"] = 8
    max_new_tokens: Count | None = None
    apply_chat_template: bool = False
    allow_code_execution: bool = False

    @field_validator("batch_size", mode="before")
    @classmethod
    def read_batch_size(cls, value: Any) -> Any:
        """Accept the number as text, as the command line gives it."""
        if isinstance(value, str) and value.isdecimal():
            value = int(value)
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool)):
            raise ValueError("it must be a whole number, or `auto`")
        if value != "auto" and value < 1:
            raise ValueError("it must be at least 1")
        return value

    @model_validator(mode="after")
    def possible(self) -> Self:
        """Refuse settings that would measure nothing or that nothing would read."""
        if self.holdout is None and not self.tasks:
            raise SettingsError(
                "nothing is given to evaluate the model by", hint="`--holdout FILE`, `--tasks NAMES`, or both"
            )
        if self.columns and self.holdout is None:
            raise SettingsError("`columns` is given without `holdout`", hint="they are columns of that file")
        if self.holdout_group is not None and self.holdout is None:
            raise SettingsError("`holdout_group` is given without `holdout`", hint="it is a column of that file")
        unread = [name for name in OF_TASKS if getattr(self, name) != type(self).model_fields[name].default]
        if unread and not self.tasks:
            raise SettingsError(f"`{unread[0]}` is given, but no tasks that use it", hint="`--tasks NAMES`")
        return self

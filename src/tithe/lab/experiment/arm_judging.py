"""Trained models' answers compared by a judge: each arm's with those of the arm that all are compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from tithe.errors import SettingsError
from tithe.foreign import shown
from tithe.lab.evaluate.measured import Measured
from tithe.lab.experiment.cells import CELLS, Outcome
from tithe.lab.experiment.settings import ExperimentSettings
from tithe.lab.judge.pairwise import compare
from tithe.lab.judge.prompt_answers import answer
from tithe.lab.judge.settings import AnswerSettings, JudgeSettings
from tithe.report.reporter import Reporter

OWN = ("prompts", "answers")  # of `judge`, besides the settings of `tithe judge compare`
REVIEWS = "reviews"


def answers_file(own: Path, prompts: str) -> Path:
    """Of a cell's model to a prompt set."""
    return own / f"answers-{Path(prompts).stem}.jsonl"


def prompt_sets(judge: Mapping[str, Any]) -> tuple[str, ...]:
    """The files that `judge: {prompts: ...}` names.

    Raises:
        SettingsError: it names none, or two of the same name.
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
        raise SettingsError(f"two prompt sets of `judge` have one name: {', '.join(stems)}", hint="rename one")
    return files


def judge_settings(judge: Mapping[str, Any], name: str) -> JudgeSettings:
    return JudgeSettings.of({**{key: value for key, value in judge.items() if key not in OWN}, "name": name})


def answer_settings(judge: Mapping[str, Any], prompts: str, model: str) -> AnswerSettings:
    given = judge.get("answers", {})
    if not isinstance(given, Mapping):
        raise SettingsError(f"`answers` of `judge` cannot be `{shown(given)}`: it must be `key: value` lines")
    return AnswerSettings.of({**given, "prompts": prompts, "model": model})


def check_judge(judge: Mapping[str, Any], model: str) -> None:
    """Raise what is wrong with the settings of a judge before hours of training.

    Raises:
        SettingsError: see `prompt_sets`, or a setting that cannot be.
    """
    judge_settings(judge, "-")
    for prompts in prompt_sets(judge):
        answer_settings(judge, prompts, model)


def write_answers(own: Path, model: str, judge: Mapping[str, Any], reporter: Reporter) -> None:
    """Let a cell's model answer all prompt sets, before its weights go.

    Raises:
        TitheError: whatever stops it.
    """
    for prompts in prompt_sets(judge):
        answer(answer_settings(judge, prompts, model), answers_file(own, prompts), overwrite=True, reporter=reporter)


def judged(
    outcomes: Sequence[Outcome], settings: ExperimentSettings, folder: Path, reporter: Reporter
) -> list[Outcome]:
    """The outcomes with `judge <set>`: +1, 0 or -1 per prompt against the reference arm, which has 0 everywhere.

    Raises:
        TitheError: whatever stops the judge; reviews that came are kept.
    """
    assert settings.judge is not None
    known = {(one.cell.arm, one.cell.budget, one.cell.seed): one for one in outcomes}
    arms = [arm.name for arm in settings.arms if arm.budgeted]
    found = []
    for one in outcomes:
        other = known.get((settings.against, one.cell.budget, one.cell.seed))
        if one.cell.arm not in arms or other is None:
            found.append(one)
            continue
        more = tuple(
            verdicts(one, other, prompts, settings, folder, reporter) for prompts in prompt_sets(settings.judge)
        )
        found.append(replace(one, measured=(*one.measured, *more)))
    return found


def verdicts(
    one: Outcome, other: Outcome, prompts: str, settings: ExperimentSettings, folder: Path, reporter: Reporter
) -> Measured:
    """A judge's verdicts on one prompt set."""
    assert settings.judge is not None
    own, name = folder / CELLS / one.trained, Path(prompts).stem
    if one.cell.arm == settings.against:
        return nothing(answers_file(own, prompts), name)
    theirs = folder / CELLS / other.trained
    output = folder / REVIEWS / f"{one.cell.name}-{name}.jsonl"
    output.parent.mkdir(exist_ok=True)
    reporter.say(f"{one.cell.name} against {other.cell.name}, prompts of {name}:")
    a, b = answers_file(own, prompts), answers_file(theirs, prompts)
    return compare(judge_settings(settings.judge, name), a, b, output, overwrite=True, reporter=reporter).measured


def nothing(answers: Path, name: str) -> Measured:
    """The reference arm against itself."""
    from tithe.data.prompts import read_answers
    from tithe.lab.judge.judge_loop import Answers

    items = tuple(Answers.of(str(answers), read_answers(answers)).examples)
    return Measured(f"judge {name}", "number", "win - loss", True, items, np.zeros(len(items)))

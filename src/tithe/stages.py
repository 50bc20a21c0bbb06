"""Parse a pipeline: `superfiltering@gpt2:20% -> ifd|stratified(by=kind):5% -> top:1% of all`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

from tithe import plugins
from tithe.errors import SettingsError, TitheError, did_you_mean
from tithe.selectors.budget import Base, Budget
from tithe.selectors.mean_rank import MeanRank, is_mean_rank

ARROW, MODEL, CHOICE, SPENDS = "->", "@", "|", ":"
FORM = "`scorer:budget -> scorer@model:budget -> selector:budget`"
_PAIRS = {"(": ")", "[": "]", "{": "}"}
_OF_ALL = re.compile(r"(.*\S)\s+of\s+all", re.DOTALL | re.IGNORECASE)
_EARLIER_BUDGET = re.compile(r":\s*[\d.]+\s*(?:%|[km]?[\s-]*tokens?)?[\s,;>=→]", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Stage:
    """One step of a pipeline.

    Args:
        number: counted from 1.
        text: the stage as written.
        scorer: spec of the scorer, or a mean of ranks; None if the stage uses the scores of an earlier one.
        selector: spec of the selector.
        model: the stage's own model; None for the run's.
        budget: how much it keeps.
        of_all: whether a share counts from the whole input, not from what enters the stage.
        name: label of a stage that is not written in a pipeline.
    """

    number: int
    text: str
    scorer: str | None
    selector: str
    model: str | None
    budget: str
    of_all: bool = False
    name: str = ""

    @property
    def ranks(self) -> MeanRank | None:
        """The mean of ranks that it chooses by; None if one scorer ranks by itself."""
        return MeanRank.parse(self.scorer) if self.scorer and is_mean_rank(self.scorer) else None

    @property
    def specs(self) -> tuple[str, ...]:
        """Specs of its scorers."""
        if self.ranks is not None:
            return tuple(term.spec for term in self.ranks.terms)
        return () if self.scorer is None else (self.scorer,)

    @property
    def label(self) -> str:
        """Name of the stage in messages and reasons."""
        if self.name:
            return self.name
        chosen = "" if self.selector == "top" else CHOICE + base_name(self.selector)
        scorer = str(self.ranks or base_name(self.scorer or ""))
        name = scorer + chosen if self.scorer else base_name(self.selector)
        return f"stage {self.number}, {name}"

    def budget_for(self, total: int, of: Base) -> Budget:
        """Return the budget of the stage.

        Args:
            total: number of examples in the whole input.
            of: base of a share: what enters the stage, or what its filters leave.

        Raises:
            SettingsError: the budget cannot be read, or rounds to 0 rows.
        """
        budget = Budget.parse(self.budget, of=of)
        if not self.of_all:
            return budget
        if budget.unit != "share":
            raise SettingsError(f"`of all` goes with a share, not with `{self.budget}`", hint="for example `5% of all`")
        rows = Budget(budget.amount, "share", "input", f"{budget.text} of all").rows(total, total)
        return Budget(Fraction(rows or 0), "rows", of, f"{budget.text} of all")


@contextmanager
def naming_stage(stage: Stage) -> Iterator[None]:
    """Prefix the errors of the body with the name of the stage."""
    try:
        yield
    except TitheError as error:
        raise type(error)(f"{stage.label}: {error}", hint=error.hint) from error


def parse_pipeline(text: str) -> tuple[Stage, ...]:
    """Read the stages of a pipeline, separated by `->`.

    A stage is `what:budget`. The part before the last colon is a scorer, `scorer|selector`, or a selector; a scorer
    may be followed by `@model`, and `rank(a)+rank(b)` stands for several. Separators in quotes and brackets are plain
    text. A name of both a scorer and a selector (`random`) means the scorer; `|random` means the selector.

    Raises:
        SettingsError: a stage cannot be read; names it.
    """
    if not text.strip():
        raise SettingsError("the pipeline is empty", hint=FORM)
    stages = []
    for number, part in enumerate(split(text, ARROW), 1):
        if not part.strip():
            raise SettingsError(f"stage {number} of the pipeline `{text.strip()}` is empty", hint=FORM)
        stages.append(parse_stage(number, part.strip()))
    for stage in stages:
        with naming_stage(stage):
            stage.budget_for(10**40, "input")  # so many examples that any share is at least a row
            plugins.build_selector(stage.selector)
            for spec in stage.specs:
                plugins.build_scorer(spec)
    if stages[0].scorer is None:
        message = f"{stages[0].label}: a selector chooses by the scores of the stage before, and there is none"
        raise SettingsError(message, hint=f"begin with a scorer, for example `ifd{CHOICE}{stages[0].selector}`")
    return tuple(stages)


def parse_stage(number: int, text: str) -> Stage:
    """Read one stage, and look up its names.

    Raises:
        SettingsError: it cannot be read, or a name is unknown.
    """
    where = f"stage {number}, `{text}`,"
    *heads, budget = split(text, SPENDS)  # the last colon: a model may be a path with colons
    head = SPENDS.join(heads).strip()
    if not heads or not budget.strip():
        raise SettingsError(f"{where} has no budget", hint=f"for example `{head or text}:5%`")
    # A forgotten arrow (`ifd:20% superfiltering:5%`) would otherwise make the first budget a part of the name.
    if _EARLIER_BUDGET.search(blank_quoted(head)):
        raise SettingsError(f"{where} has two budgets", hint=f"stages are separated by `{ARROW}`; quote a model's path")
    what, *choices = (part.strip() for part in split(head, CHOICE))
    spec, *models = split(what, MODEL)
    if len(choices) > 1 or "" in choices or not (spec.strip() or choices):
        raise SettingsError(f"{where} cannot be read", hint=FORM)
    spec, model = spec.strip(), unquote(MODEL.join(models).strip())
    if models and not model:
        raise SettingsError(f"{where} has no model after `{MODEL}`", hint=f"`{spec}{MODEL}model:{budget.strip()}`")
    if choices and MODEL in blank_quoted(choices[0]):
        chosen, _, model = choices[0].partition(MODEL)
        raise SettingsError(
            f"{where} has its model beside the selector",
            hint=f"`{spec}{MODEL}{model}{CHOICE}{chosen}:{budget.strip()}`",
        )
    scorer, selector = find_scorer_and_selector(where, spec, choices)
    if scorer is None and model:
        raise SettingsError(
            f"{where} names a model, but uses the scores of the stage before",
            hint=f"the model belongs to a scorer: `ifd{MODEL}{model}{CHOICE}{selector}:{budget.strip()}`",
        )
    share = _OF_ALL.fullmatch(budget.strip())
    return Stage(number, text, scorer, selector, model or None, share[1] if share else budget.strip(), bool(share))


def find_scorer_and_selector(where: str, spec: str, choices: list[str]) -> tuple[str | None, str]:
    """Return the specs of scorer (or None) and selector.

    Args:
        where: the stage, for messages.
        spec: the part before `|` and `@`.
        choices: the part after `|`, if there is one.

    Raises:
        SettingsError: a name is unknown.
    """
    name = base_name(spec)
    scorers, selectors = plugins.names(plugins.SCORERS), plugins.names(plugins.SELECTORS)
    if choices and base_name(choices[0]) not in selectors:
        name = base_name(choices[0])
        raise SettingsError(f"{where} names no selector: `{name}`", hint=did_you_mean(name, selectors))
    if not spec:
        return None, choices[0]
    if name in scorers or is_mean_rank(spec):
        return spec, choices[0] if choices else "top"
    if name in selectors and not choices:
        return None, spec
    known, what = (scorers, "scorer") if choices else ([*scorers, *selectors], "scorer or selector")
    raise SettingsError(f"{where} names no {what}: `{name}`", hint=did_you_mean(name, known))


def base_name(spec: str) -> str:
    """Return a spec without its settings."""
    return spec.partition("(")[0].strip()


def unquote(text: str) -> str:
    """Remove the quotes around a text, if it has some."""
    return text[1:-1].strip() if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def split(text: str, mark: str) -> list[str]:
    """Split a text at the marks that are outside quotes and brackets."""
    # Marks are searched in the blanked text, and cut from the original: both have the same length.
    bare, parts, start, at = blank_quoted(text), [], 0, -1
    while (at := bare.find(mark, at + 1)) >= 0:
        if at >= start:
            parts.append(text[start:at])
            start = at + len(mark)
    return [*parts, text[start:]]


def blank_quoted(text: str) -> str:
    """Replace everything in quotes or brackets with NUL characters; the length stays the same.

    Raises:
        SettingsError: quotes or brackets do not match.
    """
    out, closing, quote = [], list[str](), ""
    for char in text:
        inside = bool(closing or quote)
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote, inside = char, True
        elif char in _PAIRS:
            closing.append(_PAIRS[char])
            inside = True
        elif char in _PAIRS.values() and (not closing or char != closing.pop()):
            closing.append("")  # never to be closed
            break
        out.append("\0" if inside else char)
    if closing or quote:
        hint = 'a path with such characters stands in quotes: `ifd@"it\'s here":5%`'
        raise SettingsError(f"`{text.strip()}`: brackets or quotes do not match", hint=hint)
    return "".join(out)

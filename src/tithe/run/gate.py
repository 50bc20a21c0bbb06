"""The gate of a selection: how strict it is, what it drops, and what it says about the pool."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, Self

import numpy as np

from tithe import plugins
from tithe.errors import SettingsError, brief
from tithe.gate.estimate import Estimate, Estimator, ScoredMargins, damage_share
from tithe.records import Answer, Example, FloatArray, Problem
from tithe.report.reporter import Reporter
from tithe.run.method import Method, Setup, inherited_settings
from tithe.run.results import ScoreResult, SelectResult, share
from tithe.run.score import Scoring
from tithe.run.source import DataSource
from tithe.scorers.base import Scorer, learns
from tithe.scorers.sound import Sound
from tithe.selectors.base import Selector
from tithe.selectors.budget import Budget
from tithe.selectors.mean_rank import MeanRank, RankTerm
from tithe.settings import SelectSettings
from tithe.stages import SPENDS, Stage, split

GATE = Stage(0, "gate", "sound", "top", None, "100%", name="gate")
AUTO = "auto"
# Gates that `auto` tries, the loosest first; near 100 % in small steps, as a clean pool needs little.
STEPS = [Fraction(percent, 100) for percent in (100, 99, 98, 97, 96, *range(95, 0, -5))]
SUSPICIOUS = 10  # records that are shown
MOST_VALUES = 12  # of a column by which the kept shares are shown
MOST_COLUMNS = 2
SCRIPTS = ("LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "CJK", "HIRAGANA", "HANGUL", "THAI")
CODE = re.compile(r"```|^\s*(?:def |class |import |#include|public |function |SELECT )|[;{}]\s*$", re.MULTILINE)


@dataclass(frozen=True)
class GatePlan:
    """A gate as the settings ask for it.

    Args:
        spec: spec of its scorer.
        budget: the share it keeps; None for `auto`.
        most: most damage in the selection, for `auto`.
        within: a column; each of its values is gated by itself.
    """

    spec: str
    budget: Budget | None
    most: float
    within: str | None

    @property
    def auto(self) -> bool:
        return self.budget is None

    @classmethod
    def of(cls, settings: SelectSettings, behind: Method) -> Self:
        """Read the setting `gate`: `50%`, `auto`, or one of them after a spec: `sound(records=200):50%`.

        Raises:
            SettingsError: it cannot be read, or does not go with the other settings.
        """
        *specs, strict = split((settings.gate or "").strip(), SPENDS)
        spec = SPENDS.join(specs).strip() or Sound.name
        if spec.partition("(")[0].strip() != Sound.name:
            raise SettingsError(f"a gate is made by `sound`, not by `{brief(spec, 40)}`", hint="`--gate 50%`")
        if settings.warmup:
            raise SettingsError(
                "`warmup` does not go with a gate, which reads the model before it",
                hint="`tithe warmup DATA --model M -o M-pre`, and then `--model M-pre`",
            )
        most, within = settings.gate_damage, settings.gate_within
        if strict.strip() != AUTO:
            if most != SelectSettings.model_fields["gate_damage"].default:
                raise SettingsError(
                    f"`gate_damage` goes with `--gate auto`, not with `{settings.gate}`", hint="leave one out"
                )
            budget = Budget.parse(strict.strip(), of="kept")
            if budget.unit != "share":
                raise SettingsError(f"a gate keeps a share, not `{strict.strip()}`", hint="`--gate 50%` or `auto`")
            return cls(spec, budget, most, within)
        learners = [name for name, scorer in behind.scorers.items() if learns(scorer)]
        if learners or settings.residualise:
            why = f"`{learners[0]}` learns from the records that the gate keeps" if learners else "of `residualise`"
            raise SettingsError(
                f"`--gate auto` must know the score of a damaged record before the gate is chosen, and cannot: {why}",
                hint="give a share: `--gate 50%`",
            )
        return cls(spec, None, most, within)

    def method(
        self, settings: SelectSettings, selector: Selector, behind: Method, source: DataSource, *, same_model: bool
    ) -> Method:
        """Return what the gate reads: hidden states, and what the next stage reads in the same passes.

        Args:
            settings: of the gate's stage.
            selector: the gate's.
            behind: the next stage.
            source: the data.
            same_model: whether it reads the same model.

        Raises:
            SettingsError: the next stage is needed to choose the gate, and reads another model.
        """
        sound = plugins.build_scorer(self.spec, inherited_settings(settings))
        assert isinstance(sound, Sound), type(sound)
        if not self.auto:
            sound = replace(sound, along=along(behind, source) if same_model else ())
            return Method(settings, {Sound.name: sound}, (selector,))
        if not same_model:
            raise SettingsError(
                "`--gate auto` needs one model for the gate and the stage behind it", hint="give a share: `--gate 50%`"
            )
        return Method(settings, {Sound.name: sound, **behind.scorers}, (selector, *behind.selectors))


def along(behind: Method, source: DataSource) -> tuple[str, ...]:
    """Return the readouts that the next stage asks of the pass that the gate reads; all examples have the same ones."""
    examples = source.first_records.examples[:1]
    asks = [scorer.asks(one) for one in examples for scorer in behind.scorers.values() if not learns(scorer)]
    return tuple(dict.fromkeys(ask.readout for each in asks for ask in each.values() if ask.spec.kind == "given"))


def is_gates(column: str) -> bool:
    """Tell whether a column is the gate's own; with `auto` its table also has the next stage's scores."""
    return column == Sound.name or column.startswith(f"{Sound.name}_")


@dataclass(frozen=True)
class OpenedGate:
    """A gate that is chosen.

    Args:
        budget: the share it keeps.
        sound: the prepared scorer.
        estimate: damage in the selection behind it; None for a given share.
        without: damage in the selection if there were no gate; None for a given share.
        met: whether the estimate is as low as wanted.
    """

    budget: Budget
    sound: Sound
    estimate: Estimate | None = None
    without: Estimate | None = None
    met: bool = True


def open_gate(
    plan: GatePlan,
    scoring: Scoring,
    scored: ScoreResult,
    *,
    by: str,
    ranks: MeanRank | None,
    ahead: Callable[[Mapping[str, str]], SelectResult],
) -> OpenedGate:
    """Return the gate with its share: the given one, or the loosest that is strict enough.

    Args:
        plan: what the settings ask for.
        scoring: of the gate's stage; can read more.
        scored: its result.
        by: the score that ranks behind the gate.
        ranks: what it is made of, if it is a mean of ranks.
        ahead: makes the selection behind a gate that drops these ids.
    """
    sound = scoring.runner.scorers[Sound.name]
    assert isinstance(sound, Sound), type(sound)
    if plan.budget is not None:
        return OpenedGate(plan.budget, sound)
    estimator, places = estimator_of(sound, scoring, scored, ranks or MeanRank((RankTerm(by),)))
    margins = scored.scores(Sound.name)
    order = np.argsort(-np.nan_to_num(margins.values, nan=-np.inf), kind="stable")
    able = len(margins) - len(margins.problems)
    first = best = None
    wanted = 0  # records that the selection holds without a gate
    for step in STEPS:
        gone = {margins.ids[i]: "gate" for i in order[int(able * step) : able].tolist()}
        chosen = ahead(gone).kept
        wanted = wanted or len(chosen)
        if len(chosen) < wanted:  # so strict a gate leaves too little to fill the budget
            break
        found = estimator.of([places[id_] for id_ in chosen if id_ in places])
        first = first or found
        best = (step, found) if best is None or found.share < best[1].share else best
        if found.share <= plan.most:
            return OpenedGate(budget_of(step), sound, found, first)
    assert best is not None, "the widest gate leaves what there is"
    return OpenedGate(budget_of(best[0]), sound, best[1], first, met=False)


def budget_of(step: Fraction) -> Budget:
    return Budget.parse(f"{float(step):.0%}", of="kept")


def estimator_of(
    sound: Sound, scoring: Scoring, scored: ScoreResult, ranks: MeanRank
) -> tuple[Estimator, dict[str, int]]:
    """Return the estimator of damage, and the place of each id in its pool.

    The copies are read with the passes of the scorers that rank, since damage that slips through the gate is just what
    a score of difficulty likes. Records and copies are compared by rank among the records.
    """
    assert sound.learned is not None
    margins = scored.scores(Sound.name)
    values = {name: scored.scores(name).values for name in ranks.names}
    there = np.flatnonzero(~np.isnan(np.stack([margins.values, *values.values()])).any(axis=0))
    among = {name: column[there] for name, column in values.items()}
    pool = ScoredMargins(margins.values[there], ranks.values(among, among))
    places = {margins.ids[i]: place for place, i in enumerate(there.tolist())}
    own = np.array([places[id_] for id_ in sound.learned.own if id_ in places], dtype=np.int64)
    scored_copies = {name: scores_of_copies(name, sound, scoring) for name in ranks.names}
    able = np.flatnonzero(~np.isnan(np.stack([*scored_copies.values()])).any(axis=0))
    found = [sound.learned.copies[i] for i in able.tolist()]
    copied = ranks.values({name: column[able] for name, column in scored_copies.items()}, among)
    copies = ScoredMargins(np.array([copy.margin for copy in found]), copied)
    kinds = np.array([copy.kind for copy in found])
    return Estimator(pool, pool.some(own), copies, kinds, sound.seed), places


def scores_of_copies(name: str, sound: Sound, scoring: Scoring) -> FloatArray:
    """Return the scores of the damaged copies by a scorer, NaN for a copy that it cannot score."""
    assert sound.learned is not None
    scorer, copies = scoring.runner.scorers[name], sound.learned.copies
    scoring.bench.who = name
    read = scoring.bench.answers([scorer.asks(copy.example) for copy in copies])
    found = [score_of(scorer, copy.example, answers) for copy, answers in zip(copies, read, strict=True)]
    return np.array([value if isinstance(value, float) else np.nan for value in found])


def score_of(scorer: Scorer, example: Example, answers: Mapping[str, Answer | Problem]) -> float | Problem:
    """Return the score of a copy, or why it has none."""
    there = {name: one for name, one in answers.items() if not isinstance(one, Problem)}
    problem = next((one for one in answers.values() if isinstance(one, Problem)), None)
    return scorer.score(example, there) if problem is None or (scorer.partial and there) else problem


def report_gate(
    opened: OpenedGate,
    scored: ScoreResult,
    chosen: SelectResult,
    setup: Setup,
    columns: Sequence[str],
    reporter: Reporter,
) -> dict[str, Any]:
    """Say what the gate does, and return the facts for the run record.

    Args:
        opened: the gate.
        scored: all records with their margins.
        chosen: what it keeps.
        setup: of its stage.
        columns: input columns by which kept shares are shown.
        reporter: prints lines.
    """
    learned = opened.sound.learned
    assert learned is not None
    scores = scored.scores(Sound.name)
    there = scores.values[~np.isnan(scores.values)]
    pool = damage_share(there, np.array([copy.margin for copy in learned.copies]))
    facts: dict[str, Any] = {"keeps": str(opened.budget), "estimated_damage_in_pool": round(pool, 4)}
    reporter.say(f"gate: at most about {pool:.0%} of the pool is damaged, as far as this model can tell")
    if opened.estimate is not None and opened.without is not None:
        for name, found in (("without_gate", opened.without), ("estimated_damage_in_selection", opened.estimate)):
            facts[name] = {"share": round(found.share, 4), "low": round(found.low, 4), "high": round(found.high, 4)}
        reporter.say(auto_line(opened))
    kept = set(chosen.kept)
    examples = {example.id: example for example in setup.source.examples}
    facts["kept_shares"] = shares = kept_shares(scored, examples, columns, kept)
    for what, parts in shares.items():
        listed = ", ".join(f"{value} {share(n, of)} of {of:,}" for value, (n, of) in parts.items())
        reporter.say(f"gate: kept by {what}: {listed}")
    looks = scores.columns["sound_looks_like"]
    worst = np.argsort(np.nan_to_num(scores.values, nan=np.inf), kind="stable")[: min(SUSPICIOUS, len(there))].tolist()
    facts["most_suspicious"] = [
        {"id": scores.ids[i], "sound": round(float(scores.values[i]), 4), "looks_like": looks[i]} for i in worst
    ]
    reporter.say("gate: most suspicious:")
    for i in worst:
        one = examples[scores.ids[i]]
        prompt = one.prompt[-1].content if one.prompt else ""
        where = f" ({one.where})" if one.where else ""
        reporter.say(f"  looks like {looks[i]}{where}: {brief(prompt, 60)} -> {brief(one.response.content, 80)}")
    return facts


def auto_line(opened: OpenedGate) -> str:
    """Return the sentence on a gate that was chosen."""
    assert opened.estimate is not None and opened.without is not None
    if opened.budget.amount == 1:
        return f"gate: none is needed: an estimated {opened.estimate} of the selection is damaged"
    least = "" if opened.met else ", and no gate that fills the selection gets lower"
    return (
        f"gate: keeps {opened.budget}: behind it an estimated {opened.estimate} of the selection is damaged{least}, "
        f"without a gate {opened.without}"
    )


def text_columns(source: DataSource) -> list[str]:
    """Return the input columns that look like categories: words, in some values that repeat; two at most."""
    first, found = source.first_records.examples, list[str]()
    for name in source.columns:
        values = [one.columns.get(name) for one in first]
        words = {value for value in values if isinstance(value, str)}
        if 2 <= len(words) <= min(MOST_VALUES, len(first) // 4) and len(words) < len(first) and name != "id":
            found.append(name)
    return found[:MOST_COLUMNS]


def kept_shares(
    scored: ScoreResult, examples: Mapping[str, Example], columns: Sequence[str], kept: set[str]
) -> dict[str, dict[str, tuple[int, int]]]:
    """Count how many records of each category, length, script, and with or without code, are kept: (kept, all)."""
    scores = scored.scores(Sound.name)
    tokens = scores.columns["response_tokens"]
    able = [i for i in range(len(scores)) if i not in scores.problems]
    edges = np.quantile(tokens[able], [0.25, 0.5, 0.75])
    names = [f"up to {edges[0]:.0f}", f"to {edges[1]:.0f}", f"to {edges[2]:.0f}", f"over {edges[2]:.0f}"]
    kinds: dict[str, Callable[[int], str]] = {
        "response tokens": lambda i: names[int(np.searchsorted(edges, tokens[i]))],
        "script": lambda i: script_of(examples[scores.ids[i]].response.content),
        "code": lambda i: "code" if CODE.search(examples[scores.ids[i]].response.content) else "no code",
    }
    for name in columns:
        if name in scores.columns:
            kinds[name] = lambda i, values=scores.columns[name]: str(values[i])  # type: ignore[misc]
    found = {what: dict(counts(what_of, able, scores.ids, kept, names)) for what, what_of in kinds.items()}
    return {what: parts for what, parts in found.items() if 2 <= len(parts) <= MOST_VALUES}


def counts(
    label: Callable[[int], str], able: Sequence[int], ids: Sequence[str], kept: set[str], first: Sequence[str]
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield label -> (kept, all): labels in a given order first, then the most frequent."""
    labels = {i: label(i) for i in able}
    all_, there = Counter(labels.values()), Counter(labels[i] for i in able if ids[i] in kept)
    for name in [*(name for name in first if name in all_), *(n for n, _ in all_.most_common() if n not in first)]:
        yield name, (there[name], all_[name])


def script_of(text: str) -> str:
    """Return the script of most letters in the first 200 characters, such as `latin`."""
    found = Counter(
        unicodedata.name(letter, "").partition(" ")[0] for letter in text[:200] if letter.isalpha()
    ).most_common(1)
    return found[0][0].lower() if found and found[0][0] in SCRIPTS else "other"

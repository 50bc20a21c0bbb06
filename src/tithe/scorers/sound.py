"""Sound or damaged, by the scored model's own hidden states."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np

from tithe.errors import DataError, SettingsError
from tithe.gate.damage import DamagedCopy, draw_records, make_copies
from tithe.gate.estimate import damage_share
from tithe.gate.probes import READ, Drawn, SoundFit, SoundMargin, fit_sound
from tithe.records import Answer, Ask, Example, Nll, Problem, States, Vector
from tithe.scorers.base import LEARNED, Scorer, Workbench, finite, given

LOWEST_AUC = 0.7  # of a model that can tell damage
MOST_CORRECTED = 0.2  # share of damage in the pool for which its AUC is corrected


@dataclass(frozen=True)
class ReadCopy:
    """A damaged copy of which the model has read the states.

    Args:
        example: the copy.
        kind: name of its damage.
        margin: by probes that have seen neither it nor its record.
    """

    example: Example
    kind: str
    margin: float


@dataclass(frozen=True)
class Learned:
    """What preparing found out.

    Args:
        kinds: names of the probes' outputs after those of which the margin is made.
        margin: makes the margin.
        own: id -> outputs, for drawn records: by probes that have not seen them.
        copies: the damaged copies.
        seed: random seed of the draw.
    """

    kinds: tuple[str, ...] = ()
    margin: SoundMargin = field(default_factory=SoundMargin)
    own: Mapping[str, Sequence[float]] = field(default_factory=dict)
    copies: Sequence[ReadCopy] = ()
    seed: int = 0


@dataclass(frozen=True)
class Sound(Scorer):
    """High: the model's hidden states look like those of the pool's records, not like those of damaged copies of them.

    Paper:    none: our own, from the idea of CPQS (a head on the scored model's hidden states) and tiers that need no
              labels and no other model
    Formula:  -a log(sum(exp(-m))) + c, log odds of sound against damaged at even odds. The sum is over four ridge
              regressions m = w . x + b, and one on the mean NLL of the response. x is, in five layers, the mean state
              of the response, the state of its last token, and the product of the mean states of prompt and response,
              all standardised; the first regression reads all three, the others one each. So damage that shows in one
              of them is enough
    Reads:    given, hidden states and nll; prompt + response tokens forward, and as much for `records` copies
    Range:    any number, in log odds; 0 is undecided. `probability` is its logistic, `looks_like` the most likely kind
              of damage, `looks_like_probability` the odds of that kind against a sound record as a probability
    Differs:  from the same probe with labels: the sound records are drawn from this very pool, damaged ones and all;
              `trim` leaves out the worst of them

    Args:
        records: how many records are drawn and damaged.
        copies: damaged copies of each.
        kinds: kinds of damage, separated by `+`; by default all that are installed.
        trim: share of the drawn records, those that look most damaged, that are not taken for sound.
        seed: random seed of what is drawn.
    """

    name: ClassVar[str] = "sound"
    unit: ClassVar[str] = "log odds"
    reads: ClassVar[str] = "given: hidden states, nll"
    also: ClassVar[tuple[str, ...]] = ("probability", "looks_like_probability")
    labels: ClassVar[tuple[str, ...]] = ("looks_like",)

    records: int = 400
    copies: int = 1
    kinds: str = "all"
    trim: float = 0.4
    seed: int = 0
    along: tuple[str, ...] = field(default=(), metadata=LEARNED, repr=False, compare=False)
    learned: Learned | None = field(default=None, metadata=LEARNED, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.records < 1 or self.copies < 1:
            raise SettingsError(f"`sound` draws at least one record and copy, not {self.records} and {self.copies}")
        if not 0 <= self.trim <= 0.5:
            raise SettingsError(f"`trim` is between 0 and 0.5, not {self.trim}")

    def prepare(self, bench: Workbench) -> Self:
        drawn = draw_records(bench.examples, self.records, self.seed)
        if len(drawn) < self.records and not bench.made_up:
            raise DataError(
                f"`sound` draws {self.records:,} records, and there are {len(drawn):,} different ones",
                hint=f"`sound(records={max(1, len(drawn))})` draws fewer; from about 200 on it learns something",
            )
        names = () if self.kinds == "all" else tuple(self.kinds.split("+"))
        copies = make_copies(drawn, bench.examples, bench.damage_kinds(names), copies=self.copies, seed=self.seed)
        # The drawn records are read once, with all that is asked of them later.
        read = bench.answers(
            [self.asks_with(one, "parts") for one in drawn] + [asks_of(copy.example, "parts") for copy in copies]
        )
        if bench.made_up:
            return replace(self, learned=Learned())
        sample, rows = sample_of(drawn, copies, read)
        fit = fit_sound(sample, trim=self.trim)
        report(bench, sample, fit)
        examples = [*drawn, *(copy.example for copy in copies)]
        read_ones = [examples[row] for row in rows]
        own, damaged = dict[str, Sequence[float]](), list[ReadCopy]()
        for i, one in enumerate(read_ones):
            if sample.kinds[i]:
                damaged.append(ReadCopy(one, str(sample.kinds[i]), float(fit.margins[i])))
            else:
                own[one.id] = [float(fit.margins[i]), *fit.looks[i].tolist()]
        bench.keep_probes(fit.probes)
        bench.keep("damage", sample_table(read_ones, sample, fit))
        return replace(self, learned=Learned(fit.kinds, fit.margin, own, damaged, self.seed))

    def asks(self, example: Example) -> dict[str, Ask]:
        drawn = self.learned is not None and example.id in self.learned.own
        return self.asks_with(example, "parts" if drawn else "probes")

    def asks_with(self, example: Example, readout: str) -> dict[str, Ask]:
        return asks_of(example, readout) | {one: Ask(given(example), one) for one in self.along}

    def score(self, example: Example, answers: Mapping[str, Answer]) -> float | Problem:
        return finite(self.outputs(example, answers)[0], "sound")

    def more(self, example: Example, answers: Mapping[str, Answer]) -> Mapping[str, float | str]:
        assert self.learned is not None, "prepare comes first"
        margin, *looks = self.outputs(example, answers)
        found: dict[str, float | str] = {"probability": logistic(margin)}
        if self.learned.kinds:
            best = int(np.argmax(looks))
            found |= {"looks_like": self.learned.kinds[best], "looks_like_probability": logistic(looks[best])}
        return found

    def outputs(self, example: Example, answers: Mapping[str, Answer]) -> Sequence[float]:
        """Return the margin, and the log odds of each kind of damage."""
        assert self.learned is not None, "prepare comes first"
        if example.id in self.learned.own:
            return self.learned.own[example.id]
        answer, loss = answers["given"], answers["loss"]
        assert isinstance(answer, Vector) and isinstance(loss, Nll), f"{type(answer).__name__}, {type(loss).__name__}"
        outputs = answer.values.astype(np.float64)
        margin = self.learned.margin(outputs[: len(READ)], np.float64(loss.mean))
        return [float(margin), *outputs[len(READ) :].tolist()]


def asks_of(example: Example, readout: str) -> dict[str, Ask]:
    """Return what is read of a record or copy: its states by one of two readouts, and its loss."""
    return {"given": Ask(given(example), readout), "loss": Ask(given(example), "nll")}


def logistic(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > -700 else 0.0  # exp overflows beyond 709


def sample_of(
    drawn: Sequence[Example], copies: Sequence[DamagedCopy], read: Sequence[Mapping[str, Answer | Problem]]
) -> tuple[Drawn, list[int]]:
    """Return what the model showed of the drawn records and copies, and which of them the rows are.

    A record that the model cannot read is left out with its copies.

    Raises:
        DataError: nothing is left.
    """
    examples = [*drawn, *(copy.example for copy in copies)]
    places = [*range(len(drawn)), *(copy.place for copy in copies)]
    kinds = [*[""] * len(drawn), *(copy.kind for copy in copies)]
    whole = [isinstance(found["given"], States) and isinstance(found["loss"], Nll) for found in read]
    able = {place for place in range(len(drawn)) if whole[place]}
    rows = [i for i in range(len(read)) if places[i] in able and whole[i]]
    with_copy = {places[i] for i in rows if kinds[i]}
    rows = [i for i in rows if places[i] in with_copy]
    if not rows:
        problems = [answer.reason for one in read for answer in one.values() if isinstance(answer, Problem)]
        why = problems[0] if problems else "none has a copy"
        raise DataError(f"the model can read none of the {len(drawn):,} drawn records and their copies: {why}")
    states = [read[i]["given"].values for i in rows]  # type: ignore[union-attr]
    return Drawn(
        np.stack(states),
        np.array([kinds[i] for i in rows]),
        np.array([places[i] for i in rows]),
        np.array([read[i]["loss"].mean for i in rows]),  # type: ignore[union-attr]
        np.array([float(len(examples[i].response.content)) for i in rows]),
    ), rows


def report(bench: Workbench, sample: Drawn, fit: SoundFit) -> None:
    """Record and print how well the model tells damage.

    Raises:
        DataError: it cannot.
    """
    whole = sample.whole
    share = damage_share(fit.margins[whole], fit.margins[~whole])
    clean = clean_auc(fit.auc, share)
    bench.note("drawn", int(whole.sum()))
    bench.note("copies", int((~whole).sum()))
    bench.note("auc", round(clean, 4))
    bench.note("auc_with_the_pools_damage", round(fit.auc, 4))
    bench.note("auc_of_length", round(fit.auc_length, 4))
    bench.note("auc_by_kind", rounded(fit.auc_by_kind))
    bench.note("auc_by_kind_if_not_taught", rounded(fit.auc_untaught))
    bench.note("estimated_damage", round(share, 4))
    listed = ", ".join(f"{kind} {value:.2f}" for kind, value in fit.auc_by_kind.items())
    bench.say(
        f"sound: {int(whole.sum()):,} drawn records against {int((~whole).sum()):,} damaged copies, held out: "
        f"AUC {clean:.2f} ({fit.auc:.2f} with the damage that the records have, length alone {fit.auc_length:.2f}; "
        f"by kind, with it: {listed})"
    )
    if not tells(fit):
        raise DataError(
            f"this model cannot tell damage in this data: AUC {clean:.2f} on held-out damaged copies, "
            f"{fit.auc_length:.2f} by their length alone, and at least {LOWEST_AUC} is needed",
            hint="take a larger model, or leave the gate out",
        )


def clean_auc(auc: float, share: float) -> float:
    """Return the AUC against records without damage, from that against records of which a share is damaged.

    A damaged record is above a copy as often as below it: AUC = (1 - p) AUC_clean + p / 2. For p at most a fifth is
    taken: a model that cannot tell takes most of the pool for damaged, and must not be believed for that.
    """
    share = min(share, MOST_CORRECTED)
    return (auc - share / 2) / (1 - share)


def tells(fit: SoundFit) -> bool:
    """Tell whether a model can tell damage: better than length alone, and well above chance."""
    whole = fit.whole
    share = damage_share(fit.margins[whole], fit.margins[~whole])
    return clean_auc(fit.auc, share) >= LOWEST_AUC and fit.auc > fit.auc_length


def rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in values.items()}


def sample_table(examples: Sequence[Example], sample: Drawn, fit: SoundFit) -> dict[str, Any]:
    """Make the table `damage`: one row per drawn record or copy, with its cross-fitted margin."""
    return {
        "id": [one.id for one in examples],
        "kind": sample.kinds.tolist(),
        "sound": np.asarray(fit.margins),
        "taught": np.asarray(fit.kept),
    }

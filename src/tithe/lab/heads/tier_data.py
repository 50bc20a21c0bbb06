"""Read labelled responses: the tier of each, its prompt, and the side of the split that the prompt is on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from tithe.data.counts import RecordCounts
from tithe.data.dataset import Dataset
from tithe.errors import DataError, ModelError, SettingsError, did_you_mean
from tithe.foreign import demand_regular, foreign
from tithe.lab.heads.settings import HeadSettings
from tithe.planner import without_details
from tithe.records import BadRow, Example
from tithe.run.table import prompt_key

if TYPE_CHECKING:
    from tithe.engine.readouts.head_readout import HeadReadout

SIDES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
}
LEAST_PROMPTS = 5  # of each tier on the side that a head is judged on: fewer give no useful interval
LEAST = 20  # responses; with fewer, neither a head nor a report means anything
PROMPTS = "prompts.parquet"  # in a head's folder: the prompts it was trained on
SIDE_NAMES = ("train", "validation", "test")
Rows: TypeAlias = npt.NDArray[np.int64]
Groups: TypeAlias = Sequence[Any] | npt.NDArray[Any]


@dataclass(frozen=True)
class Tiers:
    """Responses of two tiers.

    Args:
        examples: in input order.
        labels: (examples,) 1 for the high tier, 0 for the low one.
        prompts: (examples,) a key of each prompt.
        sides: (examples,) `train`, `validation` or `test`, if a column names them.
        left_out: reason -> number of records left out.
        read: counts of the records read.
    """

    examples: Sequence[Example]
    labels: npt.NDArray[np.int64]
    prompts: npt.NDArray[np.str_]
    sides: npt.NDArray[np.str_] | None
    left_out: Mapping[str, int]
    read: RecordCounts = field(default_factory=RecordCounts)

    def __len__(self) -> int:
        return len(self.examples)

    def only(self, places: Sequence[int], reasons: Mapping[str, int]) -> Tiers:
        """Return the responses at some places, and add the reasons for leaving out the others."""
        at = np.asarray(places, dtype=np.int64)
        return Tiers(
            [self.examples[i] for i in at.tolist()],
            self.labels[at],
            self.prompts[at],
            None if self.sides is None else self.sides[at],
            Counter(self.left_out) + Counter(reasons),
            self.read,
        )


def read_tiers(dataset: Dataset, settings: HeadSettings) -> Tiers:
    """Read all responses of a data set with their tiers.

    Raises:
        DataError: no tier column, an unknown tier, one tier only, or too few responses.
    """
    examples, bad, read = list[Example](), Counter[str](), RecordCounts(deed="read")
    for item in read.counting(dataset):
        if isinstance(item, BadRow):
            bad[without_details(item.reason)] += 1
        else:
            examples.append(item)
    for note in [note for note in read.notes if note.startswith(f"`{settings.tier_column}` ")]:
        del read.notes[note]  # this column is read after all: it names the tiers
    if not examples:
        raise DataError(
            f"no record of `{dataset.source}` can be read: {sum(bad.values()):,} bad rows, {', '.join(bad)}",
            hint="pairs, with columns `high` and `low`, are first made into tiers: `tithe tiers import`",
        )
    named = [example for example in examples if tier_of(example, settings)]
    if not named:
        label_of(examples[0], settings)  # raises: the column is missing
    bad["no tier"] += len(examples) - len(named)
    examples = named
    labels = np.array([label_of(example, settings) for example in examples], dtype=np.int64)
    demand_both(labels, dataset.source, settings)
    column = settings.split_column
    return Tiers(
        examples,
        labels,
        np.array([prompt_key(example) for example in examples]),
        None if column is None else np.array([side_of(example, column) for example in examples]),
        +bad,
        read,
    )


def tier_of(example: Example, settings: HeadSettings) -> str:
    """Return the name of an example's tier; empty if it has none. Whole numbers lose their decimal point."""
    value = example.columns.get(settings.tier_column)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None or value != value else str(value)  # a missing value may be NaN


def label_of(example: Example, settings: HeadSettings) -> int:
    """Return 1 for the high tier, 0 for the low one.

    Raises:
        DataError: the example has no tier, or an unknown one.
    """
    name = settings.tier_column
    tier = tier_of(example, settings)
    if not tier:
        raise DataError(
            f"{example.where}: there is no column `{name}` that says which tier the response belongs to",
            hint=f"{did_you_mean(name, example.columns)}; `--tier-column` names it, `tithe tiers import` makes one",
        )
    if tier in settings.high_tier:
        return 1
    if tier in settings.low_tier:
        return 0
    known = ", ".join(f"`{one}`" for one in (*settings.high_tier, *settings.low_tier))
    raise DataError(
        f"{example.where}: tier `{tier[:60]}` is none of {known}",
        hint="`--high-tier` and `--low-tier` say which names count as which, with commas between several",
    )


def side_of(example: Example, column: str) -> str:
    value = example.columns.get(column)
    if str(value) not in SIDES:
        raise DataError(
            f"{example.where}: `{column}` is `{str(value)[:60]}`, which names no side",
            hint=f"there is: {', '.join(SIDES)}",
        )
    return SIDES[str(value)]


def demand_both(labels: npt.NDArray[np.int64], source: str, settings: HeadSettings) -> None:
    high, low = int(labels.sum()), int(len(labels) - labels.sum())
    if not high or not low:
        which = settings.low_tier if high else settings.high_tier
        raise DataError(
            f"`{source}` has responses of one tier only: {high} high, {low} low",
            hint=f"a head learns the difference of two: {' or '.join(which)} is missing in `{settings.tier_column}`",
        )
    if len(labels) < LEAST:
        raise DataError(
            f"`{source}` has {len(labels)} responses, too few to learn from or to judge by",
            hint=f"the least is {LEAST}; some hundred prompts with both tiers give a head worth looking at",
        )


def count_reasons(reasons: Iterable[Any]) -> Counter[str]:
    return Counter(without_details(str(reason)) for reason in reasons)


def split_by_prompt(
    groups: Groups, *, shares: Sequence[float] = (0.8, 0.1, 0.1), names: Sequence[str] = SIDE_NAMES, seed: int
) -> dict[str, Rows]:
    """Split rows so that all rows of a prompt are on one side.

    Args:
        groups: a key of each row's prompt.
        shares: of the prompts, for each side; their sum is 1. A side with a share gets at least one prompt.
        names: of the sides.
        seed: random seed; the order of the rows does not matter.

    Returns:
        Rows of each side, ascending.

    Raises:
        SettingsError: the shares do not sum to 1.
        DataError: there are fewer prompts than sides.
    """
    if len(shares) != len(names) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise SettingsError(
            f"the shares {list(shares)} of {', '.join(names)} are not parts of 1", hint="for example 0.8, 0.1, 0.1"
        )
    # `unique` sorts the prompts, so that the order of the rows does not matter.
    prompts, of_row = np.unique(np.asarray(groups), return_inverse=True)
    wanted = sum(share > 0 for share in shares)
    if len(prompts) < wanted:
        raise DataError(f"{len(prompts)} prompts cannot be split into {wanted} sides", hint="label more prompts")
    sizes = whole_parts(len(prompts), shares)
    side_of_prompt = np.empty(len(prompts), dtype=np.int64)
    side_of_prompt[np.random.default_rng(seed).permutation(len(prompts))] = np.repeat(np.arange(len(names)), sizes)
    return {name: np.flatnonzero(side_of_prompt[of_row] == side) for side, name in enumerate(names)}


def whole_parts(total: int, shares: Sequence[float]) -> list[int]:
    """Divide a total by largest remainders; then every share gets at least 1, taken from the largest part."""
    exact = np.array(shares) * total
    sizes = np.floor(exact + 1e-9).astype(np.int64)  # 0.29 * 100 is 28.999...
    for place in np.argsort(sizes - exact, kind="stable")[: total - sizes.sum()]:
        sizes[place] += 1
    for place, share in enumerate(shares):
        if share > 0 and sizes[place] == 0:
            sizes[np.argmax(sizes)] -= 1
            sizes[place] = 1
    return [int(size) for size in sizes]


def demand_disjoint(groups: Groups, split: Mapping[str, npt.ArrayLike]) -> None:
    """Check that no prompt is on two sides: a head would be judged on prompts that it was trained on.

    Args:
        groups: a key of each row's prompt.
        split: side -> its rows.

    Raises:
        DataError: a prompt is on two sides; the message names it and both sides.
    """
    names = np.asarray(groups)
    sides = [(side, set(names[np.asarray(rows, dtype=np.int64)].tolist())) for side, rows in split.items()]
    for place, (side, prompts) in enumerate(sides):
        for other, others in sides[:place]:
            if both := prompts & others:
                raise DataError(
                    f"{len(both)} prompts are in `{other}` and in `{side}`, e.g. `{str(min(both, key=str))[:60]}`",
                    hint="split by prompt: a head is judged on prompts it never saw",
                )


def unseen_tiers(tiers: Tiers, readout: HeadReadout, settings: HeadSettings) -> Tiers:
    """Return the responses to prompts that a head was not trained on.

    Raises:
        ModelError: the head's list of training prompts cannot be read.
        DataError: the head was trained on some prompts, and `drop_seen` is not set.
    """
    import pyarrow.parquet as pq

    head = readout.folder
    if "imported" in readout.card.training:
        return tiers  # nobody recorded its training prompts
    said = f"`{head / PROMPTS}` cannot be read, so it is not known which prompts the head was trained on"
    hint = "copy the whole folder of the head, or train anew"
    with foreign(ModelError, said, hint):
        demand_regular(head / PROMPTS, ModelError, hint)
        with pq.ParquetFile(head / PROMPTS) as file:
            table = file.read()
        seen_as = dict(zip(table["prompt"].to_pylist(), table["side"].to_pylist(), strict=True))
    # Validation prompts count as seen: training stopped by them, or used them.
    seen = {prompt for prompt, side in seen_as.items() if side != "test"}
    there = [i for i, prompt in enumerate(tiers.prompts.tolist()) if prompt not in seen]
    gone = len(tiers) - len(there)
    if gone and not settings.drop_seen:
        raise DataError(
            f"the head `{head}` was trained on the prompts of {gone:,} of these {len(tiers):,} responses: "
            "its margins there prove nothing",
            hint="`--drop-seen` leaves them out; `held_out.parquet` has its margins on unseen prompts",
        )
    return tiers.only(there, {"the head was trained on its prompt": gone} if gone else {})


def demand_judgeable(tiers: Tiers, rows: Rows) -> None:
    """Check before training that the test side is large enough to judge by; an empty one is allowed.

    Raises:
        DataError: it has too few prompts of a tier.
    """
    for label, tier in ((1, "high"), (0, "low")) if len(rows) else ():
        there = len(set(tiers.prompts[rows][tiers.labels[rows] == label].tolist()))
        if there < LEAST_PROMPTS:
            raise DataError(
                f"judging a head needs at least {LEAST_PROMPTS} prompts with a {tier} response, and the test side has "
                f"{there}",
                hint="label more prompts, or give a larger `--test-share`; with 0 there is no report",
            )


def count_in_both(tiers: Tiers) -> int:
    """Count the responses that occur in both tiers with the same prompt."""
    texts = [(prompt, one.response.content) for prompt, one in zip(tiers.prompts.tolist(), tiers.examples, strict=True)]
    high, low = ({texts[i] for i in np.flatnonzero(tiers.labels == label).tolist()} for label in (1, 0))
    return sum(text in high and text in low for text in texts)

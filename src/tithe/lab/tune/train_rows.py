"""Turn examples into training rows: ids of the `given` pass, labels on exactly the tokens that scoring reads.

Several examples may be packed into one row with TRL, after a check that none attends to another.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tithe.data.counts import RecordCounts, RemarkCounts
from tithe.data.render import EncodedExample, Renderer
from tithe.errors import SettingsError
from tithe.planner import windows, without_details
from tithe.records import BadRow, Example, Pass, Problem

WINDOW = 1024  # examples tokenised in one call
UNREAD = -100  # label of a token without a loss, as torch and TRL expect


@dataclass(frozen=True, slots=True)
class TrainRow:
    """One example as token ids, or several packed ones.

    Args:
        id: of the example.
        ids: tokens that the model reads.
        first: position of the first token with a loss.
        cut_prompt: tokens cut from the prompt.
        cut_response: tokens cut from the response.
        parts: lengths of the examples in a packed row.
        marked: labels of a packed row.
    """

    id: str
    ids: list[int]
    first: int
    cut_prompt: int = 0
    cut_response: int = 0
    parts: tuple[int, ...] = ()
    marked: tuple[int, ...] = ()

    @property
    def labels(self) -> list[int]:
        """Labels: -100 before the response, then its ids."""
        return list(self.marked) if self.parts else [UNREAD] * self.first + self.ids[self.first :]


@dataclass(frozen=True)
class EosEnding:
    """Appends EOS to responses for which the template writes no end of turn.

    Args:
        plain: a renderer that writes no end of turn: a response as long as here has none.
        eos: id to append; None if the tokenizer has no EOS.
        max_length: of a row.
    """

    plain: Renderer
    eos: int | None
    max_length: int

    def lacks(self, encoded: Sequence[EncodedExample | Problem], examples: Sequence[Example]) -> list[bool]:
        """Return whether each response lacks an end of turn."""
        plain = self.plain.encode(examples)
        return [
            isinstance(one, EncodedExample)
            and isinstance(other, EncodedExample)
            and len(one.response) == len(other.response)
            and not (len(one.response) and one.response[-1] == self.eos)
            for one, other in zip(encoded, plain, strict=True)
        ]

    def complete(self, row: TrainRow) -> TrainRow:
        """Return the row with EOS appended, if there is an EOS and it fits."""
        if self.eos is None or row.cut_response or len(row.ids) >= self.max_length:
            return row
        return replace(row, ids=[*row.ids, self.eos])


@dataclass
class TrainRows:
    """The rows of a data set, and counts of the examples that were left out or cut."""

    rows: list[TrainRow] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    examples: int = 0
    truncated_prompts: int = 0
    truncated_responses: int = 0
    response_tokens_cut: int = 0
    remarks: RemarkCounts = field(default_factory=RemarkCounts)
    records: RecordCounts = field(default_factory=lambda: RecordCounts(deed="trained on"))
    ends_added: int = 0
    ends_missing: int = 0

    def add(self, example: Example, got: Pass | Problem, ending: EosEnding | None = None) -> None:
        """Add an example as a row, or count why it cannot be one.

        Args:
            example: to add.
            got: its pass, or why it has none.
            ending: for a response without an end of turn.
        """
        first = max(got.start, 1) if isinstance(got, Pass) else 0  # the first token is predicted from nothing
        if isinstance(got, Pass) and first < len(got.ids):
            row = TrainRow(example.id, got.ids.tolist(), first, got.cut_prompt, got.cut_response)
            if ending is not None:
                ended = ending.complete(row)
                self.ends_added += ended is not row
                self.ends_missing += ended is row and not row.cut_response
                row = ended
            self.take(row)
        else:
            reason = got.reason if isinstance(got, Problem) else "its only token has no context"
            self.leave(without_details(reason))

    def take(self, row: TrainRow) -> None:
        self.examples += 1
        self.rows.append(row)
        self.truncated_prompts += bool(row.cut_prompt)
        self.truncated_responses += bool(row.cut_response)
        self.response_tokens_cut += row.cut_response

    def leave(self, reason: str) -> None:
        self.examples += 1
        self.left_out[reason] += 1

    def only(self, names: Collection[str]) -> TrainRows:
        """Return the rows of some examples; truncation is counted anew, remarks remain those of all examples."""
        found = TrainRows(remarks=self.remarks, records=self.records)
        for row in self.rows:
            if row.id in names:
                found.take(row)
        return found

    def counts(self) -> dict[str, Any]:
        """Return the counts for the record; every example is trained on, or left out for a reason."""
        return {
            "examples": self.examples,
            "trained_on": len(self.rows),
            "left_out": dict(self.left_out),
            "tokens": sum(len(row.ids) for row in self.rows),
            "response_tokens": sum(len(row.ids) - row.first for row in self.rows),
            "truncated_prompts": self.truncated_prompts,
            "truncated_responses": self.truncated_responses,
            "response_tokens_cut": self.response_tokens_cut,
            **self.remarks.as_dict(),
            "records": self.records.records,
            "notes": self.records.as_dict()["notes"],
            "ends_added": self.ends_added,
            "ends_missing": self.ends_missing,
        }


def read_rows(items: Iterable[Example | BadRow], renderer: Renderer, ending: EosEnding | None = None) -> TrainRows:
    """Render examples as scoring does.

    Args:
        items: of a data set; bad rows are left out with their reasons.
        renderer: decides what the response is and where it is cut.
        ending: appends EOS if the template writes no end of turn; None appends nothing.
    """
    found = TrainRows()
    for window in windows(found.records.counting(items), WINDOW):
        good = [item for item in window if isinstance(item, Example)]
        for item in window:
            if isinstance(item, BadRow):
                found.leave(item.reason)
        encoded = renderer.encode(good)
        lacking = ending.lacks(encoded, good) if ending is not None else [False] * len(good)
        for example, one, lacks in zip(good, encoded, lacking, strict=True):
            if isinstance(one, EncodedExample):
                found.remarks.add(one.remarks)
            got = one if isinstance(one, Problem) else renderer.build("given", one)
            found.add(example, got, ending if lacks else None)
    return found


SOME = 48  # tokens of an example that the packing check reads


def pack_rows(rows: Sequence[TrainRow], length: int) -> list[TrainRow]:
    """Pack whole examples into rows with TRL's best-fit algorithm; no example is cut or split."""
    from datasets import Dataset, disable_progress_bars, enable_progress_bars
    from trl.data_utils import pack_dataset

    disable_progress_bars()
    try:
        columns = {"input_ids": [row.ids for row in rows], "labels": [row.labels for row in rows]}
        full = pack_dataset(Dataset.from_dict(columns), length, "bfd")
    finally:
        enable_progress_bars()
    return [
        TrainRow("", one["input_ids"], 0, parts=tuple(one["seq_lengths"]), marked=tuple(one["labels"]))
        for one in full.to_list()
    ]


def demand_boundaries(trainer: Any, rows: Sequence[TrainRow]) -> None:
    """Check that an example has the same likelihood packed with another as by itself.

    Raises:
        SettingsError: this model's attention crosses the boundary between examples.
    """
    import torch

    ids = next(row.ids for row in rows)[:SOME]
    half = max(2, len(ids) // 2)
    labels = [UNREAD, *ids[1:half]]  # the first token has no context in either row
    alone = {"input_ids": ids[:half], "labels": labels, "seq_lengths": [half]}
    first = ids[::-1][:half]  # another example: the same ids backwards
    both = {
        "input_ids": first + ids[:half],
        "labels": [UNREAD] * len(first) + labels,
        "seq_lengths": [len(first), half],
    }
    with torch.no_grad():
        got = [nll(trainer, row) for row in (alone, both)]
    if not torch.isclose(got[0], got[1], rtol=1e-3):
        how = trainer.model.config._attn_implementation
        raise SettingsError(
            f"`packing` would let examples read each other: this model's attention (`{how}`) does not stop at their "
            f"boundaries (NLL {got[0].item():.4g} alone, {got[1].item():.4g} after another)",
            hint="train without `packing`: batches of like length hold little padding",
        )


def collate(trainer: Any, rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return rows as a batch on the training device."""
    batch = trainer.data_collator(list(rows))
    return {name: value.to(trainer.args.device) if hasattr(value, "to") else value for name, value in batch.items()}


def nll(trainer: Any, row: dict[str, Any]) -> Any:
    """Return the summed NLL of a row's labels, by the forward path that training takes."""
    inputs = collate(trainer, [row])
    if trainer.narrow:
        return trainer.model(**inputs, use_cache=False, narrow_head=True)["loss"]
    return -trainer.model(**inputs, fused_lm_head=True).log_probs.sum()

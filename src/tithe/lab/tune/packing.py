"""Pack several examples into one row with TRL, and check that none sees another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tithe.errors import SettingsError
from tithe.lab.tune.train_rows import UNREAD, TrainRow

SOME = 48  # tokens of each example that the check reads


def packed(rows: Sequence[TrainRow], length: int) -> list[TrainRow]:
    """Return rows of several whole examples each, by TRL's best fit; no example is cut or split."""
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
    """Check that an example has the same likelihood in a row with another as by itself.

    Raises:
        SettingsError: it has not: this model's attention reads over the boundary.
    """
    import torch

    ids = next(row.ids for row in rows)[:SOME]
    half = max(2, len(ids) // 2)
    labels = [UNREAD, *ids[1:half]]
    alone = {"input_ids": ids[:half], "labels": labels, "seq_lengths": [half]}
    first = ids[::-1][:half]
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


def nll(trainer: Any, row: dict[str, Any]) -> Any:
    """Return the summed NLL of a row's labels, by the forward path that training takes."""
    batch = trainer.data_collator([row])
    inputs = {name: v.to(trainer.args.device) if hasattr(v, "to") else v for name, v in batch.items()}
    if trainer.narrow:
        return trainer.model(**inputs, use_cache=False, narrow_head=True)["loss"]
    return -trainer.model(**inputs, fused_lm_head=True).log_probs.sum()

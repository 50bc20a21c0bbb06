"""What a head is judged by, and what is written down of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tithe.errors import DataError, MissingExtraError, ModelError
from tithe.foreign import demand_regular, foreign
from tithe.lab.heads.settings import HeadSettings
from tithe.lab.heads.tier_data import Rows, Tiers
from tithe.lab.heads.tier_states import TierStates
from tithe.report.reporter import Reporter

if TYPE_CHECKING:
    import pyarrow as pa

    from tithe.engine.heads.base import StateHead
    from tithe.engine.readouts.head_readout import HeadReadout
    from tithe.lab.heads.head_judgement import HeadReport

PROMPTS, PLOTS = "prompts.parquet", ("layers.svg", "layers.png")


def unseen(tiers: Tiers, readout: HeadReadout, settings: HeadSettings) -> Tiers:
    """Responses to prompts that a head was not trained on.

    Raises:
        ModelError: which these are is not to be read.
        DataError: there are such prompts, and they are not to be left out; or there are no others.
    """
    import pyarrow.parquet as pq

    head = readout.folder
    if "imported" in readout.card.training:
        return tiers  # what it has seen is not known here
    said = f"`{head / PROMPTS}` cannot be read, so it is not known which prompts the head was trained on"
    hint = "copy the whole folder of the head, or train anew"
    with foreign(ModelError, said, hint):
        demand_regular(head / PROMPTS, ModelError, hint)
        with pq.ParquetFile(head / PROMPTS) as file:
            table = file.read()
        seen_as = dict(zip(table["prompt"].to_pylist(), table["side"].to_pylist(), strict=True))
    seen = {prompt for prompt, side in seen_as.items() if side != "test"}
    there = [i for i, prompt in enumerate(tiers.prompts.tolist()) if prompt not in seen]
    gone = len(tiers) - len(there)
    if gone and not settings.drop_seen:
        raise DataError(
            f"the head `{head}` was trained on the prompts of {gone:,} of these {len(tiers):,} responses: "
            "what it says of them proves nothing",
            hint="`--drop-seen` leaves them out; `held_out.parquet` has the report of those it never saw",
        )
    return tiers.only(there, {"the head was trained on its prompt": gone} if gone else {})


def demand_judgeable(tiers: Tiers, rows: Rows) -> None:
    """Refuse a side that is too small to be judged by, before anything is trained."""
    from tithe.lab.heads.head_judgement import LEAST

    for label, tier in ((1, "high"), (0, "low")) if len(rows) else ():
        there = len(set(tiers.prompts[rows][tiers.labels[rows] == label].tolist()))
        if there < LEAST:
            raise DataError(
                f"a head is judged by at least {LEAST} prompts with a {tier} response, and there "
                f"{'is' if there == 1 else 'are'} {there} on the test side",
                hint="label more prompts, or give a larger `--test-share`; 0 takes no report",
            )


def in_both(tiers: Tiers) -> int:
    """How many responses stand, to the same prompt, in both tiers."""
    texts = [(prompt, one.response.content) for prompt, one in zip(tiers.prompts.tolist(), tiers.examples, strict=True)]
    high, low = ({texts[i] for i in np.flatnonzero(tiers.labels == label).tolist()} for label in (1, 0))
    return sum(text in high and text in low for text in texts)


def judged(
    states: TierStates, head: StateHead, rows: Rows, settings: HeadSettings
) -> tuple[HeadReport | None, pa.Table]:
    """The report of a head on some responses, and what it said of each."""
    import pyarrow as pa

    from tithe.lab.heads.head_judgement import judge

    margins = states.margins(head, rows.tolist())
    tiers, lengths, nlls = states.tiers, states.lengths[rows], states.nlls[rows]
    table = pa.table(
        {
            "id": [tiers.examples[i].id for i in rows.tolist()],
            "prompt": tiers.prompts[rows].tolist(),
            "tier": ["high" if label else "low" for label in tiers.labels[rows]],
            "margin": margins,
            "nll_given": nlls,
            "response_tokens": lengths,
        }
    )
    there = ~(np.isnan(margins) | np.isnan(nlls))
    if not len(rows):
        return None, table
    at = rows[there]
    report = judge(
        margins[there],
        tiers.labels[at],
        tiers.prompts[at],
        lengths[there],
        nlls[there],
        seed=settings.seed,
        resamples=settings.resamples,
    )
    return report, table


def counts_of(states: TierStates, sides: Mapping[str, Rows]) -> dict[str, Any]:
    tiers = states.tiers
    out: dict[str, Any] = {
        "responses": len(tiers),
        "high": int(tiers.labels.sum()),
        "low": int(len(tiers) - tiers.labels.sum()),
        "prompts": len(set(tiers.prompts.tolist())),
        "left_out": dict(tiers.left_out),
        "truncated_responses": sum(pass_.cut_response > 0 for pass_ in states.passes),
        "truncated_prompts": sum(pass_.cut_prompt > 0 for pass_ in states.passes),
        "records": tiers.read.records,
        "notes": tiers.read.as_dict()["notes"],
        **states.remarks.as_dict(),
    }
    return out | {f"{name}_responses": len(rows) for name, rows in sides.items()}


def prompts_of(tiers: Tiers, sides: Mapping[str, Rows]) -> pa.Table:
    """Which prompts were on which side: prompts as hashes."""
    import pyarrow as pa

    found = {prompt: side for side, rows in sides.items() for prompt in tiers.prompts[rows].tolist()}
    return pa.table({"prompt": list(found), "side": list(found.values())})


def draw(folder: Path, aucs: Mapping[int, float], report: HeadReport | None, reporter: Reporter) -> None:
    """AUC by layer as SVG and PNG, where the extra is installed; the numbers are in the report anyway."""
    from tithe.lab.curve import layer_chart, write_chart

    if not aucs:
        return
    try:
        chart = layer_chart(aucs, report.length.auc if report else None)
        for name in PLOTS:
            write_chart(chart, folder / name, overwrite=True)
    except MissingExtraError as error:
        reporter.say(f"note: no plot of the layers: {error}; {error.hint}")

"""A look at a selection that was made without a gate: does it hold damaged records?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tithe.errors import TitheError
from tithe.gate.damage import draw_records, make_copies
from tithe.gate.estimate import damage_share
from tithe.gate.probes import fit_sound
from tithe.plugins import damage_kinds
from tithe.records import Example, Message, Nll, States
from tithe.report.reporter import Reporter
from tithe.run.engines import EngineCache
from tithe.run.method import Setup, set_up
from tithe.run.results import SelectResult
from tithe.run.score import Scoring
from tithe.scorers.sound import Sound, asks_of, sample_of, tells
from tithe.settings import SelectSettings

MOST = 400  # records of each sort: drawn, damaged, kept
LEAST = 40  # with fewer, the probes learn nothing
EMPTY = Message("assistant", "")
LENDERS = 1000  # records from which copies take text
COST = 0.035  # of the tokens that the run has read
NOTABLE = 0.1  # share of damage that is worth a line


@dataclass(frozen=True)
class Look:
    """What a look reads.

    Args:
        setup: of a run of `sound` on the whole data set.
        drawn: ids of the records to damage.
        lenders: ids of records that lend their text.
        kept: ids of kept records.
    """

    setup: Setup
    drawn: Sequence[str]
    lenders: Sequence[str]
    kept: Sequence[str]


def check_selection(
    result: SelectResult, settings: SelectSettings, setup: Setup, engines: EngineCache, reporter: Reporter, place: Path
) -> dict[str, Any]:
    """Look for damage in a selection, and say so if there is much; return the facts for the run record.

    It reads nothing if the model is not in memory, and few tokens beside what the run has read.

    Args:
        result: the selection.
        settings: of the run.
        setup: of a stage that reads the loaded model.
        engines: has the model.
        reporter: prints the line.
        place: folder of the stored answers.
    """
    began = time.monotonic()
    passes = affordable(result)
    if passes < LEAST:
        return {"skipped": f"{COST:.1%} of the tokens read pay for {passes} records of each sort, fewer than {LEAST}"}
    try:
        look = plan_look(result, settings, setup, passes)
        facts = read_look(look, engines, reporter, place)
    except TitheError as error:  # a selection is not lost because it cannot be looked at
        return {"skipped": str(error)}
    if "skipped" in facts:
        return facts
    facts["seconds"] = round(time.monotonic() - began, 2)
    if facts["can_tell"] and facts["looks_damaged"] > NOTABLE:
        reporter.say(
            f"note: about {facts['looks_damaged']:.0%} of this selection looks damaged to the model (a sample of "
            f"{facts['kept']:,}; AUC {facts['auc']:.2f} on damaged copies): `--gate auto` keeps damage out, "
            "`--no-gate-check` saves this look"
        )
    return facts


def affordable(result: SelectResult) -> int:
    """Return how many records of each of three sorts may be read."""
    table = result.scored.score_table
    lengths = np.nan_to_num(table.floats("prompt_tokens") + table.floats("response_tokens"))
    usual = float(lengths[lengths > 0].mean()) if (lengths > 0).any() else 1.0
    return int(min(MOST, COST * result.record["work"]["tokens_read"] / usual / 3))


def plan_look(result: SelectResult, settings: SelectSettings, setup: Setup, passes: int) -> Look:
    """Draw what is read, by a hash of the ids."""
    table, kept = result.scored.score_table, set(result.kept)
    there = [
        Example(id_, row, turn, (), EMPTY)
        for id_, row, turn in zip(*(table.values(name) for name in ("id", "row", "turn")), strict=True)
        if id_ is not None
    ]
    lenders = draw_records(there, max(passes, LENDERS), settings.seed)
    chosen = draw_records([one for one in there if one.id in kept], passes, settings.seed)
    places: dict[int, set[int]] = {}
    for one in (*lenders, *chosen):
        places.setdefault(one.row, set()).add(one.turn)
    own = setup.settings.model_copy(
        update={"scorer": (Sound.name,), "preset": None, "residualise": None, "per_token": False, "warmup": False}
    )
    made = set_up(own, source=setup.source.whole.part(places), pools=setup.pools)
    return Look(made, [one.id for one in lenders[:passes]], [one.id for one in lenders], [one.id for one in chosen])


def read_look(look: Look, engines: EngineCache, reporter: Reporter, place: Path) -> dict[str, Any]:
    """Read the records and their damaged copies, and estimate the share of damage among the kept ones."""
    seed = look.setup.settings.seed
    by_id = {example.id: example for example in look.setup.source.examples}
    drawn, lenders, kept = (
        [by_id[id_] for id_ in ids if id_ in by_id] for ids in (look.drawn, look.lenders, look.kept)
    )
    copies = make_copies(drawn, lenders, damage_kinds(), copies=1, seed=seed)
    scoring = Scoring(look.setup, engines, reporter, place)
    scoring.bench.who = "looking for damage"
    examples = [*drawn, *(copy.example for copy in copies), *kept]
    read = scoring.bench.answers([asks_of(one, "parts") for one in examples])
    sample, rows = sample_of(drawn, copies, read[: len(drawn) + len(copies)])
    fit = fit_sound(sample, trim=Sound.trim)
    own = {examples[row].id: float(fit.margins[i]) for i, row in enumerate(rows) if not sample.kinds[i]}
    margins = [
        own[one.id] if one.id in own else fit.margin_of(answers["given"].values, answers["loss"].mean)
        for one, answers in zip(kept, read[len(drawn) + len(copies) :], strict=True)
        if isinstance(answers["given"], States) and isinstance(answers["loss"], Nll)
    ]
    if not margins:
        return {"skipped": "the model can read none of the kept records"}
    return {
        "drawn": len(own),
        "copies": len(rows) - len(own),
        "kept": len(margins),
        "auc": round(fit.auc, 4),
        "auc_of_length": round(fit.auc_length, 4),
        "can_tell": tells(fit),
        "looks_damaged": round(damage_share(np.array(margins), fit.margins[~sample.whole]), 4),
        "tokens_read": scoring.runner.work.tokens,
    }

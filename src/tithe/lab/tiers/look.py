"""What is in a tier file: counts, lengths, duplicates, refusals, and what to beware of."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from tithe.errors import DataError
from tithe.lab.tiers.lengths import lengths, warning
from tithe.lab.tiers.likeness import shares
from tithe.lab.tiers.records import TIERS, Tier, TierRow
from tithe.lab.tiers.refusals import is_refusal
from tithe.records import BadRow

FEW = 100  # responses of a tier below which the numbers, and a head, are worth little
SAME = 0.05  # share of equal responses in both tiers, from which there is a warning
NO_MODEL = "(not known)"
CountTokens = Callable[[Sequence[str]], list[int]]


def look(
    rows: Sequence[TierRow], bad: Iterable[BadRow] = (), count_tokens: CountTokens | None = None
) -> dict[str, Any]:
    """All that is told about the rows, as plain values.

    Args:
        rows: of a tier file.
        bad: what could not be read.
        count_tokens: texts -> how many tokens each has, if lengths are wanted in tokens, too.
    """
    texts = {tier: [row.response.content for row in rows if row.tier == tier] for tier in TIERS}
    found: dict[str, Any] = {
        "responses": {tier: len(texts[tier]) for tier in TIERS},
        "models": models(rows),
        "prompts": sides(rows),
        "bad_rows": dict(Counter(row.reason for row in bad).most_common()),
        "lengths": [lengths("characters", *(list(map(len, texts[tier])) for tier in TIERS))],
        "duplicates": shares(texts["high"], texts["low"]),
        "refusals": {tier: sum(map(is_refusal, texts[tier])) for tier in TIERS},
        "unfinished": {tier: unfinished([row for row in rows if row.tier == tier]) for tier in TIERS},
    }
    if count_tokens is not None:
        found["lengths"].append(lengths("tokens", *(count_tokens(texts[tier]) for tier in TIERS)))
    found["warnings"] = warnings(found)
    return found


def models(rows: Sequence[TierRow]) -> dict[str, dict[str, int]]:
    """Tier -> model -> responses, most first."""
    found = {tier: Counter(row.model or NO_MODEL for row in rows if row.tier == tier) for tier in TIERS}
    return {tier: dict(counts.most_common()) for tier, counts in found.items()}


def unfinished(rows: Sequence[TierRow]) -> int | None:
    """How many were cut off; None where that is known of none of them."""
    known = [row.finished for row in rows if row.finished is not None]
    return known.count(False) if known else None


def sides(rows: Sequence[TierRow]) -> dict[str, int]:
    """How many prompts have responses of both tiers, or of one alone."""
    tiers: dict[str, set[Tier]] = defaultdict(set)
    for row in rows:
        tiers[row.prompt_id].add(row.tier)
    kinds = Counter("both" if len(there) == 2 else f"only_{next(iter(there))}" for there in tiers.values())
    return {"all": len(tiers)} | {name: kinds[name] for name in ("both", "only_high", "only_low")}


def warnings(found: dict[str, Any]) -> list[str]:
    """What a head trained on these tiers would suffer from."""
    said = [text for one in found["lengths"][-1:] if (text := warning(one)) is not None]
    few = [f"{n:,} {tier}" for tier, n in found["responses"].items() if n < FEW]
    if few:
        said.append(f"only {' and '.join(few)} responses: a head needs hundreds, the paper's has thousands")
    if found["prompts"]["both"] == 0:
        said.append("no prompt has responses of both tiers: a head may learn the prompts instead of the responses")
    same = max(found["duplicates"][f"equal_{tier}_in_{other}"] or 0 for tier, other in (TIERS, TIERS[::-1]))
    if same > SAME:
        said.append(f"{same:.0%} of a tier's responses stand in the other tier too: nothing tells these apart")
    for tier in TIERS:
        if (found["unfinished"][tier] or 0) > found["responses"][tier] / 4:
            said.append(
                f"{found['unfinished'][tier]:,} of {found['responses'][tier]:,} {tier} responses are cut off: "
                "a head may learn that; `--max-new-tokens` gives more room"
            )
    return said


def demand_both(rows: Sequence[TierRow], bad: Sequence[BadRow], name: str) -> None:
    """Refuse tiers of which one is empty.

    Raises:
        DataError: with the counts, and the first bad row if there is one.
    """
    counts = Counter(row.tier for row in rows)
    missing = [tier for tier in TIERS if not counts[tier]]
    if not missing:
        return
    first = f"; {len(bad):,} rows were set aside, the first at {bad[0].where}: {bad[0].reason}" if bad else ""
    raise DataError(
        f"`{name}` has {counts['high']:,} high and {counts['low']:,} low responses{first}",
        hint=f"tiers need both; the {missing[0]} one is missing",
    )

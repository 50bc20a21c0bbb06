"""What is in a tier file: counts, lengths, duplicates, refusals, and what to beware of."""

from __future__ import annotations

import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from tithe.errors import DataError
from tithe.lab.tiers.tier_rows import TIERS, Tier, TierRow
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


QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "max": 1.0}
TELLS = 0.7  # an AUC from which (or from 1 minus which down) length alone is a fair head


def auc(high: npt.ArrayLike, low: npt.ArrayLike) -> float:
    """The chance that a high value is above a low one, ties half; NaN where a side is empty."""
    above, below = np.asarray(high, dtype=np.float64), np.sort(np.asarray(low, dtype=np.float64))
    if not len(above) or not len(below):
        return float("nan")
    wins = np.searchsorted(below, above, side="left") + np.searchsorted(below, above, side="right")
    return float(wins.sum() / (2 * len(above) * len(below)))


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Five of them; none where there is no value."""
    if not values:
        return {}
    found = np.quantile(np.asarray(values, dtype=np.float64), list(QUANTILES.values()))
    return dict(zip(QUANTILES, map(float, found), strict=True))


def lengths(unit: str, high: Sequence[int], low: Sequence[int]) -> dict[str, Any]:
    """Quantiles of both tiers, and the AUC of length alone: above 0.5 the high ones are longer."""
    found = auc(high, low)
    return {
        "unit": unit,
        "high": quantiles(high),
        "low": quantiles(low),
        "auc": None if np.isnan(found) else found,
    }


def warning(found: Mapping[str, Any]) -> str | None:
    """What is to be said where a head could learn length and nothing else."""
    area = found["auc"]
    if area is None or 1 - TELLS < area < TELLS:
        return None
    longer = "high" if area > 0.5 else "low"
    return (
        f"length alone tells the tiers apart: AUC {area:.2f} in {found['unit']}, the {longer} tier is longer; "
        "a head may learn that and nothing else"
    )


OPENINGS = (
    "i'm sorry, but",
    "i am sorry, but",
    "i'm sorry, i ",
    "i apologize, but",
    "sorry, but i",
    "sorry, i ",
    "i cannot",
    "i can't",
    "i can not",
    "i'm unable to",
    "i am unable to",
    "i'm not able to",
    "i am not able to",
    "unfortunately, i cannot",
    "unfortunately, i can't",
    "unfortunately, i am unable",
    "unfortunately, i'm unable",
    "as an ai language model, i",
    "as an ai assistant, i",
    "as an ai, i",
    "as a language model, i",
)
_REFUSAL = re.compile(r"[\W_]*(?:" + "|".join(re.escape(opening) for opening in OPENINGS) + ")")


def is_refusal(text: str) -> bool:
    """Whether the response opens with one of `OPENINGS`, whatever the case and the kind of apostrophe."""
    return _REFUSAL.match(text[:200].lower().replace("\u2019", "'")) is not None


WORDS, LEAST = 3, 0.8
BANDS, ROWS = 16, 4
NEIGHBOURS = 20  # of a bucket that are compared with each new one: a crowd of equals costs no square of it
METHOD = f"Jaccard of {WORDS}-word runs >= {LEAST}, candidates by MinHash ({BANDS} bands of {ROWS})"
_WORD = regex.compile(r"\w+|[^\w\s]")  # its `\w` matches vowel signs, where the standard library's cuts words
Runs = npt.NDArray[np.uint64]


def runs(text: str) -> Runs:
    """Sorted hashes of a text's three-word runs; a shorter text is one run."""
    words = _WORD.findall(text.lower())
    last = max(1, len(words) - WORDS + 1)
    joined = (" ".join(words[i : i + WORDS]) for i in range(last))
    hashes = [zlib.crc32(run.encode("utf-8", "surrogatepass")) for run in joined]
    return np.unique(np.array(hashes, dtype=np.uint64))


def signatures(all_runs: Sequence[Runs]) -> npt.NDArray[np.uint64]:
    """(texts, 64) MinHash: the least of each text's runs under 64 fixed hash functions."""
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 2**64, size=(BANDS * ROWS, 1), dtype=np.uint64) | np.uint64(1)
    terms = rng.integers(0, 2**64, size=(BANDS * ROWS, 1), dtype=np.uint64)
    found = np.empty((len(all_runs), BANDS * ROWS), dtype=np.uint64)
    for i, one in enumerate(all_runs):
        found[i] = ((one * factors + terms) >> np.uint64(32)).min(axis=1)  # multiply-shift, modulo 2**64
    return found


def jaccard(a: Runs, b: Runs) -> float:
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def candidates(found: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs that agree in a whole band, each once."""
    met: set[tuple[int, int]] = set()
    for band in range(BANDS):
        buckets: dict[bytes, list[int]] = defaultdict(list)
        part = np.ascontiguousarray(found[:, band * ROWS : (band + 1) * ROWS])
        for i, row in enumerate(part):
            bucket = buckets[row.tobytes()]
            for j in bucket[-NEIGHBOURS:]:
                if (j, i) not in met:
                    met.add((j, i))
                    yield j, i
            bucket.append(i)


def near(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Pairs of near duplicates among distinct texts, by index."""
    all_runs = [runs(text) for text in texts]
    return [(i, j) for i, j in candidates(signatures(all_runs)) if jaccard(all_runs[i], all_runs[j]) >= LEAST]


def shares(high: Sequence[str], low: Sequence[str]) -> dict[str, float | str | None]:
    """Which part of the responses has an equal, or a near duplicate, in its own tier and in the other.

    Equal texts count as near duplicates, too. A share is None where a tier has no response.
    """
    sides = {"high": [text.strip() for text in high], "low": [text.strip() for text in low]}
    times = {tier: counted(texts) for tier, texts in sides.items()}
    distinct = list(dict.fromkeys([*times["high"], *times["low"]]))
    alike: dict[str, set[str]] = defaultdict(set)
    for i, j in near(distinct):
        alike[distinct[i]].add(distinct[j])
        alike[distinct[j]].add(distinct[i])
    out: dict[str, float | str | None] = {"method": METHOD}
    for tier, other in (("high", "low"), ("low", "high")):
        texts, own, their = sides[tier], times[tier], times[other]
        out[f"equal_within_{tier}"] = share([own[text] > 1 for text in texts])
        out[f"near_within_{tier}"] = share([own[text] > 1 or not alike[text].isdisjoint(own) for text in texts])
        out[f"equal_{tier}_in_{other}"] = share([text in their for text in texts])
        out[f"near_{tier}_in_{other}"] = share([text in their or not alike[text].isdisjoint(their) for text in texts])
    return out


def counted(texts: Sequence[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for text in texts:
        found[text] = found.get(text, 0) + 1
    return found


def share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None

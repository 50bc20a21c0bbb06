"""Look at tiers: counts, lengths, duplicates, refusals, and warnings.

Two responses are near duplicates if the Jaccard index of their sets of three-word runs is at least 0.8. Candidates are
found by MinHash: 64 hashes in 16 bands of 4 rows find a pair of index 0.8 with probability above 0.999. Each is then
compared exactly on the 32-bit hashes of its runs.
"""

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

FEW = 100  # responses of a tier; with fewer, the numbers and a head are worth little
SAME = 0.05  # share of a tier's responses also in the other tier, above which there is a warning
NO_MODEL = "(not known)"
CountTokens = Callable[[Sequence[str]], list[int]]


def look(
    rows: Sequence[TierRow], bad: Iterable[BadRow] = (), count_tokens: CountTokens | None = None
) -> dict[str, Any]:
    """Describe the rows of a tier file in plain values.

    Args:
        rows: of a tier file.
        bad: rows that could not be read.
        count_tokens: texts -> tokens of each, to report lengths in tokens, too.
    """
    texts = {tier: [row.response.content for row in rows if row.tier == tier] for tier in TIERS}
    found: dict[str, Any] = {
        "responses": {tier: len(texts[tier]) for tier in TIERS},
        "models": count_models(rows),
        "prompts": count_prompts(rows),
        "bad_rows": dict(Counter(row.reason for row in bad).most_common()),
        "lengths": [lengths("characters", *(list(map(len, texts[tier])) for tier in TIERS))],
        "duplicates": duplicate_shares(texts["high"], texts["low"]),
        "refusals": {tier: sum(map(is_refusal, texts[tier])) for tier in TIERS},
        "unfinished": {tier: count_unfinished([row for row in rows if row.tier == tier]) for tier in TIERS},
    }
    if count_tokens is not None:
        found["lengths"].append(lengths("tokens", *(count_tokens(texts[tier]) for tier in TIERS)))
    found["warnings"] = warnings(found)
    return found


def count_models(rows: Sequence[TierRow]) -> dict[str, dict[str, int]]:
    """Count responses by tier and model, most frequent first."""
    found = {tier: Counter(row.model or NO_MODEL for row in rows if row.tier == tier) for tier in TIERS}
    return {tier: dict(counts.most_common()) for tier, counts in found.items()}


def count_unfinished(rows: Sequence[TierRow]) -> int | None:
    """Count the responses that were cut off; None if that is known of none of them."""
    known = [row.finished for row in rows if row.finished is not None]
    return known.count(False) if known else None


def count_prompts(rows: Sequence[TierRow]) -> dict[str, int]:
    """Count the prompts with responses of both tiers, and of one only."""
    tiers: dict[str, set[Tier]] = defaultdict(set)
    for row in rows:
        tiers[row.prompt_id].add(row.tier)
    kinds = Counter("both" if len(there) == 2 else f"only_{next(iter(there))}" for there in tiers.values())
    return {"all": len(tiers)} | {name: kinds[name] for name in ("both", "only_high", "only_low")}


def warnings(found: dict[str, Any]) -> list[str]:
    """Return what would harm a head trained on these tiers."""
    said = [text for one in found["lengths"][-1:] if (text := length_warning(one)) is not None]
    few = [f"{n:,} {tier}" for tier, n in found["responses"].items() if n < FEW]
    if few:
        said.append(f"only {' and '.join(few)} responses: a head needs hundreds, the paper's has thousands")
    if found["prompts"]["both"] == 0:
        said.append("no prompt has responses of both tiers: a head may learn the prompts instead of the responses")
    same = max(found["duplicates"][f"equal_{tier}_in_{other}"] or 0 for tier, other in (TIERS, TIERS[::-1]))
    if same > SAME:
        said.append(f"{same:.0%} of a tier's responses are also in the other tier: nothing tells these apart")
    for tier in TIERS:
        if (found["unfinished"][tier] or 0) > found["responses"][tier] / 4:
            said.append(
                f"{found['unfinished'][tier]:,} of {found['responses'][tier]:,} {tier} responses are cut off: "
                "a head may learn that; `--max-new-tokens` allows longer ones"
            )
    return said


def demand_both(rows: Sequence[TierRow], bad: Sequence[BadRow], name: str) -> None:
    """Check that no tier is empty.

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
TELLS = 0.7  # AUC (or 1 - AUC) from which length alone is a fair head


def auc(high: npt.ArrayLike, low: npt.ArrayLike) -> float:
    """Return the probability that a high value is above a low one, ties counting half; NaN if a side is empty."""
    above, below = np.asarray(high, dtype=np.float64), np.sort(np.asarray(low, dtype=np.float64))
    if not len(above) or not len(below):
        return float("nan")
    # Low values below each high one, counted from the left and from the right of ties, and halved.
    wins = np.searchsorted(below, above, side="left") + np.searchsorted(below, above, side="right")
    return float(wins.sum() / (2 * len(above) * len(below)))


def quantiles(values: Sequence[int]) -> dict[str, float]:
    """Return five quantiles; none without values."""
    if not values:
        return {}
    found = np.quantile(np.asarray(values, dtype=np.float64), list(QUANTILES.values()))
    return dict(zip(QUANTILES, map(float, found), strict=True))


def lengths(unit: str, high: Sequence[int], low: Sequence[int]) -> dict[str, Any]:
    """Return quantiles of both tiers, and the AUC of length alone: above 0.5 the high tier is longer."""
    found = auc(high, low)
    return {
        "unit": unit,
        "high": quantiles(high),
        "low": quantiles(low),
        "auc": None if np.isnan(found) else found,
    }


def length_warning(found: Mapping[str, Any]) -> str | None:
    """Return a warning if a head could learn length and nothing else."""
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
    """Return whether a response begins with one of `OPENINGS`, in any case and with any apostrophe."""
    return _REFUSAL.match(text[:200].lower().replace("\u2019", "'")) is not None


WORDS, LEAST = 3, 0.8
BANDS, ROWS = 16, 4
NEIGHBOURS = 20  # of a bucket that each new text is compared with: keeps large buckets from quadratic cost
METHOD = f"Jaccard of {WORDS}-word runs >= {LEAST}, candidates by MinHash ({BANDS} bands of {ROWS})"
_WORD = regex.compile(r"\w+|[^\w\s]")  # its `\w` matches vowel signs, where the standard library's cuts words
Runs = npt.NDArray[np.uint64]


def word_runs(text: str) -> Runs:
    """Return the sorted hashes of a text's three-word runs; a shorter text is one run."""
    words = _WORD.findall(text.lower())
    last = max(1, len(words) - WORDS + 1)
    joined = (" ".join(words[i : i + WORDS]) for i in range(last))
    # Texts may hold lone surrogates, which plain UTF-8 refuses.
    hashes = [zlib.crc32(run.encode("utf-8", "surrogatepass")) for run in joined]
    return np.unique(np.array(hashes, dtype=np.uint64))


def signatures(all_runs: Sequence[Runs]) -> npt.NDArray[np.uint64]:
    """Return MinHash signatures (texts, 64): the least hash of each text's runs under 64 fixed hash functions."""
    rng = np.random.default_rng(0)  # fixed: signatures must be comparable
    factors = rng.integers(0, 2**64, size=(BANDS * ROWS, 1), dtype=np.uint64) | np.uint64(1)  # odd
    terms = rng.integers(0, 2**64, size=(BANDS * ROWS, 1), dtype=np.uint64)
    found = np.empty((len(all_runs), BANDS * ROWS), dtype=np.uint64)
    for i, one in enumerate(all_runs):  # (64, runs) at a time
        found[i] = ((one * factors + terms) >> np.uint64(32)).min(axis=1)  # multiply-shift, modulo 2**64
    return found


def jaccard(a: Runs, b: Runs) -> float:
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


def candidates(found: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of texts that agree in a whole band, each pair once."""
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


def near_duplicates(texts: Sequence[str]) -> list[tuple[int, int]]:
    """Find pairs of near duplicates among distinct texts, by index."""
    all_runs = [word_runs(text) for text in texts]
    return [(i, j) for i, j in candidates(signatures(all_runs)) if jaccard(all_runs[i], all_runs[j]) >= LEAST]


def duplicate_shares(high: Sequence[str], low: Sequence[str]) -> dict[str, float | str | None]:
    """Return the shares of responses with an equal text, or a near duplicate, in their own tier and in the other.

    Equal texts count as near duplicates, too. A share is None if its tier is empty.
    """
    sides = {"high": [text.strip() for text in high], "low": [text.strip() for text in low]}
    times = {tier: Counter(texts) for tier, texts in sides.items()}
    distinct = list(dict.fromkeys([*times["high"], *times["low"]]))
    alike: dict[str, set[str]] = defaultdict(set)
    for i, j in near_duplicates(distinct):
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


def share(hits: Sequence[bool]) -> float | None:
    return sum(hits) / len(hits) if hits else None

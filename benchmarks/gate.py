"""Measure the gate on pools whose damage is known: what it finds, what it keeps, and whether its estimates are right.

    python benchmarks/gate.py pools DATA FOLDER          # makes the pools: planted, many, clean, alpaca, foreign, lima
    python benchmarks/gate.py table POOL MODEL FOLDER    # AUC by kind, top shares, difficulty behind gates
    python benchmarks/gate.py rates POOL MODEL FOLDER    # auto on pools with 0 to 50 % damage, several draws
    python benchmarks/gate.py untaught POOL MODEL FOLDER # the probes are taught none of the planted kinds of damage

The model's answers are stored in FOLDER, so that everything is read once. Results are printed, and appended as JSON
lines to FOLDER/gate.jsonl. What is measured is the code that `tithe select --gate` runs, on the same states.
"""

from __future__ import annotations

import argparse
import codecs
import json
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from sklearn.metrics import roc_auc_score

from tithe.gate.damage import DamagedCopy, draw_records, make_copies
from tithe.gate.estimate import Estimator, ScoredMargins
from tithe.gate.probes import SoundFit, fit_sound
from tithe.plugins import damage_kinds
from tithe.records import Ask, Example, Message, Nll, States
from tithe.report.reporter import Reporter
from tithe.run.engines import EngineCache
from tithe.run.gate import STEPS
from tithe.run.method import set_up
from tithe.run.score import Scoring
from tithe.scorers.base import alone, given
from tithe.scorers.ifd import IFD
from tithe.scorers.sound import Sound, sample_of
from tithe.settings import ScoreSettings

RECORDS = 400
EXAMPLE = Example("", 0, 1, (), Message("assistant", ""))  # a score is made of answers alone
GATES = (1.0, 0.7, 0.6, 0.5, 0.4, 0.3)
TOPS = (0.05, 0.1, 0.2)
RATES = (0.0, 0.05, 0.15, 0.33, 0.5)
SOUND = ("clean", "good", "mediocre")


# The pools.


def answers_of_others(text: str, other: str, draw: random.Random) -> str:
    return other


def cut_at_a_quarter(text: str, other: str, draw: random.Random) -> str:
    return text[: max(5, len(text) // 4)]


def first_sentence_repeated(text: str, other: str, draw: random.Random) -> str:
    first = text.split(". ")[0] + "."
    return " ".join([first] * max(3, len(text) // (len(first) + 1)))


def word_salad(text: str, other: str, draw: random.Random) -> str:
    words = text.split()
    draw.shuffle(words)
    return " ".join(words)


def broken_encoding(text: str, other: str, draw: random.Random) -> str:
    return text.replace("e", "\u00c3\u00a9").replace("a", "\u00e2\u20ac\u2122a", 3)


PLANTED = {
    "other answer": answers_of_others,
    "cut": cut_at_a_quarter,
    "repeated": first_sentence_repeated,
    "word salad": word_salad,
    "encoding": broken_encoding,
}


def typing_errors(text: str, other: str, draw: random.Random) -> str:
    """Swap a letter with the next in every third word."""
    words = text.split(" ")
    for i in range(0, len(words), 3):
        if len(words[i]) > 2:
            at = draw.randrange(len(words[i]) - 1)
            words[i] = words[i][:at] + words[i][at + 1] + words[i][at] + words[i][at + 2 :]
    return " ".join(words)


def no_spaces(text: str, other: str, draw: random.Random) -> str:
    """Lose half of the spaces, as in text taken from a PDF."""
    return "".join("" if one == " " and draw.random() < 0.5 else one for one in text)


def no_beginning(text: str, other: str, draw: random.Random) -> str:
    words = text.split(" ")
    return " ".join(words[len(words) // 2 :])


def backwards(text: str, other: str, draw: random.Random) -> str:
    """Put sentences, or words where there is one sentence, into the opposite order."""
    parts = re.split(r"(?<=[.!?])\s+|\n+", text.strip())
    return " ".join((parts if len(parts) > 1 else text.split())[::-1])


def markup(text: str, other: str, draw: random.Random) -> str:
    """Leave the remains of a web page around the text."""
    start = '<div class="post-body"><a href="/login">Log in</a> | <a href="#c">12 comments</a></div>\n'
    return f"{start}{text}\nShare this: Twitter Facebook &nbsp; Read more &raquo; Cookie settings"


def letters_moved(text: str, other: str, draw: random.Random) -> str:
    """Move every letter by 13 in the second half."""
    half = len(text) // 2
    return text[:half] + codecs.encode(text[half:], "rot13")


# Kinds that resemble none that the gate teaches.
FOREIGN = {
    "typing errors": typing_errors,
    "no spaces": no_spaces,
    "no beginning": no_beginning,
    "backwards": backwards,
    "markup": markup,
    "letters moved": letters_moved,
}
RELATED = ("other-answer", "cut", "repeats", "shuffled", "encoding", "mixed", "dropped")  # kinds like the planted ones


def make_pools(data: Path, folder: Path) -> None:
    """Write the pools as JSON lines; `label` is `clean` or the damage."""
    folder.mkdir(parents=True, exist_ok=True)
    dolly = [one for one in read_lines(data / "sft/dolly_15k.jsonl") if 20 < len(one["output"]) < 1200]
    draw = random.Random(7)
    draw.shuffle(dolly)
    write_pool(folder / "planted.jsonl", plant(dolly, 2000, 1000, draw), draw)
    write_pool(folder / "many.jsonl", plant(dolly, 1080, 520, random.Random(8)), draw)  # from which `rates` draws
    clean = [{**one, "label": "clean"} for one in dolly[6000:8000]]
    write_pool(folder / "clean.jsonl", clean, draw)
    alpaca = read_lines(data / "sft/alpaca_20k.jsonl")[:1000]
    write_pool(folder / "alpaca.jsonl", [{**one, "label": "clean"} for one in alpaca], draw)
    rest = [one for one in read_lines(data / "sft/alpaca_20k.jsonl")[1000:] if len(one["output"]) > 40]
    write_pool(folder / "foreign.jsonl", plant(rest, 1200, 600, draw, FOREIGN), draw)
    lima = read_lines(data / "sft/lima.jsonl")
    write_pool(folder / "lima.jsonl", [{**one, "label": "clean"} for one in lima], draw)


def plant(
    rows: Sequence[dict[str, Any]],
    sound: int,
    damaged: int,
    draw: random.Random,
    ways: Mapping[str, Callable[[str, str, random.Random], str]] = PLANTED,
) -> list[dict[str, Any]]:
    """Return sound records, and damaged ones of these kinds in turn."""
    found = [{**one, "label": "clean"} for one in rows[:sound]]
    for i, one in enumerate(rows[sound : sound + damaged]):
        kind = list(ways)[i % len(ways)]
        other = rows[sound + damaged + i]["output"]
        found.append({**one, "output": ways[kind](one["output"], other, draw), "label": kind})
    return found


def read_lines(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_pool(path: Path, rows: Sequence[dict[str, Any]], draw: random.Random) -> None:
    mixed = draw.sample(list(rows), len(rows))
    with path.open("w", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in mixed)


# What the model shows of a pool.


@dataclass
class Pool:
    """A pool with the model's answers."""

    path: Path
    scoring: Scoring
    examples: Sequence[Any]
    labels: np.ndarray
    states: list[Any]
    losses: list[Nll]
    ifd: np.ndarray
    seconds: float

    @classmethod
    def read(cls, path: Path, model: str, folder: Path) -> Pool:
        """Read states and likelihoods of every record."""
        settings = ScoreSettings(
            dataset=str(path), model=model, max_length=512, dtype="auto", scorer=("sound", "ifd"), seed=0
        )
        setup = set_up(settings)
        name = Path(model).name
        place = folder / f"answers-{name}"
        place.mkdir(parents=True, exist_ok=True)
        scoring = Scoring(setup, EngineCache(Reporter()), Reporter(), place)
        scoring.bench.who = "gate"
        examples = list(setup.source.examples)
        rows = read_lines(Path(setup.source.dataset.source))
        labels = np.array([label_of(rows[one.row]) for one in examples])
        began = time.monotonic()
        read = answers(scoring, examples)
        able = [
            i
            for i, one in enumerate(read)
            if isinstance(one["parts"], States) and isinstance(one["given"], Nll) and one["given"].tokens
        ]
        return cls(
            path,
            scoring,
            [examples[i] for i in able],
            labels[able],
            [read[i]["parts"].values for i in able],
            [read[i]["given"] for i in able],
            np.array([difficulty(read[i]) for i in able]),
            time.monotonic() - began,
        )

    @property
    def sound(self) -> np.ndarray:
        return np.isin(self.labels, SOUND)


def label_of(row: Mapping[str, Any]) -> str:
    """Return a record's own label; it is used to judge alone."""
    if "quality" in row:
        return row["damage"] if row["quality"] == "damaged" else row["quality"]
    return row.get("label", "clean")


def answers(scoring: Scoring, examples: Sequence[Any]) -> Sequence[Mapping[str, Any]]:
    return scoring.bench.answers(
        [
            {"parts": Ask(given(one), "parts"), "given": Ask(given(one), "nll"), "alone": Ask(alone(one), "nll")}
            for one in examples
        ]
    )


def difficulty(read: Mapping[str, Any]) -> float:
    """Return IFD; 9 where it has none, so that no filter below 1 keeps it."""
    if not isinstance(read["given"], Nll) or not isinstance(read["alone"], Nll):
        return 9.0
    found = IFD().score(EXAMPLE, read)
    return found if isinstance(found, float) else 9.0


@dataclass
class Gated:
    """Probes that were taught with a pool, and the margins of all its records."""

    fit: SoundFit
    margins: np.ndarray
    drawn: np.ndarray
    copies: ScoredMargins
    copy_kinds: np.ndarray


Bank: TypeAlias = Mapping[str, Sequence[tuple[DamagedCopy, Mapping[str, Any]]]]  # id -> copies with answers


def damage_some(pool: Pool, some: Sequence[Any], kinds: Sequence[str] = ()) -> Bank:
    """Make and read the copies of some records, as `sound` does with all that it draws."""
    copies = make_copies(some, pool.examples, damage_kinds(kinds), copies=Sound.copies, seed=0)
    found: dict[str, list[tuple[DamagedCopy, Mapping[str, Any]]]] = {one.id: [] for one in some}
    for copy, read in zip(copies, answers(pool.scoring, [copy.example for copy in copies]), strict=True):
        found[some[copy.place].id].append((copy, read))
    return found


def gate(pool: Pool, places: np.ndarray, bank: Bank, *, kinds: Collection[str] | None = None, seed: int = 0) -> Gated:
    """Do what `sound` does, on the records at these places.

    Args:
        pool: all records.
        places: the records that are there.
        bank: copies of all that can be drawn.
        kinds: only copies of these kinds are taught; None for all.
        seed: of the draw.
    """
    examples = [pool.examples[i] for i in places]
    at = {one.id: i for one, i in zip(examples, places, strict=True)}
    drawn = draw_records(examples, RECORDS, seed)
    there = [
        (replace(copy, place=i), read)
        for i, one in enumerate(drawn)
        for copy, read in bank[one.id]
        if kinds is None or copy.kind in kinds
    ]
    copies, damaged = [copy for copy, _ in there], [read for _, read in there]
    read = [{"given": States(pool.states[at[one.id]]), "loss": pool.losses[at[one.id]]} for one in drawn]
    read += [{"given": one["parts"], "loss": one["given"]} for one in damaged]
    sample, rows = sample_of(drawn, copies, read)
    fit = fit_sound(sample, trim=Sound.trim)
    margins = np.full(len(pool.examples), np.nan)
    for i in places:
        margins[i] = fit.margin_of(pool.states[i], pool.losses[i].mean)
    whole = [i for i, row in enumerate(rows) if row < len(drawn)]
    own = np.array([at[drawn[rows[i]].id] for i in whole])
    margins[own] = fit.margins[whole]
    rest = [i for i, row in enumerate(rows) if row >= len(drawn)]
    scores = np.array([difficulty(damaged[rows[i] - len(drawn)]) for i in rest])
    return Gated(fit, margins, own, ScoredMargins(fit.margins[rest], scores), sample.kinds[rest])


# Tables.


def baselines(pool: Pool) -> dict[str, np.ndarray]:
    """Return other ways to rank sound above damaged: high is sound."""
    texts = [one.response.content for one in pool.examples]
    losses = np.array([one.mean for one in pool.losses])
    found = {
        "length": np.array([float(len(text)) for text in texts]),
        "likelihood": -losses,
        "likelihood, outliers at both ends": -np.abs(losses - np.median(losses)),
        "IFD": pool.ifd,
        "IFD, low": -pool.ifd,
        "rules": -np.array([broken_rules(text) for text in texts]),
    }
    return found


def broken_rules(text: str) -> float:
    """Return how badly a text breaks rules as data-juicer has them: repetition, special characters, broken encoding."""
    words = text.lower().split()
    grams = [tuple(words[i : i + 3]) for i in range(len(words) - 2)]
    repeated = sum(n for n in Counter(grams).values() if n > 1) / max(1, len(grams))
    letters = [text[i : i + 10] for i in range(len(text) - 9)]
    again = sum(n for n in Counter(letters).values() if n > 1) / max(1, len(letters))
    special = sum(not (one.isalnum() or one.isspace()) for one in text) / max(1, len(text))
    return repeated + again + special + 2 * badness(text)


def badness(text: str) -> float:
    """Return whether ftfy would mend the encoding; without ftfy, look for its commonest sign."""
    try:
        import ftfy
    except ImportError:
        return float(bool(re.search("[\u00c3\u00c2][\u0080-\u00bf\u00a0-\u00ff]|\u00e2\u20ac", text)))
    return float(ftfy.fix_encoding(text) != text)


def table(pool: Pool, name: str) -> dict[str, Any]:
    """Return AUC by kind of several rankings, top shares, and difficulty behind gates."""
    everything = np.arange(len(pool.examples))
    began = time.monotonic()
    bank = damage_some(pool, draw_records(pool.examples, RECORDS, 0))
    made = gate(pool, everything, bank)
    found: dict[str, Any] = {"what": "table", "pool": pool.path.name, "model": name, "records": len(everything)}
    found |= {"copies_and_fit_seconds": round(time.monotonic() - began, 1), "read_seconds": round(pool.seconds, 1)}
    sound = pool.sound
    fit = made.fit
    found["held_out"] = {"auc": fit.auc, "length": fit.auc_length, "by_kind": dict(fit.auc_by_kind)}
    found["untaught_held_out"] = dict(fit.auc_untaught)
    found["trimmed"] = float(1 - fit.kept[: len(made.drawn)].mean())
    rankings = {"sound": made.margins, **baselines(pool)}
    if not sound.all():
        found["auc"] = {way: by_kind(values, pool, sound) for way, values in rankings.items()}
        found["top"] = {way: tops(values, sound) for way, values in rankings.items()}
        found["untaught"] = untaught_kinds(pool, everything, bank)
    found["behind"] = {str(share): behind(pool, made.margins, share) for share in GATES}
    estimate = auto(pool, made, everything)
    found["auto"] = estimate
    found["lowest"] = [pool.examples[i].row for i in np.argsort(made.margins)[:100].tolist()]
    found["below_zero"] = float(np.mean(made.margins < 0))
    return found


def by_kind(values: np.ndarray, pool: Pool, sound: np.ndarray) -> dict[str, float]:
    found = {"all": float(roc_auc_score(sound, values))}
    for kind in sorted(set(pool.labels[~sound].tolist())):
        some = sound | (pool.labels == kind)
        found[kind] = float(roc_auc_score(sound[some], values[some]))
    return found


def tops(values: np.ndarray, sound: np.ndarray) -> dict[str, float]:
    order = np.argsort(-values, kind="stable")
    return {f"{share:.0%}": float(sound[order[: int(share * len(order))]].mean()) for share in TOPS}


def untaught_kinds(pool: Pool, places: np.ndarray, bank: Bank) -> dict[str, float]:
    """Return the AUC of each planted kind when the kinds like it were not taught."""
    alike = {
        "other answer": ("other-answer", "mixed"),
        "cut": ("cut", "mixed"),
        "repeated": ("repeats",),
        "word salad": ("shuffled", "dropped"),
        "encoding": ("encoding",),
    }
    found = {}
    for kind, like in alike.items():
        if kind not in pool.labels:
            continue
        taught = [one for one in damage_kinds() if one not in like]
        margins = gate(pool, places, bank, kinds=taught).margins
        some = pool.sound | (pool.labels == kind)
        found[kind] = float(roc_auc_score(pool.sound[some], margins[some]))
    return found


def choose(
    pool: Pool, margins: np.ndarray, share: float, top: float = 0.05, places: np.ndarray | None = None
) -> np.ndarray:
    """Return the places of the top IFD below 1 behind a gate that keeps a share."""
    places = np.arange(len(margins)) if places is None else places
    order = places[np.argsort(-margins[places], kind="stable")][: int(share * len(places))]
    there = np.sort(order[pool.ifd[order] < 1])
    return there[np.argsort(-pool.ifd[there], kind="stable")][: int(top * len(places))]


def behind(pool: Pool, margins: np.ndarray, share: float) -> dict[str, Any]:
    """Return what IFD's top holds behind a gate."""
    found: dict[str, Any] = {}
    for top in (*TOPS, 60 / len(margins)):
        kept = choose(pool, margins, share, top)
        name = f"{top:.0%}" if top in TOPS else "60 records"
        found[name] = {"sound": float(pool.sound[kept].mean()), "labels": dict(Counter(pool.labels[kept].tolist()))}
    return found


def auto(pool: Pool, made: Gated, places: np.ndarray) -> dict[str, Any]:
    """Return the gate that `auto` opens, what it states, and the truth."""
    at = {int(place): i for i, place in enumerate(places.tolist())}
    known = ScoredMargins(made.margins[places], pool.ifd[places])
    own = known.some(np.array([at[int(i)] for i in made.drawn]))
    estimator = Estimator(known, own, made.copies, made.copy_kinds, 0)
    first = None
    for percent in (int(100 * step) for step in STEPS):
        kept = choose(pool, made.margins, percent / 100, places=places)
        if first is not None and len(kept) < len(first):
            break
        found = estimator.of([at[int(i)] for i in kept])
        first = kept if first is None else first
        if found.share <= 0.05:
            break
    truth = float(1 - pool.sound[kept].mean())
    return {
        "gate": percent,
        "stated": [found.share, found.low, found.high],
        "truth": truth,
        "inside": bool(found.low <= truth <= found.high),
        "truth_without": float(1 - pool.sound[first].mean()),
        "changed": float(1 - len(set(kept.tolist()) & set(first.tolist())) / len(first)),
        "pool_stated": estimator.chance.share,
        "pool_truth": float(1 - pool.sound[places].mean()),
        "held_out_auc": made.fit.auc,
    }


def rates(pool: Pool, name: str, draws: int, size: int = 1000) -> list[dict[str, Any]]:
    """Return what `auto` does on pools with several shares of damage, drawn from one large pool."""
    bank, found = damage_some(pool, draw_records(pool.examples, len(pool.examples), 0)), []
    for rate in RATES:
        for seed in range(draws):
            random_ = np.random.default_rng([seed, int(100 * rate)])
            good, bad = np.flatnonzero(pool.sound), np.flatnonzero(~pool.sound)
            few = int(rate * size)
            places = np.sort(
                np.concatenate(
                    [
                        random_.choice(good, min(size - few, len(good)), replace=False),
                        random_.choice(bad, few, replace=False),
                    ]
                )
            )
            made = gate(pool, places, bank, seed=seed)
            one = {"what": "rates", "pool": pool.path.name, "model": name, "rate": rate, "seed": seed}
            one |= auto(pool, made, places)
            found.append(one)
            print(json.dumps(one), flush=True)
    return found


def untaught(pool: Pool, name: str) -> dict[str, Any]:
    """Return what the gate does on a pool all of whose damage is of kinds that are not taught."""
    everything = np.arange(len(pool.examples))
    taught = [one for one in damage_kinds() if one not in RELATED]
    made = gate(pool, everything, damage_some(pool, draw_records(pool.examples, RECORDS, 0), taught))
    return {
        "what": "untaught",
        "pool": pool.path.name,
        "model": name,
        "taught": taught,
        "auc": by_kind(made.margins, pool, pool.sound),
        "behind": {str(share): behind(pool, made.margins, share) for share in GATES},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pools", "table", "rates", "untaught"])
    parser.add_argument("data", type=Path, help="folder of the data sets for `pools`, else a pool")
    parser.add_argument("where", help="a folder for `pools`, else a model")
    parser.add_argument("folder", type=Path, nargs="?", help="where answers and results go")
    parser.add_argument("--draws", type=int, default=5)
    args = parser.parse_args()
    if args.what == "pools":
        make_pools(args.data, Path(args.where))
        return
    name = Path(args.where).name
    pool = Pool.read(args.data, args.where, args.folder)
    if args.what == "rates":
        results = rates(pool, name, args.draws)
    else:
        ways: dict[str, Callable[[Pool, str], dict[str, Any]]] = {"table": table, "untaught": untaught}
        results = [ways[args.what](pool, name)]
        print(json.dumps(results[0], indent=1))
    with (args.folder / "gate.jsonl").open("a", encoding="utf-8") as out:
        out.writelines(json.dumps(one) + "\n" for one in results)


if __name__ == "__main__":
    main()

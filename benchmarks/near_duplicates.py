"""Plant near-copies in a data set, and count which of them `--drop-near-duplicates` finds, and what else it finds.

python benchmarks/near_duplicates.py DATA --copies 1000 --threshold 0.8 -o benchmarks/results/near-duplicates.json

Each kind of copy is planted on its own, in a data set that holds the originals and the copies. A copy is found if it
and its original are not both kept. What else is dropped was there before: it is counted, and listed to be judged.
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tithe
from tithe.duplicates.near import NearDuplicates
from tithe.duplicates.shingles import ComparedText
from tithe.records import Example

Row = Mapping[str, str]
SENTENCE = re.compile(r"(?<=[.!?])\s+")


def one_typo(row: Row, draw: random.Random) -> Row | None:
    text = row["output"]
    place = draw.randrange(len(text)) if text else 0
    return {**row, "output": text[:place] + draw.choice("aeiou") + text[place + 1 :]}


def typos(row: Row, draw: random.Random) -> Row | None:
    """Return a copy with one letter in a hundred replaced, in prompt and response."""

    def spoiled(text: str) -> str:
        return "".join(draw.choice("aeinorst") if c.isalpha() and draw.random() < 0.01 else c for c in text)

    return {**row, "instruction": spoiled(row["instruction"]), "output": spoiled(row["output"])}


def cut(row: Row, _: random.Random) -> Row | None:
    text = row["output"][: int(0.85 * len(row["output"]))]
    return {**row, "output": text} if text.strip() else None


def case(row: Row, _: random.Random) -> Row | None:
    return {**row, "instruction": row["instruction"].upper(), "output": row["output"].replace(",", " ;").lower() + "!"}


def sentence(row: Row, draw: random.Random) -> Row | None:
    """Return a copy with the words of one sentence of the response in another order."""
    parts = SENTENCE.split(row["output"])
    if len(parts) < 3:
        return None
    place = draw.randrange(len(parts))
    words = parts[place].split()
    draw.shuffle(words)
    return {**row, "output": " ".join([*parts[:place], " ".join(words), *parts[place + 1 :]])}


def numbers(row: Row, draw: random.Random) -> Row | None:
    """Return a record of another content: all numbers of prompt and response are other ones."""
    if not re.search(r"\d", row["instruction"]) or not re.search(r"\d", row["output"]):
        return None

    def other(text: str) -> str:
        return re.sub(r"\d+", lambda found: str(draw.randrange(1, 10 ** len(found[0]))), text)

    return {**row, "instruction": other(row["instruction"]), "output": other(row["output"])}


def answer(row: Row, draw: random.Random) -> Row | None:
    """Return a record of another content: the prompt with the words of the response in another order."""
    words = row["output"].split()
    draw.shuffle(words)
    return {**row, "output": " ".join(words)} if len(words) >= 5 else None


COPIES: Mapping[str, Callable[[Row, random.Random], Row | None]] = {
    "case and punctuation": case,
    "one typo in the response": one_typo,
    "typos in 1 % of the letters": typos,
    "the last 15 % cut": cut,
    "one sentence shuffled": sentence,
}
OTHERS = {"other numbers (no copy)": numbers, "another response (no copy)": answer}


def examples_of(rows: list[Row], folder: Path) -> list[Example]:
    path = folder / "planted.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return [item for item in tithe.load(path) if isinstance(item, Example)]


def planted(rows: list[Row], make: Any, count: int, threshold: float, folder: Path) -> dict[str, Any]:
    """Plant copies of one kind, and count those that are found."""
    draw = random.Random(0)
    order = draw.sample(range(len(rows)), len(rows))
    originals, copies = [], []
    for i in order:
        made = make(rows[i], draw)
        if made is not None and made != rows[i]:
            originals.append(rows[i])
            copies.append(made)
        if len(copies) == count:
            break
    examples = examples_of([*originals, *copies], folder)
    assert len(examples) == 2 * len(originals), "a copy that is a bad row would be paired with another original"
    pairs = list(zip(examples[: len(originals)], examples[len(originals) :], strict=True))
    near = NearDuplicates(threshold)
    for one in examples:
        near.sign(one)
    near.add_all(examples, near.may_have_twins())
    dropped = near.find([one.id for one in examples if "-" not in one.id], [o.row for o in examples if "-" not in o.id])
    similar = [ComparedText.of(a).similarity(ComparedText.of(b)) >= threshold for a, b in pairs]
    found = [a.id in dropped or b.id in dropped or "-" in b.id for a, b in pairs]
    return {
        "planted": len(pairs),
        "found": sum(found),
        "recall": round(sum(found) / len(found), 4),
        "similar_enough": sum(similar),
        "found_of_similar": round(sum(f for f, s in zip(found, similar, strict=True) if s) / max(1, sum(similar)), 4),
        "found_of_others": sum(f for f, s in zip(found, similar, strict=True) if not s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path)
    parser.add_argument("--copies", type=int, default=1000)
    parser.add_argument("--threshold", type=float, default=0.8)
    parser.add_argument("-o", "--output", type=Path)
    given = parser.parse_args()
    rows = [json.loads(line) for line in given.data.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if row.get("output", "").strip()]
    dataset = tithe.load(given.data)
    first = [item for item in dataset if isinstance(item, Example) and "-" not in item.id]
    began, worked = time.monotonic(), time.process_time()
    near = NearDuplicates.of(dataset, given.threshold)
    dropped = near.find([one.id for one in first], [one.row for one in first])
    took = {"seconds": round(time.monotonic() - began, 1), "cpu_seconds": round(time.process_time() - worked, 1)}
    texts = {one.id: f"{one.prompt[-1].content[:100]} -> {one.response.content[:100]}" for one in first}
    found: dict[str, Any] = {
        "data": given.data.name,
        "examples": len(first),
        "machine": platform.processor() or platform.machine(),
        **took,
        **near.record,
        "dropped": len(dropped),
        "pairs": [
            {"similarity": round(twin.similarity, 3), "dropped": texts[id_], "kept": texts[twin.id]}
            for id_, twin in dropped.items()
        ],
    }
    with tempfile.TemporaryDirectory() as folder:
        for name, make in (COPIES | OTHERS).items():
            found.setdefault("planted", {})[name] = planted(rows, make, given.copies, given.threshold, Path(folder))
            print(f"{name:32} {found['planted'][name]}", flush=True)
    text = json.dumps(found, indent=1, ensure_ascii=False)
    print({name: found[name] for name in ("examples", "seconds", "cpu_seconds", "dropped")})
    if given.output:
        given.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

"""Selections behind a gate, with the bundled model and a part of the starter set."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from threadpoolctl import threadpool_limits

import tithe as library
from tests.e2e.command import Command, child, read_jsonl, write_jsonl
from tests.e2e.test_resume import HASTY, count_parts, keys_of_parts, wait_for
from tithe.run.results import SelectResult

pytestmark = pytest.mark.slow

STARTER = Path(library.__file__).parent / "pocket" / "starter.jsonl"
COUNT = 160
SOUND = "sound(records=100, kinds=cut+shuffled+encoding+empty-talk)"  # what a model of 7M can tell
POCKET = {"model": "pocket", "dtype": "fp32", "device": "cpu", "max_length": 128}
OPTIONS = ("--model", "pocket", "--dtype", "fp32", "--device", "cpu", "--max-length", 128)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = pq.read_table(folder / "scores.parquet").to_pylist()
    return found


@dataclass(frozen=True)
class Gated:
    """A run behind a gate of 50 %.

    Args:
        data: its data set.
        folder: its run folder.
        result: what the library returned.
    """

    data: Path
    folder: Path
    result: SelectResult

    @property
    def rows(self) -> list[dict[str, Any]]:
        return rows_of(self.folder)

    @property
    def record(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / "run.json").read_text())
        return found

    def again(self, data: Path | None = None, **settings: Any) -> SelectResult:
        """Select anew, with the answers of this run."""
        how = {"scorer": "ifd", "keep": "20%", "gate": f"{SOUND}:50%", "answers": str(self.folder)} | POCKET | settings
        return library.select(data or self.data, **how)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Hundreds of small regressions: on a busy machine, threads that wait for each other take ten times longer."""
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def first(one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> Gated:
    folder = tmp_path_factory.mktemp("gate")
    lines = STARTER.read_text(encoding="utf-8").splitlines()
    short = sorted(range(len(lines)), key=lambda i: len(lines[i]))[:COUNT]  # which takes least time
    data = write_jsonl(folder / "short.jsonl", [json.loads(lines[i]) for i in sorted(short)])
    how = {"scorer": "ifd", "keep": "20%", "gate": f"{SOUND}:50%", "run_dir": folder / "run"} | POCKET
    return Gated(data, folder / "run", library.select(data, **how))


def test_half_enters_the_next_stage(first: Gated) -> None:
    stages = [(stage["in"], stage["kept"]) for stage in first.record["stages"]]
    # 20 % of all 160 are kept in the end, from the half that passes.
    assert stages == [(COUNT, COUNT // 2), (COUNT // 2, COUNT // 5)]
    assert len(first.result.kept) == COUNT // 5


def test_every_dropped_record_says_what_it_looks_like(first: Gated) -> None:
    dropped = read_jsonl(first.folder / "dropped.jsonl")
    assert len(dropped) == COUNT - COUNT // 5
    reasons = [row["dropped"] for row in first.rows if row["dropped"] is not None]
    at_the_gate = [why for why in reasons if why.startswith("gate: ")]
    assert len(at_the_gate) == COUNT // 2 and len(reasons) == len(dropped)
    kinds = {"cut", "shuffled", "encoding", "empty-talk"}
    for why in at_the_gate:
        start, _, chance = why.rpartition(" ")
        assert start.removeprefix("gate: looks like ") in kinds and 0 <= float(chance.strip("()")) <= 1
    told = Counter(why for record in dropped for why in [value for value in record.values() if str(value) in reasons])
    assert told == Counter(reasons)
    counts = first.record["selection"]["dropped"]
    assert sum(counts.values()) == len(dropped) and not any("(" in why for why in counts)
    assert sum(n for why, n in counts.items() if why.startswith("gate: looks like ")) == COUNT // 2


def test_the_record_has_what_the_gate_says_of_the_pool(first: Gated) -> None:
    gate = first.record["stages"][0]
    learned, facts = gate["learned"]["sound"], gate["gate"]
    assert learned["drawn"] == learned["copies"] == 100 and learned["auc"] > 0.7
    assert set(learned["auc_by_kind"]) == set(learned["auc_by_kind_if_not_taught"])
    assert facts["keeps"] == "50%" and 0 < facts["estimated_damage_in_pool"] < 1
    margins = {row["id"]: row["sound"] for row in first.rows}
    worst = sorted(margins, key=lambda id_: margins[id_])[:10]
    assert [one["id"] for one in facts["most_suspicious"]] == worst
    for shares in facts["kept_shares"].values():
        assert sum(kept for kept, _ in shares.values()) == COUNT // 2
        assert sum(of for _, of in shares.values()) == COUNT
    assert {"response tokens", "code"} <= set(facts["kept_shares"])


def test_the_table_has_the_gates_columns_for_all_and_the_scores_of_the_survivors(first: Gated) -> None:
    passed = 0
    for row in first.rows:
        assert row["sound"] is not None and 0 <= row["sound_probability"] <= 1 and row["sound_looks_like"]
        assert 0 <= row["sound_looks_like_probability"] <= 1
        gone = (row["dropped"] or "").startswith("gate: ")
        assert (row["ifd"] is None) == gone
        assert row["problem"] == ("ifd: dropped in gate" if gone else None)
        passed += not gone
    assert passed == COUNT // 2
    kept = {row["sound"] for row in first.rows if row["ifd"] is not None}
    assert min(kept) >= max(row["sound"] for row in first.rows if row["ifd"] is None)
    assert (first.folder / "stage-0" / "damage.parquet").is_file()


def test_each_pass_is_read_once(first: Gated) -> None:
    """All records and their copies at the gate, and the responses alone of those that pass."""
    read = [stage["work"]["passes_computed"] for stage in first.record["stages"]]
    assert read == [COUNT + 100, COUNT // 2]


def test_a_second_run_reads_nothing(first: Gated, tmp_path: Path) -> None:
    folder = shutil.copytree(first.folder, tmp_path / "run")
    again = first.again(answers=None, run_dir=folder)
    assert again.record["work"]["passes_computed"] == 0 and again.kept == first.result.kept
    assert (folder / "scores.parquet").read_bytes() == (first.folder / "scores.parquet").read_bytes()


def test_neither_the_order_of_the_file_nor_the_batches_matter(first: Gated, tmp_path: Path) -> None:
    lines = read_jsonl(first.data)
    shuffled = write_jsonl(tmp_path / "shuffled.jsonl", random.Random(0).sample(lines, len(lines)))
    other = first.again(shuffled, answers=None, batch_tokens=300)
    assert other.record["work"]["passes_computed"] == COUNT + 100 + COUNT // 2
    assert set(other.kept) == set(first.result.kept)


MOMENTS: dict[str, Callable[[Path], object]] = {
    "drawn records": lambda run: count_parts(run) >= 2,
    "copies": lambda run: answers_stored(run) > 100,
    "all others": lambda run: answers_stored(run) > 200 and not (run / "stage-0" / "scores.parquet").exists(),
    "behind the gate": lambda run: (run / "stage-0" / "scores.parquet").exists(),
}


def answers_stored(run: Path) -> int:
    """Count stored answers; a pass at the gate has several."""
    return sum(map(len, keys_of_parts(run)))


@pytest.mark.parametrize(
    "moments",
    [["copies", "behind the gate"], pytest.param(list(MOMENTS), marks=pytest.mark.thorough)],
    ids=["twice", "at every moment"],
)
def test_killed_and_run_again(first: Gated, tithe: Command, tmp_path: Path, moments: list[str]) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    gate = ("-s", "ifd", "-k", "20%", "--gate", f"{SOUND}:50%", "--batch-tokens", 1000)

    def command(folder: Path) -> tuple[object, ...]:
        return ("select", first.data, *gate, *OPTIONS, "-o", folder / "k.jsonl", "--json")

    whole = tithe.ok(*command(straight)).json
    run = broken / "k.tithe"
    for name in moments:
        process = child(HASTY, 0.05, *command(broken))
        reached = wait_for(lambda name=name: MOMENTS[name](run), process)
        process.kill()
        process.communicate()
        assert reached and not (broken / "k.jsonl").exists(), name
    before = answers_stored(run)
    again = tithe.ok(*command(broken)).json
    assert 0 < again["work"]["passes_computed"] < whole["work"]["passes_computed"]
    assert 0 < before < answers_stored(run) == answers_stored(straight / "k.tithe")  # nothing is stored twice
    for name in ("k.jsonl", "k.tithe/scores.parquet", "k.tithe/dropped.jsonl", "k.tithe/stage-0/damage.parquet"):
        assert (broken / name).read_bytes() == (straight / name).read_bytes(), name
    assert [stage["gate"] for stage in again["stages"][:1]] == [stage["gate"] for stage in whole["stages"][:1]]


def test_auto_states_an_estimate(first: Gated, tithe: Command, tmp_path: Path) -> None:
    out = tmp_path / "k.jsonl"
    chosen = ("-s", "ifd", "-k", "10%", "--gate", f"{SOUND}:auto", "--gate-damage", 0.2, "--answers", first.folder)
    done = tithe.ok("select", first.data, *chosen, *OPTIONS, "-o", out, "--json")
    gate, behind = done.json["stages"]
    facts = gate["gate"]
    for name in ("without_gate", "estimated_damage_in_selection"):
        assert 0 <= facts[name]["low"] <= facts[name]["share"] <= facts[name]["high"] <= 1
    assert facts["keeps"] == gate["selection"]["budget"] and gate["kept"] == round(
        COUNT * float(facts["keeps"].rstrip("%")) / 100
    )
    assert facts["estimated_damage_in_selection"]["share"] <= 0.2 or "no gate gets lower" in done.err
    assert "of the selection is damaged" in done.err and "gate: most suspicious:" in done.err
    # Only the copies' own responses alone are new: all else was read, and the gate's table keeps its columns.
    assert behind["kept"] == len(read_jsonl(out)) and done.json["selection"]["kept"] == behind["kept"]
    names = pq.read_schema(tmp_path / "k.tithe" / "scores.parquet").names
    assert names.count("ifd") == 1 and {"sound", "sound_looks_like"} <= set(names)


def test_no_gate_is_needed_where_much_damage_is_allowed(first: Gated) -> None:
    lenient = first.again(gate=f"{SOUND}:auto", gate_damage=0.99, keep="10%")
    assert [stage["kept"] for stage in lenient.record["stages"]] == [COUNT, COUNT // 10]
    plain = library.select(first.data, scorer="ifd", keep="10%", answers=str(first.folder), **POCKET)
    assert lenient.kept == plain.kept


def test_the_whole_run_is_described_by_the_scorer_that_ranked(first: Gated) -> None:
    """It is not the last of the scorers behind the gate."""
    found = first.again(scorer=("ifd", "length"), by="ifd", keep="10%")
    assert found.scores.by == found.record["selection"]["by"] == "ifd"
    assert "ifd" in found.record["selection"]["quantiles"] and found.kept == first.again(keep="10%").kept


def test_a_gate_before_a_pipeline(first: Gated) -> None:
    found = first.again(scorer=None, keep="5%", pipeline="length:50% -> random:10%")
    stages = [(stage["in"], stage["kept"]) for stage in found.record["stages"]]
    assert stages == [(160, 80), (80, 40), (40, 4)]
    reasons = [reason.partition(":")[0] for reason in found.dropped.values()]
    assert Counter(reasons) == {"gate": 80, "stage 1, length": 40, "stage 2, random": 36}


def test_a_gate_within_a_column_keeps_its_share_of_each_value(first: Gated) -> None:
    found = first.again(gate_within="quality")
    lines = read_jsonl(first.data)
    qualities = {row["id"]: lines[row["row"]]["quality"] for row in first.rows}
    whole = Counter(qualities.values())
    gone = Counter(qualities[id_] for id_, why in found.dropped.items() if why.startswith("gate: "))
    assert set(gone) == set(whole) and sum(gone.values()) == COUNT // 2
    assert all(abs(gone[value] - whole[value] / 2) <= 1 for value in whole)


def test_a_model_that_cannot_tell_is_refused(first: Gated, tithe: Command, tmp_path: Path) -> None:
    """Other records' answers look as good as the record's own to the bundled model."""
    spec = "sound(records=100, kinds=other-answer+mixed):50%"
    arguments = ("select", first.data, "--gate", spec, *OPTIONS, "--answers", first.folder, "-o", tmp_path / "k.jsonl")
    done = tithe.fails(*arguments)
    assert "this model cannot tell damage in this data: AUC 0." in done.errors[0]
    assert "on held-out damaged copies" in done.errors[0] and "take a larger model" in done.hints[0]
    assert not (tmp_path / "k.jsonl").exists()


BAD = {
    "a small pool": (("--gate", "50%"), "`sound` draws 400 records, and there are 160 different ones"),
    "rows": (("--gate", 500), "a gate keeps a share, not `500`"),
    "no share": (("--gate", "foo"), "`foo`"),
    "another scorer": (("--gate", "ifd:50%"), "a gate is made by `sound`, not by `ifd`"),
    "auto before a learner": (("-s", "miwv", "--gate", "auto"), "`miwv` learns from the records that the gate keeps"),
    "damage with a share": (
        ("--gate", "50%", "--gate-damage", 0.1),
        "`gate_damage` goes with `--gate auto`, not with `50%`",
    ),
    "damage beyond 1": (("--gate", "auto", "--gate-damage", 5), "a share is between 0 and 1"),
    "a missing column": (("--gate", "50%", "--gate-within", "nowhere"), "nowhere"),
    "damage without a gate": (("--gate-damage", 0.1), "`gate_damage` is given, and there is no gate"),
    "within without a gate": (("--gate-within", "quality"), "`gate_within` is given, and there is no gate"),
    "with a warm-up": (("--warmup", "--gate", "50%"), "`warmup` does not go with a gate"),
    "an unknown kind": (("--gate", "sound(records=100, kinds=nothing):50%"), "nothing"),
    "too much trimming": (("--gate", "sound(trim=2):50%"), "`trim` is between 0 and 0.5, not 2"),
    "an unknown kind to score": (("-s", "sound(records=100, kinds=nothing)"), "nothing"),
}


@pytest.mark.parametrize(("arguments", "message"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_one_sentence(
    first: Gated, tithe: Command, tmp_path: Path, arguments: tuple[object, ...], message: str
) -> None:
    done = tithe.fails("select", first.data, *arguments, *OPTIONS, "-o", tmp_path / "k.jsonl")
    assert message in done.errors[0], done.errors
    assert not done.errors[0].endswith(".") and not (tmp_path / "k.jsonl").exists()

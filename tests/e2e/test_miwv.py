"""Scorers that look at the whole data set first, through the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.e2e.command import Command, child, read_jsonl, records, write_jsonl
from tests.e2e.test_resume import HASTY, count_parts, keys_of_parts, wait_for
from tithe.records import Scores
from tithe.selectors.budget import Budget
from tithe.selectors.rank import Top

pytestmark = pytest.mark.slow

# Embeddings, too, are written after every batch. In a fresh interpreter: others import what is replaced here.
HASTIER = HASTY.replace(
    "engine.Engine.read_batch = batch",
    """engine.Engine.read_batch = batch
import tithe.engine.readouts.pooled as hidden
import tithe.neighbours.vectors as vectors
vectors.FLUSH_SECONDS = 0.0
states = hidden.pooled_vectors
def slowly(*arguments, **more):
    for found in states(*arguments, **more):
        time.sleep(pause)
        yield found
hidden.pooled_vectors = slowly
""",
)
FIXED: list[object] = ["--dtype", "fp32", "--encoder", "tfidf"]


def table(run: Path, name: str = "scores") -> list[dict[str, Any]]:
    return pq.read_table(run / f"{name}.parquet").to_pylist()


def run_record(run: Path) -> dict[str, Any]:
    return json.loads((run / "run.json").read_text())


# What it does


def test_with_ifd_it_costs_three_passes_a_record(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    """Not four: the zero-shot pass is both's."""
    planned = tithe.ok("plan", small, "--model", model_dir, "--scorer", "ifd,miwv", "--json")
    assert planned.json["counts"]["passes"] == {"given": 60, "alone": 60, "shown": 60}
    assert planned.json["counts"]["passes_asked"] == 240
    assert planned.json["estimated"] is True and "drawn at random" in planned.err
    run = tmp_path / "run"
    done = tithe.ok("score", small, "--model", model_dir, *FIXED, "--scorer", "ifd,miwv", "--run-dir", run, "--json")
    assert done.json["work"]["passes_computed"] == sum(done.json["counts"]["passes"].values()) == 180
    for row in table(run):
        assert row["miwv"] == pytest.approx(row["nll_shown"] - row["nll_given"], abs=1e-12)
        assert row["ifd"] == pytest.approx(row["nll_given"] / row["nll_alone"])
        assert row["shot_tokens_cut"] == 0


def test_the_best_are_kept_and_the_neighbours_written_down(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path
) -> None:
    out, run = tmp_path / "kept.jsonl", tmp_path / "kept.tithe"
    select = ("select", small, "--model", model_dir, *FIXED, "--scorer", "miwv", "--keep", "10%", "-o", out)
    record = tithe.ok(*select, "--json").json
    rows = table(run)
    best = sorted(sorted(rows, key=lambda row: -row["miwv"])[:6], key=lambda row: row["row"])
    assert [one["n"] for one in read_jsonl(out)] == [row["row"] for row in best]
    found = table(run, "neighbours")
    assert [one["id"] for one in found] == [row["id"] for row in rows]
    assert all(one["neighbour"] != one["id"] and one["rank"] == 1 for one in found)
    assert all(0 < one["similarity"] <= 1 for one in found)
    assert record["settings"]["encoder"] == "tfidf"
    assert record["scorers"]["miwv"] == {
        "unit": "nats per token", "reads": "given, shown: nll", "shots": 1, "exclude_similarity": None,
        "shot_pool": None, "encoder": "tfidf",
    }  # fmt: skip
    learned = record["learned"]
    assert learned["encoders"]["tfidf"]["texts"] == 60 and learned["encoders"]["tfidf"]["dims"] > 0
    assert learned["miwv"] == {"same_prompt_neighbours": 0, "without_neighbour": 0}
    before = {name: (run / name).read_bytes() for name in ("scores.parquet", "neighbours.parquet")}
    again = tithe.ok(*select, "--overwrite", "--json").json
    assert again["work"]["passes_computed"] == 0 and again["learned"]["encoders"]["tfidf"]["encoded"] == 0
    assert before == {name: (run / name).read_bytes() for name in before}


def test_nothing_of_an_earlier_run_stays(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    mine = tmp_path / "run" / "mine.parquet"
    score = ("score", small, "--model", model_dir, "--run-dir", run)
    tithe.ok(*score, *FIXED, "--scorer", "miwv")
    assert (run / "neighbours.parquet").exists()
    shutil.copy(run / "scores.parquet", mine)
    tithe.ok(*score, "--scorer", "ifd")
    assert not (run / "neighbours.parquet").exists() and mine.exists()
    assert all(row["nll_shown"] is None for row in table(run))
    shutil.copy(mine, run / "neighbours.parquet")
    failed = tithe.fails(*score, *FIXED, "--scorer", "miwv")
    assert "was not written by a run, and would be replaced" in failed.err


def test_other_neighbours_are_other_answers(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    """One folder for several settings gives what a folder for each gives."""
    variants: list[list[object]] = [["--encoder", "tfidf"], ["--encoder", "self"], ["--encoder", "tfidf", "--shots", 2]]
    score = ("score", small, "--model", model_dir, "--dtype", "fp32", "--scorer", "miwv", "--run-dir")
    seen = []
    for i, variant in enumerate(variants):
        tithe.ok(*score, tmp_path / "shared", *variant)
        tithe.ok(*score, tmp_path / f"fresh{i}", *variant)
        got, wanted = (np.array([row["miwv"] for row in table(tmp_path / name)]) for name in ("shared", f"fresh{i}"))
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
        assert table(tmp_path / "shared", "neighbours") == table(tmp_path / f"fresh{i}", "neighbours")
        seen.append(got)
    assert not np.allclose(seen[0], seen[1]) and not np.allclose(seen[0], seen[2])


@pytest.mark.parametrize("scorer", ["miwv", "wici(near=6, probes=2)", "nuggets(anchors=4)"])
def test_order_and_batches_do_not_change_a_score(tithe: Command, model_dir: Path, tmp_path: Path, scorer: str) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", records(24))
    back = write_jsonl(tmp_path / "back.jsonl", records(24)[::-1])
    name = scorer.partition("(")[0]

    def scored(source: Path, *arguments: object) -> dict[str, float]:
        run = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        tithe.ok("score", source, "--model", model_dir, *FIXED, "--scorer", scorer, "--run-dir", run, *arguments)
        return {row["id"]: row[name] for row in table(run)}

    base = scored(data)
    variants = [scored(data, "--batch-tokens", 1, "--workers", 1), scored(data, "--batch-tokens", 5000)]
    variants += [scored(data, "--per-token")]
    if name != "nuggets":  # whose k-means begins with what it draws by place
        variants.append(scored(back))
    for other in variants:
        assert other.keys() == base.keys()
        for id_, value in other.items():
            assert value == pytest.approx(base[id_], rel=1e-5, abs=1e-5)


def test_tokens_of_passes_over_others_are_under_their_own_name(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    data, run = write_jsonl(tmp_path / "data.jsonl", records(6)), tmp_path / "run"
    score = ("score", data, "--model", model_dir, *FIXED, "--per-token", "--run-dir", run)
    tithe.ok(*score, "--scorer", "wici(near=2, probes=2)")
    probes = {(one["id"], one["probe"]) for one in table(run, "probes")}
    rows = table(run, "tokens")
    assert {(row["shots"][0], row["id"]) for row in rows} == probes
    assert {row["pass"] for row in rows} == {"shown"}


# Worked examples


def test_a_shot_pool_never_shows_a_record_itself(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    """The pool holds the data set, too: its nearest is the second nearest there."""
    data = write_jsonl(tmp_path / "data.jsonl", records(8))
    pool = write_jsonl(tmp_path / "pool.jsonl", [*records(8), *records(8), *records(30)])
    run = tmp_path / "run"
    score = ("score", data, "--model", model_dir, *FIXED, "--scorer", "miwv", "--run-dir", run)
    tithe.ok(*score, "--shot-pool", pool)
    found = table(run, "neighbours")
    assert len(found) == 8
    for one in found:
        assert one["neighbour"].startswith("pool:") and "-" not in one["neighbour"]
        assert one["neighbour"].removeprefix("pool:") != one["id"]
    assert run_record(run)["learned"]["miwv"]["shot_pool_examples"] == 46


def test_duplicates_are_told_and_can_be_passed_over(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    twice = [*records(10), records(1)[0]]
    data, run = write_jsonl(tmp_path / "twice.jsonl", twice), tmp_path / "run"
    score = ("score", data, "--model", model_dir, *FIXED, "--scorer", "miwv", "--run-dir", run)
    done = tithe.ok(*score)
    assert "note: the nearest neighbour of 2 of 11 records has the same prompt" in done.err
    assert "`--exclude-similarity 0.999`" in done.err
    assert run_record(run)["learned"]["miwv"]["same_prompt_neighbours"] == 2
    ids = [row["id"] for row in table(run)]
    pairs = {one["id"]: one["neighbour"] for one in table(run, "neighbours")}
    assert pairs[ids[0]] == ids[10] and pairs[ids[10]] == ids[0] == ids[10].removesuffix("-1")
    done = tithe.ok(*score, "--exclude-similarity", 0.999)
    assert "same prompt" not in done.err
    pairs = {one["id"]: one["neighbour"] for one in table(run, "neighbours")}
    assert pairs[ids[0]] == pairs[ids[10]] not in (ids[0], ids[10])


def test_shots_that_do_not_fit_are_cut_and_counted(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    """Three records: of short ones, one with a long neighbour; the long one fills the window by itself."""
    words = "red green blue book friend letter weather answer "
    data = write_jsonl(
        tmp_path / "data.jsonl",
        [
            {"instruction": "Name colours.", "output": "Red, green and blue."},
            {"instruction": "Name more colours.", "output": words * 40},
            {"instruction": "Sum twelve and thirty.", "output": "Forty-two."},
        ],
    )
    run = tmp_path / "run"
    score = ("score", data, "--model", model_dir, *FIXED, "--scorer", "ifd,miwv", "--run-dir", run)
    whole = tithe.ok(*score, "--max-length", 512, "--json").json["counts"]
    assert (whole["truncated_shots"], whole["shot_tokens_cut"]) == (0, 0)
    lengths = [row["prompt_tokens"] + row["response_tokens"] for row in table(run)]
    limit = lengths[1]
    done = tithe.ok(*score, "--max-length", limit, "--json")
    rows, counts = table(run), done.json["counts"]
    assert rows[1]["miwv"] is None and rows[1]["ifd"] is not None and rows[1]["nll_shown"] is None
    assert rows[1]["problem"].startswith("miwv: no room for the worked example: the rest of the pass has ")
    assert counts["problems"] == {"no room for the worked example": 1}
    cut = [row["shot_tokens_cut"] for row in rows]
    assert cut[0] > 0 and cut[1] == 0 and all(row["truncated"] == 0 for row in rows)
    assert (counts["truncated_shots"], counts["shot_tokens_cut"]) == (sum(n > 0 for n in cut), sum(cut))
    shots = sum(n > 0 for n in cut)
    assert f"cut to fit: {sum(cut):,} tokens before {shots} example{'s' * (shots != 1)}" in done.err
    assert "examples without a score, 1: no room for the worked example" in done.err


def test_a_prompt_without_text_has_no_neighbour(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    silent = {"messages": [{"role": "assistant", "content": "Red."}]}
    asked = [
        {"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": "Blue."}]}
        for text in ("Name a colour.", "Name a colour of the rainbow.", "Name a friend.")
    ]
    data, run = write_jsonl(tmp_path / "data.jsonl", [*asked, silent]), tmp_path / "run"
    arguments = ("--template", "plain", "--scorer", "miwv", "--run-dir", run)
    done = tithe("score", data, "--model", model_dir, *FIXED, *arguments)
    rows = table(run)
    if rows[3]["id"] is not None:  # where the reader takes such a record for one
        assert rows[3]["problem"] == "no neighbour: the encoder makes nothing of its prompt"
        assert "1 without text" in done.err
    assert [row["miwv"] is None for row in rows[:3]] == [False] * 3


# Selections that look at the whole


def test_settings_of_the_paper(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.jsonl"
    preset = ("select", small, "--model", model_dir, "--preset", "miwv-paper", "--keep", "5%", "-o", out)
    record = tithe.ok(*preset, "--encoder", "tfidf", "--json").json
    settings = record["settings"]
    assert (settings["scorer"], settings["template"], settings["max_length"]) == (["miwv"], "alpaca", 512)
    assert (settings["keep_of"], settings["selector"], settings["shots"]) == ("input", "top", None)
    assert record["selection"]["filters"] == [] and len(read_jsonl(out)) == 3
    assert record["scorers"]["miwv"]["shots"] == 1
    failed = tithe.fails(*preset, "--overwrite")
    assert "BAAI/bge-large-en" in failed.err


def test_the_likeliest_of_several_responses(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    """GRAPE: one response to each prompt is kept, the one of the lowest NLL."""
    several = [{**one, "output": f"{one['output']} {word}"} for one in records(8) for word in ("red", "weather", "sum")]
    data, out = write_jsonl(tmp_path / "several.jsonl", several), tmp_path / "kept.jsonl"
    select = ("select", data, "--model", model_dir, "--scorer", "grape", "--selector", "per-prompt")
    tithe.ok(*select, "--keep", "100%", "-o", out)
    rows = table(tmp_path / "kept.tithe")
    best = [min(range(i, i + 3), key=lambda row: rows[row]["nll_given"]) for i in range(0, 24, 3)]
    assert read_jsonl(out) == [several[row] for row in best]
    assert all(row["grape"] == pytest.approx(-row["nll_given"]) for row in rows)


@pytest.mark.parametrize("encoder", ["tfidf", "self"])
def test_a_selector_that_looks_at_likeness(tithe: Command, model_dir: Path, tmp_path: Path, encoder: str) -> None:
    """Vectors are made of what the filters leave; of two prompts that are equal `deita` keeps the better one."""
    data = write_jsonl(
        tmp_path / "data.jsonl", [*records(10), {**records(10)[3], "output": f"{records(10)[3]['output']} red book"}]
    )
    out, run = tmp_path / "kept.jsonl", tmp_path / "kept.tithe"
    arguments = ("--scorer", "length", "--selector", "deita(threshold=0.9999)", "--encoder", encoder)
    select = ("select", data, "--model", model_dir, *arguments, "--drop", "length > 35", "--keep", "100%", "-o", out)
    record = tithe.ok(*select, "--json").json
    rows = table(run)
    left = [row for row in rows if row["dropped"] != "length > 35"]
    assert record["learned"]["encoders"][encoder]["texts"] == len({row["id"] for row in left}) - 1
    assert rows[3]["length"] < rows[10]["length"] <= 35 and rows[3]["dropped"] not in (None, "length > 35")
    assert rows[10]["dropped"] is None
    again = tithe.ok(*select, "--json", "--overwrite").json
    assert again["learned"]["encoders"][encoder]["encoded"] == 0
    assert again["selection"] == record["selection"]


@pytest.mark.parametrize(
    ("pool", "kept"), [(52_002, (520, 2600, 5200, 7800)), (63_655, (636, 3182, 6365, 9548))], ids=["alpaca", "wizardlm"]
)
def test_counts_of_the_papers_tables(pool: int, kept: tuple[int, ...]) -> None:
    """The paper's rows are floor(n * p); the largest of MIWV are kept, of the input and without a threshold."""
    scores = Scores([f"{i}" for i in range(pool)], np.arange(pool, dtype=np.float64) - pool / 2)
    for share, rows in zip(("1%", "5%", "10%", "15%"), kept, strict=True):
        chosen = Top().select(scores, Budget.parse(share, of="input"))
        assert len(chosen.kept) == rows
        assert chosen.kept[0] == f"{pool - rows}"


# Killed


@pytest.mark.parametrize(
    "scorer", ["miwv", pytest.param("wici(near=6, probes=2),ifd", marks=pytest.mark.slow)], ids=["miwv", "wici"]
)
def test_killed_and_run_again(tithe: Command, model_dir: Path, tmp_path: Path, scorer: str) -> None:
    many = write_jsonl(tmp_path / "many.jsonl", records(120))

    def command(folder: Path) -> list[object]:
        settings = ["--model", model_dir, "--scorer", scorer, "--encoder", "self", "--keep", "10%"]
        return ["select", many, *settings, "--batch-tokens", 256, "-o", folder / "k.jsonl", "--json"]

    def files(folder: Path) -> dict[str, bytes]:
        run = folder / "k.tithe"
        names = [path.name for path in run.glob("*.parquet")] + ["dropped.jsonl"]
        return {name: (run / name).read_bytes() for name in names} | {"kept": (folder / "k.jsonl").read_bytes()}

    straight, broken = tmp_path / "straight", tmp_path / "broken"
    whole = tithe.ok(*command(straight)).json
    run = broken / "k.tithe"
    moments = {
        "embedding": lambda: len(list((run / "embeddings").rglob("part-*.parquet"))) >= 2,
        "scoring": lambda: count_parts(run / "answers") >= 3,
        "later": lambda: count_parts(run / "answers") >= 12,
    }
    for name, moment in moments.items():
        process = child(HASTIER, 0.01, *command(broken), fresh=True)
        reached = wait_for(moment, process)
        process.kill()
        process.communicate()
        assert reached, name
        (broken / "k.jsonl").unlink(missing_ok=True)
    before = set().union(*keys_of_parts(run / "answers"))
    again = tithe.ok(*command(broken)).json
    assert before and files(broken) == files(straight)
    work = again["work"]
    assert work["passes_computed"] + work["passes_reused"] >= whole["work"]["passes_computed"]
    if scorer == "miwv":
        assert (work["passes_reused"], work["passes_computed"]) == (len(before), 240 - len(before))
    same = ("settings", "scorers", "template", "model", "counts", "selection")
    assert {key: again[key] for key in same} == {key: whole[key] for key in same}


# Planning


def test_a_plan_needs_no_weights(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(model_dir, tmp_path / "bare"))
    (bare / "model.safetensors").unlink()
    counts = tithe.ok("plan", small, "--model", bare, "--scorer", "miwv,wici,nuggets(anchors=7)", "--json").json[
        "counts"
    ]
    passes = counts["passes"]
    # given and alone of all records; a shown pass for MIWV, 5 for wICI, and 7 anchors less the anchors' own
    assert (passes["given"], passes["alone"]) == (60, 60)
    assert 60 + 300 + 7 * 60 - 7 - 60 <= passes["shown"] <= 60 + 300 + 7 * 60 - 7
    failed = tithe.fails("plan", small, "--model", bare, "--scorer", "miwv", "--shot-pool", tmp_path / "none.jsonl")
    assert "the shot pool cannot be used: no file or folder" in failed.err


# What cannot be


def test_settings_that_nothing_reads(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    command = ("score", small, "--model", model_dir, "--run-dir", tmp_path / "run")
    for flag, value, readers in (
        ("--encoder", "tfidf", "`miwv`"),
        ("--shots", 2, "`miwv`"),
        ("--exclude-similarity", 0.9, "`miwv`"),
        ("--shot-pool", small, "`miwv`"),
    ):
        failed = tithe.fails(*command, "--scorer", "ifd,length", flag, value)
        name = flag.removeprefix("--").replace("-", "_")
        assert f"error: `{name}` is given, and nothing reads it: not `ifd`, `length`" in failed.err
        assert readers in failed.err
    failed = tithe.fails("select", small, "--model", model_dir, "-o", tmp_path / "k.jsonl", "--encoder", "tfidf")
    assert "not `ifd`, `top`" in failed.err
    assert not (tmp_path / "run").exists()
    failed = tithe.fails(*command, "--scorer", "miwv(encoder=tfidf)", "--encoder", "self")
    assert "`encoder` is given as `self`, and nothing reads it: `miwv(encoder=tfidf)`" in failed.err
    planned = ("plan", small, "--model", model_dir, "--json", "--encoder", "self", "--scorer")
    scorers = tithe.ok(*planned, "miwv(encoder=tfidf),nuggets(anchors=2)").json["scorers"]
    assert (scorers["miwv"]["encoder"], scorers["nuggets"]["encoder"]) == ("tfidf", "self")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shots", 0], "`shots` cannot be `0`: it must be at least 1"),
        (["--scorer", "miwv(shots=0)"], "`shots` must be at least 1, not 0"),
        (["--exclude-similarity", 1.5], "`exclude_similarity` cannot be `1.5`: a cosine is between -1 and 1"),
        (["--shots", 60], "60 worked examples are to be shown, and besides a record itself there are 59"),
        (["--encoder", "tfdif"], "there is no encoder `tfdif`"),
        (["--encoder", "no/such/folder"], "no/such/folder"),
        (["--shot-pool", "nothing.jsonl"], "the shot pool cannot be used: no file or folder `nothing.jsonl`"),
        (["--scorer", "miwv(found=1)"], "`miwv` has no setting `found`"),
        (["--scorer", "wici(probes=40)"], "`wici` needs 1 <= probes <= near, not 40 and 32"),
        (["--scorer", "nuggets(anchors=0)"], "`anchors` must be at least 1, not 0"),
    ],
)
def test_one_sentence(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path, arguments: list[object], message: str
) -> None:
    given = [] if "--scorer" in arguments else ["--scorer", "miwv"]
    failed = tithe.fails("score", small, "--model", model_dir, "--run-dir", tmp_path / "run", *given, *arguments)
    assert message in failed.err


def test_one_record_only(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "one.jsonl", records(1))
    for scorer, message in (
        ("miwv", "1 worked example is to be shown, and besides a record itself there is none"),
        ("wici", "`wici` needs other records to help, and of 1 only"),
        ("nuggets", "`nuggets` tries a record on others, and there is only one record"),
    ):
        command = ("score", data, "--model", model_dir, "--scorer", scorer, "--run-dir", tmp_path / "run")
        assert message in tithe.fails(*command).err
    assert not (tmp_path / "run" / "scores.parquet").exists()
    tithe.ok("score", data, "--model", model_dir, "--run-dir", tmp_path / "run", "--scorer", "grape")


def test_all_prompts_equal(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    equal = [{"instruction": "Name a colour.", "output": word} for word in ("Red.", "Green.", "Blue.")]
    data, run = write_jsonl(tmp_path / "equal.jsonl", equal), tmp_path / "run"
    score = ("score", data, "--model", model_dir, "--scorer", "ifd,miwv", "--run-dir", run)
    for encoder in ("tfidf", "self"):
        done = tithe.ok(*score, "--encoder", encoder)
        assert "the nearest neighbour of every record has the same prompt" in done.err
        ids = [row["id"] for row in table(run)]
        assert [one["neighbour"] for one in table(run, "neighbours")] == [ids[1], ids[0], ids[0]]  # the lowest other
    tithe.ok(*score, "--exclude-similarity", 0.999)
    rows = table(run)
    why = "miwv: no neighbour: fewer than 1 below the similarity of 0.999"
    assert [row["problem"] for row in rows] == [why] * 3
    assert all(row["miwv"] is None and row["ifd"] is not None for row in rows)


def test_vectors_that_are_no_numbers(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    vectors = np.ones((60, 4), dtype=np.float32)
    vectors[7, 2] = np.nan
    np.save(tmp_path / "vectors.npy", vectors)
    score = ("score", small, "--model", model_dir, "--scorer", "miwv", "--run-dir", tmp_path / "run")
    assert "finite" in tithe.fails(*score, "--encoder", f"file:{tmp_path / 'vectors.npy'}").err
    np.save(tmp_path / "short.npy", vectors[:50])
    assert "50" in tithe.fails(*score, "--encoder", f"file:{tmp_path / 'short.npy'}").err
    assert not (tmp_path / "run" / "scores.parquet").exists()


def test_a_pool_of_other_fields(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    pool = write_jsonl(tmp_path / "pool.jsonl", [{"title": "Red", "body": "Green"}] * 3)
    score = ("score", small, "--model", model_dir, *FIXED, "--scorer", "miwv", "--run-dir", tmp_path / "run")
    failed = tithe.fails(*score, "--shot-pool", pool)
    assert "the shot pool cannot be used" in failed.err and "has records of no known shape: there is" in failed.err
    empty = write_jsonl(tmp_path / "empty.jsonl", [{"instruction": "Red", "output": ""}] * 3)
    failed = tithe.fails(*score, "--shot-pool", empty)
    assert "no record of the shot pool" in failed.err and "3 bad rows" in failed.err
    own = write_jsonl(tmp_path / "own.jsonl", records(1))
    one = write_jsonl(tmp_path / "one.jsonl", records(1))
    command = ("score", one, "--model", model_dir, "--scorer", "miwv", "--run-dir", tmp_path / "r", "--shot-pool", own)
    tithe.ok(*command, "--encoder", "tfidf")
    assert table(tmp_path / "r")[0]["problem"] == "no neighbour: fewer than 1 in the shot pool"


def test_presets_of_other_papers_have_no_shots(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    command = ("score", small, "--model", model_dir, "--preset", "cherry", "--run-dir", tmp_path / "run")
    failed = tithe.fails(*command, "--scorer", "ifd(same_tokens=false),miwv", *FIXED)
    assert "preset `cherry` has no passes with shots" in failed.err


# What is said when nothing comes of it


def test_records_without_a_neighbour_are_counted_with_their_reason(
    tithe: Command, model_dir: Path, tmp_path: Path
) -> None:
    data = write_jsonl(
        tmp_path / "same.jsonl", [{"instruction": "Say a word.", "output": f"{n} words"} for n in range(5)]
    )
    score = ("score", data, "--model", model_dir, *FIXED, "--scorer", "miwv,ifd", "--exclude-similarity", 0.9)
    done = tithe.ok(*score, "--run-dir", tmp_path / "run", "--json")
    (reason,) = done.json["counts"]["problems"]
    assert done.json["counts"]["problems"] == {reason: 5} and reason == "no neighbour"
    assert "examples without a score, 5: no neighbour" in done.err
    select = ("select", data, "--model", model_dir, *FIXED, "--scorer", "miwv", "--exclude-similarity", 0.9)
    failed = tithe.fails(*select, "-o", tmp_path / "k.jsonl")
    assert "`--exclude-similarity`" in failed.err and "--max-length" not in failed.err


def test_a_flag_that_the_spec_overrides_is_refused(
    tithe: Command, small: Path, model_dir: Path, tmp_path: Path
) -> None:
    score = ("score", small, "--model", model_dir, *FIXED, "-s", "miwv(shots=2)", "--run-dir", tmp_path / "run")
    failed = tithe.fails(*score, "--shots", 3)
    assert "`shots` is given as `3`" in failed.err and "`miwv(shots=2)`" in failed.err
    tithe.ok(*score, "--shots", 2)


def test_the_response_stays_whole(tithe: Command, small: Path, model_dir: Path, tmp_path: Path) -> None:
    """With worked examples the prompt gives way to the length, unless something else is asked for."""
    planned = ("plan", small, "--model", model_dir, "--max-length", 40, "--json", "--scorer")
    for scorers, more, wanted in (
        ("ifd", (), "response"),
        ("ifd,miwv", (), "prompt"),
        ("wici", (), "prompt"),
        ("nuggets", (), "prompt"),
        ("miwv", ("--truncation", "response"), "response"),
    ):
        record = tithe.ok(*planned, scorers, *more).json
        assert record["template"]["truncation"] == wanted
        cut = record["counts"]["truncated_responses"], record["counts"]["truncated_prompts"]
        assert (cut[0] > 0, cut[1] > 0) == ((True, False) if wanted == "response" else (False, True))

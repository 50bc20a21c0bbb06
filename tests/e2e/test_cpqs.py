"""Heads and what is scored with them, through the command."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.command import Command, child, read_jsonl, records, write_jsonl
from tests.e2e.test_resume import HASTY, count_parts, keys_of_parts, wait_for
from tests.small_model import make_model
from tithe.engine.forward.states import Tap
from tithe.lab.heads import train_head as heads_module
from tithe.lab.heads.settings import HeadSettings
from tithe.lab.heads.train_head import train_head

QUICK: list[object] = ["--dtype", "fp32", "--resamples", 50]
GOOD = ["Red, green and blue are three of them.", "The answer is forty-two.", "Thank them for the book and the letter."]


def tiers(prompts: int = 40) -> list[dict[str, Any]]:
    """For each prompt a sentence, and a word again and again; of the same lengths in the mean."""
    rows = []
    for i in range(prompts):
        asked = {"instruction": f"Write about number {i}.", "input": ""}
        good = " ".join(GOOD[(i + j) % 3] for j in range(1 + i % 3))
        rows.append({**asked, "output": good, "tier": "high"})
        rows.append({**asked, "output": " ".join(["weather"] * (4 + (7 * i) % 19)), "tier": "low"})
    return rows


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("tiers") / "tiers.jsonl", tiers())


@pytest.fixture(scope="module")
def heads(labelled: Path, model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind."""
    made = {}
    for kind in ("probe", "cnn"):
        made[kind] = tmp_path_factory.mktemp("heads") / kind
        settings = {"dataset": str(labelled), "model": str(model_dir), "kind": kind, "dtype": "fp32", "resamples": 50}
        train_head(HeadSettings.of({**settings, "test_share": 0.2}), made[kind])
    return made


@pytest.fixture
def pool(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "pool.jsonl", records(40))


def table(run: Path, name: str = "scores") -> list[dict[str, Any]]:
    return pq.read_table(run / f"{name}.parquet").to_pylist()


# Training


@pytest.mark.slow
def test_a_head_is_trained_and_judged_on_prompts_it_never_saw(
    tithe: Command, labelled: Path, model_dir: Path, tmp_path: Path
) -> None:
    head = tmp_path / "head"
    train = ["head", "train", labelled, "--model", model_dir, *QUICK, "--test-share", 0.2, "-o", head]
    done = tithe.ok(*train, "--json")
    assert {path.name for path in head.iterdir()} >= {
        *("head.json", "head.safetensors", "report.json", "held_out.parquet", "prompts.parquet"),
        *("layers.svg", "layers.png"),
    }
    record, report = done.json, done.json["report"]
    assert json.loads((head / "report.json").read_text()) == record
    assert record["counts"]["prompts"] == 40 and record["counts"]["test_responses"] == 16
    assert report["auc"]["value"] > 0.9 and report["better_than_length"]
    assert "the head is better than response length: AUC" in done.err
    sides = {row["prompt"]: row["side"] for row in table(head, "prompts")}
    held = table(head, "held_out")
    assert {row["prompt"] for row in held} == {prompt for prompt, side in sides.items() if side == "test"}
    assert sorted(row["tier"] for row in held) == ["high"] * 8 + ["low"] * 8
    assert record["layer_aucs"].keys() == {"0", "1", "2"}
    tithe.fails(*train)  # it is there
    again = tithe.ok(*train, "--overwrite", "--json").json
    assert again["fingerprint"] == record["fingerprint"] and again["report"] == report


@pytest.mark.slow
def test_a_head_that_length_explains_is_said_to_be_no_better_first(
    tithe: Command, model_dir: Path, tmp_path: Path
) -> None:
    """The same words in both tiers, the high ones longer."""
    rows = [
        {"instruction": f"Say {i}.", "output": " ".join(["red"] * (n + i % 7)), "tier": tier}
        for i in range(40)
        for tier, n in (("high", 12), ("low", 8))
    ]
    data = write_jsonl(tmp_path / "long.jsonl", rows)
    train = ["head", "train", data, "--model", model_dir, *QUICK, "--test-share", 0.5, "-o", tmp_path / "head"]
    done = tithe.ok(*train)
    verdict = next(line for line in done.err.splitlines() if "response length" in line)
    assert verdict.startswith("the head is NOT SHOWN TO BE BETTER than response length")
    lines = done.err.splitlines()
    assert lines.index(verdict) < min(i for i, line in enumerate(lines) if line.startswith("AUC of the head"))
    scored = tithe.ok("score", data, "--scorer", "cpqs", "--head", tmp_path / "head", "--model", model_dir, "--dtype",
                      "fp32", "-o", tmp_path / "s.parquet")  # fmt: skip
    assert "NOT SHOWN TO BE BETTER than response length" in scored.err


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["probe", "cnn"])
def test_judging_elsewhere_refuses_what_the_head_has_seen(
    kind: str, tithe: Command, heads: dict[str, Path], labelled: Path, model_dir: Path, tmp_path: Path
) -> None:
    command = ["head", "evaluate", heads[kind], labelled, "--model", model_dir, *QUICK]
    failed = tithe.fails(*command)
    assert "was trained on the prompts of 64 of these 80 responses" in failed.err
    unseen = tithe.ok(*command, "--drop-seen", "--json").json
    own = json.loads((heads[kind] / "report.json").read_text())["report"]
    assert unseen["report"]["auc"]["value"] == pytest.approx(own["auc"]["value"], abs=1e-9)
    assert unseen["counts"]["left_out"] == {"the head was trained on its prompt": 64}
    other = [row | {"instruction": f"Other {row['instruction']}"} for row in tiers()]
    elsewhere = write_jsonl(tmp_path / "other.jsonl", other)
    done = tithe.ok("head", "evaluate", heads[kind], elsewhere, "--model", model_dir, *QUICK, "--json")
    assert done.json["report"]["high"] == 40 and done.json["counts"]["left_out"] == {}


@pytest.mark.slow
def test_the_data_may_say_where_a_prompt_stands(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    rows = [row | {"split": ["train", "valid", "test"][(i // 2) % 3]} for i, row in enumerate(tiers())]
    data = write_jsonl(tmp_path / "split.jsonl", rows)
    train = ["head", "train", data, "--model", model_dir, *QUICK, "--split-column", "split", "-o", tmp_path / "head"]
    counts = tithe.ok(*train, "--json").json["counts"]
    assert [counts[f"{side}_responses"] for side in ("train", "validation", "test")] == [28, 26, 26]
    write_jsonl(data, [*rows, rows[0] | {"split": "test"}])
    failed = tithe.fails(*train, "--overwrite")
    assert "1 prompts are in `train` and in `test`" in failed.err
    assert (tmp_path / "head" / "head.json").is_file(), "the old head stays"
    write_jsonl(data, [*rows, rows[0] | {"split": "elsewhere"}])
    assert "`split` is `elsewhere`, which names no side" in tithe.fails(*train, "--overwrite").err


@pytest.mark.slow
def test_a_network_comes_with_the_layers_too(heads: dict[str, Path]) -> None:
    record = json.loads((heads["cnn"] / "report.json").read_text())
    assert record["layer_aucs"].keys() == {"0", "1", "2"} and max(record["layer_aucs"].values()) > 0.9
    assert len(record["fit"]["epochs"]) == 1 and record["fit"]["steps"] == 4
    assert (heads["cnn"] / "layers.svg").stat().st_size > 1000


# Scoring


class Twin:
    """A head read from its files and a model read by transformers, in float64, one response at a time."""

    def __init__(self, model: Path, head: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
        self.card = json.loads((head / "head.json").read_text())
        self.weights = {name: w.double() for name, w in load_file(head / "head.safetensors").items()}

    def states(self, record: dict[str, Any]) -> torch.Tensor:
        """(layers, tokens, dim) of the response."""
        asked = record["instruction"] + (f"\n{record['input']}" if record["input"] else "")
        text = f"<|begin|><|user|>\n{asked}<|end|>\n<|assistant|>\n"
        ids = [self.tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, record["output"])]
        with torch.no_grad():
            found = self.model(torch.tensor([ids[0] + ids[1]]), output_hidden_states=True).hidden_states
        return torch.stack([layer[0, len(ids[0]) :].double() for layer in found])[self.card["layers"]]

    def margin(self, record: dict[str, Any]) -> float:
        states, w = self.states(record), self.weights
        if self.card["kind"] == "probe":
            return float((states.mean(1) * w["weight"]).sum() + w["bias"])
        branches = []
        for branch, size in enumerate((3, 4, 5)):
            padded = torch.nn.functional.pad(states, (0, 0, 0, max(0, size - states.shape[1])))
            kernel, bias = w[f"convs.{branch}.weight"], w[f"convs.{branch}.bias"]
            x = torch.nn.functional.conv2d(padded[None], kernel, bias).relu()[..., 0]
            for deep in (0, 1):
                x = torch.nn.functional.conv1d(
                    x, w[f"deep_convs.{deep}.weight"], w[f"deep_convs.{deep}.bias"], padding=1
                )
                x = x.relu()
            branches.append(x.amax(-1)[0])
        hidden = (torch.cat(branches) @ w["fc.0.weight"].T + w["fc.0.bias"]).relu()
        low, high = (hidden @ w["fc.3.weight"].T + w["fc.3.bias"]).tolist()
        return high - low


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["probe", "cnn"])
def test_margins_are_those_of_the_twin(
    kind: str, tithe: Command, heads: dict[str, Path], pool: Path, model_dir: Path, tmp_path: Path
) -> None:
    score = ["score", pool, "--scorer", "cpqs", "--head", heads[kind], "--model", model_dir, "--dtype", "fp32"]
    done = tithe.ok(*score, "-o", tmp_path / "s.parquet", "--json")
    twin, data = Twin(model_dir, heads[kind]), read_jsonl(pool)
    rows = table(tmp_path, "s")
    assert min(row["response_tokens"] for row in rows) < 3, "shorter than a kernel, some of them"
    for row, record in zip(rows, data, strict=True):
        wanted = twin.margin(record)
        assert row["cpqs"] == pytest.approx(wanted, rel=1e-5, abs=1e-5)
        assert row["cpqs_probability"] == pytest.approx(1 / (1 + np.exp(-wanted)), abs=1e-5)
    assert done.json["work"]["passes_computed"] == 40
    (head,) = done.json["readouts"].values()
    assert head["kind"] == kind and head["fingerprint"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["probe", "cnn"])
def test_company_batches_and_order_change_nothing(
    kind: str, tithe: Command, heads: dict[str, Path], model_dir: Path, tmp_path: Path
) -> None:
    data = records(12)
    fixed = ["--scorer", "cpqs,ifd", "--head", heads[kind], "--model", model_dir, "--dtype", "fp32"]
    tithe.ok("score", write_jsonl(tmp_path / "all.jsonl", data), *fixed, "-o", tmp_path / "all.parquet")
    backwards = write_jsonl(tmp_path / "back.jsonl", data[::-1])
    tithe.ok("score", backwards, *fixed, "--batch-tokens", 64, "--workers", 1, "-o", tmp_path / "back.parquet")
    together = {row["id"]: row["cpqs"] for row in table(tmp_path, "all")}
    back = {row["id"]: row["cpqs"] for row in table(tmp_path, "back")}
    assert back == pytest.approx(together, rel=1e-5, abs=1e-6)
    for i in range(0, 12, 4):
        alone = write_jsonl(tmp_path / f"{i}.jsonl", [data[i]])
        tithe.ok("score", alone, *fixed, "-o", tmp_path / f"{i}.parquet")
        (row,) = table(tmp_path, str(i))
        assert row["cpqs"] == pytest.approx(together[row["id"]], rel=1e-5, abs=1e-6)


@pytest.mark.slow
def test_with_ifd_and_miwv_it_costs_three_passes_a_record(
    tithe: Command, heads: dict[str, Path], pool: Path, model_dir: Path, tmp_path: Path
) -> None:
    """One of them is read for three scorers: its likelihood for two, its hidden states for one."""
    fixed = ["--scorer", "ifd,miwv,cpqs", "--encoder", "tfidf", "--head", heads["probe"], "--model", model_dir]
    planned = tithe.ok("plan", pool, *fixed, "--json").json["counts"]
    assert planned["passes"] == {"given": 40, "alone": 40, "shown": 40} and planned["passes_asked"] == 200
    run = tmp_path / "run"
    done = tithe.ok("score", pool, *fixed, "--dtype", "fp32", "--run-dir", run, "--json").json
    assert done["work"]["passes_computed"] == 120
    apart = tmp_path / "apart"
    tithe.ok("score", pool, *fixed[:1], "cpqs", *fixed[4:], "--dtype", "fp32", "--run-dir", apart)
    for one, other in zip(table(run), table(apart), strict=True):
        assert one["cpqs"] == pytest.approx(other["cpqs"], rel=1e-5, abs=1e-6)
        assert one["ifd"] is not None and one["miwv"] is not None
    more = tithe.ok("score", pool, "--scorer", "ifd,cpqs", "--head", heads["cnn"], "--model", model_dir, "--dtype",
                    "fp32", "--run-dir", run, "--json").json  # fmt: skip
    assert more["work"]["passes_reused"] == 40, "likelihoods are there, states of another head are read again"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["probe", pytest.param("cnn", marks=pytest.mark.slow)])
def test_killed_and_run_again_gives_the_same_bytes(
    kind: str, tithe: Command, heads: dict[str, Path], model_dir: Path, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "many.jsonl", records(160))
    fixed = ["select", data, "--scorer", "cpqs,ifd", "--head", heads[kind], "--model", model_dir, "--keep", "10%",
             "--batch-tokens", 256]  # fmt: skip
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    tithe.ok(*fixed, "-o", straight / "k.jsonl")
    process = child(HASTY, 0.01, *fixed, "-o", broken / "k.jsonl")
    assert wait_for(lambda: count_parts(broken / "k.tithe") >= 6, process)
    process.kill()
    process.communicate()
    assert not (broken / "k.jsonl").exists()
    again = tithe.ok(*fixed, "-o", broken / "k.jsonl", "--json").json
    assert again["work"]["passes_reused"] > 0
    for name in ("k.jsonl", "k.tithe/scores.parquet", "k.tithe/dropped.jsonl"):
        assert (broken / name).read_bytes() == (straight / name).read_bytes(), name
    parts = keys_of_parts(broken / "k.tithe" / "answers" / next((broken / "k.tithe" / "answers").glob("head-*")).name)
    assert sum(map(len, parts)) == len(set().union(*parts)) == 160


@pytest.mark.slow
def test_what_length_predicts_can_be_taken_away(
    tithe: Command, heads: dict[str, Path], model_dir: Path, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "many.jsonl", records(120))
    fixed = ["select", data, "--scorer", "cpqs", "--head", heads["probe"], "--model", model_dir, "--dtype", "fp32"]
    done = tithe.ok(*fixed, "--keep", 20, "--residualise", "length", "-o", tmp_path / "k.jsonl", "--json").json
    rows = table(tmp_path / "k.tithe")
    left = np.array([row["cpqs_residual"] for row in rows])
    assert abs(np.mean(left)) < 1e-9
    assert np.corrcoef(left, np.log([row["response_tokens"] for row in rows]))[0, 1] == pytest.approx(0, abs=1e-9)
    kept = {row["n"] for row in read_jsonl(tmp_path / "k.jsonl")}
    assert kept == set(np.argsort(-left, kind="stable")[:20].tolist())
    assert done["selection"]["by"] == "cpqs_residual"
    assert abs(done["selection"]["rank_correlation_with_length"]) < 0.3
    plain = tithe.ok(*fixed, "--keep", 20, "-o", tmp_path / "p.jsonl", "--json")
    assert "cpqs probability, kept" in plain.err and "cpqs_residual" not in table(tmp_path / "p.tithe")[0]
    filtered = ["--residualise", "length", "--drop", "cpqs_residual < -1000"]
    assert "cpqs residual, kept" in tithe.ok(*fixed, "--keep", 5, *filtered, "-o", tmp_path / "d.jsonl").err
    failed = tithe.fails("select", data, "--pipeline", "ifd:10", "--residualise", "length", "--model", model_dir, "-o",
                         tmp_path / "x.jsonl")  # fmt: skip
    assert "`--residualise` does not go with `--pipeline`" in failed.err


# Wrong input


def test_no_head_and_heads_that_are_none(tithe: Command, pool: Path, model_dir: Path, tmp_path: Path) -> None:
    fixed = ["select", pool, "--scorer", "cpqs", "--model", model_dir, "-o", tmp_path / "k.jsonl"]
    failed = tithe.fails(*fixed)
    assert "`cpqs` needs a head" in failed.err and "tithe head train" in failed.err
    assert f"there is no folder `{tmp_path / 'nowhere'}`" in tithe.fails(*fixed, "--head", tmp_path / "nowhere").err
    (tmp_path / "empty").mkdir()
    assert "has no `head.json`" in tithe.fails(*fixed, "--head", tmp_path / "empty").err
    assert not (tmp_path / "k.tithe").exists()
    failed = tithe.fails("select", pool, "--scorer", "ifd", "--head", tmp_path / "empty", "--model", model_dir,
                         "-o", tmp_path / "k.jsonl")  # fmt: skip
    assert "`head` is given, and nothing reads it" in failed.err


@pytest.mark.slow
def test_a_head_of_another_model_is_refused_with_both_fingerprints(
    tithe: Command, heads: dict[str, Path], pool: Path, labelled: Path, tmp_path: Path
) -> None:
    other = make_model(tmp_path / "other", seed=1)
    card = json.loads((heads["probe"] / "head.json").read_text())
    for command in (
        ["select", pool, "--scorer", "cpqs", "--head", heads["probe"], "--model", other, "-o", tmp_path / "k.jsonl"],
        ["head", "evaluate", heads["probe"], labelled, "--model", other],
    ):
        failed = tithe.fails(*command)
        assert card["model"]["fingerprint"] in failed.err and str(other) in failed.err
        assert failed.err.count("fingerprint") == 2
    same = shutil.copytree(Path(card["model"]["name"]), tmp_path / "moved")
    tithe.ok("score", pool, "--scorer", "cpqs", "--head", heads["probe"], "--model", same, "--dtype", "fp32", "-o",
             tmp_path / "s.parquet")  # fmt: skip


@pytest.mark.slow
def test_another_rendering_and_dtype_are_noted(
    tithe: Command, heads: dict[str, Path], pool: Path, model_dir: Path, tmp_path: Path
) -> None:
    fixed = ["score", pool, "--scorer", "cpqs", "--head", heads["probe"], "--model", model_dir, "-o",
             tmp_path / "s.parquet", "--overwrite"]  # fmt: skip
    done = tithe.ok(*fixed, "--template", "alpaca", "--dtype", "bf16")
    assert "note: the head was trained with another rendering: " in done.err and "'chat', here 'alpaca'" in done.err
    assert "note: the head was trained on states in fp32, here they are bf16" in done.err
    assert "another rendering" not in tithe.ok(*fixed, "--dtype", "fp32", "--max-length", 200).err


@pytest.mark.parametrize(
    ("change", "sentence", "hint"),
    [
        (
            lambda rows: [row for row in rows if row["tier"] == "low"],
            "responses of one tier only: 0 high, 40 low",
            "high",
        ),
        (lambda rows: rows[:3], "has 3 responses, too few to learn from", "20"),
        (
            lambda rows: [*rows, rows[0] | {"tier": "middling"}],
            "tier `middling` is none of `high`, `low`",
            "--low-tier",
        ),
        (lambda rows: [{**row, "tier": 3} for row in rows], "tier `3` is none of", "--high-tier"),
        (
            lambda rows: [{k: v for k, v in row.items() if k != "tier"} for row in rows],
            "no column `tier`",
            "tiers import",
        ),
        (
            lambda rows: [row | {"instruction": "the same"} for row in rows],
            "1 prompts cannot be split into 3",
            "label more",
        ),
    ],
    ids=["one tier", "three records", "a third label", "other labels", "no labels", "one prompt"],
)
def test_tiers_that_are_none(
    change: Any, sentence: str, hint: str, tithe: Command, model_dir: Path, tmp_path: Path
) -> None:
    data = write_jsonl(tmp_path / "odd.jsonl", change(tiers()))
    failed = tithe.fails("head", "train", data, "--model", model_dir, *QUICK, "-o", tmp_path / "head")
    assert sentence in failed.err and hint in failed.err
    assert not (tmp_path / "head" / "head.json").exists()


@pytest.mark.slow
def test_what_cannot_be_read_is_left_out_and_counted(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    rows = tiers()
    rows += [{**rows[0], "output": "", "tier": "low"}, {**rows[2], "instruction": "word " * 600, "tier": "high"}]
    data = write_jsonl(tmp_path / "odd.jsonl", rows)
    done = tithe.ok("head", "train", data, "--model", model_dir, *QUICK, "--test-share", 0.2, "-o", tmp_path / "head",
                    "--json")  # fmt: skip
    assert done.json["counts"]["left_out"] == {"the response is empty": 1, "no response token left": 1}
    assert "responses left out, 1: the response is empty" in done.err


@pytest.mark.slow
def test_states_that_overflow_are_problems_and_not_scores(
    tithe: Command, labelled: Path, pool: Path, tmp_path: Path
) -> None:
    """Weights that are finite in fp32, and whose states pass what fp16 can hold."""
    model = make_model(tmp_path / "large")
    weights = load_file(model / "model.safetensors")
    for name, weight in weights.items():
        if "down_proj" in name and ".1." not in name:
            weight.mul_(1e5)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    head = tmp_path / "head"
    tithe.ok("head", "train", labelled, "--model", model, *QUICK, "--test-share", 0.2, "-o", head)
    done = tithe.fails("select", pool, "--scorer", "cpqs", "--head", head, "--model", model, "--dtype", "fp16", "-o",
                       tmp_path / "k.jsonl")  # fmt: skip
    assert "no finite likelihood in float16" in done.err and "another `--dtype` may" in done.err


@pytest.mark.slow
def test_a_record_whose_states_overflow_has_no_score_and_is_tried_again(
    tithe: Command, heads: dict[str, Path], pool: Path, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only some records overflow: those have a reason that names the layer, and nothing of them is stored."""
    score = ["score", pool, "--scorer", "cpqs,perplexity", "--head", heads["cnn"], "--model", model_dir, "--dtype",
             "fp32", "--workers", 1, "--batch-tokens", 300, "-o", tmp_path / "s.parquet", "--overwrite"]  # fmt: skip
    straight = tithe.ok(*score[:-3], "-o", tmp_path / "whole.parquet", "--json").json
    real = Tap.take

    def overflowing(self: Tap, layer: int, states: torch.Tensor) -> None:
        assert self.at is not None
        if layer == 1:
            states = states.index_fill(0, self.at[:1], float("inf"))  # the first token of every batch's first response
        real(self, layer, states)

    with monkeypatch.context() as patch:
        patch.setattr(Tap, "take", overflowing)
        done = tithe.ok(*score, "--json").json
    rows, whole = table(tmp_path, "s"), {row["id"]: row["cpqs"] for row in table(tmp_path, "whole")}
    without = [row for row in rows if row["cpqs"] is None]
    assert 2 < len(without) < 20 and done["counts"]["without_score"] == {"cpqs": len(without), "perplexity": 0}
    assert all("hidden states are not finite in fp32: from layer 1 on" in row["problem"] for row in without)
    assert all(row["cpqs"] == whole[row["id"]] for row in rows if row["cpqs"] is not None)
    again = tithe.ok(*score, "--json").json
    assert {row["id"]: row["cpqs"] for row in table(tmp_path, "s")} == whole
    assert again["work"]["passes_reused"] == straight["work"]["passes_computed"] - len(without)


@pytest.mark.slow
def test_data_that_changes_while_a_head_is_trained_is_noticed(
    tithe: Command, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_jsonl(tmp_path / "tiers.jsonl", tiers())
    real = heads_module.read_tiers

    def then_changed(*given: Any) -> Any:
        found = real(*given)
        write_jsonl(data, tiers()[:60])
        return found

    monkeypatch.setattr(heads_module, "read_tiers", then_changed)
    failed = tithe.fails("head", "train", data, "--model", model_dir, *QUICK, "--test-share", 0.2, "-o", tmp_path / "h")
    assert "has changed since this run began" in failed.err and not (tmp_path / "h" / "head.json").exists()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "damaged", "other columns"])
def test_a_head_whose_prompts_are_not_known_is_not_judged(
    damage: str, tithe: Command, heads: dict[str, Path], labelled: Path, model_dir: Path, tmp_path: Path
) -> None:
    head = shutil.copytree(heads["probe"], tmp_path / "head")
    if damage == "gone":
        (head / "prompts.parquet").unlink()
    elif damage == "damaged":
        (head / "prompts.parquet").write_text("x")
    else:
        shutil.copy(head / "held_out.parquet", head / "prompts.parquet")
    failed = tithe.fails("head", "evaluate", head, labelled, "--model", model_dir, *QUICK)
    assert "it is not known which prompts the head was trained on" in failed.err


@pytest.mark.slow
def test_stages_say_what_is_odd_about_a_head(
    tithe: Command, heads: dict[str, Path], pool: Path, model_dir: Path, tmp_path: Path
) -> None:
    fixed = ["--head", heads["probe"], "--model", model_dir, "--dtype", "fp32", "--template", "alpaca"]
    done = tithe.ok("select", pool, "--pipeline", "length:50% -> cpqs:5", *fixed, "-o", tmp_path / "k.jsonl")
    assert done.err.count("note: the head was trained with another rendering") == 1
    assert "head: probe, AUC" in done.err
    planned = tithe.ok("plan", pool, "--scorer", "cpqs", "--head", heads["probe"], "--model", model_dir)
    assert "head: probe, AUC" in planned.err


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (["--num-train-epochs", 3], "`num_train_epochs` is given, and `kind` is `probe`: nothing reads it"),
        (["--split-column", "split", "--test-share", 0.3], "`test_share` is given, and `split_column` names"),
        (["--high-tier", "low"], "`low` names both the high and the low tier"),
        (["--max-length", 4, "--test-share", 0.2], "none of 80 responses can be read at max length 4"),
        (["--test-share", 0.1], "at least 5 prompts with a high response, and the test side has 4"),
        (["--validation-share", 0.5, "--test-share", 0.5], "nothing is left to train on"),
        (["--kind", "forest"], "`kind` cannot be `forest`"),
    ],
)
def test_settings_that_cannot_be_meant(
    flags: list[object], sentence: str, tithe: Command, labelled: Path, model_dir: Path, tmp_path: Path
) -> None:
    failed = tithe.fails("head", "train", labelled, "--model", model_dir, *QUICK, *flags, "-o", tmp_path / "head")
    assert sentence in failed.err


@pytest.mark.slow
def test_what_scorers_of_hidden_states_do_not_read_is_refused(
    tithe: Command, heads: dict[str, Path], pool: Path, model_dir: Path, tmp_path: Path
) -> None:
    fixed = ["score", pool, "--head", heads["probe"], "--model", model_dir, "-o", tmp_path / "s.parquet"]
    failed = tithe.fails(*fixed, "--scorer", "cpqs", "--per-token")
    assert "`per_token` keeps likelihoods, and cpqs reads none" in failed.err
    failed = tithe.fails(*fixed[:2], *fixed[4:], "--scorer", "length,random", "--head", heads["probe"])
    assert "nothing reads it" in failed.err
    failed = tithe.fails(*fixed[:2], *fixed[4:], "--scorer", "length", "--residualise", "length")
    assert "nothing is left of `length`" in failed.err


@pytest.mark.slow
def test_labels_as_numbers_and_rows_without_one(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [row | {"tier": {"high": 1.0, "low": 0}[row["tier"]]} for row in tiers()]
    rows += [row | {"tier": None, "instruction": f"More {i}"} for i, row in enumerate(rows[:3])]
    data = write_jsonl(tmp_path / "numbers.jsonl", rows)
    done = tithe.ok("head", "train", data, "--model", model_dir, *QUICK, "--test-share", 0.2, "--high-tier", 1,
                    "--low-tier", 0, "-o", tmp_path / "head", "--json")  # fmt: skip
    assert done.json["counts"]["left_out"] == {"no tier": 3} and done.json["counts"]["high"] == 40
    pairs = write_jsonl(tmp_path / "pairs.jsonl", [{"instruction": "a", "high": "b", "low": "c"}] * 3)
    assert "tithe tiers import" in tithe.fails("head", "train", pairs, "--model", model_dir, "-o", tmp_path / "p").err


@pytest.mark.slow
def test_responses_of_both_tiers_are_counted(tithe: Command, model_dir: Path, tmp_path: Path) -> None:
    rows = tiers()
    data = write_jsonl(tmp_path / "both.jsonl", [*rows, *(row | {"tier": "low"} for row in rows[:10:2])])
    done = tithe.ok("head", "train", data, "--model", model_dir, *QUICK, "--test-share", 0.2, "-o", tmp_path / "head",
                    "--json")  # fmt: skip
    assert done.json["counts"]["in_both_tiers"] == 10
    assert "note: 10 of 85 responses are in both tiers, with the same prompt" in done.err


@pytest.mark.slow
def test_the_paper_preset_has_one_kind_of_pass(
    tithe: Command, heads: dict[str, Path], pool: Path, model_dir: Path, tmp_path: Path
) -> None:
    fixed = ["score", pool, "--preset", "cpqs-paper", "--head", heads["probe"], "--model", model_dir, "--dtype", "fp32"]
    done = tithe.ok(*fixed, "-o", tmp_path / "s.parquet", "--json")
    assert done.json["template"]["truncation"] == "cpqs-paper"
    (first, *_), record = table(tmp_path, "s"), read_jsonl(pool)[0]
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    asked = [{"role": "user", "content": f"{record['instruction']}\nInput:{record['input']}"}]
    answered = [*asked, {"role": "assistant", "content": record["output"]}]
    texts = [tokenizer.apply_chat_template(m, tokenize=False, add_generation_prompt=True) for m in (asked, answered)]
    lengths = [len(tokenizer(text)["input_ids"]) for text in texts]
    assert (first["prompt_tokens"], first["response_tokens"]) == (lengths[0], lengths[1] - lengths[0])
    failed = tithe.fails(*fixed, "--scorer", "cpqs,ifd", "-o", tmp_path / "t.parquet")
    assert "preset `cpqs-paper` has no `alone` passes" in failed.err
    failed = tithe.fails(*fixed, "--template", "alpaca", "-o", tmp_path / "t.parquet")
    assert "takes a chat template, not `alpaca`" in failed.err
    assert "fixes `eos`" in tithe.fails(*fixed, "--eos", "-o", tmp_path / "t.parquet").err
    short = tithe.fails("select", *fixed[1:], "--max-length", 12, "-o", tmp_path / "k.jsonl")
    assert "prompt and response do not fit" in short.err


INST = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<s> [INST] {{ m['content'] }} [/INST]"
    "{% else %} {{ m['content'] }} </s>{% endif %}{% endfor %}"
)


@pytest.mark.slow
def test_the_numbers_of_the_authors_network(tithe: Command, shared: Path, tmp_path: Path) -> None:
    """195 real records, through `head import` and the preset."""
    reference = {row["row"]: row for row in read_jsonl(shared / "reference/cpqs/cnn_scores_200.jsonl")}
    lines = (shared / "data/sft/alpaca_20k.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "data.jsonl").write_text("\n".join(lines[row] for row in range(0, 4000, 20)) + "\n", encoding="utf-8")
    (tmp_path / "inst.jinja").write_text(INST)
    same = ["--model", shared / "data/weights/tinystories-656k", "--preset", "cpqs-paper", "--dtype", "fp32",
            "--template", tmp_path / "inst.jinja"]  # fmt: skip
    weights = shared / "reference/cpqs/cnn_weights.safetensors"
    tithe.ok("head", "import", weights, "--kind", "cnn", *same, "-o", tmp_path / "head")
    done = tithe.ok("score", tmp_path / "data.jsonl", *same, "--head", tmp_path / "head", "--max-length", 512, "-o",
                    tmp_path / "s.parquet")  # fmt: skip
    assert "it is not known how well this cnn head tells tiers apart" in done.err
    rows = {20 * row["row"]: row for row in table(tmp_path, "s") if row["cpqs"] is not None}
    assert rows.keys() == reference.keys() and len(rows) == 195
    for place, wanted in reference.items():
        assert rows[place]["cpqs"] == pytest.approx(wanted["margin"], abs=1e-5)
        assert rows[place]["cpqs_probability"] == pytest.approx(wanted["score"], abs=1e-5)
        assert rows[place]["response_tokens"] == wanted["response_tokens"]
    dropped = [row["problem"] for row in table(tmp_path, "s") if row["cpqs"] is None]
    assert len(dropped) == 5 and all("do not fit" in why for why in dropped)

"""Held-out likelihood against a forward pass by hand, token by token."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tithe.errors import DataError, SettingsError
from tithe.lab.evaluate.holdout import measure_holdout
from tithe.report.reporter import Reporter
from tithe.settings import ScoreSettings

ROWS = [
    {"instruction": "Name a colour.", "input": "", "output": "Red is a colour.", "category": "open"},
    {"instruction": "Add twelve and thirty.", "input": "", "output": "It is forty-two.", "category": "sum"},
    {"instruction": "Name a fruit.", "input": "", "output": "An apple.", "category": "open"},
]


class Heard(Reporter):
    def __init__(self):
        self.said = []

    def say(self, sentence):
        self.said.append(sentence)


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(model, **more):
    return ScoreSettings(
        dataset="-", model=str(model), template="alpaca", dtype="fp32", device="cpu", **{"eos": True, **more}
    )


def by_hand(folder, prompt, response):
    """Mean NLL of the response's tokens, each from the logits before it."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    before = tokenizer(prompt)["input_ids"]
    after = [*tokenizer(response, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    ids = [*before, *after]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0]
    losses = [-torch.log_softmax(logits[i - 1], -1)[ids[i]].item() for i in range(len(before), len(ids))]
    return sum(losses) / len(losses)


ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{}\n\n### Response:"
)


def test_values_are_those_of_a_forward_pass_by_hand(model_dir, tmp_path):
    path = write(tmp_path / "held.jsonl", ROWS)
    got = measure_holdout(settings(model_dir), path, group="category")
    expected = [by_hand(model_dir, ALPACA.format(row["instruction"]), row["output"]) for row in ROWS]
    assert got.values == pytest.approx(expected, abs=1e-5)
    assert got.groups == ("open", "sum", "open")
    assert (got.metric, got.unit, got.higher_is_better, got.kind) == ("holdout_nll", "nats/token", False, "number")
    assert not got.problems and got.about["template"]["template"] == "alpaca" and got.about["truncated_tokens"] == 0


def test_settings_reach_the_reading(model_dir, tmp_path):
    path = write(tmp_path / "held.jsonl", ROWS)
    with_eos = measure_holdout(settings(model_dir), path)
    assert with_eos.groups == ()
    without = measure_holdout(settings(model_dir, eos=False), path)
    assert without.items == with_eos.items and not np.allclose(without.values, with_eos.values)


def test_what_has_no_value_has_a_reason_and_cuts_are_told(model_dir, tmp_path):
    path = write(tmp_path / "held.jsonl", [*ROWS, {"instruction": "x", "input": "", "output": ""}, {"a": 1}])
    heard = Heard()
    got = measure_holdout(settings(model_dir, eos=False), path, reporter=heard)
    assert len(got.items) == 3 and len(got.problems) == 2 and all(got.problems.values())
    assert not any("cut" in line for line in heard.said)
    cut = measure_holdout(settings(model_dir, max_length=52), path, reporter=heard)
    assert cut.about["truncated_tokens"] > 0 and any("tokens are cut" in line for line in heard.said)


@pytest.mark.parametrize(
    ("rows", "group", "words"),
    [
        (ROWS, "categroy", "no record of .* has a column `categroy`"),
        ([*ROWS, {"instruction": "x", "input": "", "output": "y"}], "category", "record 4 of .* nothing in its column"),
        ([{"a": 1}], None, "records of no known shape"),
        ([], None, "is empty"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(model_dir, tmp_path, rows, group, words):
    with pytest.raises(DataError, match=words):
        measure_holdout(settings(model_dir), write(tmp_path / "held.jsonl", rows), group=group)


def test_a_model_is_needed(tmp_path):
    with pytest.raises(SettingsError, match="needs a model"):
        measure_holdout(ScoreSettings(dataset="-"), write(tmp_path / "held.jsonl", ROWS))

"""The warm-up: what is chosen, that it is trained on, and that scoring uses it and nothing older."""

import json
import math

import numpy as np
import pytest
import torch

from tests.lab.tune.test_tune import WORDS, distance, settings
from tithe.errors import SettingsError
from tithe.lab.tune.settings import TuneSettings, WarmupSettings
from tithe.lab.tune.tune import tune
from tithe.lab.tune.warmup import warm_up
from tithe.report.reporter import Reporter
from tithe.run import score, select
from tithe.settings import ScoreSettings, SelectSettings

pytestmark = pytest.mark.slow  # TRL alone takes seconds to import


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """300 examples; a prompt of the same words is a cluster."""
    draw = np.random.default_rng(4)
    path = tmp_path_factory.mktemp("data") / "small.jsonl"
    with path.open("w") as file:
        for n in range(300):
            prompt = " ".join(draw.choice(WORDS, draw.integers(2, 9)))
            response = " ".join(draw.choice(WORDS, draw.integers(1, 9)))
            file.write(json.dumps({"instruction": f"{n} {prompt}", "input": "", "output": response}) + "\n")
    return path


def wanted(data, model, **values):
    base = {"records": 40, "clusters": 8, "train_batch_size": 8, "learning_rate": 1e-3, "device": "cpu"}
    return WarmupSettings.of({"dataset": str(data), "model": str(model), **base, **values})


@pytest.fixture(scope="module")
def warm(data, model_dir, tmp_path_factory):
    return warm_up(wanted(data, model_dir), tmp_path_factory.mktemp("warm") / "pre")


def test_the_chosen_records_are_there_and_named(warm, data):
    lines = data.read_text().splitlines()
    kept = (warm.folder / "chosen.jsonl").read_text().splitlines()
    chosen = warm.record["warmup"]["chosen"]
    assert kept == [lines[one["row"]] for one in chosen]
    assert 30 <= len(chosen) <= 40 and warm.record["counts"]["trained_on"] == len(chosen)
    facts = warm.record["warmup"]
    assert facts["kmeans"] == {"clusters": 8, "asked": 8, "n_init": 1, "init": "k-means++", "seed": 0}
    assert facts["candidates"] == 300 and max(np.bincount([one["cluster"] for one in chosen])) <= 5


def test_perplexities_are_those_of_the_prompts(warm, data, model_dir):
    """Of every token after the first, in its template, by a plain forward pass."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    records = [json.loads(line) for line in data.read_text().splitlines()]
    for one in warm.record["warmup"]["chosen"][:5]:
        text = f"<|begin|><|user|>\n{records[one['row']]['instruction']}<|end|>\n<|assistant|>\n"
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logp = model(ids).logits[0, :-1].log_softmax(-1)[torch.arange(ids.shape[1] - 1), ids[0, 1:]]
        assert one["perplexity"] == pytest.approx(math.exp(-logp.mean().item()), rel=1e-4)


def test_it_is_a_training_on_the_chosen_records(warm, data, model_dir, tmp_path):
    own = settings(warm.folder / "chosen.jsonl", model_dir, recipe="warmup", num_train_epochs=1)
    assert distance(tune(own, tmp_path / "a").folder, warm.folder) < 1e-6


@pytest.mark.parametrize("how", ["random", "distance"])
def test_the_papers_other_choices(warm, data, model_dir, tmp_path, how):
    got = warm_up(wanted(data, model_dir, choose=how), tmp_path / "a")
    chosen = [one["row"] for one in got.record["warmup"]["chosen"]]
    assert 30 <= len(chosen) <= 40 and chosen != [one["row"] for one in warm.record["warmup"]["chosen"]]
    assert got.record["recipe_digest"] == warm.record["recipe_digest"]


def test_a_finished_one_is_found_and_another_refused(warm, data, model_dir):
    assert warm_up(wanted(data, model_dir), warm.folder).record == json.loads(json.dumps(warm.record))
    from tithe.errors import OutputError

    with pytest.raises(OutputError, match=r"with records `40`, not `80`"):
        warm_up(wanted(data, model_dir, records=80), warm.folder)


def test_an_experienced_model_gets_no_second_experience(warm, data, tmp_path):
    with pytest.raises(SettingsError, match="was warmed up already"):
        warm_up(wanted(data, warm.folder), tmp_path / "a")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"records": 0}, "`records` cannot be `0`"),
        ({"records": 41}, "41 records cannot be taken from 8 clusters"),
        ({"choose": "kmean"}, "`choose` cannot be `kmean`"),
    ],
)
def test_what_cannot_be_gets_one_sentence(data, model_dir, values, message):
    with pytest.raises(SettingsError) as caught:
        wanted(data, model_dir, **values)
    assert message in str(caught.value)


def test_an_interrupted_choice_is_not_made_again(data, model_dir, tmp_path, monkeypatch):
    from tithe.lab.tune import warmup
    from tithe.lab.tune.response_trainer import Listener

    def stop(self, *_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Listener, "on_step_end", stop)
        with pytest.raises(KeyboardInterrupt):
            warm_up(wanted(data, model_dir), tmp_path / "a")
    monkeypatch.setattr(warmup, "choose_examples", lambda *_: pytest.fail("chosen again"))
    warm_up(wanted(data, model_dir), tmp_path / "a")


@pytest.fixture
def brief(monkeypatch):
    """A recipe that fits 300 examples; the paper's batch of 128 would make three steps of them."""
    from tithe.lab.tune import settings

    small = settings.with_values(settings.RECIPES["warmup"], {"train_batch_size": 8, "learning_rate": 1e-3})
    monkeypatch.setattr(settings, "RECIPES", {**settings.RECIPES, "warmup": small})


class Heard(Reporter):
    def __init__(self):
        self.said = []

    def say(self, sentence):
        self.said.append(sentence)


def test_select_with_warmup_scores_with_the_experienced_model(brief, data, model_dir, tmp_path):
    """The three phases in one command give what they give one by one."""
    asked = SelectSettings.of(
        {"dataset": str(data), "model": str(model_dir), "warmup": True, "keep": "5%", "device": "cpu", "dtype": "fp32"}
    )
    got = select(asked, folder=tmp_path / "run", output=tmp_path / "cherry.jsonl")
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    pre = warm_up(WarmupSettings.of({"dataset": str(data), "model": str(model_dir), "device": "cpu"}), tmp_path / "pre")
    alone = select(asked.model_copy(update={"warmup": False, "model": str(pre.folder)}), folder=tmp_path / "other")
    plain = select(asked.model_copy(update={"warmup": False}), folder=tmp_path / "plain")
    assert got.scores.values == pytest.approx(alone.scores.values, abs=1e-6, nan_ok=True)
    assert np.nanmax(np.abs(got.scores.values - plain.scores.values)) > 1e-3
    assert record["model"]["fingerprint"] == alone.record["model"]["fingerprint"]
    assert record["warmup"]["base"]["fingerprint"] == plain.record["model"]["fingerprint"]
    assert record["warmup"]["records"] == pre.record["counts"]["trained_on"]
    assert record["settings"]["warmup"] is True and record["settings"]["model"] == str(model_dir)
    assert len((tmp_path / "cherry.jsonl").read_text().splitlines()) == 15


def test_the_experience_is_found_again_and_a_stale_one_is_not_used(brief, data, model_dir, tmp_path):
    asked = ScoreSettings.of(
        {"dataset": str(data), "model": str(model_dir), "warmup": True, "device": "cpu", "limit": 200}
    )
    first, heard = score(asked, folder=tmp_path / "run"), Heard()
    again = score(asked, folder=tmp_path / "run", reporter=heard)
    assert any("already" in one for one in heard.said) and again.record["work"]["passes_computed"] == 0
    other = score(asked.model_copy(update={"limit": 150}), folder=tmp_path / "run")
    assert other.record["warmup"]["folder"] != first.record["warmup"]["folder"]
    assert other.record["model"]["fingerprint"] != first.record["model"]["fingerprint"]


@pytest.mark.parametrize(
    ("values", "folder", "message"),
    [
        ({"scorer": ("length",)}, True, "`warmup` trains a model, and length reads none"),
        ({}, False, "needs a run folder for the model that it trains"),
        ({"pipeline": "ifd:50% -> ifd:50%", "scorer": ("ifd",)}, True, "does not go with a pipeline"),
    ],
)
def test_where_it_cannot_be_it_is_refused(data, model_dir, tmp_path, values, folder, message):
    asked = {"dataset": str(data), "model": str(model_dir), "warmup": True, "device": "cpu", **values}
    with pytest.raises(SettingsError) as caught:
        select(SelectSettings.of(asked), folder=tmp_path / "run" if folder else None)
    assert message in str(caught.value)


def test_warming_up_an_experienced_model_is_refused(warm, data, tmp_path):
    asked = ScoreSettings.of({"dataset": str(data), "model": str(warm.folder), "warmup": True, "device": "cpu"})
    with pytest.raises(SettingsError, match="was warmed up already"):
        score(asked, folder=tmp_path / "run")


def test_settings_of_both_kinds_have_the_same_defaults():
    """What `--warmup` does not hand on, it takes as `tithe warmup` has it."""
    assert WarmupSettings.model_fields["template"].default == ScoreSettings.model_fields["template"].default
    assert issubclass(WarmupSettings, TuneSettings)

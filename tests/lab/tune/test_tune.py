"""Training: equal to a loop written by hand, the same after an interruption, and one sentence for what cannot be."""

import csv
import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.small_model import change_config
from tithe.errors import MissingExtraError, ModelError, OutputError, SettingsError, TitheError
from tithe.extras import install_hint
from tithe.lab.tune.settings import TuneSettings
from tithe.lab.tune.tune import tune
from tithe.report.reporter import Reporter

pytestmark = pytest.mark.slow  # TRL alone takes seconds to import

WORDS = "red green blue letter friend weather thank book sum twelve thirty answer write short name".split()  # noqa: SIM905


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """30 examples of various lengths."""
    draw = np.random.default_rng(3)
    path = tmp_path_factory.mktemp("data") / "small.jsonl"
    with path.open("w") as file:
        for n in range(30):
            prompt = " ".join(draw.choice(WORDS, draw.integers(2, 9)))
            response = " ".join(draw.choice(WORDS, draw.integers(1, 14)))
            file.write(json.dumps({"prompt": f"{n} {prompt}", "completion": response}) + "\n")
    return path


def settings(data, model, **values):
    base = {"train_batch_size": 8, "learning_rate": 1e-3, "num_train_epochs": 2, "device": "cpu", "save_steps": 0}
    return TuneSettings.of({"dataset": str(data), "model": str(model), **base, **values})


def weights(folder):
    (file,) = Path(folder).glob("*.safetensors")
    return load_file(file)


def distance(one, other):
    a, b = weights(one), weights(other)
    assert a.keys() == b.keys()
    return max(float(np.abs(a[name] - b[name]).max()) for name in a)


@pytest.fixture(scope="module")
def straight(data, model_dir, tmp_path_factory):
    """A training without an interruption."""
    return tune(settings(data, model_dir), tmp_path_factory.mktemp("tuned") / "straight")


class Heard(Reporter):
    def __init__(self):
        self.said, self.steps, self.total = [], [], None

    def say(self, sentence):
        self.said.append(sentence)

    def expect(self, examples):
        self.total = examples

    def progress(self, examples, tokens):
        self.steps.append((examples, tokens))


def by_hand(data, model_dir, *, steps_per_epoch=4, epochs=2, batch=8, seed=0, rate=1e-3, warm=0.03):
    """The training written out: every example by itself, AdamW by its formula, cosine by its own. No code shared."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).train()
    examples = []
    for line in data.read_text().splitlines():
        record = json.loads(line)
        start = f"<|begin|><|user|>\n{record['prompt']}<|end|>\n<|assistant|>\n"
        before = tokenizer(start, add_special_tokens=False)["input_ids"]
        after = tokenizer(record["completion"] + "<|end|>", add_special_tokens=False)["input_ids"]
        examples.append((before, after))
    total, losses, number = steps_per_epoch * epochs, [], 0
    warming = math.ceil(total * warm)
    first = {p: torch.zeros_like(p) for p in model.parameters()}
    second = {p: torch.zeros_like(p) for p in model.parameters()}
    for epoch in range(epochs):
        drawn = np.random.default_rng((seed, epoch)).permutation(len(examples))
        for begin in range(0, len(drawn), batch):
            chosen = [examples[i] for i in drawn[begin : begin + batch]]
            tokens = sum(len(after) for _, after in chosen)
            loss = torch.zeros(())
            for before, after in chosen:
                logits = model(torch.tensor([before + after])).logits[0]
                for place, token in enumerate(after):
                    row = logits[len(before) + place - 1]
                    loss = loss + (torch.logsumexp(row, 0) - row[token])
            loss = loss / tokens
            model.zero_grad()
            loss.backward()
            losses.append(loss.item())
            norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters()))
            scale = min(1.0, 1.0 / (norm.item() + 1e-6))
            if number < warming:
                lr = rate * number / warming
            else:
                lr = rate * 0.5 * (1 + math.cos(math.pi * (number - warming) / (total - warming)))
            number += 1
            with torch.no_grad():
                for p in model.parameters():
                    g = p.grad * scale
                    first[p] = 0.9 * first[p] + 0.1 * g
                    second[p] = 0.999 * second[p] + 0.001 * g * g
                    step = (first[p] / (1 - 0.9**number)) / (torch.sqrt(second[p] / (1 - 0.999**number)) + 1e-8)
                    p -= lr * step
    return losses, {name: p.detach().numpy() for name, p in model.named_parameters()}


def test_it_is_the_loop_that_one_would_write(straight, data, model_dir):
    losses, trained = by_hand(data, model_dir)
    assert straight.record["losses"] == pytest.approx(losses, abs=1e-4)
    saved = weights(straight.folder)
    assert max(np.abs(saved[name] - trained[name]).max() for name in saved) < 1e-4
    assert losses[-1] < losses[0]


def test_the_record_says_what_was_done(straight, data):
    record = json.loads((straight.folder / "tune.json").read_text())
    assert record == json.loads(json.dumps(straight.record))
    assert record["steps"] == len(record["losses"]) == 8
    assert record["counts"]["examples"] == record["counts"]["trained_on"] == 30
    assert record["tokens"] == 2 * record["counts"]["tokens"]
    assert record["logits"] == "of response tokens alone"
    assert len(record["recipe_digest"]) == 16 and record["versions"]["trl"]
    with (straight.folder / "loss.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == record["losses"]
    names = {path.name for path in straight.folder.iterdir()} - {".lock"}
    assert {"model.safetensors", "tokenizer.json", "config.json", "loss.svg", "loss.png"} <= names
    assert not any(name.endswith((".bin", ".pt", ".pth")) or name in ("checkpoints", "begun.json") for name in names)


def test_config_and_tokenizer_stay_the_models_own(straight, model_dir):
    """A trainer writes its padding token and tags into both."""
    unlike = ("dtype", "transformers_version")
    one, other = (json.loads((f / "config.json").read_text()) for f in (straight.folder, model_dir))
    assert {k: v for k, v in one.items() if k not in unlike} == {k: v for k, v in other.items() if k not in unlike}
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (straight.folder / name).read_bytes() == (model_dir / name).read_bytes()


def test_a_finished_folder_is_not_trained_again(straight, data, model_dir):
    heard = Heard()
    again = tune(settings(data, model_dir), straight.folder, reporter=heard)
    assert again.record == json.loads(json.dumps(straight.record)) and not heard.steps
    with pytest.raises(OutputError, match=r"was done with learning_rate `0.001`, not `0.01`"):
        tune(settings(data, model_dir, learning_rate=1e-2), straight.folder)
    other = data.with_name("other.jsonl")
    other.write_text(data.read_text() + data.read_text().splitlines()[0] + "\n")
    with pytest.raises(OutputError, match="data set digest"):
        tune(settings(other, model_dir), straight.folder)
    assert (straight.folder / "tune.json").exists()


def test_how_the_work_is_laid_out_changes_nothing(straight, data, model_dir, tmp_path):
    got = tune(settings(data, model_dir, per_device_train_batch_size=1), tmp_path / "a")
    assert distance(got.folder, straight.folder) < 1e-5
    assert got.record["recipe_digest"] == straight.record["recipe_digest"]
    assert tune(settings(data, model_dir, per_device_train_batch_size=8), tmp_path / "a").record == json.loads(
        json.dumps(got.record)
    )


def test_progress_adds_up_and_stdout_stays_empty(data, model_dir, tmp_path, capfd):
    heard = Heard()
    got = tune(settings(data, model_dir, num_train_epochs=1), tmp_path / "a", reporter=heard)
    assert sum(n for n, _ in heard.steps) == heard.total == 30
    assert heard.steps[-1][1] == got.record["tokens"]
    assert any("so few optimiser steps" in one and "a batch of" in one for one in heard.said)
    assert capfd.readouterr().out == ""


COMMAND = """
import sys
from pathlib import Path
from tithe.lab.tune.tune import tune
from tithe.lab.tune.settings import TuneSettings
from tithe.lab.tune import response_trainer
if __name__ == "__main__":
    data, model, out = sys.argv[1:4]
    values = {"train_batch_size": 8, "learning_rate": 1e-3, "num_train_epochs": 2, "device": "cpu", "save_steps": 3}
    real = response_trainer.Listener.on_step_end
    def slowly(self, args, state, control, **rest):
        real(self, args, state, control, **rest)
        print(state.global_step, flush=True)
        if state.global_step == 5:
            import time
            time.sleep(60)
    response_trainer.Listener.on_step_end = slowly
    tune(TuneSettings.of({"dataset": data, "model": model, **values}), Path(out))
"""


@pytest.mark.parametrize("blow", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.thorough)])
def test_a_killed_training_goes_on_and_ends_the_same(straight, data, model_dir, tmp_path, blow):
    """Killed in epoch 2; the straight run's weights come out to 1e-6."""
    place = tmp_path / "a"
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND, str(data), str(model_dir), str(place)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
    )
    assert process.stdout is not None
    while process.stdout.readline().strip() != "5":
        assert process.poll() is None
    process.send_signal(blow)
    process.wait(timeout=60)
    process.stdout.close()
    assert not (place / "config.json").exists() and not list(place.rglob("training_args.bin"))
    assert (place / "tune.json").exists() == (blow == signal.SIGINT)  # nobody can tell of a kill
    with pytest.raises(OutputError, match=r"was begun with seed `0`, not `1`"):
        tune(settings(data, model_dir, save_steps=3, seed=1), place)
    (place / "checkpoints" / "checkpoint-7").mkdir()  # half written
    heard = Heard()
    got = tune(settings(data, model_dir, save_steps=3), place, reporter=heard)
    assert "resuming from the checkpoint after step 3" in heard.said
    assert len(heard.steps) == 5 and heard.total == sum(n for n, _ in heard.steps)
    assert got.record["losses"] == pytest.approx(straight.record["losses"], abs=1e-6)
    assert distance(got.folder, straight.folder) < 1e-6
    assert not (place / "checkpoints").exists()
    assert got.record["resumed_after_step"] == 3 and got.record["outcome"] == {"status": "finished"}
    assert json.loads((place / "tune.json").read_text()) == got.record


def test_by_the_clock_a_checkpoint_is_made(data, model_dir, tmp_path, monkeypatch):
    from tithe.lab.tune import response_trainer

    made = []
    real = response_trainer.Listener.on_save
    monkeypatch.setattr(response_trainer, "EVERY", 0.0)

    def heard(self, args, state, control, **rest):
        made.append(state.global_step)
        real(self, args, state, control, **rest)

    monkeypatch.setattr(response_trainer.Listener, "on_save", heard)
    tune(settings(data, model_dir, save_steps=None, max_steps=3), tmp_path / "a")
    assert made == [1, 2]


def broken(model_dir, folder):
    """The same model with a weight that is not a number."""
    from safetensors.torch import save_file

    folder.mkdir()
    for file in model_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = {name: torch.tensor(value) for name, value in weights(model_dir).items()}
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_loss_that_is_no_number_stops_at_its_step(data, model_dir, tmp_path):
    with pytest.raises(ModelError, match="the loss is nan at step 1"):
        tune(settings(data, broken(model_dir, tmp_path / "m")), tmp_path / "a")
    told = json.loads((tmp_path / "a" / "tune.json").read_text())
    assert told["outcome"]["status"] == "failed" and told["outcome"]["error"].startswith("the loss is nan at step 1")
    assert told["outcome"]["steps_stored"] == 0 and told["counts"]["trained_on"] and "losses" not in told


def test_the_last_good_checkpoint_stays(data, model_dir, tmp_path, monkeypatch):
    from tithe.lab.tune.response_trainer import ResponseTrainer

    real = ResponseTrainer.compute_loss

    def poisoned(self, *args, **rest):
        return real(self, *args, **rest) * (float("nan") if self.state.global_step == 4 else 1.0)

    monkeypatch.setattr(ResponseTrainer, "compute_loss", poisoned)  # the gradient, after our look at the loss
    with pytest.raises(ModelError, match="gradient's norm is nan at step 5") as caught:
        tune(settings(data, model_dir, save_steps=1), tmp_path / "a")
    assert "checkpoint after step 4" in str(caught.value.hint)
    monkeypatch.setattr(ResponseTrainer, "compute_loss", real)
    heard = Heard()
    tune(settings(data, model_dir, save_steps=1), tmp_path / "a", reporter=heard)
    assert "resuming from the checkpoint after step 4" in heard.said


LORA = {"use_peft": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def lora(data, model_dir, tmp_path_factory):
    return tune(settings(data, model_dir, **LORA), tmp_path_factory.mktemp("lora") / "adapter")


def test_lora_leaves_the_base_alone_and_knows_it(lora, model_dir):
    config = json.loads((lora.folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(model_dir.resolve())
    assert all("lora" in name for name in weights(lora.folder))
    assert lora.record["losses"][-1] < lora.record["losses"][0]
    assert not (lora.folder / "config.json").exists() and not (lora.folder / "README.md").exists()


def test_lora_with_dropout_goes_on_the_same(lora, data, model_dir, tmp_path, monkeypatch):
    """Dropout draws from random states that a checkpoint holds."""
    from tithe.lab.tune.response_trainer import Listener

    real = Listener.on_step_end

    def stop(self, args, state, control, **rest):
        real(self, args, state, control, **rest)
        if state.global_step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(Listener, "on_step_end", stop)
    with pytest.raises(KeyboardInterrupt):
        tune(settings(data, model_dir, **LORA, save_steps=3), tmp_path / "a")
    monkeypatch.setattr(Listener, "on_step_end", real)
    got = tune(settings(data, model_dir, **LORA, save_steps=3), tmp_path / "a")
    assert distance(got.folder, lora.folder) < 1e-6


@pytest.mark.parametrize(
    ("values", "kind", "message", "hint"),
    [
        ({"lora_target_modules": "q_prox", "use_peft": True}, SettingsError, "no module `q_prox`", "`q_proj`"),
        ({"lora_target_modules": "lm_head", "use_peft": True}, SettingsError, "output layer", "all-linear"),
        ({"max_length": 4}, TitheError, "none of the 30 examples", "`max_length` is 4"),
        ({"max_length": 5000}, SettingsError, "context window of 512", "--max-length 512"),
        ({"max_steps": 0}, SettingsError, "no optimiser step", None),
        ({"num_train_epochs": 0}, SettingsError, "no optimiser step", None),
        ({"max_steps": 1}, SettingsError, "warm-up begins at learning rate 0", "`warmup_ratio: 0`"),
        ({"model": None}, SettingsError, "no model given", "--model"),
        ({"per_device_train_batch_size": 3}, SettingsError, "cannot be made of 1 device of 3", None),
        ({"device": "cuda:7"}, SettingsError, "cuda:7", None),
        ({"recipe": "alpaka"}, SettingsError, "no recipe `alpaka`", "`alpaca`"),
    ],
)
def test_what_cannot_be_gets_one_sentence_and_leaves_nothing(data, model_dir, tmp_path, values, kind, message, hint):
    base = settings(data, model_dir).model_dump(exclude_none=True)
    with pytest.raises(kind) as caught:
        tune(TuneSettings.of(base | values), tmp_path / "a")
    assert message in str(caught.value)
    assert hint is None or hint in str(caught.value.hint)
    left = list((tmp_path / "a").glob("[!.]*"))  # the account, of what only the training itself has shown
    assert [file.name for file in left] in ([], ["tune.json"])
    assert all(json.loads(file.read_text())["outcome"]["status"] == "failed" for file in left)


def test_foreign_folders_are_not_touched(data, model_dir, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    for overwrite in (False, True):
        with pytest.raises(OutputError, match=r"holds no training, but `thesis.txt`"):
            tune(settings(data, model_dir), tmp_path / "mine", overwrite=overwrite)
    with pytest.raises(OutputError, match="is the model itself"):
        tune(settings(data, model_dir), model_dir, overwrite=True)


def test_overwrite_trains_anew(data, model_dir, tmp_path):
    tune(settings(data, model_dir, **LORA, max_steps=2), tmp_path / "a")
    with pytest.raises(SettingsError, match="warm-up begins"):  # which leaves the model that is there, and its record
        tune(settings(data, model_dir, max_steps=1), tmp_path / "a", overwrite=True)
    assert json.loads((tmp_path / "a" / "tune.json").read_text())["outcome"] == {"status": "finished"}
    got = tune(settings(data, model_dir, max_steps=2), tmp_path / "a", overwrite=True)
    assert got.record["steps"] == 2 and not list(got.folder.glob("adapter*"))


def test_a_missing_package_is_named(data, model_dir, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(MissingExtraError, match="`trl`") as caught:
        tune(settings(data, model_dir), tmp_path / "a")
    assert caught.value.hint == install_hint("tune")


def test_packing_keeps_examples_apart(data, model_dir, tmp_path):
    """All examples in one step: packed or not, the loss is a mean over the same tokens."""
    one = tune(settings(data, model_dir, train_batch_size=32, max_steps=2), tmp_path / "a")
    other = tune(
        settings(data, model_dir, train_batch_size=32, max_steps=2, packing=True, max_length=128), tmp_path / "b"
    )
    assert other.record["losses"] == pytest.approx(one.record["losses"], abs=1e-4)
    assert distance(one.folder, other.folder) < 1e-4


def test_packing_is_refused_where_examples_would_read_each_other(data, model_dir, tmp_path, monkeypatch):

    from transformers import masking_utils

    monkeypatch.setattr(masking_utils, "find_packed_sequence_indices", lambda *a, **k: None)
    with pytest.raises(SettingsError, match="would let examples read each other"):
        tune(settings(data, model_dir, packing=True), tmp_path / "a")
    assert visible(tmp_path / "a") == ["tune.json"]
    # Nor is anything of an earlier training left, which `--overwrite` has given up: the folder can be used again.
    tune(settings(data, model_dir, max_steps=2, warmup_ratio=0), tmp_path / "a")
    with pytest.raises(SettingsError, match="would let examples read each other"):
        tune(settings(data, model_dir, packing=True), tmp_path / "a", overwrite=True)
    assert visible(tmp_path / "a") == ["tune.json"]
    assert tune(settings(data, model_dir, max_steps=2, warmup_ratio=0), tmp_path / "a", overwrite=True).record["losses"]


def visible(folder):
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))


def test_a_model_that_scales_its_logits_is_trained_on_scaled_ones(data, model_dir, tmp_path):
    """What the narrow head would leave out is left to TRL's own."""
    folder = tmp_path / "m"
    folder.mkdir()
    for file in model_dir.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    change_config(folder, model_type="granite", architectures=["GraniteForCausalLM"], logits_scaling=4.0)
    got = tune(settings(data, folder, max_steps=1, warmup_ratio=0), tmp_path / "a")
    assert got.record["logits"] == "as TRL computes them"
    from transformers import AutoModelForCausalLM

    from tithe.lab.tune.training import open_training

    training = open_training(settings(data, folder, max_steps=1, warmup_ratio=0))
    rows = training.read()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    total, tokens = 0.0, 0
    for place in training.schedule(rows).order.taken(1):
        row = rows.rows[place]
        logits = model(torch.tensor([row.ids])).logits[0, :-1]
        logp = torch.log_softmax(logits, -1)[torch.arange(len(row.ids) - 1), torch.tensor(row.ids[1:])]
        total, tokens = total - logp[row.first - 1 :].sum().item(), tokens + len(row.ids) - row.first
    assert got.record["losses"][0] == pytest.approx(total / tokens, abs=1e-4)


def test_nothing_is_sent(data, model_dir, tmp_path, monkeypatch):
    """TRL tells its makers of every training, unless it is stopped."""
    from trl.trainer import base_trainer

    sent = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr(base_trainer, "send_telemetry", lambda *a, **k: sent.append(a))
    tune(settings(data, model_dir, max_steps=1, warmup_ratio=0), tmp_path / "a")
    assert sent == []


def test_two_processes_train_the_same_model(straight, data, model_dir, tmp_path):
    """30 examples do not divide among 2 x 2 at a time: what fills up must not be learned from."""
    place = tmp_path / "a"
    flags = {"--train-batch-size": 8, "--learning-rate": 1e-3, "--num-train-epochs": 2, "--save-steps": 0}
    flags |= {"-m": model_dir, "-o": place, "--device": "cpu", "--per-device-train-batch-size": 2}
    given = [str(part) for pair in flags.items() for part in pair]
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "tithe.cli"]
    done = subprocess.run(
        [*launch, "tune", str(data), *given, "--json"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)  # one process talks: two records would not be one
    assert record["batches"] == {"step": 8, "devices": 2, "each": 2, "passes": 2}
    assert done.stderr.count("optimiser steps, each of 8") == 1
    assert record["losses"] == pytest.approx(straight.record["losses"], abs=1e-5)
    assert record["recipe_digest"] == straight.record["recipe_digest"]
    assert distance(place, straight.folder) < 1e-5


def test_a_tokenizer_with_more_tokens_than_the_model_embeds(data, model_dir, tmp_path):
    """One sentence before anything is trained or written, no index error deep inside."""
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    shutil.copytree(model_dir, folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["colours", "letter", "the", "a"])
    tokenizer.save_pretrained(folder)
    own = settings(data, folder, max_steps=1)
    with pytest.raises(ModelError, match=r"the tokenizer gives id \d+, but `.*` embeds \d+ ids"):
        tune(own, tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.safetensors"))

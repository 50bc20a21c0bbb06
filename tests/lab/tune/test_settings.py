"""Recipes: named ones, files, what a digest covers, and what cannot be."""

import pytest

from tithe.errors import SettingsError
from tithe.lab.tune.settings import LAYOUT, RECIPES, TrainingRecipe, TuneSettings, read_recipe, with_values


def settings(**values):
    return TuneSettings.of({"dataset": "d.jsonl", **values})


def test_alpaca_is_what_the_papers_took_over():
    r = RECIPES["alpaca"]
    assert (r.train_batch_size, r.learning_rate, r.num_train_epochs, r.max_length) == (128, 2e-5, 3, 512)
    assert (r.lr_scheduler_type, r.warmup_ratio, r.weight_decay, r.use_peft) == ("cosine", 0.03, 0, False)


def test_cpqs_lora_is_what_its_paper_says():
    r = RECIPES["cpqs-lora"]
    assert (r.use_peft, r.lora_r, r.lora_alpha, r.learning_rate) == (True, 16, 8, 5e-5)
    assert (r.train_batch_size, r.num_train_epochs, r.max_length, r.bf16) == (16, 3, 2048, True)


def test_warmup_is_alpaca_for_one_epoch():
    assert with_values(RECIPES["warmup"], {"num_train_epochs": 3.0}).digest() == RECIPES["alpaca"].digest()


OTHER = {
    "learning_rate": 1e-5,
    "train_batch_size": 64,
    "num_train_epochs": 2.0,
    "max_steps": 7,
    "warmup_ratio": 0.1,
    "lr_scheduler_type": "linear",
    "weight_decay": 0.1,
    "adam_beta1": 0.8,
    "adam_beta2": 0.99,
    "adam_epsilon": 1e-6,
    "max_grad_norm": 2.0,
    "max_length": 256,
    "packing": True,
    "dtype": "fp32",
    "bf16": True,
    "use_peft": True,
    "lora_r": 4,
    "lora_alpha": 4,
    "lora_dropout": 0.2,
    "lora_target_modules": ("q_proj",),
    "name": "x",
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 64,
    "gradient_checkpointing": True,
    "save_steps": 3,
}


@pytest.mark.parametrize("name", TrainingRecipe.model_fields)
def test_the_digest_covers_all_that_affects_the_result(name):
    """A field that is added without a thought about the digest fails here."""
    base = TrainingRecipe(use_peft=name != "use_peft")
    assert (with_values(base, {name: OTHER[name]} if name in OTHER else {}).digest() == base.digest()) == (
        name in LAYOUT
    )


def test_lora_settings_do_not_matter_where_there_is_no_adapter():
    assert TrainingRecipe(lora_r=4).digest() == TrainingRecipe().digest()


def test_flags_win_over_the_recipe():
    got = settings(
        recipe="alpaca", learning_rate=1e-3, lora_target_modules="q_proj,v_proj", use_peft=True
    ).full_recipe()
    assert (got.learning_rate, got.lora_target_modules, got.max_length) == (1e-3, ("q_proj", "v_proj"), 512)


def test_every_flag_has_the_name_of_a_field():
    own = {"dataset", "format", "turns", "split", "limit", "strict", "model", "template", "truncation", "bos", "eos"}
    own |= {"recipe", "device", "columns", "seed", "trust_remote_code", "report_to", "run_name", "project"}
    assert set(TuneSettings.model_fields) - own <= set(TrainingRecipe.model_fields)


def test_a_file_extends_a_named_recipe(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("extends: cpqs-lora\nlora-r: 8\nlora_target_modules: [q_proj]\n")
    got = read_recipe(str(path))
    assert (got.name, got.lora_r, got.lora_alpha, got.lora_target_modules) == (str(path), 8, 8, ("q_proj",))


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ("learning_rat: 1e-5", "has an unknown key `learning_rat`", "did you mean `learning_rate`?"),
        ("extends: alpacca", "no recipe `alpacca`", "did you mean `alpaca`?"),
        ("lr_scheduler_type: cosin", "cannot be `cosin`", "did you mean `cosine`?"),
        ("a: [", "is not YAML", None),
        ("- 1", "holds no `key: value` lines", None),
        ("max_length: 1", "it must be at least 2", None),
        ("learning_rate: fast", "cannot be `fast`", None),
        ("learning_rate: 0", "it must be above 0", None),
        ("train_batch_size: 0", "it must be at least 1", None),
        ("warmup_ratio: 1", "below 1", None),
        ("save_steps: -1", "it must be 0 or more", None),
        ("dtype: bf16", "small steps would be rounded away", "`dtype: fp32` and `bf16: true`"),
    ],
)
def test_a_bad_file_gets_one_sentence(tmp_path, text, message, hint):
    path = tmp_path / "mine.yml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        read_recipe(str(path))
    assert message in str(caught.value)
    assert hint is None or hint in str(caught.value.hint)


def test_a_missing_file_or_name_gets_a_suggestion():
    with pytest.raises(SettingsError, match=r"cannot read `nowhere.yaml`"):
        read_recipe("nowhere.yaml")
    with pytest.raises(SettingsError, match=r"no recipe `cpqs`"):
        read_recipe("cpqs")

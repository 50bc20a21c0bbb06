"""What is embedded, and each encoder against the arithmetic that it stands for."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.neighbours.small_encoders import (
    TOKENS,
    asks,
    make_bert,
    make_sentence,
    make_static,
    random_texts,
    tokenizer,
)
from tests.small_model import change_config
from tithe.engine.engine import Engine
from tithe.engine.loading import load_model
from tithe.engine.model_source import find_model, fingerprint, load_tokenizer
from tithe.errors import DataError, MissingExtraError, ModelError, SettingsError
from tithe.extras import install_hint
from tithe.neighbours.encoder import TextEncoder, prompt_text
from tithe.neighbours.encoders import make_encoder
from tithe.neighbours.vectors import embed
from tithe.records import Example, Message

Array = npt.NDArray[np.float64]


def unit(rows: Any) -> Array:
    rows = np.asarray(rows, dtype=np.float64)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def vectors(spec: str, texts: Sequence[str], **more: Any) -> npt.NDArray[np.float32]:
    examples = asks(texts)
    return embed(examples, make_encoder(spec, corpus=examples, device="cpu", **more)).vectors


# What is embedded

DIALOGUE = Example(
    "d", 0, 4,
    (Message("system", "Be kind"), Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "And now?")),
    Message("assistant", "SECRET"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("example", "last", "dialogue"),
    [
        (DIALOGUE, "And now?", "Be kind\n\nHi\n\nHello\n\nAnd now?"),
        (replace(DIALOGUE, instruction="Add", input="1 2"), "Add\n1 2", "Be kind\n\nHi\n\nHello\n\nAdd\n1 2"),
        (replace(DIALOGUE, prompt=(Message("user", "Add"),), instruction="Add", input=""), "Add", "Add"),
        (replace(DIALOGUE, prompt=(Message("user", "Add"),), instruction="Add", input=None), "Add", "Add"),
        (replace(DIALOGUE, prompt=(*DIALOGUE.prompt, Message("tool", "12"))), "And now?", None),
        (replace(DIALOGUE, prompt=(Message("system", "Be kind"),)), "Be kind", "Be kind"),
        (replace(DIALOGUE, prompt=(Message("assistant", "Hello"),)), "", "Hello"),
        (replace(DIALOGUE, prompt=()), "", ""),
        (replace(DIALOGUE, prompt=(Message("user", " \n"),)), " \n", " \n"),
    ],
)
def test_the_prompt_alone_is_embedded(example: Example, last: str, dialogue: str | None) -> None:
    assert prompt_text(example) == last
    if dialogue is not None:
        assert prompt_text(example, "dialogue") == dialogue
    assert "SECRET" not in prompt_text(example) + prompt_text(example, "dialogue")


def test_the_text_is_a_setting() -> None:
    encoder = make_encoder("tfidf(text=dialogue)", corpus=[DIALOGUE])
    assert isinstance(encoder, TextEncoder) and encoder.text(DIALOGUE).startswith("Be kind")
    assert encoder.describe()["text"] == "dialogue"


# Sentence encoders


def bert_twin(folder: Path, texts: Sequence[str], pooling: str, limit: int = 64) -> Array:
    """One text at a time through transformers' own BERT; ids made by the bare tokenizer."""
    from transformers import BertModel

    model, bare, rows = BertModel.from_pretrained(folder).eval(), tokenizer(), []
    for text in texts:
        ids = bare.encode(text).ids
        ids = ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]
        with torch.no_grad():
            states = model(input_ids=torch.tensor([ids])).last_hidden_state[0].double().numpy()
        rows.append({"mean": states.mean(0), "cls": states[0], "last": states[-1]}[pooling])
    return unit(rows)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bert(tmp_path_factory.mktemp("encoders") / "plain-bert")


@pytest.fixture(scope="module")
def sentence(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sentence(tmp_path_factory.mktemp("encoders") / "my-encoder")


@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_poolings(bert: Path, sentence: Path, pooling: str) -> None:
    texts = random_texts(40)
    for folder in (bert, sentence):
        got = vectors(f"{folder}(pooling={pooling}, batch_size=7)", texts)
        assert np.abs(got - bert_twin(folder, texts, pooling)).max() < 1e-5


def test_the_models_own_pooling(tmp_path: Path) -> None:
    texts = random_texts(5)
    for pooling in ("mean", "cls"):
        folder = make_sentence(tmp_path / pooling, pooling=pooling)
        assert np.abs(vectors(str(folder), texts) - bert_twin(folder, texts, pooling)).max() < 1e-5
        assert pooling in make_encoder(str(folder)).describe()["pooling_used"]


def test_company_moves_a_sentence_by_rounding_alone(sentence: Path) -> None:
    texts = random_texts(30)
    alone = np.concatenate([vectors(f"{sentence}(pooling=mean)", [text]) for text in texts[:6]])
    for size in (1, 4, 100):
        got = vectors(f"{sentence}(pooling=mean, batch_size={size})", texts)
        assert np.abs(got[:6] - alone).max() < 1e-5


def test_a_prefix_is_put_before_every_text(sentence: Path) -> None:
    got = vectors(f"{sentence}(pooling=mean, prefix='name: ')", ["a letter", "the sum"])
    assert np.abs(got - bert_twin(sentence, ["name: a letter", "name: the sum"], "mean")).max() < 1e-5


def test_the_models_own_prompt_is_taken_unless_another_is_given(tmp_path: Path) -> None:
    folder = make_sentence(tmp_path / "prompted", prompt="write: ")
    for spec, read in ((f"{folder}", "write: a letter"), (f"{folder}(prefix='')", "a letter")):
        assert np.abs(vectors(spec, ["a letter"]) - bert_twin(folder, [read], "cls")).max() < 1e-5


def test_long_texts_are_cut_and_counted(sentence: Path) -> None:
    texts = ["name " * n + "sum" for n in (1, 5, 6, 50)] + ["1?1?1?1"]  # with [CLS] and [SEP]: 4, 8, 9, 53, 9 tokens
    encoder = make_encoder(f"{sentence}(pooling=mean, max_length=8)", device="cpu")
    found = embed(asks(texts), encoder)
    assert found.counts["cut"] == 3
    assert np.abs(found.vectors - bert_twin(sentence, texts, "mean", limit=8)).max() < 1e-5
    assert isinstance(encoder, TextEncoder)
    assert [list(one.cut) for one in encoder.encode(texts, [False] * 5)] == [[0, 0, 1, 45, 1]]


@pytest.mark.slow
def test_out_of_memory_halves_a_batch(sentence: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder(f"{sentence}(pooling=mean)", device="cpu")
    texts, real = random_texts(9), encoder.model.encode  # type: ignore[attr-defined]

    def small(some: Any, **more: Any) -> Any:
        if len(some) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(some, **more)

    monkeypatch.setattr(encoder.model, "encode", small)  # type: ignore[attr-defined]
    assert np.abs(embed(asks(texts), encoder).vectors - bert_twin(sentence, texts, "mean")).max() < 1e-5
    monkeypatch.setattr("tithe.engine.engine.is_out_of_memory", lambda error: True)
    monkeypatch.setattr(encoder.model, "encode", lambda *_, **__: (_ for _ in ()).throw(MemoryError()))  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="out of memory on a text of"):
        embed(asks(texts), encoder)


def test_a_failure_inside_is_one_sentence(sentence: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = make_encoder(str(sentence), device="cpu")
    monkeypatch.setattr(encoder.model, "encode", lambda *_, **__: [][0])  # type: ignore[attr-defined]
    with pytest.raises(ModelError, match="cannot read its texts: list index out of range"):
        embed(asks(["a"]), encoder)


def test_not_finite_vectors_name_encoder_and_example(tmp_path: Path) -> None:
    folder = make_static(tmp_path / "broken")
    table = load_file(folder / "model.safetensors")["embeddings"]
    table[TOKENS.index("rainbow")] = np.nan
    save_file({"embeddings": table}, folder / "model.safetensors")
    with pytest.raises(
        ModelError, match=r"broken` returns a vector that is not finite for example `id2` \(data.jsonl:3"
    ):
        vectors(str(folder), ["a letter", "the sum", "the rainbow"])


# What an encoder cannot be


def test_a_plain_transformer_must_be_told_how_to_pool(bert: Path) -> None:
    with pytest.raises(SettingsError, match="does not say how its vectors are pooled") as caught:
        make_encoder(str(bert))
    assert "pooling=mean" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("settings", "words", "hint"),
    [
        ("poling=mean", "has no setting `poling`", "did you mean `pooling`?"),
        ("pooling=max", "`pooling` is `model` or `mean` or `cls` or `last`, not `max`", None),
        ("max_length=0", "`max_length` must be at least 1, not 0", None),
        ("batch_size=-1", "`batch_size` must be at least 1, not -1", None),
        ("max_length=65", "reads at most 64 tokens, `max_length` is 65", None),
    ],
)
def test_settings_that_cannot_be(sentence: Path, settings: str, words: str, hint: str | None) -> None:
    with pytest.raises(SettingsError, match=re.escape(words)) as caught:
        make_encoder(f"{sentence}({settings})")
    assert caught.value.hint == hint


def test_a_pooling_that_is_not_there_cannot_be_replaced(sentence: Path, tmp_path: Path) -> None:
    folder = make_sentence(tmp_path / "m")
    (folder / "modules.json").write_text(
        json.dumps([part for part in json.loads((folder / "modules.json").read_text()) if part["idx"] == 0])
    )
    with pytest.raises(SettingsError, match="no pooling layer to replace"):
        vectors(f"{folder}(pooling=mean)", ["a"])


@pytest.mark.parametrize(
    ("name", "words", "hint"),
    [
        ("my-encodr", "no folder `my-encodr`", "did you mean `my-encoder`?"),
        ("./my-encodr", "there is no encoder folder `./my-encodr`", "did you mean `my-encoder`?"),
        ("/nowhere/at/all", "there is no encoder folder", "an encoder is `self`, `tfidf`, a folder"),
        ("tfdif", "there is no encoder `tfdif`", "did you mean `tfidf`?"),
        ("slef", "there is no encoder `slef`", "did you mean `self`?"),
        ("pocket", "`pocket` is a language model, not an encoder", "`--model pocket --encoder self`"),
        ("vectors.npy", "there is no encoder `vectors.npy`", "`file:vectors.npy`"),
        ("empty", "has no `config.json`", "it is empty"),
        ("pickled", "has no `.safetensors` file", "convert the pickled weights"),
        ("owner/not-there", "no folder `owner/not-there`, and the hub could not be asked", "an encoder is"),
    ],
)
def test_an_encoder_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, words: str, hint: str
) -> None:
    for folder in ("my-encoder", "empty", "pickled"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pickled" / "config.json").write_text("{}")
    (tmp_path / "pickled" / "pytorch_model.bin").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=re.escape(words)) as caught:
        make_encoder(name)
    assert hint in str(caught.value.hint)


def test_a_spec_that_cannot_be_read() -> None:
    for spec in ("", "tfidf(", "tfidf(dims)", "tfidf(dims=1, dims=2)"):
        with pytest.raises(SettingsError):
            make_encoder(spec)


def test_code_of_its_own_is_not_run(tmp_path: Path) -> None:
    folder = make_sentence(tmp_path / "m")
    listed = json.loads((folder / "modules.json").read_text())
    listed[0]["type"] = "my_code.Transformer"
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "my_code.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match=re.escape("needs custom code (`my_code.Transformer`), which is never run")):
        make_encoder(str(folder))


@pytest.mark.parametrize("text", ["{", "[1]", '[{"idx": 0}]'])
def test_a_damaged_list_of_modules(tmp_path: Path, text: str) -> None:
    folder = make_sentence(tmp_path / "m")
    (folder / "modules.json").write_text(text)
    with pytest.raises(ModelError, match=r"cannot read `modules\.json`"):
        make_encoder(str(folder))


def test_weights_that_do_not_load(tmp_path: Path) -> None:
    for make, spec in ((make_static, ""), (make_sentence, "")):
        folder = make(tmp_path / make.__name__)
        (folder / "model.safetensors").write_bytes(b"\xff" * 100)
        with pytest.raises(ModelError, match="cannot load encoder"):
            vectors(f"{folder}{spec}", ["a"])


@pytest.mark.parametrize(("make", "package"), [(make_static, "model2vec"), (make_sentence, "sentence-transformers")])
def test_a_missing_package_names_its_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], Path], package: str
) -> None:
    monkeypatch.setattr("tithe.neighbours.pretrained.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=f"needs the package `{package}`") as caught:
        make_encoder(str(make(tmp_path / "m")))
    assert caught.value.hint == install_hint("encoders")


# Static models


def static_twin(folder: Path, texts: Sequence[str]) -> Array:
    """The mean of the known tokens' rows, text by text; zeros where there is none."""
    from tokenizers import Tokenizer

    table = load_file(folder / "model.safetensors")["embeddings"].astype(np.float64)
    bare = Tokenizer.from_file(str(folder / "tokenizer.json"))
    bare.no_truncation()
    unknown, rows = bare.token_to_id("[UNK]"), []
    for text in texts:
        ids = [i for i in bare.encode(text, add_special_tokens=False).ids if i != unknown]
        mean = sum((table[i] for i in ids), np.zeros(table.shape[1])) / max(1, len(ids))
        rows.append(mean / (np.linalg.norm(mean) or 1.0))
    return np.array(rows)


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8"])
def test_static_models(tmp_path: Path, dtype: str) -> None:
    folder, texts = (
        make_static(tmp_path / "static", dtype=dtype),
        [*random_texts(50), "name " * 600 + "sum " * 600, "Ж Щ", "sum Ж"],
    )
    assert np.abs(vectors(str(folder), texts) - static_twin(folder, texts)).max() < 1e-5


def test_a_text_of_unknown_words_has_no_vector(tmp_path: Path) -> None:
    found = embed(asks(["Ж Щ", "the sum", " "]), make_encoder(str(make_static(tmp_path / "static"))))
    assert found.vectors.any(axis=1).tolist() == [False, True, False]
    assert (found.counts["unknown"], found.counts["empty"]) == (1, 1)


def test_a_static_model_has_no_pooling(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="has no setting `pooling`"):
        make_encoder(f"{make_static(tmp_path / 'static')}(pooling=mean)")


@pytest.mark.shared
def test_a_real_static_model(shared: Path) -> None:
    folder = shared / "data" / "weights" / "potion-base-4m-int8"
    lines = (shared / "data" / "sft" / "alpaca_20k.jsonl").read_text(encoding="utf-8").splitlines()[:300]
    texts = [json.loads(line)["instruction"] for line in lines]
    assert np.abs(vectors(str(folder), texts) - static_twin(folder, texts)).max() < 1e-5


# tf-idf


def tfidf_twin(texts: Sequence[str]) -> Array:
    """(1 + ln tf) * (ln((1 + n) / (1 + df)) + 1) per term, rows of length 1."""
    bags = [Counter(re.findall(r"\w+", text.lower())) for text in texts]
    terms = sorted({term for bag in bags for term in bag})
    df = {term: sum(term in bag for bag in bags) for term in terms}
    idf = {term: math.log((1 + len(texts)) / (1 + df[term])) + 1 for term in terms}
    return unit([[(1 + math.log(bag[t])) * idf[t] if bag[t] else 0.0 for t in terms] for bag in bags])


def test_tfidf_with_room_for_all_directions_keeps_every_cosine() -> None:
    texts = [text.replace("and", "C C C") for text in random_texts(25)]
    got, wanted = vectors("tfidf", texts), tfidf_twin(texts)
    assert got.shape[1] <= 256 and got.dtype == np.float32
    assert np.abs(got @ got.T - wanted @ wanted.T).max() < 1e-5


def test_tfidf_keeps_the_largest_directions() -> None:
    texts = sorted({text.rstrip("0123456789") for text in random_texts(60)})  # so few terms that the fit is exact
    table = tfidf_twin(texts)
    u, s, _ = np.linalg.svd(table, full_matrices=False)
    wanted, got = unit(u[:, :5] * s[:5]), vectors("tfidf(dims=5)", texts)
    assert got.shape == (len(texts), 5)
    assert np.abs(got @ got.T - wanted @ wanted.T).max() < 1e-5


@pytest.mark.parametrize("texts", [["one"], ["one", "two"], ["same thing"] * 5, ["a b", "a b c", "d"], ["x", " ", ""]])
@pytest.mark.parametrize("analyzer", ["word", "char"])
def test_tfidf_of_tiny_data_sets(texts: list[str], analyzer: str) -> None:
    got = vectors(f"tfidf(analyzer={analyzer})", texts)
    lengths = np.linalg.norm(got, axis=1)
    assert np.allclose(lengths, [1.0 if text.strip() else 0.0 for text in texts], atol=1e-6)
    if len(set(texts)) == 1:
        assert np.allclose(got @ got.T, 1, atol=1e-6)


def test_tfidf_of_a_script_without_spaces() -> None:
    texts = ["写一首关于月亮的诗", "写一首关于太阳的诗", "列出三种颜色"]
    got = vectors("tfidf(analyzer=char)", texts)
    assert got[0] @ got[1] > 0.3 > got[0] @ got[2]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\u0939\u093f\u0928\u094d\u0926\u0940", "\u0939\u0928\u0926"),  # Devanagari with and without its signs
        ("\u0b95\u0bbe", "\u0b95\u0bbf"),  # Tamil, another vowel each
        ("e\u0301t", "e t"),  # a combining accent
        ("\u0645\u06cc\u200c\u062e", "\u0645\u06cc \u062e"),  # Persian: a joiner is inside a word
    ],
)
def test_tfidf_does_not_cut_words_at_their_marks(one: str, other: str) -> None:
    got = vectors("tfidf", [one, other])
    assert abs(got[0] @ got[1]) < 1e-6  # no term in common


def test_tfidf_knows_no_term_that_is_a_mark_alone() -> None:
    got = vectors("tfidf", ["a \u2764\ufe0f", "b \u2764\ufe0f"])
    assert abs(got[0] @ got[1]) < 1e-6


def test_tfidf_names_the_rule_of_its_terms() -> None:
    """Vectors of terms that were cut otherwise have another identity, so that a store does not mix them."""
    assert make_encoder("tfidf", corpus=[DIALOGUE]).identity()["terms"] == 2


def test_tfidf_is_fitted_on_the_data_set_and_used_on_others() -> None:
    corpus, pool = asks(random_texts(30)), asks(["the rainbow", "unheard words"])
    encoder = make_encoder("tfidf(dims=8)", corpus=corpus)
    assert embed(pool, encoder).vectors.any(axis=1).tolist() == [True, False]
    assert embed(pool, encoder).vectors.shape == (2, 8)


def test_tfidf_without_any_term() -> None:
    with pytest.raises(DataError, match="finds no term in the 2 prompts") as caught:
        vectors("tfidf", ["?!", "..."])
    assert "analyzer=char" in str(caught.value.hint)


def test_tfidf_of_no_dimension() -> None:
    with pytest.raises(SettingsError, match="`dims` must be at least 1, not 0"):
        make_encoder("tfidf(dims=0)")


def test_tfidf_depends_on_the_texts_and_not_on_their_order() -> None:
    examples = asks(random_texts(30))
    one, turned, fewer, seeded = (
        make_encoder("tfidf(dims=4)", corpus=corpus, seed=seed)
        for corpus, seed in ((examples, 0), (examples[::-1], 0), (examples[1:], 0), (examples, 1))
    )
    assert all(isinstance(encoder, TextEncoder) for encoder in (one, turned, fewer, seeded))
    assert one.key == turned.key  # type: ignore[attr-defined]
    assert len({encoder.key for encoder in (one, fewer, seeded)}) == 3  # type: ignore[attr-defined]
    assert (embed(examples, one).vectors == embed(examples, turned).vectors).all()


# The scoring model itself


@dataclass
class Own:
    """What a run gives to `self`."""

    folder: Path
    dtype: str = "fp32"
    window: int | None = 512
    loaded: list[Engine] = field(default_factory=list)

    @property
    def engine(self) -> Engine:
        if not self.loaded:
            self.loaded.append(Engine(load_model(find_model(str(self.folder)), device="cpu", dtype=self.dtype)))
        return self.loaded[0]

    @property
    def tokenizer(self) -> Any:
        return load_tokenizer(find_model(str(self.folder)))

    @property
    def fingerprint(self) -> str:
        return fingerprint(find_model(str(self.folder)))


def own_twin(folder: Path, texts: Sequence[str], pooling: str, limit: int = 512) -> Array:
    """One text at a time, through transformers alone."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    splitter, rows = AutoTokenizer.from_pretrained(folder), []
    for text in texts:
        ids = splitter(text)["input_ids"][:limit]
        assert ids[0] == splitter.bos_token_id
        with torch.no_grad():
            states = model(torch.tensor([ids]), output_hidden_states=True).hidden_states[-1][0].double().numpy()
        rows.append(states[-1] if pooling == "last" else states.mean(0))
    return unit(rows)


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_self_is_the_models_own_states(model_dir: Path, pooling: str) -> None:
    texts = random_texts(30)
    got = vectors(f"self(pooling={pooling})", texts, own=Own(model_dir))
    assert np.abs(got - own_twin(model_dir, texts, pooling)).max() < 1e-5


def test_self_cuts_long_prompts_and_counts(model_dir: Path) -> None:
    texts = ["a b", "name three colours of the rainbow " * 20]
    for settings, limit, window in (("", 40, 40), ("(max_length=9)", 9, 512), ("", 512, 4096)):
        long = texts if limit < 512 else [texts[0], texts[1] * 20]
        found = embed(asks(long), make_encoder(f"self{settings}", own=Own(model_dir, window=window)))
        assert found.counts["cut"] == 1
        assert np.abs(found.vectors - own_twin(model_dir, long, "mean", limit)).max() < 1e-5


def test_self_with_a_prefix(model_dir: Path) -> None:
    got = vectors("self(prefix='Task: ')", ["a letter"], own=Own(model_dir))
    assert np.abs(got - own_twin(model_dir, ["Task: a letter"], "mean")).max() < 1e-5


def test_self_with_a_tokenizer_that_drops_all_of_a_text(model_dir: Path) -> None:
    """No BOS, and control characters are no tokens: such a text has no vector, and the others keep their counts."""
    from transformers import PreTrainedTokenizerFast

    class Dropping(Own):
        @property
        def tokenizer(self) -> Any:
            bare = tokenizer()
            bare.post_processor = None
            return PreTrainedTokenizerFast(tokenizer_object=bare)

    texts = ["\x01" * 99, "name three colours", "sum", "\x02"]
    own = Dropping(model_dir)
    found = embed(asks(texts), make_encoder("self(max_length=2)", own=own))
    assert found.vectors.any(axis=1).tolist() == [False, True, True, False]
    assert (found.counts["cut"], found.counts["unknown"]) == (1, 2)
    encoder = make_encoder("self(max_length=2)", own=own)
    assert isinstance(encoder, TextEncoder)
    cuts = {i: cut for one in encoder.encode(texts, [False] * 4) for i, cut in zip(one.index, one.cut, strict=True)}
    assert cuts == {0: 0, 1: 1, 2: 0, 3: 0}


@pytest.mark.parametrize("length", [0, 513])
def test_self_cannot_read_more_than_the_window(model_dir: Path, length: int) -> None:
    with pytest.raises(SettingsError, match=f"must be from 1 to the model's 512 tokens, not {length}"):
        make_encoder(f"self(max_length={length})", own=Own(model_dir))


def test_self_without_a_model() -> None:
    with pytest.raises(SettingsError, match="no model is given") as caught:
        make_encoder("self")
    assert "--model" in str(caught.value.hint)


@pytest.mark.slow
def test_self_out_of_memory(model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing_fits(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("tithe.engine.engine.Engine.run_forward", nothing_fits)
    with pytest.raises(ModelError, match=r"`self` is out of memory on a text of \d+ tokens"):
        vectors("self", ["a letter", "the sum"], own=Own(model_dir))


def test_self_is_keyed_by_model_tokenizer_dtype_and_settings(model_dir: Path, tmp_path: Path) -> None:
    from tests.small_model import make_model

    other = make_model(tmp_path / "other", seed=1)
    tokenizer_json = json.loads((other / "tokenizer.json").read_text())
    retold = make_model(tmp_path / "retold")
    tokenizer_json["added_tokens"] = tokenizer_json["added_tokens"][:-1]
    (retold / "tokenizer.json").write_text(json.dumps(tokenizer_json))
    owns = [Own(model_dir), Own(other), Own(retold), Own(model_dir, dtype="bf16")]
    keys = [make_encoder("self", own=own).key for own in owns]  # type: ignore[attr-defined]
    keys += [
        make_encoder(f"self({settings})", own=owns[0]).key  # type: ignore[attr-defined]
        for settings in ("pooling=last", "max_length=9", "prefix=a")
    ]
    assert len(set(keys)) == len(keys)
    assert make_encoder("self(text=dialogue)", own=Own(model_dir)).key == keys[0]  # type: ignore[attr-defined]
    assert not any(own.loaded for own in owns)


# Keys of models


def test_the_key_is_what_a_vector_depends_on(tmp_path: Path) -> None:
    def key(folder: Path, settings: str = "") -> str:
        encoder = make_encoder(f"{folder}{settings}")
        assert isinstance(encoder, TextEncoder)
        return encoder.key

    here, there = make_sentence(tmp_path / "here"), make_sentence(tmp_path / "there")
    same = {key(here), key(there), key(here, "(batch_size=3)"), key(here, "(text=dialogue)")}
    (here / "README.md").write_text("words")
    assert same == {key(here)}
    settings = ("pooling=mean", "max_length=9", "prefix=''", "dtype=bf16")
    others = [key(here, f"({one})") for one in settings]
    change_config(there / "1_Pooling", pooling_mode_mean_tokens=True)
    others.append(key(there))
    assert len({key(here), *others}) == 6


# Vectors from files

ROWS = np.arange(1, 13, dtype=np.float64).reshape(4, 3)


def write(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int8"])
def test_an_array_of_rows(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "v.npy", ROWS.astype(dtype))
    examples = asks("abcd")
    found = embed([examples[2], examples[0]], make_encoder(f"file:{tmp_path}/v.npy", corpus=examples, rows=4))
    assert np.allclose(found.vectors, unit(ROWS)[[2, 0]], atol=1e-6)


@pytest.mark.parametrize("kind", [pa.list_(pa.float64()), pa.list_(pa.float32(), 3), pa.large_list(pa.float16())])
@pytest.mark.parametrize("by", ["id", "row"])
def test_a_table_by_id_or_row(tmp_path: Path, by: str, kind: Any) -> None:
    examples = asks("abcd")
    rows = pa.array([[np.float16(x) for x in row] for row in ROWS[::-1]], pa.list_(pa.float16())).cast(kind)
    keys = [example.id if by == "id" else example.row for example in examples[::-1]]
    path = write(tmp_path / "v.parquet", **{by: keys, "vector": rows})
    found = embed(examples[:3], make_encoder(f"file:{path}", corpus=examples, rows=4))
    assert np.allclose(found.vectors, unit(ROWS)[:3], atol=1e-6)


def test_an_array_of_another_data_set(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", ROWS)
    for rows, count, words in (
        (7, 4, "has 4 vectors, but the data set has 7 records"),
        (3, 3, "has 4 vectors, but the data set has 3 records"),
        (None, 6, r"has 4 vectors, but none for 2 of 6 examples, e.g. row `4` \(data.jsonl:5\)"),
    ):
        examples = asks([str(i) for i in range(count)])
        with pytest.raises(DataError, match=words):
            embed(examples, make_encoder(f"file:{tmp_path}/v.npy", corpus=examples, rows=rows))


def test_a_table_of_another_data_set(tmp_path: Path) -> None:
    path = write(tmp_path / "v.parquet", id=["x", "id1", "y", "z"], vector=ROWS.tolist())
    with pytest.raises(DataError, match=r"has 4 vectors, but none for 2 of 3 examples, e\.g\. id `id0`") as caught:
        embed(asks("abc"), make_encoder(f"file:{path}", corpus=asks("abc")))
    assert "another data set" in str(caught.value.hint)


def test_a_file_has_no_vectors_for_a_pool(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", ROWS)
    encoder = make_encoder(f"file:{tmp_path}/v.npy", corpus=asks("abcd"), rows=4)
    pool = [replace(example, id=f"other{i}") for i, example in enumerate(asks("abcd"))]
    with pytest.raises(DataError, match="4 of 4 examples come from another one"):
        embed(pool, encoder)


def test_not_finite_numbers_in_a_file(tmp_path: Path) -> None:
    rows = ROWS.copy()
    rows[1, 2] = np.inf
    np.save(tmp_path / "v.npy", rows)
    with pytest.raises(DataError, match=r"not finite for example `id1` \(data.jsonl:2\)"):
        embed(asks("abcd"), make_encoder(f"file:{tmp_path}/v.npy"))


def test_a_row_of_zeros_in_a_file_stays_one(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", ROWS * [[1], [0], [1], [1]])
    found = embed(asks("abcd"), make_encoder(f"file:{tmp_path}/v.npy"))
    assert found.vectors.any(axis=1).tolist() == [True, False, True, True] and found.counts == {"unknown": 1}


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros(4), r"has shape \(4,\) of float64"),
        (np.zeros((2, 2, 2)), r"has shape \(2, 2, 2\)"),
        (np.array([["a", "b"]]), "of <U1"),
        (np.array([[None, 1]], dtype=object), "is not an array of numbers"),
    ],
)
def test_arrays_that_are_no_vectors(tmp_path: Path, array: Any, words: str) -> None:
    np.save(tmp_path / "v.npy", array, allow_pickle=True)
    with pytest.raises(DataError, match=words):
        embed(asks("abcd"), make_encoder(f"file:{tmp_path}/v.npy"))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"id": ["id0"]}, "has the columns id"),
        ({"vector": [[1.0]]}, "has the columns vector"),
        ({"id": ["id0"], "vector": [1.0]}, "`vector` in `.*` is double"),
        ({"id": ["id0"], "vector": [["a"]]}, "holds no numbers"),
        ({"id": ["id0", "id1"], "vector": [[1.0], [1.0, 2.0]]}, "has widths from 1 to 2"),
        ({"id": ["id0", "id1"], "vector": [[1.0], None]}, "has 1 empty entries"),
        ({"id": ["id0", "id0"], "vector": [[1.0], [1.0]]}, "has 2 rows, but only 1 distinct values of `id`"),
    ],
)
def test_tables_that_are_no_vectors(tmp_path: Path, columns: dict[str, Any], words: str) -> None:
    path = write(tmp_path / "v.parquet", **columns)
    with pytest.raises(DataError, match=words):
        embed(asks("a"), make_encoder(f"file:{path}"))


def test_a_file_that_is_not_what_it_says(tmp_path: Path) -> None:
    for name, words in (("v.npy", "is not an array of numbers"), ("v.parquet", "cannot read")):
        (tmp_path / name).write_text("words")
        with pytest.raises(DataError, match=words):
            embed(asks("a"), make_encoder(f"file:{tmp_path / name}"))


@pytest.mark.parametrize(
    ("spec", "words", "hint"),
    [
        ("file:vectrs.npy", "there is no file of vectors `vectrs.npy`", "did you mean `file:vectors.npy`?"),
        ("file:other/v.npy", "there is no file of vectors", "`other` has no `v.npy`"),
        ("file:vectors.csv", "`vectors.csv` is not a file of vectors", "parquet with"),
        ("file:vectors.npy(pooling=mean)", "vectors from a file take no settings", "`file:vectors.npy`"),
    ],
)
def test_files_that_cannot_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, words: str, hint: str
) -> None:
    np.save(tmp_path / "vectors.npy", ROWS)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SettingsError, match=re.escape(words)) as caught:
        make_encoder(spec)
    assert hint in str(caught.value.hint)


# For the run record


def test_the_record_says_what_was_done(tmp_path: Path, model_dir: Path) -> None:
    np.save(tmp_path / "v.npy", ROWS)
    folder = make_static(tmp_path / "static")
    specs = (str(folder), str(make_sentence(tmp_path / "s")), "tfidf", "self", f"file:{tmp_path}/v.npy")
    for spec in specs:
        record = make_encoder(spec, own=Own(model_dir), corpus=asks("abcd")).describe()
        assert record["encoder"] == spec and record["normalize"] == "unit length" and record["versions"]
        assert json.loads(json.dumps(record)) == record
    assert make_encoder(str(folder)).describe()["fingerprint"]

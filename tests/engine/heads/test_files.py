from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tithe.data.checksum import seal, unseal
from tithe.data.outfile import atomic
from tithe.engine.heads.cnn import CnnHead, ResponseCnn
from tithe.engine.heads.files import (
    CARD,
    FORMAT,
    WEIGHTS,
    HeadCard,
    import_cnn,
    load_head,
    parse_card,
    read_card,
    save_head,
)
from tithe.engine.heads.probe import ProbeHead
from tithe.errors import ModelError, OutputError, TitheError

MODEL = {"name": "tiny", "fingerprint": "0123456789abcdef", "dtype": "fp32"}


def probe():
    return ProbeHead(torch.arange(8.0).reshape(2, 4), torch.tensor(0.5), (1, 2), 3, 4)


def cnn():
    state = ResponseCnn(2, 4, torch.Generator().manual_seed(0)).state_dict()
    return CnnHead.of(state, (0, 2), 3, 4)


def card_of(head, **more):
    return replace(HeadCard.of(head, model=MODEL, rendering={"template": "plain"}, training={"auc": 0.9}), **more)


@pytest.fixture
def folder(tmp_path):
    save_head(tmp_path / "head", probe(), card_of(probe()))
    return tmp_path / "head"


def rewrite(folder, **changes):
    """Change a card and update its checksum."""
    card = unseal(json.loads((folder / CARD).read_text()))
    (folder / CARD).write_text(json.dumps(seal({**card, **changes})))


@pytest.mark.parametrize("make", [probe, cnn])
def test_what_is_saved_comes_back(tmp_path, make):
    head = make()
    written = save_head(tmp_path / "a" / "head", head, card_of(head))
    assert sorted(path.name for path in (tmp_path / "a" / "head").iterdir()) == [CARD, WEIGHTS]
    assert read_card(tmp_path / "a" / "head") == written
    again = load_head(tmp_path / "a" / "head")
    assert (type(again), again.layers, again.count, again.width) == (type(head), head.layers, 3, 4)
    assert again.weights().keys() == head.weights().keys()
    assert all(torch.equal(one, head.weights()[name]) for name, one in again.weights().items())


def test_a_head_is_not_replaced_unasked(folder):
    with pytest.raises(OutputError, match="exists"):
        save_head(folder, probe(), card_of(probe()))
    other = ProbeHead(torch.ones(2, 4), torch.tensor(0.0), (1, 2), 3, 4)
    save_head(folder, other, card_of(other), overwrite=True)
    assert load_head(folder).weights()["weight"].sum() == 8


def test_what_breaks_off_is_no_head(folder, monkeypatch):
    """If the card cannot be written there is none, instead of the old one beside new weights."""

    def full(path, overwrite):
        if path.name == CARD:
            raise OutputError("the disk is full")
        return atomic(path, overwrite)

    monkeypatch.setattr("tithe.engine.heads.files.atomic", full)
    with pytest.raises(OutputError, match="the disk is full"):
        save_head(folder, probe(), card_of(probe()), overwrite=True)
    with pytest.raises(ModelError, match=r"has no `head.json`"):
        load_head(folder)


def test_the_fingerprint_is_of_what_changes_numbers(folder):
    card = read_card(folder)
    assert len(card.fingerprint) == 16 and int(card.fingerprint, 16)
    for same in ({"training": {}}, {"tithe": "9.9"}, {"model": {**MODEL, "name": "another"}}):
        assert replace(card, **same).fingerprint == card.fingerprint, same
    for other in (
        {"weights": "0" * 64},
        {"rendering": {"template": "alpaca"}},
        {"layers": (0, 1)},
        {"count": 4},
        {"width": 5},
        {"kind": "cnn"},
        {"model": {**MODEL, "dtype": "bf16"}},
        {"model": {**MODEL, "fingerprint": "f" * 16}},
    ):
        assert replace(card, **other).fingerprint != card.fingerprint, other


def test_a_card_is_read_without_torch(folder):
    code = (
        "import sys; from pathlib import Path; from tithe.engine.heads.files import read_card; "
        "print(read_card(Path(sys.argv[1])).kind, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["probe", "False"], done.stderr


def test_what_is_not_there(tmp_path, folder):
    with pytest.raises(ModelError, match=r"there is no folder `.*none`") as caught:
        read_card(tmp_path / "none")
    assert "tithe head train" in caught.value.hint
    with pytest.raises(ModelError, match=r"head.json` is a file"):
        load_head(folder / CARD)
    (folder / WEIGHTS).unlink()
    with pytest.raises(ModelError, match=r"has no `head.safetensors`"):
        load_head(folder)
    (folder / CARD).unlink()
    with pytest.raises(ModelError, match=r"has no `head.json`"):
        read_card(folder)


@pytest.mark.parametrize("text", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"1" * 10_000])
def test_what_is_no_json(folder, text):
    (folder / CARD).write_bytes(text)
    with pytest.raises(ModelError, match="is not JSON"):
        read_card(folder)


@pytest.mark.parametrize("text", ["[]", "{}", "null", '{"kind": "probe"}', '"head"'])
def test_json_of_something_else(folder, text):
    (folder / CARD).write_text(text)
    with pytest.raises(ModelError, match="is not the card of a head"):
        read_card(folder)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": FORMAT + 1}, "has format 3, this tithe reads 2"),
        ({"format": "1"}, '`format` in .* is "1", it must be a number from 1'),
        ({"kind": "tree"}, "is a head of kind `tree`"),
        ({"kind": ["probe"]}, r"is a head of kind `\['probe'\]`"),
        ({"layers": 3}, "`layers` in .* is 3, it must be a list of numbers"),
        ({"layers": [True, 2]}, "`layers` in"),
        ({"layers": [2, 1]}, r"layers \[2, 1\] are not ascending numbers of 3 hidden states"),
        ({"count": 2}, "are not ascending numbers of 2 hidden states"),
        ({"width": 0}, "`width` in .* is 0, it must be a number from 1"),
        ({"model": {"name": "tiny"}}, "`model` in .* it must be an object with the texts name, fingerprint, dtype"),
        ({"rendering": None}, "`rendering` in .* is null, it must be an object"),
        ({"training": []}, "`training` in"),
        ({"weights": "abc"}, '`weights` in .* is "abc", it must be 64 hex digits'),
        ({"tithe": 1}, "`tithe` in .* is 1, it must be a text"),
    ],
)
def test_cards_that_are_wrong(folder, changes, sentence):
    rewrite(folder, **changes)
    with pytest.raises(ModelError, match=sentence) as caught:
        read_card(folder)
    assert caught.value.hint


def test_weights_that_do_not_fit(folder):
    rewrite(folder, width=5)
    with pytest.raises(ModelError, match=r"`weight` has the shape \(2, 4\), it must have \(2, 5\)"):
        load_head(folder)
    rewrite(folder, width=4, kind="cnn")
    with pytest.raises(ModelError, match="a `cnn` head needs"):
        load_head(folder)


def test_weights_of_another_head_are_noticed(folder):
    save_file({"weight": torch.ones(2, 4), "bias": torch.tensor(0.0)}, folder / WEIGHTS)
    with pytest.raises(ModelError, match=r"is not the file that `head.json` was written with"):
        read_card(folder)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
WHOLE = {**json.loads(card_of(probe(), weights="0" * 64).to_json())}


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(sorted(WHOLE)), VALUES, max_size=3), st.sets(st.sampled_from(sorted(WHOLE))))
def test_any_damage_is_one_sentence(changes, gone):
    damaged = {name: value for name, value in {**WHOLE, **changes}.items() if name not in gone}
    check_damage(json.dumps(damaged).encode())


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 10_000), st.binary(max_size=4))
def test_any_damaged_bytes_are_one_sentence(place, bytes_):
    raw = json.dumps(WHOLE).encode()
    place %= len(raw)
    check_damage(raw[:place] + bytes_ + raw[place + len(bytes_) :])


def check_damage(raw):
    try:
        card = parse_card(raw, Path("head.json"))
    except TitheError as error:
        assert "\n" not in str(error).strip() and error.hint
    else:
        assert parse_card(card.to_json(), Path("head.json")) == card or "NaN" in card.to_json().decode()
        assert card.fingerprint


@pytest.mark.parametrize("prefix", ["", "module.", "model.classifier."])
def test_a_network_of_the_papers_scripts(tmp_path, prefix):
    state = cnn().weights()
    save_file({prefix + name: one.half() for name, one in state.items()}, tmp_path / "net.safetensors")
    head = import_cnn(tmp_path / "net.safetensors", count=2, width=4)
    assert head.layers == (0, 1)
    assert all(one.dtype == torch.float32 for one in head.weights().values())
    assert all(torch.equal(one, state[name].half().float()) for name, one in head.weights().items())
    assert import_cnn(tmp_path / "net.safetensors", count=5, width=4, layers=(3, 4)).layers == (3, 4)


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pth"])
def test_pickled_networks_are_not_read(tmp_path, suffix):
    (tmp_path / f"net{suffix}").write_bytes(b"")
    with pytest.raises(ModelError, match="is a pickled file") as caught:
        import_cnn(tmp_path / f"net{suffix}", count=2, width=4)
    assert "safetensors.torch.save_file" in caught.value.hint


def test_networks_that_do_not_fit(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(ModelError, match="there is no file"):
        import_cnn(path, count=2, width=4)
    path.write_bytes(b"no tensors at all")
    with pytest.raises(ModelError, match="is no safetensors file"):
        import_cnn(path, count=2, width=4)
    state = cnn().weights()
    save_file(state, path)
    with pytest.raises(
        ModelError, match=r"`convs.0.weight` has the shape \(256, 2, 3, 4\), it must have \(256, 3, 3, 4\)"
    ):
        import_cnn(path, count=3, width=4)
    save_file({**state, "optimizer.step": torch.ones(1)}, path)
    with pytest.raises(ModelError, match=r"has no `optimizer.step`"):
        import_cnn(path, count=2, width=4)


def test_a_flipped_bit_of_a_card_never_gives_another_head(folder):
    """Layers, rendering and model affect scores as the weights do: every bit of the card is checked."""
    raw, card = (folder / CARD).read_bytes(), read_card(folder)
    other = 0
    for bit in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert parse_card(bytes(damaged), folder / CARD) == card  # white space, perhaps
        except ModelError:
            other += 1
    assert other > 0.5 * len(raw) * 8


def test_a_card_of_the_first_format_has_no_checksum(folder):
    card = read_card(folder)
    values = {name: value for name, value in json.loads((folder / CARD).read_text()).items() if name != "checksum"}
    (folder / CARD).write_text(json.dumps({**values, "format": 1}))
    old = read_card(folder)
    assert old == replace(card, format=1) and old.fingerprint == card.fingerprint
    (folder / CARD).write_text(json.dumps(values))
    with pytest.raises(ModelError, match="is damaged: it has no checksum"):
        read_card(folder)

from __future__ import annotations

import sys

import pytest

from tithe.errors import MissingExtraError, OutputError, SettingsError
from tithe.extras import install_hint
from tithe.lab.curve import layer_chart, write_chart

AUCS = {0: 0.55, 1: 0.7, 2: 0.68}


@pytest.mark.parametrize(("name", "magic"), [("layers.png", b"\x89PNG"), ("layers.svg", b"<svg")])
def test_a_picture_is_written_once(tmp_path, name, magic):
    write_chart(layer_chart(AUCS, 0.62), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(magic)
    with pytest.raises(OutputError, match="exists"):
        write_chart(layer_chart(AUCS), tmp_path / name)


def test_the_lines_are_named(tmp_path):
    write_chart(layer_chart(AUCS, 0.62), tmp_path / "layers.svg")
    text = (tmp_path / "layers.svg").read_text()
    assert "length alone" in text and "chance" in text
    drawn = layer_chart({0: 0.4}).to_dict()
    assert drawn["layer"][1]["data"]["values"] == [{"auc": 0.5, "what": "chance"}]
    assert drawn["layer"][0]["encoding"]["y"]["scale"]["domain"][0] == pytest.approx(0.38)


def test_another_suffix(tmp_path):
    with pytest.raises(SettingsError, match=r"a plot is .png or .svg, not `layers.pdf`"):
        write_chart(layer_chart(AUCS), tmp_path / "layers.pdf")


@pytest.mark.parametrize("name", ["altair", "vl_convert"])
def test_a_missing_library(tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=f"a plot needs the package `{name}`") as caught:
        write_chart(layer_chart(AUCS), tmp_path / "layers.svg")
    assert install_hint("report") in caught.value.hint

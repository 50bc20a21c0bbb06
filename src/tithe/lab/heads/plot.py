"""Which layers tell the tiers apart, as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tithe.data.outfile import atomic
from tithe.errors import SettingsError
from tithe.report.drawing import library

SIZE = {"width": 560, "height": 260}


def plot_layers(aucs: Mapping[int, float], path: Path, *, length: float | None = None, overwrite: bool = False) -> None:
    """Draw AUC by layer, with the line of chance and that of length alone.

    Args:
        aucs: cross-validated AUC of each hidden state.
        path: .png or .svg.
        length: AUC of response length alone, where it is known.
        overwrite: replace the file.

    Raises:
        MissingExtraError: altair or vl-convert is not installed.
        SettingsError: a suffix that is neither.
        OutputError: the file exists, or cannot be written.
    """
    if path.suffix not in (".png", ".svg"):
        raise SettingsError(f"a plot is .png or .svg, not `{path.name}`", hint=f"name it `{path.stem}.svg`")
    converter = library("vl_convert")
    drawing = json.dumps(chart(aucs, length).to_dict())
    if path.suffix == ".png":
        raw: bytes = converter.vegalite_to_png(drawing, scale=2)
    else:
        raw = converter.vegalite_to_svg(drawing).encode()
    with atomic(path, overwrite) as stream:
        stream.write(raw)


def chart(aucs: Mapping[int, float], length: float | None) -> Any:
    """The altair chart."""
    alt = library("altair")
    points = alt.Data(values=[{"layer": int(layer), "auc": float(auc)} for layer, auc in sorted(aucs.items())])
    known = {"chance": 0.5} if length is None else {"chance": 0.5, "length alone": length}
    levels = [{"auc": auc, "what": what} for what, auc in known.items()]
    lowest = min([*aucs.values(), *known.values()]) - 0.02
    layer = alt.X("layer:Q", title="hidden state (0 is the embedding output)", axis=alt.Axis(tickMinStep=1))
    height = alt.Y("auc:Q", title="cross-validated AUC", scale=alt.Scale(domain=[lowest, 1]))
    lines = alt.Chart(alt.Data(values=levels)).mark_rule(strokeDash=[5, 4], color="#888888").encode(y="auc:Q")
    names = (
        alt.Chart(alt.Data(values=levels))
        .mark_text(align="right", baseline="bottom", dy=-2, color="#555555")
        .encode(y="auc:Q", text="what:N", x=alt.value(SIZE["width"]))
    )
    curve = alt.Chart(points).mark_line(point=True, color="#1f5fa8").encode(x=layer, y=height)
    return (curve + lines + names).properties(**SIZE)

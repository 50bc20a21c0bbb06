"""Draw curves: the losses of a training, the AUC of each layer of a model."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tithe.data.outfile import atomic
from tithe.errors import SettingsError
from tithe.report.charts import library

SIZE = {"width": 560, "height": 260}
COLOUR = "#1f5fa8"
MOST = 2000  # points drawn; a longer curve is thinned


def loss_chart(losses: Sequence[float]) -> Any:
    """Return an altair chart of the loss of every optimiser step: mean NLL of the response tokens, nats per token.

    Raises:
        MissingExtraError: altair is not installed.
    """
    alt = library("altair")
    every = max(1, len(losses) // MOST)  # a vector chart of a long training would be megabytes
    points = [{"step": i + 1, "loss": loss} for i, loss in enumerate(losses) if i % every == 0]
    step = alt.X("step:Q", title="optimiser step", axis=alt.Axis(tickMinStep=1))
    loss = alt.Y("loss:Q", title="loss, nats per response token", scale=alt.Scale(zero=False))
    curve = alt.Chart(alt.Data(values=points)).mark_line(color=COLOUR, point=len(points) < 50)
    return curve.encode(x=step, y=loss).properties(**SIZE)


def layer_chart(aucs: Mapping[int, float], length: float | None = None) -> Any:
    """Return an altair chart of the cross-validated AUC of each hidden state, with lines for chance and length alone.

    Args:
        aucs: of each hidden state.
        length: AUC of response length alone, if it is known.

    Raises:
        MissingExtraError: altair is not installed.
    """
    alt = library("altair")
    points = alt.Data(values=[{"layer": int(layer), "auc": float(auc)} for layer, auc in sorted(aucs.items())])
    known = {"chance": 0.5} if length is None else {"chance": 0.5, "length alone": length}
    levels = [{"auc": auc, "what": what} for what, auc in known.items()]
    # A little below the lowest line, so that its label is readable.
    lowest = min([*aucs.values(), *known.values()]) - 0.02
    layer = alt.X("layer:Q", title="hidden state (0 is the embedding output)", axis=alt.Axis(tickMinStep=1))
    height = alt.Y("auc:Q", title="cross-validated AUC", scale=alt.Scale(domain=[lowest, 1]))
    lines = alt.Chart(alt.Data(values=levels)).mark_rule(strokeDash=[5, 4], color="#888888").encode(y="auc:Q")
    names = (
        alt.Chart(alt.Data(values=levels))
        .mark_text(align="right", baseline="bottom", dy=-2, color="#555555")
        .encode(y="auc:Q", text="what:N", x=alt.value(SIZE["width"]))
    )
    curve = alt.Chart(points).mark_line(point=True, color=COLOUR).encode(x=layer, y=height)
    return (curve + lines + names).properties(**SIZE)


def write_chart(chart: Any, path: Path, *, overwrite: bool = False) -> None:
    """Write a chart as .png or .svg.

    Raises:
        MissingExtraError: vl-convert is not installed.
        SettingsError: another suffix.
        OutputError: the file exists, or cannot be written.
    """
    if path.suffix not in (".png", ".svg"):
        raise SettingsError(f"a plot is .png or .svg, not `{path.name}`", hint=f"name it `{path.stem}.svg`")
    converter, drawing = library("vl_convert"), json.dumps(chart.to_dict())
    if path.suffix == ".png":
        raw: bytes = converter.vegalite_to_png(drawing, scale=2)
    else:
        raw = converter.vegalite_to_svg(drawing).encode()
    with atomic(path, overwrite) as stream:
        stream.write(raw)

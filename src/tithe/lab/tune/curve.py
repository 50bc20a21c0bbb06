"""The losses of a training, as a picture."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tithe.data.outfile import atomic
from tithe.report.drawing import library

SIZE = {"width": 560, "height": 260}
MOST = 2000  # points drawn; a longer curve is thinned


def plot_losses(losses: Sequence[float], path: Path, *, overwrite: bool = False) -> None:
    """Draw the loss of every optimiser step.

    Args:
        losses: mean NLL of the response tokens, nats per token.
        path: .png or .svg.
        overwrite: replace the file.

    Raises:
        MissingExtraError: altair or vl-convert is not installed.
        OutputError: the file exists, or cannot be written.
    """
    converter = library("vl_convert")
    drawing = json.dumps(chart(losses).to_dict())
    if path.suffix == ".png":
        raw: bytes = converter.vegalite_to_png(drawing, scale=2)
    else:
        raw = converter.vegalite_to_svg(drawing).encode()
    with atomic(path, overwrite) as stream:
        stream.write(raw)


def chart(losses: Sequence[float]) -> Any:
    """The altair chart."""
    alt = library("altair")
    every = max(1, len(losses) // MOST)
    points = [{"step": i + 1, "loss": loss} for i, loss in enumerate(losses) if i % every == 0]
    step = alt.X("step:Q", title="optimiser step", axis=alt.Axis(tickMinStep=1))
    loss = alt.Y("loss:Q", title="loss, nats per response token", scale=alt.Scale(zero=False))
    curve = alt.Chart(alt.Data(values=points)).mark_line(color="#1f5fa8", point=len(points) < 50)
    return curve.encode(x=step, y=loss).properties(**SIZE)

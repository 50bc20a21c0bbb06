"""A dequantised copy of a GGUF model on disk, so that several processes need not unpack the same file each."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from tithe.engine.gguf_model import gguf_weights
from tithe.engine.measure.shape import model_shape
from tithe.engine.model_source import ModelSource

SPARE = 2  # times the copy's size must be free on the disk


def share_dequantised(
    source: ModelSource, dtype: torch.dtype, owner: Callable[[ModelSource], Any], say: Callable[[str], None]
) -> Any:
    """Make something that loads a model in several processes; those of a GGUF file read one dequantised copy.

    The copy is a folder of safetensors in the temporary folder, which goes with what was made. Its weights have the
    dtype of the run, so they are the same bits as each process would unpack.

    Args:
        source: the model.
        dtype: in which it is read.
        owner: makes the thing from the model that its processes should load.
        say: prints a note if there is no room for a copy, so that each process unpacks the file.
    """
    if source.gguf is None:
        return owner(source)
    need = model_shape(source).parameters * dtype.itemsize
    place = Path(tempfile.mkdtemp(prefix="tithe-dequantised-"))
    try:
        if shutil.disk_usage(place).free < SPARE * need:
            say(f"note: `{place.parent}` has no {need / 1e9:.1f} GB to spare: each process dequantises `{source.name}`")
            return owner(source)
        model, _ = gguf_weights(source.gguf, source.name, dtype)
        model.save_pretrained(place)
        del model
        made = owner(replace(source, folder=place, gguf=None))
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    weakref.finalize(made, shutil.rmtree, place, ignore_errors=True)
    return made

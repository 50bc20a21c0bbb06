"""Vectors of examples: each distinct text encoded once, what is stored not again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np

from tithe.errors import DataError, ModelError
from tithe.neighbours.encoder import Encoded, Encoder, PlacedEncoder, TextEncoder, Vectors
from tithe.neighbours.vector_store import VectorStore, text_keys
from tithe.records import Example

WINDOW = 4096  # texts that an encoder gets at a time
Progress: TypeAlias = Callable[[int, int], None]


@dataclass(frozen=True)
class Embedded:
    """The vectors of some examples.

    Args:
        vectors: (examples, dim) float32, each of length 1; zeros where an example has no text, or none that its
            encoder knows anything of: such a vector has the cosine 0 with every other.
        counts: `texts` (distinct ones), of these `encoded` and `reused`; `cut` (examples whose text was too long),
            `empty` (examples without text), `unknown` (examples with text and without a vector).
    """

    vectors: Vectors
    counts: dict[str, int] = field(default_factory=dict)


def embed(
    examples: Sequence[Example], encoder: Encoder, folder: Path | None = None, progress: Progress | None = None
) -> Embedded:
    """Vectors of length 1, in the order of the examples.

    Args:
        examples: of one data set.
        encoder: what `make_encoder` made.
        folder: the run folder, where vectors are kept and found again; None keeps nothing.
        progress: called with the number of distinct texts that are done, and of all.

    Raises:
        ModelError: the encoder cannot be loaded, or gives a vector that is not finite.
        DataError: a file of vectors does not fit the data set.
        StoreError: a stored part is damaged.
        OutputError: vectors cannot be written.
    """
    if isinstance(encoder, PlacedEncoder):
        return placed(examples, encoder)
    assert isinstance(encoder, TextEncoder)
    texts = [encoder.text(example) for example in examples]
    distinct: dict[str, Example] = {}  # with the first example that has it
    for text, example in zip(texts, examples, strict=True):
        if text.strip():
            distinct.setdefault(text, example)
    keys = dict(zip(distinct, text_keys(distinct), strict=True))
    store = VectorStore(folder, encoder)
    try:
        encoded = complete(store, distinct, keys, progress or (lambda done, total: None))
    finally:
        store.flush()
    vectors, cut = store.fill([keys.get(text, b"") for text in texts])
    empty = sum(text not in distinct for text in texts)
    counts = {"texts": len(distinct), "encoded": encoded, "reused": len(distinct) - encoded}
    counts |= {"cut": int((cut > 0).sum()), "empty": empty, "unknown": int((~vectors.any(axis=1)).sum()) - empty}
    return Embedded(vectors, counts)


def complete(store: VectorStore, texts: Mapping[str, Example], keys: Mapping[str, bytes], progress: Progress) -> int:
    """Encode what is not stored; how many texts that were."""
    order = sorted(texts, key=lambda text: (-len(text), keys[text]))  # longest first: no memory shows at once
    there = store.has([keys[text] for text in order])
    reused = done = int(there.sum())
    progress(done, len(order))
    for start in range(0, len(order), WINDOW):
        window, have = order[start : start + WINDOW], there[start : start + WINDOW]
        if have.all():
            continue
        for found in store.encoder.encode(window, have.tolist()):
            demand_finite(found, [texts[window[i]] for i in found.index], store.encoder)
            store.put([keys[window[i]] for i in found.index], unit(found.vectors), found.cut)
            done += len(found.index)
            progress(done, len(order))
    assert done == len(order), f"{done} of {len(order)} texts"
    return done - reused


def placed(examples: Sequence[Example], encoder: PlacedEncoder) -> Embedded:
    raw = encoder.look_up(examples)
    demand_finite(Encoded(range(len(raw)), raw, []), examples, encoder)
    vectors = unit(raw)
    return Embedded(vectors, {"unknown": int((~vectors.any(axis=1)).sum())})


def demand_finite(found: Encoded, examples: Sequence[Example], encoder: Encoder) -> None:
    """Refuse NaN and infinity before they are stored: every cosine with them would be NaN."""
    odd = np.flatnonzero(~np.isfinite(found.vectors).all(axis=1))
    if len(odd) == 0:
        return
    example = examples[int(odd[0])]
    place = f"for example `{example.id}` ({example.where})"
    if isinstance(encoder, PlacedEncoder):
        raise DataError(f"`{encoder.name}` has a vector that is not finite {place}", hint="correct it in that file")
    raise ModelError(
        f"encoder `{encoder.name}` gives a vector that is not finite {place}",
        hint="its weights are damaged, or a half-precision dtype overflows: take fp32, or another encoder",
    )


def unit(vectors: Vectors) -> Vectors:
    """Rows of length 1; a row of zeros stays one."""
    wide = vectors.astype(np.float64)  # squares of large fp32 values would overflow
    length = np.sqrt(np.einsum("ij,ij->i", wide, wide))[:, None]
    return np.asarray(np.divide(wide, length, out=np.zeros_like(wide), where=length > 0), dtype=np.float32)

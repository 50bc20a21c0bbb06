"""Make the encoder that a spec names.

A spec is a name with settings, in the grammar of `tithe.specs`: `self`, `tfidf(dims=128)`,
`BAAI/bge-large-en(pooling=mean, max_length=512)`, `path/to/folder`, `file:vectors.npy`.
"""

from __future__ import annotations

from collections.abc import Sequence

from tithe.neighbours.encoder import FILE, Encoder, ScoringModel
from tithe.records import Example
from tithe.specs import parse_spec


def make_encoder(
    spec: str,
    *,
    own: ScoringModel | None = None,
    corpus: Sequence[Example] = (),
    rows: int | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Encoder:
    """Make the encoder that a spec names; download a hub model's files, but load no weights.

    Args:
        spec: a name with settings.
        own: the scoring model, for `self`.
        corpus: the examples of the data set: `tfidf` is fitted on them, and the rows of a file belong to them.
        rows: number of records in the data set, unreadable ones included, if known.
        device: where a model runs.
        seed: for `tfidf`.

    Raises:
        SettingsError: the spec cannot be read, or it needs a model or file that is missing.
        ModelError: there is no such model, or it makes no vectors.
        DataError: a file of vectors is damaged or belongs to another data set.
        MissingExtraError: it needs a package that is not installed.
    """
    # Each kind is imported only when it is asked for: their libraries take seconds to load.
    name, settings = parse_spec(spec)
    if name == "self":
        from tithe.neighbours.own import make_own

        return make_own(spec, settings, own)
    if name == "tfidf":
        from tithe.neighbours.tfidf import make_tfidf

        return make_tfidf(spec, settings, corpus, seed)
    if name.startswith(FILE):
        from tithe.neighbours.vector_files import make_vector_file

        return make_vector_file(spec, settings, corpus, rows)
    from tithe.neighbours.pretrained import make_pretrained

    return make_pretrained(spec, name, settings, device)

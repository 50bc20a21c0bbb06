"""Which encoder a spec names.

A spec is a name with settings, in the grammar of `tithe.specs`: `self`, `tfidf(dims=128)`,
`BAAI/bge-large-en(pooling=mean, max_length=512)`, `path/to/folder`, `file:vectors.npy`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tithe.neighbours.encoder import FILE, Encoder, OwnModel
from tithe.records import Example
from tithe.specs import parse_spec


def make_encoder(
    spec: str,
    *,
    own: OwnModel | None = None,
    corpus: Sequence[Example] = (),
    rows: int | None = None,
    device: str = "auto",
    seed: int = 0,
) -> Encoder:
    """The encoder that a spec describes; fetches a hub model's files, loads no weights.

    Args:
        spec: a name with settings.
        own: the scoring model, for `self`.
        corpus: the examples of the data set: `tfidf` is fitted on them, a file's rows belong to them.
        rows: records of the data set, unreadable ones included, where that is known.
        device: where a model runs.
        seed: for `tfidf`.

    Raises:
        SettingsError: the spec cannot be read, or asks for what there is not.
        ModelError: there is no such model, or it is not one that makes vectors.
        DataError: a file of vectors is damaged or belongs to another data set.
        MissingExtraError: it needs a package that is not installed.
    """
    name, settings = parse_spec(spec)
    if name == "self":
        from tithe.neighbours.own import make_own

        return make_own(spec, settings, own)
    if name == "tfidf":
        from tithe.neighbours.tfidf import make_tfidf

        return make_tfidf(spec, settings, corpus, seed)
    if name.startswith(FILE):
        from tithe.neighbours.vector_files import make_given

        return make_given(spec, settings, corpus, rows)
    return make_loaded(spec, name, settings, device)


def make_loaded(spec: str, name: str, settings: Mapping[str, str], device: str) -> Encoder:
    """A model of its own, static or a transformer, as its config says."""
    from tithe.neighbours.pretrained import config_of, find_encoder

    source = find_encoder(name)
    if config_of(source).get("model_type") == "model2vec":
        from tithe.neighbours.pretrained import make_static

        return make_static(spec, source, settings)
    from tithe.neighbours.pretrained import make_sentence

    return make_sentence(spec, source, settings, device)

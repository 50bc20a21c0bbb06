"""The encoder `tfidf`: word counts instead of a model, projected on their largest directions (latent semantics)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from tithe.errors import DataError, SettingsError
from tithe.neighbours.encoder import Encoder, TextEncoder, TextSettings, TextVectors, Vectors, prompt_text
from tithe.records import Example
from tithe.specs import read_settings

# For `regex`: the standard library's `\w` matches no marks and would cut words at vowel signs. A single character is a
# word, too (`C`, `5`); a single mark, such as an emoji's variation selector, is not.
WORD = r"(?![\p{M}\u200c\u200d])\w+"
TERMS = 2  # version of the rule above: stored vectors of another version are not reused
MOST_TERMS = 100_000
MOST_TEXTS = 200_000  # fit on a random sample of at most this many, to bound the memory
BLOCK = 4096


@dataclass(frozen=True)
class TfidfSettings(TextSettings):
    """Sublinear tf-idf, then a truncated SVD.

    Args:
        dims: width of the vectors; less if the data set has fewer texts or terms.
        analyzer: `word`, or `char` for scripts without spaces between words: n-grams of 2 to 4 characters.
    """

    dims: int = 256
    analyzer: Literal["word", "char"] = "word"


class TfidfEncoder(TextEncoder):
    """Fits tf-idf on the texts of one data set, so its vectors belong to that data set."""

    libraries = ("scikit-learn", "scipy", "numpy")

    def __init__(self, name: str, settings: TfidfSettings, texts: Sequence[str], seed: int) -> None:
        super().__init__(name)
        self.settings: TfidfSettings = settings
        self.seed = seed
        self.texts = sorted({text for text in texts if text.strip()})  # independent of the data set's order

    @cached_property
    def digest(self) -> str:
        digest = hashlib.blake2b(digest_size=8)
        for text in self.texts:
            digest.update(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest())
        return digest.hexdigest()

    def identity(self) -> dict[str, Any]:
        from importlib.metadata import version

        return {
            "kind": "tfidf",
            "dims": self.settings.dims,
            "analyzer": self.settings.analyzer,
            "terms": TERMS,
            "seed": self.seed,
            "fitted_on": self.digest,
            "fitted_texts": min(len(self.texts), MOST_TEXTS),
            "scikit-learn": version("scikit-learn"),  # another version may rotate the axes
        }

    @cached_property
    def fitted(self) -> tuple[Any, Vectors]:
        """Fit and return the vectoriser and the directions to project its rows on: (terms, dims)."""
        import regex
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.utils.extmath import randomized_svd

        words = self.settings.analyzer == "word"
        vectorizer = TfidfVectorizer(
            sublinear_tf=True,
            dtype=np.float32,
            max_features=MOST_TERMS,
            analyzer="word" if words else "char_wb",
            ngram_range=(1, 1) if words else (2, 4),
            tokenizer=regex.compile(WORD).findall if words else None,
            token_pattern=None,
        )
        try:
            table = vectorizer.fit_transform(self.sample())
        except ValueError as error:  # sklearn found no term at all
            raise DataError(
                f"encoder `{self.name}` finds no term in the {len(self.texts)} prompts",
                hint="`tfidf(analyzer=char)`, or another encoder",
            ) from error
        dims = min(self.settings.dims, *table.shape)
        _, _, directions = randomized_svd(table, dims, n_iter=5, random_state=self.seed)  # (dims, terms)
        return vectorizer, np.ascontiguousarray(directions.T, dtype=np.float32)

    def sample(self) -> Sequence[str]:
        if len(self.texts) <= MOST_TEXTS:
            return self.texts
        chosen = np.random.default_rng(self.seed).choice(len(self.texts), MOST_TEXTS, replace=False)
        return [self.texts[i] for i in np.sort(chosen)]

    def encode(self, texts: Sequence[str], have: Sequence[bool]) -> Iterator[TextVectors]:
        wanted = [i for i, there in enumerate(have) if not there]
        for start in range(0, len(wanted), BLOCK):
            part = wanted[start : start + BLOCK]
            vectorizer, directions = self.fitted
            rows = vectorizer.transform([texts[i] for i in part])
            yield TextVectors(part, np.asarray(rows @ directions, dtype=np.float32), [0] * len(part))


def make_tfidf(spec: str, settings: Mapping[str, str], corpus: Sequence[Example], seed: int) -> Encoder:
    chosen = TfidfSettings(**read_settings(TfidfSettings, "tfidf", settings))
    if chosen.dims < 1:
        raise SettingsError(f"`{spec}`: `dims` must be at least 1, not {chosen.dims}")
    return TfidfEncoder(spec, chosen, [prompt_text(example, chosen.text) for example in corpus], seed)

"""The language of a text: by py3langid, which works offline; without it, its script by Unicode."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from tithe.extras import install_hint, versions
from tithe.records import Example

READ = 200  # characters of the prompt's end and of the response's beginning
SURE = 0.5  # probability from which a language counts
UNKNOWN = "unknown"
SCRIPTS = (
    *("latin", "cyrillic", "greek", "arabic", "hebrew", "devanagari", "bengali", "tamil", "telugu", "thai"),
    *("cjk", "hiragana", "katakana", "hangul", "georgian", "armenian", "ethiopic", "khmer", "lao", "myanmar"),
)


@dataclass(frozen=True)
class Detector:
    """What tells languages apart.

    Args:
        by: its name and version.
        kind: `language` or `script`.
        of: text -> code of a language or name of a script; `unknown` where it is not sure.
        hint: how to get a better one; None for the best.
    """

    by: str
    kind: str
    of: Callable[[str], str]
    hint: str | None = None


def find_detector() -> Detector:
    """Return the language detector, or one of scripts if the extra is not installed."""
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError:
        return Detector("Unicode", "script", script_of, install_hint("check"))
    made = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def language_of(text: str) -> str:
        if not any(map(str.isalpha, text)):
            return UNKNOWN
        name, probability = made.classify(text)
        return str(name) if probability >= SURE and name != "zxx" else UNKNOWN  # zxx: no language, such as code

    return Detector(f"py3langid {versions(('py3langid',))['py3langid']}", "language", language_of)


def sample_of(example: Example) -> str:
    """Return the text by which an example's language is told: the end of its prompt, the beginning of its response."""
    asked = example.prompt[-1].content if example.prompt else ""
    return f"{asked[-READ:]} {example.response.content[:READ]}".strip()


def script_of(text: str) -> str:
    """Return the script of most letters, such as `latin`; `unknown` without a letter of a known one.

    >>> script_of("Bonjour!"), script_of("Привет, мир"), script_of("12:30")
    ('latin', 'cyrillic', 'unknown')
    """
    names = (unicodedata.name(letter, "").partition(" ")[0].lower() for letter in text if letter.isalpha())
    found = Counter(name for name in names if name in SCRIPTS).most_common(1)
    return found[0][0] if found else UNKNOWN

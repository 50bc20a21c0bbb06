"""A text as words that do not depend on case, punctuation, white space or Unicode form."""

from __future__ import annotations

import re
import unicodedata

# Runs of letters and digits; of scripts that are written without spaces, every character is a word.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}_]+")

_ASCII = "".join(chr(i).lower() if chr(i).isalnum() else " " for i in range(128))


def words(text: str) -> list[str]:
    """NFKC, lower case, then runs of letters and digits: punctuation only separates.

    >>> words("It's  the ＣＡＦÉ_owner's 3.5!")
    ['it', 's', 'the', 'café', 'owner', 's', '3', '5']
    """
    if text.isascii():  # the same in half the time
        return text.translate(_ASCII).split()
    return _WORD.findall(unicodedata.normalize("NFKC", text).lower())

"""Settings of `tithe check`, and what a limit and a baseline are."""

from __future__ import annotations

from typing import Annotated

from tithe.inspect.limits import RATES, Limit, parse_share
from tithe.settings import NAMED_MODEL, ExampleSettings, PassSettings
from tithe.typed import Flag, Texts, checked

Most = Annotated[str | int | float | None, checked(Limit.fits, Limit.GRAMMAR), Flag(metavar="LIMIT")]
Points = Annotated[str | float, checked(lambda value: parse_share(value) is not None, "a share such as `0.5%`")]
Threshold = Annotated[float, checked(lambda x: x == 0 or 0.5 <= x <= 1, "a similarity from 0.5 to 1, or 0 for none")]


class CheckSettings(PassSettings, ExampleSettings):
    """All settings of a check.

    Args:
        model: model whose tokenizer and template say what `max_length` cuts; without one, characters count.
        max_length: tokens that a trainer reads of an example (characters without a model); the model's context window
            by default.
        near_duplicates: similarity from which two examples are near-duplicates, 0.5 to 1; 0 looks for none.
        contamination: evaluation file to look for in the data; may be repeated.
        max_bad: most bad rows, e.g. `0` or `1%` of the records; more of them fail the check.
        max_empty: most records with an empty response.
        max_duplicates: most examples that repeat an earlier one.
        max_near_duplicates: most examples that are nearly the same as an earlier one.
        max_truncated: most examples that are cut at `max_length`, or do not fit at all.
        max_contaminated: most examples that share text with an evaluation file.
        max_noted: most records that the loader has a note on.
        max_other_language: most examples in another language than the commonest.
        baseline: record of an earlier check (`-o check.json`, or what `--json` printed); a rate that grew fails.
        tolerance: how far a rate may grow over the baseline's, in points: `0.5%`.
    """

    model: Annotated[str | None, NAMED_MODEL] = None
    near_duplicates: Threshold = 0.8
    contamination: Annotated[Texts, Flag(metavar="FILE")] = ()
    max_bad: Most = None
    max_empty: Most = None
    max_duplicates: Most = None
    max_near_duplicates: Most = None
    max_truncated: Most = None
    max_contaminated: Most = None
    max_noted: Most = None
    max_other_language: Most = None
    baseline: Annotated[str | None, Flag(metavar="FILE")] = None
    tolerance: Points = "0.5%"

    @property
    def alone_header(self) -> str:
        """Nothing: a check reads no response without its prompt."""
        return ""

    @property
    def preset(self) -> str | None:
        """None: a check renders as training does."""
        return None

    @property
    def limits(self) -> dict[str, Limit]:
        """The given limits: name of the rate -> limit."""
        given = {name: getattr(self, f"max_{name}") for name in RATES}
        return {name: Limit.parse(value) for name, value in given.items() if value is not None}

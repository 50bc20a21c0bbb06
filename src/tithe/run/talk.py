"""What a run says while it works; silent unless somebody listens."""

from __future__ import annotations


class Talk:
    """Listener of a run; this one hears nothing."""

    trouble: str | None = None  # why nobody can hear it any more

    def say(self, sentence: str) -> None:
        """A line for the user."""

    def expect(self, examples: int | None) -> None:
        """How many examples are to come; None where that is not known."""

    def progress(self, examples: float, tokens: int) -> None:
        """So many more examples are done; `tokens` read by the model so far."""

    def done(self) -> None:
        """No more progress will come."""

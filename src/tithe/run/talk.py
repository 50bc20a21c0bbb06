"""What a run says while it works; silent unless somebody listens."""

from __future__ import annotations


class Talk:
    """Listener of a run; this one hears nothing."""

    trouble: str | None = None  # why nobody can hear it any more

    def say(self, sentence: str) -> None:
        """A line for the user."""

    def phase(self, name: str) -> None:
        """Begin what has this name and ends with `done`; how much it is, `expect` may say."""

    def expect(self, examples: int | None) -> None:
        """How many examples are to come; None where that is not known."""

    def progress(self, examples: float, tokens: int) -> None:
        """So many more examples are done; `tokens` read by the model so far."""

    def done(self) -> None:
        """No more progress will come."""

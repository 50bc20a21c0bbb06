"""What may go wrong in the middle of a training."""

from __future__ import annotations

from tithe.errors import ModelError


class NotFinite(ModelError):
    """The loss or the gradient of a step is infinite or not a number.

    Args:
        what: of the two.
        step: which optimiser step.
        value: what it is.
    """

    def __init__(self, what: str, step: int, value: float) -> None:
        super().__init__(f"the {what} is {value} at step {step}: nothing can be learned from there on")
        self.step = step

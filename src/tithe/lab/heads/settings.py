"""Settings of `tithe head`."""

from __future__ import annotations

from typing import Annotated, Literal

from tithe.settings import ScoreSettings
from tithe.typed import Count, Flag, Labels, checked

PromptShare = Annotated[float, checked(lambda x: 0 <= x <= 0.9, "a share of the prompts is between 0 and 0.9")]
Rate = Annotated[float, checked(lambda x: 0 < x < 1, "it must be above 0 and below 1")]


class HeadSettings(ScoreSettings):
    """How a head is trained and judged.

    Args:
        preset: `cpqs-paper`: the authors' prompt, with the template's tail.
        kind: `probe`, a linear head over mean states, or `cnn`, the network of the CPQS paper.
        layers: `all`, `last`, `front`, `middle` or `back`; by default a probe chooses, and a cnn reads all.
        tier_column: column that names a response's tier.
        high_tier: names in it that count as the high tier, `NAME,NAME`.
        low_tier: names in it that count as the low tier, `NAME,NAME`.
        split_column: column that names a prompt's side, `train`, `validation` (`valid`, `dev`) or `test`; by default
            the sides are drawn at random.
        validation_share: share of the prompts for early stopping of a cnn; a probe trains on them, too.
        test_share: share of the prompts to judge the head on; 0 for no report.
        num_train_epochs: most epochs of a cnn; it stops early when the validation side does not improve.
        learning_rate: learning rate of a cnn.
        per_device_train_batch_size: responses in a step of a cnn.
        drop_seen: leave out prompts that the head was trained on, instead of refusing to judge.
        resamples: resamples of the bootstrap.
    """

    scorer: tuple[str, ...] = ("perplexity",)
    kind: Annotated[Literal["probe", "cnn"], Flag(("--head",))] = "probe"
    layers: Literal["all", "last", "front", "middle", "back"] | None = None
    tier_column: str = "tier"
    high_tier: Labels = ("high",)
    low_tier: Labels = ("low",)
    split_column: str | None = None
    validation_share: PromptShare = 0.1
    test_share: PromptShare = 0.1
    num_train_epochs: Count = 1
    learning_rate: Rate = 1e-4
    per_device_train_batch_size: Count = 16
    drop_seen: bool = False
    resamples: Count = 2000

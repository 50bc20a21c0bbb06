"""Train the convolutional head of the CPQS paper as its authors did: cross-entropy, Adam, batches of 16, one epoch.

With more epochs, training stops early by the AUC on the validation side, and the best state is kept. All random numbers
come from local generators, so that the training neither depends on global random state nor changes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy

from tithe.engine.heads.base import demand_layers
from tithe.engine.heads.cnn import CnnHead, ResponseCnn
from tithe.errors import DataError, ModelError

Read: TypeAlias = Callable[[Sequence[int]], Sequence[torch.Tensor]]
Progress: TypeAlias = Callable[[int, int, float], None]
Rows: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Epoch:
    """One epoch: mean training loss, and AUC on the validation side (None without one)."""

    loss: float
    auc: float | None


@dataclass(frozen=True)
class CnnFit:
    """A trained convolutional head.

    Args:
        head: the state after the best epoch.
        epochs: loss and AUC of each.
        best: index of the best one in `epochs`.
        steps: number of batches.
    """

    head: CnnHead
    epochs: tuple[Epoch, ...]
    best: int
    steps: int

    def as_dict(self) -> dict[str, Any]:
        """Return the facts for the head's card."""
        return {"epochs": [asdict(one) for one in self.epochs], "best": self.best, "steps": self.steps}


@dataclass
class CnnTraining:
    """The network and its optimiser during training."""

    network: ResponseCnn
    adam: torch.optim.Adam
    read: Read
    labels: Rows
    shape: tuple[int, int]  # layers, width
    batch: int
    dropout: torch.Generator
    steps: int = 0
    kept: dict[str, torch.Tensor] = field(default_factory=dict)


def fit_cnn(
    read: Read,
    labels: npt.ArrayLike,
    train: Sequence[int] | Rows,
    validation: Sequence[int] | Rows,
    *,
    count: int,
    width: int,
    layers: Sequence[int],
    epochs: int = 1,
    seed: int,
    device: torch.device | str,
    learning_rate: float = 1e-4,
    batch: int = 16,
    patience: int = 2,
    progress: Progress | None = None,
) -> CnnFit:
    """Train on hidden states that are read batch by batch, since all of them would not fit into memory.

    Args:
        read: row numbers -> (layers, tokens, width) of each, on any device, in any float dtype.
        labels: (rows,) 1 for the high tier, 0 for the low one.
        train: row numbers.
        validation: row numbers of other prompts; if empty, the last state is kept.
        count: number of the model's hidden states.
        width: of one state.
        layers: hidden states that the head reads, ascending.
        epochs: at most.
        seed: random seed of initial weights, order and dropout.
        device: of the network.
        learning_rate: of Adam.
        batch: rows per step.
        patience: epochs without a better AUC before training stops.
        progress: called after each step with steps done, most steps, and the loss.

    Raises:
        DataError: a side has one tier only, or the states have an unexpected shape.
        ModelError: the loss is not finite.
    """
    demand_layers(layers, count)
    tiers = np.asarray(labels, dtype=np.int64)
    learn, check = np.asarray(train, dtype=np.int64), np.asarray(validation, dtype=np.int64)
    demand_tiers(tiers, learn, check)
    training = start_training(read, tiers, (len(layers), width), seed, torch.device(device), learning_rate, batch)
    steps = epochs * math.ceil(len(learn) / batch)
    done: list[Epoch] = []
    best = 0
    for epoch in range(epochs):
        # The order depends on seed and epoch only, not on what ran before.
        order = learn[np.random.default_rng([seed, epoch]).permutation(len(learn))]
        loss = train_epoch(training, order, epoch, steps, progress)
        done.append(Epoch(loss, validation_auc(training, check)))
        if epoch == 0 or is_better(done[epoch], done[best]):
            best = epoch
            training.kept = {name: one.cpu().clone() for name, one in training.network.state_dict().items()}
        if epoch - best >= patience:  # early stopping
            break
    return CnnFit(CnnHead.of(training.kept, layers, count, width), tuple(done), best, training.steps)


def start_training(
    read: Read, labels: Rows, shape: tuple[int, int], seed: int, device: torch.device, rate: float, batch: int
) -> CnnTraining:
    # Separate generators: the number of weights drawn does not shift the dropout masks.
    first, dropout = (torch.Generator(device).manual_seed(number) for number in derive_seeds(seed))
    network = ResponseCnn(*shape, first)
    adam = torch.optim.Adam(network.parameters(), lr=rate)
    return CnnTraining(network, adam, read, labels, shape, batch, dropout)


def derive_seeds(seed: int) -> list[int]:
    """Derive two independent seeds."""
    return [int(one) for one in np.random.SeedSequence(seed).generate_state(2)]


def train_epoch(training: CnnTraining, order: Rows, epoch: int, steps: int, progress: Progress | None) -> float:
    """Train one epoch, and return the mean loss per example."""
    total = 0.0
    for rows in batches(order, training.batch):
        states = read_states(training, rows)  # (layers, tokens, width) each
        logits = training.network(states, training.dropout)
        loss = cross_entropy(logits, torch.from_numpy(training.labels[rows]).to(logits.device))
        training.adam.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        value = loss.item()
        training.steps += 1
        if not math.isfinite(value):
            raise ModelError(
                f"the loss is {value} at step {training.steps}, in epoch {epoch + 1}",
                hint="read the states in bf16 or fp32, half precision overflows in some models; or learn more slowly",
            )
        training.adam.step()
        total += value * len(rows)  # the last batch may be smaller
        if progress is not None:
            progress(training.steps, steps, value)
    return total / len(order)


@torch.no_grad()
def validation_auc(training: CnnTraining, check: Rows) -> float | None:
    """Return the AUC of the margins, computed without dropout; None without a validation side."""
    if not len(check):
        return None
    parts = [training.network(read_states(training, rows)) for rows in batches(check, training.batch)]
    logits = torch.cat(parts).cpu().numpy()
    return float(roc_auc_score(training.labels[check], logits[:, 1] - logits[:, 0]))  # (rows, 2) logits


def is_better(new: Epoch, old: Epoch) -> bool:
    """Return whether an epoch has the higher AUC; without a validation side the last one counts as best."""
    return new.auc is None or old.auc is None or new.auc > old.auc


def batches(rows: Rows, size: int) -> list[Rows]:
    return [rows[begin : begin + size] for begin in range(0, len(rows), size)]


def read_states(training: CnnTraining, rows: Rows) -> list[torch.Tensor]:
    """Read the states of some rows, check their shapes, and move them to the network's device."""
    states = list(training.read(rows.tolist()))
    if len(states) != len(rows):
        raise DataError(f"the states of {len(rows)} responses were asked for, and {len(states)} were read")
    layers, width = training.shape
    for row, one in zip(rows.tolist(), states, strict=True):
        if one.ndim != 3 or one.shape[0] != layers or one.shape[2] != width or one.shape[1] == 0:
            raise DataError(
                f"row {row} has states {tuple(one.shape)}, they must be ({layers}, 1 token or more, {width})"
            )
    return [one.detach().to(training.dropout.device) for one in states]


def demand_tiers(labels: Rows, train: Rows, validation: Rows) -> None:
    if not np.isin(labels, (0, 1)).all():
        raise DataError("a label is 1 for the high tier or 0 for the low one, and nothing else")
    for side, rows in (("training", train), ("validation", validation)):
        there = len(np.unique(labels[rows]))
        if there < 2 and (len(rows) or side == "training"):
            raise DataError(f"the {side} side has {len(rows)} responses of {there} tiers, it needs both")

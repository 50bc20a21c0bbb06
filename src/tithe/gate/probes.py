"""Fit linear probes that tell drawn records from their damaged copies, and measure how well they can.

A record and its copies are always on one side of a fold. Everything is a function of the states and the seed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from tithe.errors import DataError
from tithe.gate.estimate import damage_share

if TYPE_CHECKING:
    from sklearn.linear_model import Ridge

Floats: TypeAlias = npt.NDArray[np.float64]
States: TypeAlias = npt.NDArray[np.float32]
PROMPT, RESPONSE, LAST = range(3)  # the parts of a pass whose mean states are read
VIEWS = 3  # features of a pass: response, last token, and the product of prompt and response
# Views that a regression of the margin reads: all of them, and each by itself.
READ = ((0, 1, 2), (0,), (1,), (2,))
PENALTY = 1.0  # of the ridge regression, on features with a mean squared length of 1
FOLDS = 5
FEW = 200  # principal components for the probes that only measure what is not taught
EVEN = 1e-6  # added to a standard deviation, so that a constant state becomes 0
CALM = 10.0  # inverse penalty on the slope of log odds, which has no bound where the two sides do not overlap


@dataclass(frozen=True)
class Features:
    """What the probes see of a pass: its response's mean state, its last state, and how prompt and response agree.

    Each is standardised by the drawn records: (x - mean) / deviation. The third is the product of the first with the
    prompt's mean state, component by component.

    Args:
        mean: (layers, parts, dim), over the drawn records and copies.
        deviation: (layers, parts, dim).
    """

    mean: Floats
    deviation: Floats

    @classmethod
    def of(cls, states: States) -> Features:
        """Standardise by these states: (passes, layers, parts, dim)."""
        return cls(states.mean(0, dtype=np.float64), states.std(0, dtype=np.float64) + EVEN)

    def __call__(self, states: States) -> Floats:
        """Map (..., layers, parts, dim) to (..., layers * views * dim), with a mean squared length of about 1."""
        standard = (states - self.mean) / self.deviation
        prompt, response, last = (standard[..., part, :] for part in (PROMPT, RESPONSE, LAST))
        found = np.stack([response, last, prompt * response], axis=-2)  # (..., layers, views, dim)
        size = found.shape[-3] * found.shape[-2] * found.shape[-1]
        flat: Floats = found.reshape(*found.shape[:-3], size) / np.sqrt(size)
        return flat


@dataclass(frozen=True)
class Probes:
    """Linear functions of the features of a pass: one for each of `READ`, then one for each kind of damage.

    Args:
        features: maps states to features.
        weight: (outputs, features).
        bias: (outputs,).
    """

    features: Features
    weight: Floats
    bias: Floats

    def __call__(self, states: States) -> Floats:
        """Return the log odds of one pass by each: (layers, parts, dim) -> (outputs,)."""
        found: Floats = self.weight @ self.features(states) + self.bias
        return found

    @property
    def fingerprint(self) -> str:
        """Return 16 hex digits for all that affects the outputs."""
        made = hashlib.blake2b(digest_size=8)
        for one in (self.features.mean, self.features.deviation, self.weight, self.bias):
            made.update(np.ascontiguousarray(one).tobytes())
        return made.hexdigest()


@dataclass(frozen=True)
class Line:
    """From a number to log odds: slope * x + offset."""

    slope: float = 1.0
    offset: float = 0.0

    def __call__(self, values: Floats) -> Floats:
        return self.slope * values + self.offset


@dataclass(frozen=True)
class SoundMargin:
    """One margin from the probes' outputs and the response's loss, as log odds of sound against damaged.

    Damage often shows in one view alone: an answer to another prompt in the product of the two, a missing end in the
    last token, letters in the wrong places in the loss. So the margin is the soft minimum, -log(sum(exp(-m))),
    calibrated again: a record is sound if it looks so in every view.

    Args:
        loss: from the likelihood, minus the mean loss in nats, to log odds.
        least: from the soft minimum to the margin.
    """

    loss: Line = Line()
    least: Line = Line()

    def __call__(self, outputs: Floats, losses: Floats | np.float64) -> Floats:
        """Return margins: outputs (..., regressions) and losses (...) give (...)."""
        views = np.concatenate([outputs, self.loss(-np.asarray(losses))[..., None]], axis=-1)
        return self.least(soft_least(views))


def soft_least(values: Floats) -> Floats:
    """Return -log(sum(exp(-values))) over the last axis: near the least value where one is far below the others."""
    found: Floats = -np.logaddexp.reduce(-values, axis=-1)
    return found


@dataclass(frozen=True)
class Drawn:
    """The drawn records and their copies, with what the model showed of each.

    Args:
        states: (passes, layers, parts, dim).
        kinds: (passes,) name of the damage; empty for a record as it is.
        groups: (passes,) a number for each record and its copies.
        losses: (passes,) mean loss of the response after its prompt, in nats per token.
        lengths: (passes,) response characters.
    """

    states: States
    kinds: npt.NDArray[np.str_]
    groups: npt.NDArray[np.int64]
    losses: Floats
    lengths: Floats

    @property
    def whole(self) -> npt.NDArray[np.bool_]:
        """Which passes are records as they are."""
        return np.asarray(self.kinds == "")


@dataclass(frozen=True)
class SoundFit:
    """Fitted probes, and the margins of the passes that they were fitted on.

    Args:
        probes: map states to one output for each of `READ`, and one a kind, log odds of it.
        margin: makes a margin of the outputs for `READ` and the loss.
        kinds: names of the outputs after those.
        margins: (passes,) cross-fitted margins.
        looks: (passes, kinds) cross-fitted log odds of each kind.
        kept: (passes,) False for records that were trimmed from the positives.
        whole: (passes,) which are records as they are.
        auc: of the margin, records against copies; the pool's own damage lowers it.
        auc_by_kind: kind -> AUC of its copies.
        auc_untaught: kind -> AUC of its copies if the probes have seen none of that kind.
        auc_length: of the response's length alone, in the better direction.
    """

    probes: Probes
    margin: SoundMargin
    kinds: tuple[str, ...]
    margins: Floats
    looks: Floats
    kept: npt.NDArray[np.bool_]
    whole: npt.NDArray[np.bool_]
    auc: float
    auc_by_kind: Mapping[str, float]
    auc_untaught: Mapping[str, float]
    auc_length: float

    def margin_of(self, states: States, loss: float) -> float:
        """Return the margin of a pass that was not fitted on."""
        return float(self.margin(self.probes(states)[: len(READ)], np.float64(loss)))


def fit_sound(drawn: Drawn, *, trim: float) -> SoundFit:
    """Fit the probes.

    Args:
        drawn: records and copies.
        trim: largest share of the records, those with the lowest cross-fitted margins, that are no positives in the
            end, as the pool's own damage is mostly among them. A pool with little damage is trimmed less: by twice
            the share that is estimated after a first trimming.

    Raises:
        DataError: states are not finite, or there are too few records for the folds.
    """
    from threadpoolctl import threadpool_limits

    demand_states(drawn)
    with threadpool_limits(1):  # the last bits of a product depend on the number of threads
        return fit_features(drawn, trim)


def fit_features(drawn: Drawn, trim: float) -> SoundFit:
    """Fit the probes on one thread."""
    from sklearn.model_selection import GroupKFold

    features = Features.of(drawn.states)
    flat = features(drawn.states)  # (passes, features)
    whole = drawn.whole
    masks = [mask_of(views, drawn.states) for views in READ]
    (rows, basis), *others = [row_space(flat * mask) for mask in masks]
    folds = [(a, b) for a, b in GroupKFold(FOLDS).split(rows, groups=drawn.groups)]
    goal, every = target(whole), np.ones((FOLDS, len(rows)), dtype=bool)
    kept, taught = every[0], every
    raw = first = cross_fit(rows, goal, every, folds, whole)
    if trim:
        nested = nested_fit(rows, whole, folds)
        share = trim
        for _ in range(2):
            kept = trimmed(first, whole, share)
            taught = np.stack([trimmed(outputs, whole, share) for outputs in nested])
            raw = cross_fit(rows, goal, taught, folds, whole)
            share = min(trim, 2 * damage_share(raw[whole], raw[~whole]))
    weights, biases, seen = list[Floats](), list[float](), list[Floats]()
    for mask, (some, axes) in zip(masks, [(rows, basis), *others], strict=True):
        outputs = cross_fit(some, goal, taught, folds, whole)
        line = calibrate(outputs[kept], whole[kept])
        fit = fit_ridge(some[kept], goal[kept], whole[kept])
        weights.append(line.slope * (fit.coef_ @ axes) * mask)
        biases.append(float(line(fit.intercept_)))
        seen.append(cross_calibrate(outputs, taught, folds, whole))
    likelihoods = -drawn.losses
    seen.append(cross_calibrate(likelihoods, taught, folds, whole))
    least = soft_least(np.stack(seen, axis=-1))
    margin = SoundMargin(calibrate(likelihoods[kept], whole[kept]), calibrate(least[kept], whole[kept]))
    margins = margin.least(least)
    kinds = tuple(sorted({*drawn.kinds.tolist()} - {""}))
    is_kind = np.stack([target(drawn.kinds == kind) for kind in kinds], axis=1)  # (rows, kinds)
    looks = cross_fit(rows, is_kind, taught, folds, whole)
    fit = fit_ridge(rows[kept], is_kind[kept], whole[kept])
    coefficients, offsets = np.atleast_2d(fit.coef_), np.atleast_1d(fit.intercept_)  # (kinds, rank), (kinds,)
    for i, kind in enumerate(kinds):
        there = kept & (whole | (drawn.kinds == kind))  # its odds are against sound records alone
        line = calibrate(looks[there, i], drawn.kinds[there] == kind)
        weights.append(line.slope * (coefficients[i] @ basis))
        biases.append(float(line(offsets[i])))
        looks[:, i] = line(looks[:, i])
    return SoundFit(
        Probes(features, np.stack(weights), np.array(biases)),
        margin,
        kinds,
        margins,
        looks,
        kept,
        whole,
        auc(margins, whole),
        {kind: auc_of_kind(margins, drawn.kinds, kind) for kind in kinds},
        {kind: untaught(rows[:, -FEW:], drawn.kinds, kind, taught, folds) for kind in kinds} if len(kinds) > 1 else {},
        max(auc(drawn.lengths, whole), auc(-drawn.lengths, whole)),
    )


def demand_states(drawn: Drawn) -> None:
    """Refuse too few records, and states or losses that are not finite."""
    if len(np.unique(drawn.groups)) < FOLDS:
        raise DataError(f"{len(np.unique(drawn.groups))} records with a damaged copy are too few for {FOLDS} folds")
    finite = np.isfinite(drawn.states).all(axis=(1, 2, 3)) & np.isfinite(drawn.losses)
    broken = np.flatnonzero(~finite).tolist()
    if broken:
        raise DataError(
            f"the hidden states of {len(broken)} of {len(drawn.states)} passes are not finite",
            hint="half precision overflows in some models: read them in bf16 or fp32",
        )


def mask_of(views: Sequence[int], states: States) -> Floats:
    """Return what features are multiplied by so that only these views are left, with the same mean squared length.

    Args:
        views: their indices.
        states: (passes, layers, parts, dim).

    Returns:
        (features,).
    """
    _, layers, _, dim = states.shape
    found = np.zeros((layers, VIEWS, dim))
    found[:, list(views)] = np.sqrt(VIEWS / len(views))
    return found.ravel()


def row_space(flat: Floats) -> tuple[Floats, Floats]:
    """Return the coordinates of the rows in the space that they span, and its basis.

    A ridge regression in these coordinates is exactly the one on all features, and far cheaper: there are some hundred
    rows and tens of thousands of features.

    Returns:
        (rows, rank) and (rank, features).
    """
    values, vectors = np.linalg.eigh(flat @ flat.T)  # (rows,), (rows, rows)
    there = values > values.max() * 1e-9
    scale = np.sqrt(values[there])
    return vectors[:, there] * scale, (vectors[:, there] / scale).T @ flat


def target(yes: npt.NDArray[np.bool_]) -> Floats:
    """Return 1 for yes and -1 for no."""
    return np.where(yes, 1.0, -1.0)


def fit_ridge(rows: Floats, goal: Floats, whole: npt.NDArray[np.bool_]) -> Ridge:
    """Fit a ridge regression in which records and copies have the same weight.

    Args:
        rows: (rows, rank).
        goal: (rows,) or (rows, outputs), 1 or -1.
        whole: (rows,) which are records as they are.
    """
    from sklearn.linear_model import Ridge

    rows_each = np.where(whole, np.count_nonzero(whole), np.count_nonzero(~whole))
    return Ridge(PENALTY, solver="cholesky").fit(rows, goal, sample_weight=0.5 * len(rows) / rows_each)


def cross_fit(
    rows: Floats,
    goal: Floats,
    taught: Sequence[npt.NDArray[np.bool_]] | npt.NDArray[np.bool_],
    folds: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    whole: npt.NDArray[np.bool_],
) -> Floats:
    """Return for every row the outputs of a fit that has not seen its record, shaped like `goal`.

    Args:
        rows: (rows, rank).
        goal: (rows,) or (rows, outputs), 1 or -1.
        taught: (folds, rows) which rows may be learned from, fold by fold.
        folds: pairs of training and held-out rows.
        whole: (rows,) which are records as they are.
    """
    found = np.full(goal.shape, np.nan)
    for (training, held_out), able in zip(folds, taught, strict=True):
        some = training[able[training]]
        fit = fit_ridge(rows[some], goal[some], whole[some])
        found[held_out] = fit.predict(rows[held_out]).reshape(len(held_out), *goal.shape[1:])
    return found


def nested_fit(
    rows: Floats,
    whole: npt.NDArray[np.bool_],
    folds: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
) -> list[Floats]:
    """Return for each fold the outputs of its training rows, each by a fit that has seen neither it nor the fold.

    By these the fold's positives are trimmed. By outputs of fits that have seen the fold, the records would be left
    that look like the held-out ones, and pure noise would have an AUC of 0.65.

    Returns:
        Arrays (rows,), NaN for the held-out rows.
    """
    found = []
    for k, (training, _) in enumerate(folds):
        inner = [fold for j, fold in enumerate(folds) if j != k]
        found.append(
            cross_fit(rows, target(whole), [np.isin(np.arange(len(rows)), training)] * len(inner), inner, whole)
        )
    return found


def trimmed(outputs: Floats, whole: npt.NDArray[np.bool_], share: float) -> npt.NDArray[np.bool_]:
    """Return which rows are learned from: all but this share of the records that have outputs, the lowest."""
    records = np.flatnonzero(whole & ~np.isnan(outputs))
    ranked = records[np.argsort(outputs[records], kind="stable")]
    kept = np.ones(len(outputs), dtype=bool)
    kept[ranked[: int(share * len(ranked))]] = False
    return kept


def calibrate(outputs: Floats, yes: npt.NDArray[np.bool_]) -> Line:
    """Return the line that turns outputs into log odds (Platt scaling), as if both sides were equally likely."""
    from sklearn.linear_model import LogisticRegression

    if yes.all() or not yes.any():
        return Line()
    fit = LogisticRegression(C=CALM, class_weight="balanced").fit(outputs[:, None], yes)
    return Line(max(float(fit.coef_[0, 0]), EVEN), float(fit.intercept_[0]))  # never turned around


def cross_calibrate(
    outputs: Floats,
    taught: npt.NDArray[np.bool_],
    folds: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
    whole: npt.NDArray[np.bool_],
) -> Floats:
    """Return cross-fitted outputs as log odds, each fold by a line that was fitted to the others.

    A line that has seen the fold would weigh the views up that do well in it by chance.
    """
    found = np.empty(len(outputs))
    for (training, held_out), able in zip(folds, taught, strict=True):
        some = training[able[training]]
        found[held_out] = calibrate(outputs[some], whole[some])(outputs[held_out])
    return found


def auc(values: Floats, yes: npt.NDArray[np.bool_]) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(yes, values))


def auc_of_kind(margins: Floats, kinds: npt.NDArray[np.str_], kind: str) -> float:
    """Return the AUC of the records against the copies of one kind."""
    some = (kinds == "") | (kinds == kind)
    return auc(margins[some], kinds[some] == "")


def untaught(
    rows: Floats,
    kinds: npt.NDArray[np.str_],
    kind: str,
    taught: npt.NDArray[np.bool_],
    folds: Sequence[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]],
) -> float:
    """Return the AUC of a kind's copies if no copy of that kind is learned from."""
    whole = np.asarray(kinds == "")
    return auc_of_kind(cross_fit(rows, target(whole), taught & (kinds != kind), folds, whole), kinds, kind)

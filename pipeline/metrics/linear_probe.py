"""Linear probe: how well a straight line tells the classes apart in features that stay as they are.

Multinomial logistic regression of scikit-learn on standardised features; its strength C is chosen on a held-out part
of the training rows, never on test rows.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from pipeline.errors import UserError
from pipeline.metrics.arrays import Array, indices, matrix

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.2
_STEPS = 300


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """What a probe says of M test rows, and how it was chosen."""

    predictions: NDArray[np.int64]
    """Class of each test row [M]."""
    strength: float
    """The chosen C (inverse of the penalty)."""
    scores: dict[float, float]
    """C → accuracy on the held-out training rows; empty where none could be held out."""


def linear_probe(
    train_ND: Array,
    label_N: Array,
    test_MD: Array,
    *,
    strengths: Sequence[float] = STRENGTHS,
    held_out: float = HELD_OUT,
    seed: int = 0,
) -> LinearProbe:
    """Fit a linear classifier on training rows and classify test rows.

    Args:
        train_ND: N training rows.
        label_N: Their classes.
        test_MD: M test rows.
        strengths: Values of C to choose from; of equally good ones the smallest.
        held_out: Share of each class's training rows that C is chosen on; then all rows are fitted with it.
        seed: Seed of that choice of rows.

    Raises:
        UserError: Non-finite or mismatched input, no C, or one that is not positive.
    """
    train = matrix(train_ND, "training features")
    test = matrix(test_MD, "test features", width=train.shape[1])
    labels = indices(label_N, "labels", length=len(train), below=2**31).numpy()
    if not strengths or min(strengths) <= 0:
        raise UserError(expected="positive values of C", found=str(list(strengths)))
    mean, spread = train.mean(0), train.std(0, unbiased=False)
    spread = torch.where(spread > 1e-6 * spread.max().clamp(min=1e-30), spread, torch.ones_like(spread))
    x, z = ((part - mean).div(spread).cpu().numpy() for part in (train, test))
    kept, held = stratified_split(labels, held_out, seed)
    scores: dict[float, float] = {}
    if len(held) and len(strengths) > 1:
        model = _model(strengths[0])
        for strength in sorted(strengths):
            model.set_params(C=strength)
            scores[strength] = float((_fit_predict(model, x[kept], labels[kept], x[held]) == labels[held]).mean())
    best = max(scores, key=lambda strength: (scores[strength], -strength)) if scores else min(strengths)
    return LinearProbe(predictions=_fit_predict(_model(best), x, labels, z), strength=best, scores=scores)


def stratified_split(
    label_N: NDArray[np.int64], share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return positions that stay and positions that are held out: a share of each class, at least one of two or more.

    A class with one row stays whole.
    """
    generator = np.random.default_rng(seed)
    held = []
    for label in np.unique(label_N):
        own = generator.permutation(np.flatnonzero(label_N == label))
        number = 0 if len(own) < 2 else min(max(round(share * len(own)), 1), len(own) - 1)
        held.append(own[:number])
    chosen = np.sort(np.concatenate(held)) if held else np.zeros(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(label_N)), chosen), chosen


def _model(strength: float) -> Any:
    return LogisticRegression(C=strength, max_iter=_STEPS, tol=1e-3, warm_start=True)


def _fit_predict(
    model: Any, x: NDArray[np.float32], labels: NDArray[np.int64], z: NDArray[np.float32]
) -> NDArray[np.int64]:
    if len(np.unique(labels)) < 2:
        return np.full(len(z), labels[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return np.asarray(model.fit(x, labels).predict(z), dtype=np.int64)

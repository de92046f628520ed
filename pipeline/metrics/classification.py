"""Classification by prompts, by neighbours and by a straight line: accuracy, mean recall of the classes, confusion.

`classifier` turns prompt embeddings into one vector a class, `zero_shot_metrics` scores images against them. As in
retrieval, whatever class scores the same as the right one stands before it.

`linear_probe` says how well a straight line tells the classes apart in features that stay as they are: multinomial
logistic regression on standardised features (as scikit-learn defines it, whose import alone takes longer than the
fits); its strength C is chosen on a held-out part of the training rows, never on test rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.retrieval import Array, check_count, indices, matrix, ranks, recall_at

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)
HELD_OUT = 0.2
_STEPS = 300
_SLOPE = 1e-3
_BLOCK = 4096


@dataclass(frozen=True, kw_only=True)
class ZeroShotResult:
    """Metrics of N images in C classes, and what they come from."""

    metrics: dict[str, float]
    """acc1, acc5 (with five classes or more) and mean_per_class_recall, as fractions."""
    ranks: NDArray[np.int64]
    """Rank of the right class of each image [N], 1 is best."""
    predictions: NDArray[np.int64]
    """Class of each image [N]: the right one where its rank is 1, else the best of the others."""
    confusion: NDArray[np.int64]
    """Images of class (row) taken for class (column), [C, C]."""
    recall: NDArray[np.float64]
    """Recall of each class [C]; NaN for a class without images."""


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """What a probe says of M test rows, and how it was chosen."""

    predictions: NDArray[np.int64]
    """Class of each test row [M]."""
    strength: float
    """The chosen C (inverse of the penalty)."""
    scores: dict[float, float]
    """C → accuracy on the held-out training rows; empty where none could be held out."""


def classifier(prompt_PD: Array, class_P: Array, classes: int) -> Tensor:
    """Return one unit vector a class [C, d]: each prompt to length 1, mean over the class's prompts, length 1 again.

    Args:
        prompt_PD: Embeddings of P prompts.
        class_P: Class of each prompt, 0..C−1.
        classes: Number C of classes.

    Raises:
        UserError: Non-finite or mismatched input, or a class without a prompt.
    """
    prompts = torch.nn.functional.normalize(matrix(prompt_PD, "prompt embeddings"), dim=1)
    check_count(classes, "classes", low=1, high=2**31)
    owner = indices(class_P, "prompt classes", length=len(prompts), below=classes).to(prompts.device)
    counts = torch.bincount(owner, minlength=classes)
    if int(counts.min()) == 0:
        missing = (counts == 0).nonzero().squeeze(1).tolist()
        raise UserError(expected="a prompt at least for each class", found=f"none for the classes {missing[:10]}")
    summed = prompts.new_zeros(classes, prompts.shape[1]).index_add_(0, owner, prompts)
    return torch.nn.functional.normalize(summed / counts[:, None], dim=1)


def zero_shot_metrics(
    image_ND: Array, classifier_CD: Array, label_N: Array, ks: Sequence[int] | None = None
) -> ZeroShotResult:
    """Classify images by their highest dot product with the class vectors.

    Args:
        image_ND: N images' embeddings.
        classifier_CD: One vector a class, as `classifier` gives.
        label_N: Right class of each image.
        ks: Cut-offs k of acc@k; 1 and, with five classes or more, 5 where not given.

    Raises:
        UserError: Non-finite or mismatched input, or a cut-off above the number of classes.
    """
    images = matrix(image_ND, "image embeddings")
    weights = matrix(classifier_CD, "class vectors", width=images.shape[1]).to(images.device)
    labels = indices(label_N, "labels", length=len(images), below=len(weights))
    chosen = ks if ks is not None else ((1, 5) if len(weights) >= 5 else (1,))
    cuts = [check_count(k, "k (the number of classes is the limit)", low=1, high=len(weights)) for k in chosen]
    found = ranks(images, weights, labels)
    predictions = _predictions(images, weights, labels, found)
    confusion = confusion_matrix(labels.numpy(), predictions, len(weights))
    recall = _recall(confusion)
    metrics = {f"acc{k}": recall_at(found, k) for k in cuts}
    metrics["mean_per_class_recall"] = float(np.nanmean(recall))
    return ZeroShotResult(metrics=metrics, ranks=found, predictions=predictions, confusion=confusion, recall=recall)


def confusion_matrix(label_N: Array, prediction_N: Array, classes: int) -> NDArray[np.int64]:
    """Count images of class (row) that were taken for class (column), [C, C].

    Raises:
        UserError: A class out of range or different numbers of labels and predictions.
    """
    labels = indices(label_N, "labels", below=classes)
    predictions = indices(prediction_N, "predictions", length=len(labels), below=classes)
    flat = torch.bincount(labels * classes + predictions, minlength=classes * classes)
    return flat.view(classes, classes).numpy()


def knn_predict(
    train_ND: Array,
    label_N: Array,
    test_MD: Array,
    k: int,
    classes: int,
    *,
    temperature: float = 0.07,
) -> NDArray[np.int64]:
    """Predict the class of each test row [M] by the vote of its k nearest training rows, by cosine.

    A vote weighs exp(cosine / temperature) (arXiv 1805.01978); equal votes go to the class with the smaller number.

    Raises:
        UserError: Non-finite or mismatched input, or k not in 1..N.
    """
    train = torch.nn.functional.normalize(matrix(train_ND, "training features"), dim=1)
    test = torch.nn.functional.normalize(matrix(test_MD, "test features", width=train.shape[1]), dim=1)
    labels = indices(label_N, "labels", length=len(train), below=classes).to(train.device)
    check_count(k, "k", low=1, high=len(train))
    predictions = []
    for block in torch.split(test, _BLOCK):
        near = (block @ train.T).topk(k, dim=1)
        votes = torch.exp(near.values / temperature)
        tally = votes.new_zeros(len(block), classes).scatter_add_(1, labels[near.indices], votes)
        predictions.append(_first_maximum(tally))
    return torch.cat(predictions).cpu().numpy()


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
        line = _Line()
        for strength in sorted(strengths):
            scores[strength] = float(
                (line.fit_predict(x[kept], labels[kept], x[held], strength) == labels[held]).mean()
            )
    best = max(scores, key=lambda strength: (scores[strength], -strength)) if scores else min(strengths)
    return LinearProbe(predictions=_Line().fit_predict(x, labels, z, best), strength=best, scores=scores)


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


def _first_maximum(tally: Tensor) -> Tensor:
    """Return the first column with the row's maximum (argmax promises no order among equals)."""
    best = tally == tally.amax(dim=1, keepdim=True)
    return best.to(torch.uint8).cumsum(dim=1).eq(1).logical_and(best).nonzero()[:, 1]


def _predictions(images: Tensor, weights: Tensor, labels: Tensor, found: NDArray[np.int64]) -> NDArray[np.int64]:
    right = torch.from_numpy(found == 1)
    predictions = labels.clone()
    if len(weights) > 1:
        for start in range(0, len(images), _BLOCK):
            scores = images[start : start + _BLOCK] @ weights.T
            own = labels[start : start + _BLOCK]
            scores[torch.arange(len(scores)), own] = -torch.inf
            best_other = scores.argmax(dim=1).cpu()
            predictions[start : start + _BLOCK] = torch.where(right[start : start + _BLOCK], own, best_other)
    return predictions.numpy()


def _recall(confusion: NDArray[np.int64]) -> NDArray[np.float64]:
    totals = confusion.sum(axis=1)
    return np.where(totals > 0, np.diag(confusion) / np.maximum(totals, 1), np.nan)


class _Line:
    """Multinomial logistic regression, fitted from where the last fit ended; two classes share one weight vector.

    Least of: mean cross entropy + |W|² / (2 C N), the intercepts left out of |W|; scikit-learn's objective and stops.
    """

    def __init__(self) -> None:
        self.weights: NDArray[np.float64] | None = None  # [D + 1, K], or [D + 1, 1] of two classes

    def fit_predict(
        self, x: NDArray[np.float32], labels: NDArray[np.int64], z: NDArray[np.float32], strength: float
    ) -> NDArray[np.int64]:
        """Fit rows x [N, D] with C = `strength` and return the classes of rows z [M, D]."""
        from scipy.optimize import minimize

        classes, own = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            return np.full(len(z), labels[0])
        rows, target = _with_ones(x), torch.from_numpy(own)
        shape = (rows.shape[1], len(classes) if len(classes) > 2 else 1)
        penalty = 1 / (strength * len(x))

        def loss_and_slope(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            weights = flat.reshape(shape)
            logits = _logits(rows, weights).double()
            loss = float(torch.nn.functional.cross_entropy(logits, target))
            excess = logits.softmax(dim=1)
            excess[torch.arange(len(target)), target] -= 1
            excess = (excess if shape[1] > 1 else excess[:, 1:]) / len(target)
            slope = (rows.T @ excess.float()).double().numpy()
            slope[:-1] += penalty * weights[:-1]
            return loss + 0.5 * penalty * float((weights[:-1] ** 2).sum()), slope.reshape(-1)

        start = np.zeros(shape) if self.weights is None else self.weights
        stops = {"maxiter": _STEPS, "maxls": 50, "gtol": _SLOPE, "ftol": 64 * np.finfo(float).eps}
        found = minimize(loss_and_slope, start.reshape(-1), method="L-BFGS-B", jac=True, options=stops)
        self.weights = found.x.reshape(shape)
        return np.asarray(classes[_logits(_with_ones(z), self.weights).argmax(dim=1).numpy()], dtype=np.int64)


def _with_ones(x: NDArray[np.float32]) -> Tensor:
    return torch.nn.functional.pad(torch.from_numpy(x).float(), (0, 1), value=1.0)


def _logits(rows: Tensor, weights: NDArray[np.float64]) -> Tensor:
    """Return [N, K]; of two classes the first has the logit 0."""
    products = rows @ torch.from_numpy(weights).float()
    return products if products.shape[1] > 1 else torch.nn.functional.pad(products, (1, 0))

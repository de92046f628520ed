"""How alike two representations of the same items are: layers against layers, a space before and after alignment.

All image layers are compared with all text layers by mutual kNN or by CKA, each held against a permutation null.

Raw scores rise with width and depth, so each is also calibrated: the pairing is shuffled, the same shuffle for every
pair of layers, and the score is measured from what shuffled pairs reach. Source of the null: arXiv 2602.14486.

Mutual kNN (arXiv 2405.07987; k = ⌈2·N^⅓⌉ as in arXiv 2506.16895): each layer's neighbours are found once, then
layers are compared by their tables: O(layers) searches, not O(pairs).

Unbiased linear CKA (arXiv 1905.00414; Song et al., JMLR 2012): the unbiased HSIC of two layers is the inner product of
their U-centred Gram matrices (Székely and Rizzo 2014), so all pairs of layers are one matrix product, and a shuffle of
the pairs only reorders rows and columns.

Trustworthiness and continuity: Venna & Kaski, 2001. Modality gap: arXiv 2203.02053.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.retrieval import Array, check_count, is_constant, matrix

Neighbours = NDArray[np.int32]
Table = NDArray[np.float64]
MOST_CKA_ROWS = 3000
"""CKA holds every layer's Gram matrix: rows² floats."""
_MOST_ROWS = 20_000  # the lookup table holds rows² words of 4 or 8 bytes, one for each side
_MOST_BITS = 62  # layers of a side that fit into one word
_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class LayerPairs:
    """Scores of A image layers against B text layers."""

    score: Table
    """Mutual kNN in 0..1 (or another metric: 1 is the same, about 0 unrelated), [A, B]."""
    calibrated: Table
    """max(0, (score − threshold) / (1 − threshold)), [A, B]: 0 is what chance reaches, 1 is the same neighbours."""
    p_value: Table
    """(1 + #{null ≥ score}) / (1 + P), [A, B]."""
    threshold: Table
    """The (1 − alpha) order statistic of the null and the score together, [A, B]."""
    null: Table
    """Scores of the P shuffled pairings, [P, A, B]."""
    k: int | None
    """Neighbours of a row; None where the metric counts none."""
    rows: int
    """Items N."""

    @property
    def best(self) -> tuple[int, int]:
        """The pair with the highest calibrated score; among equals the highest score, then the deepest layers."""
        a, b = np.indices(self.score.shape).reshape(2, -1)
        order = np.lexsort((b, a, self.score.ravel(), self.calibrated.ravel()))
        return int(a[order[-1]]), int(b[order[-1]])

    @property
    def best_p_value(self) -> float:
        """P-value of the best score of all, against the best of all pairs in each shuffle: the choice is paid for."""
        reached = self.null.max(axis=(1, 2)) >= self.score.max()
        return float((1 + reached.sum()) / (1 + len(reached)))


def neighbour_count(rows: int) -> int:
    """Return k = ⌈2·N^⅓⌉ for N rows, at most N − 1 (35 at 5000).

    Raises:
        UserError: Fewer than two rows: nobody has a neighbour.
    """
    check_count(rows, "rows", low=2, high=2**62)
    return min(math.ceil(round(2.0 * math.cbrt(rows), 9)), rows - 1)


def nearest_neighbours(features_ND: Array, k: int | None = None, *, block: int = 1024) -> Neighbours:
    """Return the k nearest rows of each row by cosine similarity, itself left out: int32 [N, K], nearest first.

    Among equally near rows the choice is the library's; it is the same in every run.

    Args:
        features_ND: N rows of one layer.
        k: Neighbours of a row; `neighbour_count(N)` where not given.
        block: Rows whose similarities are held at once.

    Raises:
        UserError: N < 2, k not in 1..N−1, non-finite values, or all rows the same (then there is no nearest).
    """
    features = matrix(features_ND, "features")
    k = neighbour_count(len(features)) if k is None else check_count(k, "k", low=1, high=len(features) - 1)
    unit = torch.nn.functional.normalize(features, dim=1)
    if is_constant(unit):
        raise UserError(
            expected="features that differ between rows",
            found="one and the same direction in all of them",
            remedy="leave this layer out (the class token before the first block is such a layer)",
        )
    found = torch.empty((len(unit), k), dtype=torch.int32)
    for start in range(0, len(unit), block):
        scores = unit[start : start + block] @ unit.T
        own = torch.arange(len(scores), device=unit.device)
        scores[own, own + start] = -torch.inf
        found[start : start + block] = scores.topk(k, dim=1).indices.int().cpu()
    return found.numpy()


def compare_layers(
    image: Sequence[Neighbours],
    text: Sequence[Neighbours],
    *,
    permutations: int = 200,
    alpha: float = 0.05,
    seed: int = 0,
) -> LayerPairs:
    """Score every image layer against every text layer, with a permutation null.

    Args:
        image: Neighbour tables [N, K] of the A image layers; row i of every table is the same pair.
        text: Neighbour tables [N, K] of the B text layers.
        permutations: Number P of shuffles; 0 for raw scores alone (then calibrated = score, p = 1).
        alpha: Level of the threshold.
        seed: Seed of the shuffles.

    Raises:
        UserError: Tables of different shapes, more than 20,000 rows, or P or alpha out of range.
    """
    rows, k = _check_tables([*image, *text])
    check_count(permutations, "permutations", low=0, high=1_000_000)
    if rows > _MOST_ROWS or not image or not text:
        raise UserError(
            expected=f"at most {_MOST_ROWS} rows, and a layer on each side at least",
            found=f"{rows} rows, {len(image)} image and {len(text)} text layers",
            remedy="compare the layers on a sample of rows: 5,000 are plenty",
        )
    overlaps = _all_overlaps(image, text, permutations, seed) / (rows * k)
    return _calibrate(overlaps[0], overlaps[1:], alpha, k=k, rows=rows)


def compare_layers_by_cka(
    image: Sequence[Array], text: Sequence[Array], *, permutations: int = 200, alpha: float = 0.05, seed: int = 0
) -> LayerPairs:
    """Score every image layer against every text layer, with a permutation null.

    Args:
        image: Features [N, D] of the A image layers; row i of every layer is the same pair.
        text: Features [N, E] of the B text layers.
        permutations: Number P of shuffles; 0 for raw scores alone (then calibrated = score, p = 1).
        alpha: Level of the threshold.
        seed: Seed of the shuffles.

    Raises:
        UserError: Layers of different lengths, fewer than 4 or more than 3000 rows, a layer that is not finite or the
            same in every row, or P or alpha out of range.
    """
    check_count(permutations, "permutations", low=0, high=1_000_000)
    rows = {len(layer) for layer in (*image, *text)}
    if len(rows) != 1 or not image or not text or not 4 <= min(rows) <= MOST_CKA_ROWS:
        raise UserError(
            expected=f"layers of both sides with the same 4 to {MOST_CKA_ROWS} rows",
            found=f"{len(image)} image and {len(text)} text layers with {sorted(rows)} rows",
            remedy="compare the layers on a sample of rows: 1,000 are plenty",
        )
    images, texts = (torch.stack([_centred_gram(layer) for layer in side]) for side in (image, text))
    overlaps = np.stack(list(_all_ckas(images, texts, permutations, seed)))
    return _calibrate(overlaps[0], overlaps[1:], alpha, k=None, rows=rows.pop())


def trustworthiness(before_ND: Array, after_NE: Array, k: int = 5) -> float:
    """Return 1 − 2/(Nk(2N−3k−1)) Σ_i Σ_j (r(i, j) − k)₊ over the k neighbours j of i *after*, r their rank *before*.

    1: all neighbours after were neighbours before, by cosine in both spaces. Blocked; no N × N matrix is held.

    Args:
        before_ND: N items in the frozen space.
        after_NE: The same items in the aligned space.
        k: Neighbours, fewer than N/2.

    Raises:
        UserError: Non-finite or mismatched input, or k out of range.
    """
    before, after = matrix(before_ND, "features before"), matrix(after_NE, "features after")
    rows = len(before)
    if len(after) != rows:
        raise UserError(expected=f"as many rows after as before ({rows})", found=str(len(after)))
    check_count(k, "k (fewer than half of the rows)", low=1, high=(rows - 1) // 2)
    before = _prepared(before.double(), "features before")
    after = _prepared(after.double(), "features after")
    penalty = 0.0
    for start in range(0, rows, _BLOCK):
        near = _distances(after, start).topk(k, dim=1, largest=False).indices
        distances = _distances(before, start)
        rank = torch.searchsorted(distances.sort(dim=1).values, distances.gather(1, near)) + 1
        penalty += float((rank - k).clamp_min(0).sum())
    return 1.0 - 2.0 / (rows * k * (2.0 * rows - 3.0 * k - 1.0)) * penalty


def continuity(before_ND: Array, after_NE: Array, k: int = 5) -> float:
    """Return trustworthiness with the spaces swapped: are neighbours before still neighbours after?"""
    return trustworthiness(after_NE, before_ND, k)


def modality_gap(image_ND: Array, text_MD: Array) -> float:
    """Return ‖mean(u) − mean(w)‖ of the two sides' embeddings as given (unit length for the usual meaning).

    Raises:
        UserError: Non-finite input or different widths.
    """
    image = matrix(image_ND, "image embeddings", dtype=torch.float64)
    text = matrix(text_MD, "text embeddings", width=image.shape[1], dtype=torch.float64)
    return float((image.mean(dim=0) - text.mean(dim=0)).norm())


def _calibrate(score: Table, null: Table, alpha: float, *, k: int | None, rows: int) -> LayerPairs:
    """Hold scores [A, B] against those of shuffled pairings [P, A, B].

    Raises:
        UserError: Alpha is out of range.
    """
    if not 0 < alpha < 1:
        raise UserError(expected="alpha between 0 and 1", found=repr(alpha))
    threshold, p_value = _against_null(score, null, alpha)
    span = np.maximum(1.0 - threshold, 1e-12)
    calibrated = np.clip((score - threshold) / span, 0.0, 1.0)
    return LayerPairs(
        score=score, calibrated=calibrated, p_value=p_value, threshold=threshold, null=null, k=k, rows=rows
    )


def _check_tables(tables: Sequence[Neighbours]) -> tuple[int, int]:
    """Return (N, K) of neighbour tables that are all of one shape.

    Raises:
        UserError: There are none, or two of them differ.
    """
    if not tables or tables[0].ndim != 2:
        raise UserError(expected="a table of neighbours [N, K] at least", found="none")
    for table in tables:
        if table.shape != tables[0].shape:
            raise UserError(
                expected=f"neighbour tables of one shape, {list(tables[0].shape)}",
                found=f"{list(table.shape)}",
                remedy="use the same rows and the same k for every layer",
            )
    return len(tables[0]), tables[0].shape[1]


def _against_null(score: Table, null: Table, alpha: float) -> tuple[Table, Table]:
    if len(null) == 0:
        return np.zeros_like(score), np.ones_like(score)
    together = np.sort(np.concatenate([score[None], null]), axis=0)
    place = min(max(math.ceil((1 - alpha) * len(together)) - 1, 0), len(together) - 1)
    return together[place], (1 + (null >= score).sum(axis=0)) / len(together)


def _all_overlaps(image: Sequence[Neighbours], text: Sequence[Neighbours], permutations: int, seed: int) -> Table:
    """Return the overlaps [P + 1, A, B] of all layers, at most `_MOST_BITS` of a side at a time."""
    rows = [
        np.concatenate(
            [_overlaps(image[a : a + _MOST_BITS], text[b : b + _MOST_BITS], permutations, seed) for b in _starts(text)],
            axis=2,
        )
        for a in _starts(image)
    ]
    return np.concatenate(rows, axis=1)


def _starts(layers: Sequence[Neighbours]) -> range:
    """Return where the groups of layers start that fit into one word of bits."""
    return range(0, len(layers), _MOST_BITS)


def _overlaps(image: Sequence[Neighbours], text: Sequence[Neighbours], permutations: int, seed: int) -> Table:
    """Return Σ_i |A_i ∩ B_i| of every pair of layers, of the true pairing first, then of each shuffle: [P + 1, A, B].

    A cell (i, j) is one word whose bit l says that j is a neighbour of i in layer l. Only cells with a bit set matter:
    those of one side are looked up in the table of the other, and one small matrix product over the bits of the cells
    that both sides have counts all pairs of layers at once.
    """
    rows = len(image[0])
    swapped = len(image) > len(text)
    few, many = (text, image) if swapped else (image, text)
    few_words, many_words = _words(few), _words(many)
    cells = few_words.nonzero().squeeze(1)
    few_words, source, target = few_words[cells], cells // rows, cells % rows
    place, row_start, looked_up = (
        torch.empty_like(cells),
        torch.empty_like(cells),
        torch.empty_like(cells).to(many_words),
    )
    generator = torch.Generator().manual_seed(seed)
    found = np.empty((permutations + 1, len(image), len(text)))
    for number in range(permutations + 1):
        order = torch.randperm(rows, generator=generator) if number else torch.arange(rows)
        if swapped:  # text row order[i] is paired with image i, so text cells go back to their image's place
            order = torch.argsort(order)
        torch.index_select(order * rows, 0, source, out=row_start)
        torch.index_select(order, 0, target, out=place)
        torch.index_select(many_words, 0, place.add_(row_start), out=looked_up)
        common = looked_up.nonzero().squeeze(1)
        counts = _bits(few_words[common], len(few)).T @ _bits(looked_up[common], len(many))
        found[number] = (counts.T if swapped else counts).double().numpy()
    return found


def _words(tables: Sequence[Neighbours]) -> Tensor:
    """Return one word a cell [N·N] whose bit l says that j is among the neighbours of i in layer l."""
    rows = len(tables[0])
    words = np.zeros((rows, rows), dtype=np.int32 if len(tables) <= 31 else np.int64)
    source = np.arange(rows)[:, None]
    for layer, table in enumerate(tables):
        words[source, table] |= words.dtype.type(1 << layer)
    return torch.from_numpy(words.ravel())


def _bits(words: Tensor, count: int) -> Tensor:
    """Return the lowest bits of C words as 0.0 and 1.0, [C, count]."""
    raw = words.numpy().view(np.uint8).reshape(len(words), words.element_size())
    return torch.from_numpy(np.unpackbits(raw, axis=1, count=count, bitorder="little")).float()


def _all_ckas(images: Tensor, texts: Tensor, permutations: int, seed: int) -> list[Table]:
    """Return CKA [A, B] of the true pairing and of each shuffle; the side with fewer layers is shuffled."""
    swapped = len(images) < len(texts)
    few, many = (images, texts) if swapped else (texts, images)
    rows = few.shape[1]
    first, second = torch.triu_indices(rows, rows, offset=1)  # the matrices are symmetric: one half is enough
    few = few.flatten(1)
    half = many.flatten(1).index_select(1, first * rows + second)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(permutations + 1):
        order = torch.randperm(rows, generator=generator) if number else torch.arange(rows)
        turned = few.index_select(1, order[first] * rows + order[second])
        scores = (half @ turned.T) * 2
        found.append((scores.T if swapped else scores).double().numpy())
    return found


def _centred_gram(layer: Array) -> Tensor:
    """Return the U-centred Gram matrix [N, N] of unit norm, float32; a product of two is their unbiased CKA."""
    x = matrix(layer, "features", dtype=torch.float64)
    x = x - x.mean(dim=0)
    scale = float(x.abs().max())
    rows = len(x)
    gram = (x / max(scale, 1e-300)) @ (x / max(scale, 1e-300)).T
    gram.fill_diagonal_(0)
    sums = gram.sum(dim=1) / (rows - 2)
    gram -= sums[:, None] + sums[None, :] - sums.sum() / (rows - 1)
    gram.fill_diagonal_(0)
    norm = float(gram.norm())
    if not norm > 0:
        raise UserError(expected="features that vary between rows", found="the same row everywhere")
    return (gram / norm).float()


def _prepared(features: Tensor, name: str) -> Tensor:
    if float(features.norm(dim=1).min()) == 0:
        raise UserError(expected=f"{name}: rows that are not zero (they have no direction)", found="a zero row")
    features = torch.nn.functional.normalize(features, dim=1)
    if is_constant(features):
        raise UserError(expected=f"{name} that vary between rows", found="the same row everywhere")
    return features


def _distances(features: Tensor, start: int) -> Tensor:
    """Return squared distances of a block of rows to all rows, each row's own set to infinity."""
    block, lengths = features[start : start + _BLOCK], features.square().sum(dim=1)
    squared = lengths[start : start + _BLOCK, None] + lengths - 2.0 * (block @ features.T)
    own = torch.arange(len(block))
    squared[own, own + start] = torch.inf
    return squared

"""All image layers against all text layers by unbiased linear CKA, each score held against a permutation null.

The unbiased HSIC of two layers is the inner product of their U-centred Gram matrices (Székely and Rizzo 2014; Song et
al. 2012), so all pairs of layers are one matrix product, and a shuffle of the pairs only reorders rows and columns.
Source of CKA: arXiv 1905.00414; of the null: arXiv 2602.14486.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.arrays import Array, check_count, matrix
from pipeline.metrics.layer_pairs import LayerPairs, Table, calibrate

MOST_ROWS = 3000
"""Every layer's Gram matrix is held: rows² floats."""


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
    if len(rows) != 1 or not image or not text or not 4 <= min(rows) <= MOST_ROWS:
        raise UserError(
            expected=f"layers of both sides with the same 4 to {MOST_ROWS} rows",
            found=f"{len(image)} image and {len(text)} text layers with {sorted(rows)} rows",
            remedy="compare the layers on a sample of rows: 1,000 are plenty",
        )
    images, texts = (torch.stack([_centred_gram(layer) for layer in side]) for side in (image, text))
    overlaps = np.stack(list(_all_pairs(images, texts, permutations, seed)))
    return calibrate(overlaps[0], overlaps[1:], alpha, k=None, rows=rows.pop())


def _all_pairs(images: Tensor, texts: Tensor, permutations: int, seed: int) -> list[Table]:
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

"""CSLS, cross-domain similarity local scaling: score(i, c) = 2 cos(i, c) − r(i) − r(c), against hubs.

r is an item's mean cosine to its K nearest of the other modality in a bank: an image that is near every caption is near
no one in particular. The bank must not hold the test queries: whoever scales by them has seen all questions before
answering the first. Source: arXiv 1710.04087 (there the bank is the test set itself).
"""

import torch
from torch import Tensor

from pipeline.metrics.arrays import Array, check_count, matrix

_BLOCK = 4096


def nearest_mean(item_ND: Array, bank_BD: Array, k: int) -> Tensor:
    """Return r [N]: the mean dot product of each item with its K nearest of the bank.

    Args:
        item_ND: N items of one modality, unit length for cosines.
        bank_BD: B items of the other modality.
        k: K.

    Raises:
        UserError: Non-finite or mismatched input, or k not in 1..B.
    """
    items = matrix(item_ND, "items")
    bank = matrix(bank_BD, "bank", width=items.shape[1]).to(items.device)
    check_count(k, "k (the bank's size is the limit)", low=1, high=len(bank))
    return torch.cat([(block @ bank.T).topk(k, dim=1).values.mean(1) for block in torch.split(items, _BLOCK)])


def scaled(image_ND: Array, caption_MD: Array, image_r: Tensor, caption_r: Tensor) -> tuple[Tensor, Tensor]:
    """Return images [N, D + 2] and captions [M, D + 2] whose dot products are the CSLS scores.

    So whatever ranks by dot products ranks by CSLS, and never holds the scores.

    Raises:
        UserError: Non-finite or mismatched input.
    """
    images = matrix(image_ND, "image embeddings")
    captions = matrix(caption_MD, "caption embeddings", width=images.shape[1])
    one = images.new_ones(1)
    left = torch.cat([2 * images, -image_r[:, None], one.expand(len(images), 1)], dim=1)
    right = torch.cat([captions, one.expand(len(captions), 1), -caption_r[:, None]], dim=1)
    return left, right

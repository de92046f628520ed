"""Near-duplicate images between two splits, by cosine of centred frozen features.

Features are centred on the training mean first: raw features of many encoders all point the same way, and every pair
would look alike.
"""

import torch
from torch import Tensor

from pipeline.evaluate.indexes.table import build_index
from pipeline.projectors.input import unit_rows


def near_duplicates(train_ND: Tensor, test_MD: Tensor, threshold: float) -> list[tuple[int, int, float]]:
    """Return (test row, training row, cosine) of each test row whose nearest training row is closer than a threshold.

    Args:
        train_ND: N training rows of frozen features.
        test_MD: M test rows.
        threshold: Cosine above which two rows count as the same picture.

    Returns:
        The closest first.
    """
    centre = train_ND.mean(0)
    train, test = unit_rows(train_ND - centre), unit_rows(test_MD - centre)
    scores, nearest = build_index(torch.nan_to_num(train)).search(torch.nan_to_num(test), 1)
    close = (scores[:, 0] > threshold).nonzero().flatten().tolist()
    found = [(row, int(nearest[row, 0]), float(scores[row, 0])) for row in close]
    return sorted(found, key=lambda each: (-each[2], each[0]))

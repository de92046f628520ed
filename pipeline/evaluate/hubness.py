"""Retrieval once more with CSLS, when it is asked for: ranks against hubs, the bank taken from the training split.

No test query is in the bank, so every answer could have been given alone, as a search engine must.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.evaluate.calibrate import evenly
from pipeline.evaluate.data import TestPairs, run_features
from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL
from pipeline.metrics.retrieval import cross_ranks
from pipeline.projectors.csls import nearest_mean, scaled
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.join import join

BANK = 5000
"""Training images and captions in the bank, at most, evenly over the split."""
BLOCK = 4096
"""Queries whose similarities to the bank are held at once."""


def csls_ranks(run: AlignedRun, data: TestPairs, k: int) -> dict[str, NDArray[np.int64]]:
    """Return direction → ranks [S, Q] under CSLS with K neighbours.

    Raises:
        UserError: The run's training split has fewer than K captions or images in these stores, or is evaluated.
    """
    split = str(run.config.get("train_split", "train"))
    known = join(data.image.samples, data.text.samples, split)
    smallest = 0 if split == data.split else min(len(known.image_rows), len(known.caption_rows))
    if smallest < k:
        found = f"{smallest} in split {split} that are no test queries"
        raise UserError(expected=f"a bank of {k} images and captions for CSLS", found=found, where=data.image.where)
    bank = {"image": known.image_rows, "text": known.caption_rows}
    asked = {"image": data.pairs.image_rows, "text": data.pairs.caption_rows}
    sides = {"image": data.image, "text": data.text}
    features = {name: run_features(run, side, asked[name], constant_allowed=True) for name, side in sides.items()}
    taken = {name: rows[evenly(len(rows), BANK)] for name, rows in bank.items()}
    banked = {name: run_features(run, side, taken[name], constant_allowed=True) for name, side in sides.items()}
    found_by_seed = []
    for seed in run.seeds:
        image, text = (run.encode(name, features[name], seed) for name in ("image", "text"))
        near_image = _nearest_mean(image, run.encode("text", banked["text"], seed), k)
        near_text = _nearest_mean(text, run.encode("image", banked["image"], seed), k)
        left, right = scaled(image, text, near_image, near_text)
        found_by_seed.append(cross_ranks(left, right, torch.from_numpy(data.pairs.caption_image)))
    return {
        name: np.stack([ranks[side] for ranks in found_by_seed])
        for side, name in enumerate((TEXT_RETRIEVAL, IMAGE_RETRIEVAL))
    }


def _nearest_mean(items: Tensor, bank: Tensor, k: int) -> Tensor:
    return torch.cat([nearest_mean(block, bank, k) for block in torch.split(items, BLOCK)])

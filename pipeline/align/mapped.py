"""Pairs as memory-mapped files, so that worker processes read one copy of the features.

save_pairs(folder, pairs); pairs = load_pairs(folder)        # the second one in each worker
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pipeline.align.tensors import PairTensors

PARTS = ("image", "text", "starts")


def save_pairs(folder: Path, pairs: PairTensors) -> None:
    """Write pairs to image.npy, text.npy and starts.npy in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        np.save(folder / f"{name}.npy", getattr(pairs, name).cpu().numpy(), allow_pickle=False)


def load_pairs(folder: Path, device: torch.device | str = "cpu") -> PairTensors:
    """Return pairs that `save_pairs` wrote: on the CPU mapped, shared by all who map them until someone writes.

    Args:
        folder: Where they are.
        device: Where they go to.
    """
    return PairTensors(*(_mapped(folder / f"{name}.npy").to(device) for name in PARTS))


def _mapped(path: Path) -> Tensor:
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))

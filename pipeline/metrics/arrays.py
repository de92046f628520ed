"""Checked input of the metrics: any array or tensor in, a clear error where it makes no sense.

Used by every module of this package.
"""

from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError

Array: TypeAlias = NDArray[np.floating] | NDArray[np.integer] | NDArray[np.bool_] | Tensor


def matrix(values: Array, name: str, *, width: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a finite matrix [N, D] with N ≥ 1 as a tensor.

    Raises:
        UserError: Not two axes, no rows, another width than asked, or NaN or infinity inside.
    """
    tensor = torch.as_tensor(values).detach()
    if tensor.ndim != 2 or tensor.shape[0] == 0 or tensor.shape[1] == 0:
        raise UserError(expected=f"{name} of shape [N, D] with a row at least", found=f"shape {list(tensor.shape)}")
    if width is not None and tensor.shape[1] != width:
        raise UserError(expected=f"{name} of width {width}", found=f"width {tensor.shape[1]}")
    tensor = tensor.to(dtype)
    if not torch.isfinite(tensor).all():
        row = int((~torch.isfinite(tensor)).any(dim=1).nonzero()[0])
        raise UserError(
            expected=f"finite {name}",
            found=f"NaN or infinity, first in row {row}",
            remedy="look at the features' non-finite counts with `pipeline store ls --json`",
        )
    return tensor


def indices(values: Array, name: str, *, length: int | None = None, below: int) -> Tensor:
    """Return whole numbers [M] in 0..below-1 as an int64 tensor.

    Raises:
        UserError: Not whole numbers, another length than asked, or one out of range.
    """
    tensor = torch.as_tensor(values).detach()
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise UserError(expected=f"{name} as whole numbers [M]", found=f"{tensor.dtype} of shape {list(tensor.shape)}")
    if length is not None and len(tensor) != length:
        raise UserError(expected=f"{length} {name}", found=str(len(tensor)))
    tensor = tensor.long()
    if len(tensor) and not (int(tensor.min()) >= 0 and int(tensor.max()) < below):
        raise UserError(
            expected=f"{name} between 0 and {below - 1}", found=f"{int(tensor.min())} to {int(tensor.max())}"
        )
    return tensor


def check_count(value: int, name: str, *, low: int, high: int) -> int:
    """Return a whole number if it lies in low..high.

    Raises:
        UserError: It does not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        expected = f"{name} between {low} and {high}" if high >= low else f"more rows (none are left for {name})"
        raise UserError(expected=expected, found=repr(value))
    return int(value)


def is_constant(features: Tensor, tolerance: float = 1e-6) -> bool:
    """Say whether all rows of [N, D] are the same up to rounding."""
    return bool((features - features[:1]).abs().max() <= tolerance * max(float(features[0].abs().max()), 1e-12))

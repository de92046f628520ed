"""Small float64 batches of unit vectors."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

Cosines = Callable[..., Tensor]


@pytest.fixture
def cosines() -> Cosines:
    """Return a maker of [N, N] cosine similarities of random unit vectors, float64, a leaf with gradient."""

    def make(n: int = 7, width: int = 5, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        image = F.normalize(torch.randn(n, width, generator=generator, dtype=torch.float64), dim=1)
        text = F.normalize(torch.randn(n, width, generator=generator, dtype=torch.float64), dim=1)
        return (image @ text.T).requires_grad_()

    return make

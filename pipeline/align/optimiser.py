"""The optimiser of a run: torch's AdamW (arXiv 1711.05101), fused where torch can, with decay on matrices only."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

FUSED_ON = ("cpu", "cuda")
"""Devices on which torch makes a step of all parameters in one kernel: on a CPU a third of the time."""


def make_optimiser(
    parameters: Iterable[nn.Parameter], *, betas: Sequence[float], weight_decay: float
) -> torch.optim.AdamW:
    """Return AdamW over all that is learned; vectors and scalars are not decayed.

    Args:
        parameters: What is learned; those that want no gradient are left out.
        betas: β₁ and β₂.
        weight_decay: Decay of parameters with two axes or more.
    """
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in learned if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in learned if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    fused = all(parameter.device.type in FUSED_ON for parameter in learned)
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=(betas[0], betas[1]), fused=fused)


def set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of the next step."""
    for group in optimiser.param_groups:
        group["lr"] = rate

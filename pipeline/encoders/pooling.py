"""From tokens or maps to one vector a sample. Shapes: N samples, T tokens, D width, C channels, H×W places.

Prefix tokens are the class token and registers that stand before the patches. All sums run in float32.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """What must be known about [N, T, D] tokens to pool them."""

    mask: Tensor | None = None
    """[N, T], true where a real token stands; nothing where all are real."""
    prefix: int = 0
    """How many tokens stand before the patches (class token and registers)."""
    ends: Tensor | None = None
    """[N] position of the token that `eos` takes; nothing where the mask says it."""


def cls(tokens: Tensor, about: Tokens) -> Tensor:
    """Return the first real token, [N, D]."""
    if about.mask is None:
        return tokens[:, 0].clone()  # a view would keep all tokens alive
    return _pick(tokens, about.mask.to(torch.uint8).argmax(dim=1))


def eos(tokens: Tensor, about: Tokens) -> Tensor:
    """Return the token at the text's end, [N, D], whichever side the padding is on."""
    if about.ends is not None:
        return _pick(tokens, about.ends)
    if about.mask is None:
        return tokens[:, -1].clone()
    length = tokens.shape[1]
    return _pick(tokens, length - 1 - about.mask.flip(1).to(torch.uint8).argmax(dim=1))


def mean(tokens: Tensor, about: Tokens) -> Tensor:
    """Return the mean over all real tokens, [N, D]; what stands at padding does not count, not even NaN."""
    if about.mask is None:
        return tokens.mean(dim=1, dtype=torch.float32)
    mask = about.mask.bool().unsqueeze(-1)
    total = torch.where(mask, tokens, tokens.new_zeros(())).sum(dim=1, dtype=torch.float32)
    return total / mask.sum(dim=1).clamp(min=1)


def patch_mean(tokens: Tensor, about: Tokens) -> Tensor:
    """Return the mean over the patches, without prefix tokens, [N, D]."""
    return tokens[:, about.prefix :].mean(dim=1, dtype=torch.float32)


def cls_patch_mean(tokens: Tensor, about: Tokens) -> Tensor:
    """Return the class token and the mean over the patches side by side, [N, 2D]."""
    return torch.cat([cls(tokens, about).float(), patch_mean(tokens, about)], dim=1)


TOKEN_POOLS = {"cls": cls, "mean": mean, "eos": eos, "patch_mean": patch_mean, "cls+patch_mean": cls_patch_mean}


def global_average(maps: Tensor, *, channels_last: bool = False) -> Tensor:
    """Return the mean over all places of [N, C, H, W] (or [N, H, W, C]), [N, C]."""
    return maps.mean(dim=(1, 2) if channels_last else (2, 3), dtype=torch.float32)


def _pick(tokens: Tensor, positions: Tensor) -> Tensor:
    return tokens[torch.arange(len(tokens), device=tokens.device), positions.to(tokens.device)]

"""Between host and device: one copy in for a batch, one copy out for all layers."""

from collections.abc import Mapping

import torch
from torch import Tensor


def to_device(batch: Tensor, device: torch.device, *, channels_last: bool = False) -> Tensor:
    """Return a batch on the device; through pinned memory and without waiting where the device is a GPU."""
    moved = batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)
    return moved.contiguous(memory_format=torch.channels_last) if channels_last and moved.ndim == 4 else moved


def to_host(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return [N, D] float32 tensors on the CPU; all layers of a GPU cross in one copy."""
    ready = {name: tensor.float() for name, tensor in features.items()}
    if all(tensor.device.type == "cpu" for tensor in ready.values()):
        return {name: tensor.contiguous() for name, tensor in ready.items()}
    flat = torch.cat([tensor.reshape(-1) for tensor in ready.values()]).cpu()
    pieces = torch.split(flat, [tensor.numel() for tensor in ready.values()])
    return {name: piece.reshape(tensor.shape) for (name, tensor), piece in zip(ready.items(), pieces, strict=True)}

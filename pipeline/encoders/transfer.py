"""Between host and device: one copy in for a batch, one copy out for all layers, both through pinned memory."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Finish = Callable[[], dict[str, Tensor]]
"""Waits for features that are on their way, and returns them."""


def stacked(samples: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return samples of one shape as one batch on the host; in pinned memory where the device is a GPU."""
    if device.type != "cuda":
        return torch.stack(list(samples))
    batch = torch.empty((len(samples), *samples[0].shape), dtype=samples[0].dtype, pin_memory=True)
    return torch.stack(list(samples), out=batch)


def to_device(batch: Tensor, device: torch.device, *, channels_last: bool = False) -> Tensor:
    """Return a batch on the device; through pinned memory and without waiting where the device is a GPU."""
    moved = batch.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else batch.to(device)
    return moved.contiguous(memory_format=torch.channels_last) if channels_last and moved.ndim == 4 else moved


def to_host(features: Mapping[str, Tensor]) -> Finish:
    """Start to copy [N, D] features to the CPU as float32; a GPU goes on with what comes next, in one copy for all."""
    ready = {name: tensor.float() for name, tensor in features.items()}
    if any(tensor.device.type == "cuda" for tensor in ready.values()):
        return _from_gpu(ready)
    here = {name: tensor.cpu().contiguous() for name, tensor in ready.items()}
    return lambda: here


def _from_gpu(ready: Mapping[str, Tensor]) -> Finish:
    flat = torch.cat([tensor.reshape(-1) for tensor in ready.values()])
    host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
    host.copy_(flat, non_blocking=True)
    copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(flat.device))
    shapes = {name: tensor.shape for name, tensor in ready.items()}

    def finish() -> dict[str, Tensor]:
        copied.synchronize()
        pieces = torch.split(host.clone(), [shape.numel() for shape in shapes.values()])  # pinned memory is scarce
        return {name: piece.reshape(shape) for (name, shape), piece in zip(shapes.items(), pieces, strict=True)}

    return finish

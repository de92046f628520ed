"""Whether code says on which device its tensors are made, without a second device to try it on."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

_MAKERS = {
    getattr(torch, name)
    for name in ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm", "zeros")
}


class Placed(TorchFunctionMode):
    """Within it a tensor that is made, or moved, without a device fails: beside a GPU it would lie in the wrong place.

    What follows another tensor (`new_zeros`, `zeros_like`) lies where that one lies, and is left alone.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Fail where no device is named, and call the function otherwise."""
        kwargs = kwargs or {}
        if func in _MAKERS:
            assert kwargs.get("device") is not None, f"{func.__name__} names no device"
        if func in (torch.as_tensor, torch.tensor) and not isinstance(args[0], torch.Tensor):
            assert kwargs.get("device") is not None, f"{func.__name__} names no device"
        if func is torch.Tensor.to:
            assert args[1] is not None, "to(None) moves nothing"
        return func(*args, **kwargs)

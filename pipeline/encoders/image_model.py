"""Image encoders on torch: the transform prepares, stacking collates. Families subclass it with their `_output`."""

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.encoders.base import LoadOptions
from pipeline.encoders.pooling import Tokens
from pipeline.encoders.torch_encoder import Batch, Plan, TorchEncoder
from pipeline.encoders.transform import ImageTransform
from pipeline.errors import UserError


class ImageModel(TorchEncoder):
    """A torch model of images.

    Args:
        spec: The encoder as the user named it.
        model: The model.
        plan: What the family says about it.
        options: What the user asked for.
        transform: From RGB image to [3, H, W].
        prefix: Tokens that stand before the patches.
    """

    def __init__(
        self,
        spec: str,
        model: nn.Module,
        plan: Plan,
        options: LoadOptions,
        *,
        transform: ImageTransform,
        prefix: int = 0,
    ) -> None:
        self.transform = transform
        self._tokens = Tokens(prefix=prefix)
        super().__init__(spec, model, plan, options)

    def prepare(self, sample: Image.Image | str) -> Tensor:
        """Turn an RGB image into [3, H, W].

        Raises:
            UserError: The sample is a text, or the image is not RGB.
        """
        if isinstance(sample, str):
            raise UserError(expected="an image", found="a text", where=self.spec)
        return self.transform(sample)

    def reduction(self, width: int, height: int) -> int:
        """Return how many times smaller a JPEG may be decoded: the transform says."""
        return self.transform.reduction(width, height)

    def _collate(self, prepared: Sequence[Tensor]) -> Batch:
        return Batch(inputs={"x": self._images(prepared)}, tokens=self._tokens)

    def _sample(self) -> Tensor:
        return torch.zeros(3, *self.transform.output_size)


def token_pools(*, has_class_token: bool) -> tuple[str, ...]:
    """Return the poolings that a transformer of patches can do."""
    if has_class_token:
        return ("cls", "mean", "patch_mean", "cls+patch_mean")
    return ("mean", "patch_mean")

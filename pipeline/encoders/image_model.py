"""Image encoders on torch: the transform prepares, stacking collates. Families subclass it with their `_output`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from pipeline.encoders.base import Modality
from pipeline.encoders.pooling import Tokens
from pipeline.encoders.torch_encoder import Batch, ModelInfo, TorchEncoder, stacked, to_device
from pipeline.encoders.transform import ImageTransform
from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ImageInfo(ModelInfo):
    """What a family says about one model of images."""

    modality: Modality = "image"
    transform: ImageTransform
    """From RGB image to [3, H, W]."""
    prefix: int = 0
    """Tokens that stand before the patches."""


class ImageModel(TorchEncoder):
    """A torch model of images."""

    info: ImageInfo

    def prepare(self, sample: Image.Image | str) -> Tensor:
        """Turn an RGB image into [3, H, W].

        Raises:
            UserError: The sample is a text, or the image is not RGB.
        """
        if isinstance(sample, str):
            raise UserError(expected="an image", found="a text", where=self.spec)
        return self.info.transform(sample)

    def reduction(self, width: int, height: int) -> int:
        """Return how many times smaller a JPEG may be decoded: the transform says."""
        return self.info.transform.reduction(width, height)

    def _collate(self, prepared: Sequence[Tensor]) -> Batch:
        images = to_device(stacked(prepared, self.device), self.device, channels_last=self.info.maps)
        return Batch(inputs={"x": images}, tokens=Tokens(prefix=self.info.prefix))

    def _sample(self) -> Tensor:
        return torch.zeros(3, *self.info.transform.output_size)


def token_pools(*, has_class_token: bool) -> tuple[str, ...]:
    """Return the poolings that a transformer of patches can do."""
    if has_class_token:
        return ("cls", "mean", "patch_mean", "cls+patch_mean")
    return ("mean", "patch_mean")

"""Image encoders on torch: a transform prepares, stacking collates. Families subclass `ImageModel`.

Resizing is PIL's (antialiased), as timm, open_clip and the PIL processors of transformers do it; the numbers equal
theirs. The transform's fields are also the preprocessing part of the key.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.encoders.base import Modality
from pipeline.encoders.torch_encoder import Batch, ModelInfo, Tokens, TorchEncoder, stacked, to_device
from pipeline.errors import UnknownNameError, UserError

INTERPOLATIONS = dict(zip(map(str.lower, Image.Resampling.__members__), Image.Resampling, strict=True))

MARGIN = 2
"""How many times the aim of the resize, each way, a reduced picture keeps at least, as Pillow's thumbnails do."""
REDUCED = "reduced"
"""Where `Image.info` holds a `Reduced`."""

Colour = tuple[float, ...]
"""One number a channel: red, green, blue."""
Resize = Literal["shortest", "longest", "squash", "none"]


@dataclass(frozen=True, kw_only=True)
class Reduced:
    """What a picture was that has been decoded at 1/2, 1/4 or 1/8 of its size."""

    width: int
    """Pixels of the whole picture."""
    height: int
    """Pixels of the whole picture."""
    times: int
    """How many times smaller it was decoded; edges are rounded up."""

    def fits(self, image: Image.Image) -> bool:
        """Return whether an image is that picture still, not cropped or resized since."""
        return image.size == (-(-self.width // self.times), -(-self.height // self.times))


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """Resize, centre crop, divide, subtract the mean, divide by the deviation."""

    resize: Resize
    """Which edge is brought to `size`: the shorter, the longer, each by itself, or none."""
    size: tuple[int, int]
    """Height and width that the resize aims at."""
    crop: tuple[int, int] | None = None
    """Height and width of the centre crop; smaller images are padded with `fill`."""
    rounding: Literal["round", "floor"] = "round"
    """Where the crop starts when the margin is odd: torchvision rounds to even, transformers rounds down."""
    interpolation: str = "bicubic"
    """One of `INTERPOLATIONS`."""
    mean: Colour = (0.0, 0.0, 0.0)
    """Subtracted from each channel after the division."""
    std: Colour = (1.0, 1.0, 1.0)
    """Divides each channel."""
    divisor: float = 255.0
    """Divides the 8-bit values first."""
    fill: tuple[int, ...] = (0, 0, 0)
    """Colour of the padding, 8 bit."""

    def __post_init__(self) -> None:
        if self.interpolation not in INTERPOLATIONS:
            raise UnknownNameError("interpolation", self.interpolation, INTERPOLATIONS, "image transform")
        if min(*self.size, *(self.crop or (1, 1))) < 1:
            raise UserError(
                expected="sizes of 1 pixel or more", found=f"{self.size} and {self.crop}", where="image transform"
            )
        if min(self.std) <= 0 or self.divisor <= 0:
            raise UserError(expected="a deviation above 0", found=f"{self.std}", where="image transform")
        if self.resize in ("shortest", "longest", "none") and self.crop is None:
            raise UserError(
                expected="a crop, so that all images come out at one size",
                found=f"resize {self.resize!r} without one",
                where="image transform",
            )

    @property
    def output_size(self) -> tuple[int, int]:
        """Height and width of what comes out."""
        return self.crop or self.size

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, for the key."""
        fields = asdict(self).items()
        values = {name: list(value) if isinstance(value, tuple) else value for name, value in fields}
        return {"library": "PIL", "antialias": True, **values}

    def reduction(self, width: int, height: int) -> int:
        """Return how many times smaller a picture may come: 8, 4, 2, or 1 where the resize would not hide it."""
        if self.interpolation == "nearest":
            return 1
        aim_height, aim_width = self._target(height, width)
        least = min(width // (MARGIN * aim_width), height // (MARGIN * aim_height))
        return next((times for times in (8, 4, 2) if times <= least), 1)

    def __call__(self, image: Image.Image) -> Tensor:
        """Return [3, H, W] float32; an image that came reduced is resized to where the whole one would be.

        Raises:
            UserError: The image is not RGB.
        """
        if image.mode != "RGB":
            raise UserError(expected="an RGB image", found=f"mode {image.mode!r}", where="image transform")
        pixels = np.array(self._cropped(self._resized(image)))
        tensor = torch.from_numpy(pixels).permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
        mean, std = torch.tensor(self.mean)[:, None, None], torch.tensor(self.std)[:, None, None]
        return tensor.div_(self.divisor).sub_(mean).div_(std)

    def _resized(self, image: Image.Image) -> Image.Image:
        before = image.info.get(REDUCED)
        if not isinstance(before, Reduced) or not before.fits(image):  # files carry notes of any name
            before = Reduced(width=image.width, height=image.height, times=1)
        height, width = self._target(before.height, before.width)
        if (height, width) == (image.height, image.width):
            return image
        box = (0, 0, before.width / before.times, before.height / before.times)
        return image.resize((width, height), INTERPOLATIONS[self.interpolation], box=box)

    def _target(self, height: int, width: int) -> tuple[int, int]:
        """Return the size after resizing; a square aim cuts the longer edge's fraction off, any other rounds it."""
        if self.resize == "none":
            return height, width
        if self.resize == "squash":
            return self.size
        if self.resize == "shortest" and self.size[0] == self.size[1]:
            edge, short = self.size[0], min(height, width)
            return int(edge * height / short), int(edge * width / short)
        ratios = height / self.size[0], width / self.size[1]
        ratio = min(ratios) if self.resize == "shortest" else max(ratios)
        return max(1, round(height / ratio)), max(1, round(width / ratio))

    def _cropped(self, image: Image.Image) -> Image.Image:
        if self.crop is None or self.crop == (image.height, image.width):
            return image
        top, left = (self._offset(*edges) for edges in zip((image.height, image.width), self.crop, strict=True))
        canvas = Image.new("RGB", (self.crop[1], self.crop[0]), self.fill)
        canvas.paste(image, (-left, -top))
        return canvas

    def _offset(self, edge: int, crop: int) -> int:
        if self.rounding == "floor":
            return (edge - crop) // 2
        return round((edge - crop) / 2) if edge >= crop else -((crop - edge) // 2)


def colour(values: Any) -> Colour:
    """Return one number a channel, of a sequence or of one number for all three."""
    return tuple(np.broadcast_to(values, 3).astype(float).tolist())


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


def made_up(size: tuple[int, int]) -> Tensor:
    """Return two made-up images, [2, 3, H, W]: noise, the same every time."""
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))


def token_pools(*, has_class_token: bool) -> tuple[str, ...]:
    """Return the poolings that a transformer of patches can do."""
    if has_class_token:
        return ("cls", "mean", "patch_mean", "cls+patch_mean")
    return ("mean", "patch_mean")

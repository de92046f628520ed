"""Image transforms from the image processors of transformers, proven on a made-up image before they are used."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline.encoders.transform import INTERPOLATIONS, Colour, ImageTransform, Resize
from pipeline.encoders.transform_sources import colour
from pipeline.errors import UserError


def from_processor(processor: Any, *, where: str) -> ImageTransform:
    """Return the transform that does what a processor does.

    Args:
        processor: An image processor with the PIL backend.
        where: The encoder, for errors.

    Raises:
        UserError: The processor does something that a transform cannot do.
    """
    size, crop = _size(processor), _crop(processor)
    if "shortest_edge" in size and getattr(processor, "crop_pct", None):
        transform = _convnext(processor, int(size["shortest_edge"]))
    elif not processor.do_resize or set(size) == {"shortest_edge"}:
        if crop is None:
            raise UserError(expected="images of one size", found=f"{processor.size} without a crop", where=where)
        edge = int(size.get("shortest_edge", 1))
        resize: Resize = "shortest" if processor.do_resize else "none"
        transform = ImageTransform(resize=resize, size=(edge, edge), crop=crop, **_rest(processor))
    elif {"height", "width"} <= set(size):
        aim = (int(size["height"]), int(size["width"]))
        transform = ImageTransform(resize="squash", size=aim, crop=crop, **_rest(processor))
    else:
        raise UserError(expected="a size of height and width, or of the shortest edge", found=str(size), where=where)
    return _proven(transform, processor, where)


def _convnext(processor: Any, edge: int) -> ImageTransform:
    """Return ConvNeXt's own rule: up to 384 pixels resize to edge / crop_pct and crop, above that squash."""
    if edge >= 384:
        return ImageTransform(resize="squash", size=(edge, edge), **_rest(processor))
    larger = int(edge / processor.crop_pct)
    return ImageTransform(resize="shortest", size=(larger, larger), crop=(edge, edge), **_rest(processor))


def _size(processor: Any) -> dict[str, int]:
    size = processor.size
    return {name: value for name, value in dict(size or {}).items() if value}


def _crop(processor: Any) -> tuple[int, int] | None:
    if not getattr(processor, "do_center_crop", False):
        return None
    crop = dict(processor.crop_size)
    return int(crop["height"]), int(crop["width"])


def _rest(processor: Any) -> dict[str, Any]:
    names = {int(value): name for name, value in INTERPOLATIONS.items()}
    normalise = bool(processor.do_normalize)
    mean: Colour = colour(processor.image_mean) if normalise else (0.0, 0.0, 0.0)
    std: Colour = colour(processor.image_std) if normalise else (1.0, 1.0, 1.0)
    return {
        "rounding": "floor",
        "interpolation": names[int(processor.resample)] if processor.resample is not None else "bilinear",
        "mean": mean,
        "std": std,
        "divisor": round(1 / processor.rescale_factor, 9) if processor.do_rescale else 1.0,
    }


def _proven(transform: ImageTransform, processor: Any, where: str) -> ImageTransform:
    height, width = transform.output_size
    pixels = np.random.default_rng(0).integers(0, 256, (2 * height + 3, 3 * width + 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    theirs = torch.as_tensor(np.asarray(processor(image, return_tensors="np")["pixel_values"][0]))
    ours = transform(image)
    if theirs.shape != ours.shape or not torch.allclose(theirs.float(), ours, atol=1e-4):
        raise UserError(
            expected="an image processor that resizes, crops and normalises",
            found=f"{type(processor).__name__}, which does something else",
            where=where,
            remedy="write an encoder of your own (module:Class) around it",
        )
    return transform

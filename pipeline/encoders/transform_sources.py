"""Image transforms from what libraries say: timm's data config, open_clip's preprocess config."""

import math
from collections.abc import Mapping
from typing import Any

from pipeline.encoders.transform import Colour, ImageTransform, Resize


def from_timm(config: Mapping[str, Any]) -> ImageTransform:
    """Return timm's evaluation transform of a data config (`timm.data.resolve_model_data_config`)."""
    height, width = (int(edge) for edge in config["input_size"][1:])
    percent = float(config.get("crop_pct") or 0.875)
    mode = str(config.get("crop_mode") or "center")
    resizes: dict[str, Resize] = {"squash": "squash", "border": "longest"}
    mean = colour(config["mean"])
    return ImageTransform(
        resize=resizes.get(mode, "shortest"),
        size=(math.floor(height / percent), math.floor(width / percent)),
        crop=(height, width),
        interpolation=str(config["interpolation"]),
        mean=mean,
        std=colour(config["std"]),
        fill=_fill([round(255 * value) for value in mean]) if mode == "border" else (0, 0, 0),
    )


def from_open_clip(config: Mapping[str, Any]) -> ImageTransform:
    """Return open_clip's evaluation transform of a preprocess config (`model.visual.preprocess_cfg`)."""
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1]))
    resize: Resize = config.get("resize_mode") or "shortest"
    bilinear = config.get("interpolation") == "bilinear" and (resize != "shortest" or height == width)
    return ImageTransform(
        resize=resize,
        size=(height, width),
        crop=(height, width),
        interpolation="bilinear" if bilinear else "bicubic",
        mean=colour(config["mean"]),
        std=colour(config["std"]),
        fill=_fill([config.get("fill_color") or 0] * 3) if resize == "longest" else (0, 0, 0),
    )


def colour(values: Any) -> Colour:
    """Return one number a channel."""
    red, green, blue = [values] * 3 if isinstance(values, (int, float)) else values
    return float(red), float(green), float(blue)


def _fill(values: list[int]) -> tuple[int, int, int]:
    red, green, blue = values
    return red, green, blue

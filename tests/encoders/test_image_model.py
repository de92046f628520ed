"""Image transforms give the pixels of timm's, open_clip's and transformers' own, on all sorts of shapes."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.encoders.hf_family import from_processor
from pipeline.encoders.image_model import ImageTransform
from pipeline.encoders.libraries import import_library
from pipeline.encoders.open_clip_family import from_open_clip
from pipeline.encoders.timm_family import from_timm
from pipeline.errors import UnknownNameError, UserError

SHAPES = [(80, 61), (33, 95), (64, 64), (20, 31), (31, 20), (257, 40)]
COLOURS: dict[str, Any] = {"mean": (0.48, 0.45, 0.4), "std": (0.22, 0.23, 0.24)}


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def image(request: pytest.FixtureRequest) -> Image.Image:
    height, width = request.param
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@pytest.mark.parametrize("size", [(32, 32), (33, 33), (24, 40)], ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_timm(image: Image.Image, mode: str, size: tuple[int, int], interpolation: str) -> None:
    config = {
        "input_size": (3, *size),
        "crop_pct": 0.875,
        "crop_mode": mode,
        "interpolation": interpolation,
        **COLOURS,
    }
    theirs = import_library("timm.data").create_transform(**config, is_training=False)(image)
    torch.testing.assert_close(from_timm(config)(image), theirs, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("size", [32, (24, 40)], ids=str)
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_open_clip(image: Image.Image, mode: str, size: int | tuple[int, int], interpolation: str) -> None:
    config = {"size": size, "resize_mode": mode, "interpolation": interpolation, "fill_color": 0, **COLOURS}
    library = import_library("open_clip.transform")
    cfg = library.PreprocessCfg(**config)
    theirs = library.image_transform_v2(cfg, is_train=False)(image)
    torch.testing.assert_close(from_open_clip(config)(image), theirs, rtol=0, atol=0)


PROCESSORS: list[tuple[str, dict[str, Any]]] = [
    ("BitImageProcessorPil", {"size": {"shortest_edge": 37}, "crop_size": {"height": 32, "width": 32}, "resample": 3}),
    ("CLIPImageProcessorPil", {"size": {"shortest_edge": 24}, "crop_size": {"height": 33, "width": 31}}),
    ("ViTImageProcessorPil", {"size": {"height": 32, "width": 40}, "resample": 2}),
    ("ViTImageProcessorPil", {"size": {"height": 32, "width": 32}, "do_normalize": False}),
    ("SiglipImageProcessorPil", {"size": {"height": 30, "width": 30}}),
    ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 32}, "crop_pct": 0.875}),
    ("ConvNextImageProcessorPil", {"size": {"shortest_edge": 384}}),
    (
        "BitImageProcessorPil",
        {"do_resize": False, "crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 1}},
    ),
]


@pytest.mark.parametrize(("kind", "arguments"), PROCESSORS)
def test_transformers(image: Image.Image, kind: str, arguments: dict[str, Any]) -> None:
    processor = getattr(import_library("transformers"), kind)(**arguments)
    theirs = torch.from_numpy(np.asarray(processor(image, return_tensors="np")["pixel_values"][0], dtype=np.float32))
    torch.testing.assert_close(from_processor(processor, where="here")(image), theirs, rtol=1e-5, atol=1e-5)


def test_a_processor_without_one_size_is_refused() -> None:
    processor = import_library("transformers").BitImageProcessorPil(size={"shortest_edge": 32}, do_center_crop=False)
    with pytest.raises(UserError, match="images of one size"):
        from_processor(processor, where="here")


def test_a_processor_that_does_more_is_refused() -> None:
    class Darker:
        def __init__(self) -> None:
            inner = import_library("transformers").ViTImageProcessorPil(size={"height": 32, "width": 32})
            self.__dict__.update(vars(inner))
            self.inner = inner

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

        def __call__(self, image: Image.Image, **options: Any) -> Any:
            return self.inner(image.point(lambda value: value / 2), **options)

    with pytest.raises(UserError, match="Darker, which does something else"):
        from_processor(Darker(), where="here")


def test_only_rgb_comes_in() -> None:
    transform = ImageTransform(resize="squash", size=(8, 8))
    with pytest.raises(UserError, match="expected an RGB image, found mode 'L'"):
        transform(Image.new("L", (9, 9)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": (0, 8)}, "sizes of 1 pixel"),
        ({"std": (0.0, 1.0, 1.0)}, "deviation above 0"),
        ({"resize": "shortest"}, "expected a crop"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        dataclasses.replace(ImageTransform(resize="squash", size=(8, 8)), **change)


def test_an_unknown_interpolation_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="bicubic"):
        ImageTransform(resize="squash", size=(8, 8), interpolation="cubic")


def test_every_field_is_in_the_key() -> None:
    transform = ImageTransform(resize="squash", size=(8, 8))
    assert {field.name for field in dataclasses.fields(transform)} <= set(transform.to_json())

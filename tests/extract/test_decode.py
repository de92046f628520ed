"""Every kind of broken image is rejected with its reason; what can be converted in one way is."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from pipeline.encoders.image_model import REDUCED, Reduced
from pipeline.errors import RejectedInputError
from pipeline.extract.decode import decode_bytes, decode_image
from tests.extract.building import encoded, picture


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, bits: int, rows: bytes) -> bytes:
    """Return a PNG of RGB pixels whose header may promise more than its rows hold."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def animated(kind: str) -> bytes:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    return encoded(frames[0], kind, save_all=True, append_images=frames[1:])


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.new("RGB", (6, 4), "red"), "JPEG", exif=exif)


BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty"),
    "text": (b"<html>404</html>", "not an image"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    "truncated jpeg": (picture(1, 64, "JPEG")[:900], "damaged"),
    "truncated png": (picture(1, 64)[:900], "damaged"),
    "truncated header": (picture(1)[:20], "damaged|not an image"),
    "bomb": (png(20000, 20000, 8, b"\0"), "decompression bomb"),
    "bomb that Pillow warns of": (png(10000, 10000, 8, b"\0"), "decompression bomb"),
    "animated gif": (animated("GIF"), "animated"),
    "animated png": (animated("PNG"), "animated"),
    "animated webp": (animated("WEBP"), "animated"),
    "pages": (animated("TIFF"), "pages"),
    "cmyk": (encoded(Image.new("CMYK", (4, 4)), "JPEG"), "CMYK"),
    "16 bit grey": (encoded(Image.fromarray(np.zeros((4, 4), np.uint16))), "8 bits"),
    "16 bit colour": (png(2, 2, 16, 2 * bytes(13)), "8 bits"),
    "float": (encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF"), "8 bits"),
    "turned": (turned(), "orientation 6"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_rejected_with_its_reason(tmp_path: Path, name: str) -> None:
    data, reason = BROKEN[name]
    path = tmp_path / "image"
    path.write_bytes(data)
    with pytest.raises(RejectedInputError, match=reason):
        decode_image(path)


def claiming(data: bytes, width: int, height: int) -> bytes:
    """Return a JPEG whose frame header says another size."""
    place = next(at for at in (data.find(b"\xff\xc0"), data.find(b"\xff\xc2")) if at > 0) + 5
    return data[:place] + struct.pack(">HH", height, width) + data[place + 4 :]


@pytest.mark.parametrize("times", [1, 2, 8])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 2}, {"subsampling": 0}])
@pytest.mark.parametrize("size", [(260, 300), (300, 260)])
def test_a_header_that_claims_more_than_its_data_hold(
    size: tuple[int, int], options: dict[str, object], times: int
) -> None:
    """The data are of 260 × 260 pixels; libjpeg would make up the others in grey, and Pillow say nothing."""
    pixels = np.random.default_rng(1).integers(0, 256, (260, 260, 3), np.uint8)
    data = encoded(Image.fromarray(pixels), "JPEG", **options)
    assert decode_bytes(data, lambda *_: times).width == -(-260 // times)
    with pytest.raises(RejectedInputError, match=f"damaged: its data end before its {size[0]} × {size[1]} pixels do"):
        decode_bytes(claiming(data, *size), lambda *_: times)


def test_a_header_that_claims_a_thousand_times_its_data() -> None:
    with pytest.raises(RejectedInputError, match="damaged: its data end before its 9000 × 9000 pixels do"):
        decode_bytes(claiming(picture(1, 260, "JPEG"), 9000, 9000), lambda *_: 8)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_cut_jpeg_to_which_an_end_was_put_is_damaged(mode: str) -> None:
    data = encoded(Image.effect_noise((200, 200), 90).convert(mode), "JPEG")
    with pytest.raises(RejectedInputError, match="damaged: its data end before its 200 × 200 pixels do"):
        decode_bytes(data[: len(data) // 2] + b"\xff\xd9")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_rows": 1}, {"optimize": True}])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_picture_that_is_grey_at_its_foot_is_sound(mode: str, options: dict[str, object]) -> None:
    """Pictures are often padded with this very grey until they are square."""
    image = Image.new(mode, (99, 99), (128,) * 3 if mode == "RGB" else 128)
    image.paste(Image.effect_noise((99, 40), 90).convert(mode))
    data = encoded(image, "JPEG", **options)
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert expected.getpixel((5, 98)) == (128, 128, 128)
    for times in (2, 4, 8):
        assert decode_bytes(data, lambda *_, times=times: times).width == -(-99 // times)
    for tail in (b"", b"\0" * 9, b"video"):
        assert decode_bytes(data + tail).tobytes() == expected.tobytes()


@pytest.mark.parametrize("size", [(1, 20_000), (60_000, 1), (2, 2_001)])
def test_a_thread_of_pixels_is_rejected(size: tuple[int, int]) -> None:
    """Its file has a few hundred bytes; scaled until its shorter edge is 256 it would take gigabytes."""
    with pytest.raises(RejectedInputError, match=r"one edge is more than 1000 times the other"):
        decode_bytes(encoded(Image.new("RGB", size), "PNG"))
    assert decode_bytes(encoded(Image.new("RGB", (2, 2000)), "PNG")).size == (2, 2000)


def test_a_pipe_among_the_pictures_is_rejected(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "picture.jpg")
    with pytest.raises(RejectedInputError, match="it is a pipe or a device"):
        decode_image(tmp_path / "picture.jpg")


def test_a_missing_file_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(RejectedInputError, match="cannot be read: No such file"):
        decode_image(tmp_path / "none.png")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.png"
    path.write_bytes(encoded(Image.new("RGB", (5, 3), (255, 255, 255)).convert(mode)))
    image = decode_image(path)
    assert image.mode == "RGB"
    assert image.size == (5, 3)
    assert image.getpixel((2, 1)) == (255, 255, 255)


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
    layered = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    layered.putpixel((1, 0), (0, 0, 0, 0))
    path = tmp_path / "image.png"
    path.write_bytes(encoded(layered))
    image = decode_image(path)
    assert [image.getpixel((column, 0)) for column in range(2)] == [(10, 20, 30), (255, 255, 255)]


def test_a_transparent_palette_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.putpixel((1, 0), 1)
    path = tmp_path / "image.gif"
    path.write_bytes(encoded(image, "GIF", transparency=0))
    found = decode_image(path)
    assert [found.getpixel((column, 0)) for column in range(2)] == [(255, 255, 255), (200, 0, 0)]


LAYERED = np.random.default_rng(4).integers(0, 256, (6, 5, 4), np.uint8)
"""Any colour at any opacity [6, 5, RGBA]."""


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("RGBA", "PNG"), ("LA", "PNG"), ("PA", "PNG"), ("RGBA", "WEBP"), ("RGBA", "AVIF"), ("RGBA", "TIFF")],
)
def test_half_transparent_pixels_are_mixed_with_white(mode: str, kind: str) -> None:
    """The oracle is the formula of `over` on white, in floating point, of what Pillow itself says the pixels are."""
    image = Image.fromarray(LAYERED)
    if mode == "PA":  # a palette whose every colour has an opacity of its own, as `pngquant` writes it
        image = image.quantize(16, method=Image.Quantize.FASTOCTREE)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(image if mode == "PA" else image.convert(mode), kind, **options)
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA")).astype(float)
    opacity = pixels[..., 3:] / 255
    assert len(np.unique(opacity)) > 2, "some pixels are neither clear nor opaque"
    expected = pixels[..., :3] * opacity + 255 * (1 - opacity)
    assert np.abs(np.asarray(decode_bytes(data)).astype(float) - expected).max() <= 1


def test_a_colour_that_means_transparent_becomes_white() -> None:
    """PNG's tRNS chunk for greyscale and RGB names one colour."""
    for mode, clear, kept in (("RGB", (9, 8, 7), (1, 2, 3)), ("L", 9, 4)):
        image = Image.new(mode, (2, 1), clear)
        image.putpixel((1, 0), kept)
        found = decode_bytes(encoded(image, "PNG", transparency=clear))
        assert found.getpixel((0, 0)) == (255, 255, 255)
        assert found.getpixel((1, 0)) == (kept if mode == "RGB" else (kept,) * 3)


def heif(image: Image.Image, **options: object) -> bytes:
    pytest.importorskip("pillow_heif").register_heif_opener()
    return encoded(image, "HEIF", quality=-1, **options)


def test_heic_gives_what_its_own_reader_gives() -> None:
    """The library pillow-heif alone is the oracle."""
    data = heif(Image.fromarray(LAYERED[..., :3]).resize((64, 48)))
    own = pytest.importorskip("pillow_heif").read_heif(io.BytesIO(data)).to_pillow().convert("RGB")
    assert decode_bytes(data).tobytes() == own.tobytes()


def test_a_layered_heic_is_laid_on_white() -> None:
    data = heif(Image.new("RGBA", (64, 64), (10, 20, 30, 0)))
    assert np.asarray(decode_bytes(data)).min() >= 254


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_heic_is_turned_once(orientation: int) -> None:
    """As phones write it: HEIF's own boxes and EXIF say the same, and the decoder follows the boxes."""
    upright = Image.fromarray(np.kron(LAYERED[:3, :2, :3], np.ones((32, 32, 1), np.uint8)))  # 96 × 64 in large squares
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    stored = ImageOps.exif_transpose(Image.open(io.BytesIO(encoded(upright, exif=oriented(inverse)))))
    data = heif(stored.convert("RGB"), exif=oriented(orientation).tobytes())
    found = decode_bytes(data, turn=True)
    assert found.size == upright.size
    assert np.abs(np.asarray(found).astype(int) - np.asarray(upright)).mean() < 8
    if orientation > 1:
        with pytest.raises(RejectedInputError, match=f"stored turned or mirrored .EXIF orientation {orientation}"):
            decode_bytes(data)


def oriented(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def test_heic_of_ten_bits_is_rejected() -> None:
    data = heif(Image.fromarray(np.full((16, 16), 999, np.uint16)))
    with pytest.raises(RejectedInputError, match="more than 8 bits a channel"):
        decode_bytes(data)


def test_a_cut_heic_is_damaged() -> None:
    data = heif(Image.fromarray(LAYERED[..., :3]).resize((64, 48)))
    for length in (40, len(data) // 2, len(data) - 9):
        with pytest.raises(RejectedInputError, match=r"damaged|not an image"):
            decode_bytes(data[:length])


def test_avif_is_pillow_s_own_and_turned_once() -> None:
    upright = Image.fromarray(np.kron(LAYERED[:3, :2, :3], np.ones((32, 32, 1), np.uint8)))
    data = encoded(upright.transpose(Image.Transpose.ROTATE_90), "AVIF", exif=oriented(6), quality=95)
    found = decode_bytes(data, turn=True)
    assert found.size == upright.size
    assert np.abs(np.asarray(found).astype(int) - np.asarray(upright)).mean() < 8


def test_pixels_of_an_rgb_file_are_pillow_s_own(tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(picture(3, 32, "JPEG"))
    expected = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))
    np.testing.assert_array_equal(np.asarray(decode_image(path)), expected)


@pytest.mark.parametrize("orientation", range(10))
def test_a_query_is_turned_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.effect_noise((16, 8), 90).convert("RGB"), "PNG", exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = ImageOps.exif_transpose(image)
    turned_image = decode_bytes(data, turn=True)
    assert turned_image.size == upright.size
    assert turned_image.tobytes() == upright.convert("RGB").tobytes()


def test_a_tiff_is_turned_once() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8))
    data = encoded(upright.transpose(Image.Transpose.ROTATE_90), "TIFF", exif=exif)
    turned_image = decode_bytes(data, turn=True)
    assert turned_image.size == upright.size
    assert turned_image.tobytes() == upright.tobytes()


def test_the_rule_of_reduction_is_asked_about_the_upright_picture() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    asked: list[tuple[int, int]] = []

    def rule(width: int, height: int) -> int:
        asked.append((width, height))
        return 1

    decode_bytes(encoded(Image.new("RGB", (64, 32), "red"), "JPEG", exif=exif), rule, turn=True)
    assert asked == [(32, 64)]


def test_a_turned_picture_decoded_smaller_says_what_it_was() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = decode_bytes(encoded(Image.new("RGB", (64, 32), "red"), "JPEG", exif=exif), lambda *_: 2, turn=True)
    assert image.size == (16, 32)
    assert image.info[REDUCED] == Reduced(width=32, height=64, times=2)


def test_the_limit_of_pixels_can_be_lower() -> None:
    data = encoded(Image.new("RGB", (10, 10)))
    assert decode_bytes(data, max_pixels=100).size == (10, 10)
    with pytest.raises(RejectedInputError, match=r"10 × 10 pixels \(limit 99\)"):
        decode_bytes(data, max_pixels=99)

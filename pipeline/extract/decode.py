"""Open an image file that may be broken, as RGB; what is wrong with it becomes a sentence for rejected.csv.

Rejected, because a guess would change features in silence: truncated or empty files, more than `MAX_PIXELS` (a
decompression bomb), one edge more than `MAX_ASPECT` times the other (gigabytes once it is resized), several frames,
CMYK and other colour spaces, more than 8 bits a channel. Converted, because there is one way to do it: palettes,
greyscale and black-and-white to RGB, transparency onto white, photographs upright as their EXIF orientation says (with
`--exif reject` they are rejected). HEIC takes the package pillow-heif, and is rejected without it.

With `--jpeg reduced`, JPEGs much larger than what the encoder resizes to are decoded at 1/2, 1/4 or 1/8 of their size
(libjpeg's scaled inverse transform), as long as twice the aim of the resize is left each way. Photographs of 1024 to
3024 pixels on the shorter edge, one core, target 256: decoded and resized 1.9 to 6.9 times as fast; afterwards pixels
differ by 0.2 to 0.9 of 255 in the mean (15 at most), and the cosine between the embeddings of EfficientNet-Lite0 is
0.9966 to 0.9999 (0.9995 in the middle; JPEG quality 90 against 95: also 0.9995). So the default is `exact`, the
library's own numbers.
"""

import io
import warnings
from collections.abc import Callable
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pipeline.encoders.image_model import REDUCED, Reduced
from pipeline.errors import RejectedInputError, machine_error
from pipeline.extract.config import TURNED
from pipeline.files import is_endless
from pipeline.heif import INSTALL, START, is_heif, register

DECODE_VERSION = 2
"""Part of the feature key: raised whenever the same file would give other pixels or another verdict."""
JPEG_RULES = {"exact": "exact", "reduced": "1/2, 1/4, 1/8 while twice the aim of the resize is left"}
"""What `--jpeg` takes → what the feature key says, of all images, whether they are large JPEGs or not."""
Reduction = Callable[[int, int], int]
"""(width, height) → how many times smaller the encoder can take a JPEG: 1, 2, 4 or 8."""
MAX_PIXELS = 89_478_485
"""Pixels; Pillow's own limit for a warning (a quarter of a gigabyte as RGB)."""

MAX_ASPECT = 1000
"""Of the longer edge to the shorter: a picture of 1 × 20,000 pixels is small, and gigabytes once its width is 256."""

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
_MODES = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX"})
_ORIENTATION = 0x0112
_END = b"\xff\xd9"
"""The marker that ends a JPEG."""
_FILLER = bytes(range(1, 129))
"""Rubbish that any decoder of JPEG takes for pixels, where it still lacks some."""
_GREY = (128, 128, 128)
_TURNED_BY_PILLOW = ("TIFF", "HEIF")
_LIES = 5
"""EXIF orientations from here on swap width and height."""
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# Pillow warns between one and two times its limit and raises above: both are a bomb here.
warnings.filterwarnings("error", category=Image.DecompressionBombWarning)


def decode_image(path: Path, reduction: Reduction | None = None, *, turn: bool = False) -> Image.Image:
    """Return an image as RGB; a JPEG smaller where `reduction` says so, with a `Reduced` in its info.

    With `turn` a photo from a phone is turned upright: queries, and data sets but for `--exif reject`.

    Raises:
        RejectedInputError: Says what is wrong with the file.
    """
    return decode_bytes(read_file(path), reduction, turn=turn)


def read_file(path: Path) -> bytes:
    """Return the bytes of an image file.

    Raises:
        RejectedInputError: It cannot be read.
    """
    try:
        if is_endless(path):
            raise RejectedInputError("it is a pipe or a device")
        return path.read_bytes()
    except OSError as error:
        lacks = machine_error(error, str(path))  # no fault of the file: it is not left out for that
        raise lacks or RejectedInputError(f"the file cannot be read: {error.strerror or error}") from error


def decode_bytes(
    data: bytes, reduction: Reduction | None = None, *, max_pixels: int = MAX_PIXELS, turn: bool = False
) -> Image.Image:
    """Return an image that lies in memory as RGB, checked like a file's.

    Args:
        data: The file's bytes.
        reduction: Which JPEGs are decoded smaller.
        max_pixels: More are refused before anything is decoded; `MAX_PIXELS` stays the limit.
        turn: Turn a picture upright where its EXIF orientation says that it is not, in place of refusing it.

    Raises:
        RejectedInputError: Says what is wrong with the data.
    """
    if not data:
        raise RejectedInputError("the file is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=_formats(data)) as image:
            orientation = _refuse(image, min(max_pixels, MAX_PIXELS), turn)
            return _decoded(image, reduction, orientation, data)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RejectedInputError(f"too many pixels (limit {MAX_PIXELS:,}): a decompression bomb?") from error
    except UnidentifiedImageError as error:
        raise RejectedInputError("not an image of a known format") from error
    except RejectedInputError:
        raise
    except Exception as error:  # decoders of broken files raise anything: OSError, SyntaxError, struct.error, ...
        said = " ".join(str(error).split()) or type(error).__name__
        raise RejectedInputError(f"the image is damaged: {said}") from error


def _formats(data: bytes) -> tuple[str, ...]:
    """Return the formats of Pillow that the data may be of."""
    if not is_heif(data[:START]):
        return _FORMATS
    if not register():
        raise RejectedInputError(f"HEIC is read by the package pillow-heif: {INSTALL}")
    return ("HEIF",)


def _refuse(image: Image.Image, max_pixels: int, turn: bool) -> int:
    """Refuse what would be guesswork; return the EXIF orientation that is left to apply."""
    width, height = image.size
    if width * height > max_pixels:
        raise RejectedInputError(f"{width} × {height} pixels (limit {max_pixels:,}): a decompression bomb?")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise RejectedInputError(f"{width} × {height} pixels: one edge is more than {MAX_ASPECT} times the other")
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # an MPO is a photo with a preview behind it
        raise RejectedInputError(f"animated or of several pages ({frames} frames)")
    deep = any(";16" in str(tile) for tile in getattr(image, "tile", ())) or image.mode.startswith(("I", "F"))
    if deep or (image.format == "HEIF" and image.info.get("bit_depth", 8) > 8):
        raise RejectedInputError(f"more than 8 bits a channel (mode {image.mode})")
    if image.mode not in _MODES:
        raise RejectedInputError(f"colours are {image.mode}, not RGB or grey")
    orientation = image.getexif().get(_ORIENTATION, 1)
    if image.format == "HEIF":
        orientation = image.info.get("original_orientation") or 1
    if orientation not in (0, 1) and not turn:
        raise RejectedInputError(f"{TURNED} (EXIF orientation {orientation})")
    return int(orientation) if orientation in _TURNS and image.format not in _TURNED_BY_PILLOW else 1


def _decoded(image: Image.Image, reduction: Reduction | None, orientation: int, data: bytes) -> Image.Image:
    """Return an opened image upright and as RGB; of a large JPEG the smaller one that `reduction` asks for."""
    upright = image.size[::-1] if orientation >= _LIES else image.size
    times = reduction(*upright) if reduction and image.format in ("JPEG", "MPO") else 1
    if times > 1:
        image.draft(None, (image.width // times, image.height // times))
    decoded = _to_rgb(image)
    if image.format == "JPEG" and _ends_grey(decoded) and _lacks_pixels(data):
        raise RejectedInputError(f"the image is damaged: its data end before its {upright[0]} × {upright[1]} pixels do")
    if orientation in _TURNS:
        decoded = decoded.transpose(_TURNS[orientation])
    if times > 1:
        decoded.info[REDUCED] = Reduced(width=upright[0], height=upright[1], times=times)
    return decoded


def _ends_grey(decoded: Image.Image) -> bool:
    """Tell whether the last row is of the grey that libjpeg gives to pixels for which there are no data."""
    if decoded.getpixel((0, decoded.height - 1)) != _GREY:
        return False
    return decoded.crop((0, decoded.height - 1, *decoded.size)).getextrema() == ((128, 128),) * 3


def _lacks_pixels(data: bytes) -> bool:
    """Tell whether a JPEG has fewer data than pixels, so that what stands before its end becomes pixels as well.

    Pillow tells a file that is cut off, but not one that ends in order after too few pixels: its header claims more, or
    somebody has put an end to what was cut off.
    """
    end = data.rfind(_END)
    return _pixels(data) != _pixels(data[:end] + _FILLER + data[end:])


def _pixels(data: bytes) -> bytes:
    with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
        return image.convert("RGB").tobytes()


def _to_rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layered = image.convert("RGBA")
    white = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, layered).convert("RGB")

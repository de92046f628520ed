"""What the tests send: pictures as files in memory, and forms."""

import io
from typing import Any

from PIL import Image

PROBLEM = {"expected", "found", "where", "remedy"}


def encoded(
    colour: tuple[int, int, int] | str = (250, 10, 10), size: tuple[int, int] = (8, 8), **options: Any
) -> bytes:
    """Return a picture of one colour as a PNG file."""
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG", **options)
    return buffer.getvalue()


def upload(data: bytes, name: str = "image") -> dict[str, tuple[str, bytes, str]]:
    """Return the `files` of a request."""
    return {name: ("picture.png", data, "image/png")}

"""Thumbnails of stored images, by id: decoded with the project's own checks, made once, kept in memory within a limit.

A file's path comes from the store's own samples, never from a request, and must lie inside the data set's folder.
"""

import io
import threading
from collections import OrderedDict
from pathlib import Path

from PIL import Image

from pipeline.apps.serve.limits import THUMBNAIL_BYTES, THUMBNAIL_EDGES
from pipeline.apps.serve.problems import ApiError
from pipeline.apps.serve.served import ServedRun
from pipeline.errors import RejectedInputError
from pipeline.extract.decode import decode_image
from pipeline.remote.folder import bring

MEDIA_TYPE = "image/jpeg"
QUALITY = 90


class Thumbnails:
    """Makes thumbnails and keeps the latest ones. Used by several threads at once."""

    def __init__(self, limit: int = THUMBNAIL_BYTES) -> None:
        self._limit = limit
        self._bytes = 0
        self._kept: OrderedDict[tuple[str, int, str], bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, run: ServedRun, row: int, size: str) -> bytes:
        """Return the picture in a row of a run's store as JPEG.

        Raises:
            ApiError: 404; its file is gone, or lies outside the data set's folder.
        """
        key = (run.name, row, size)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        made = thumbnail(_file(run, row), THUMBNAIL_EDGES[size])
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += len(made)
            while self._bytes > self._limit:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made


def thumbnail(file: Path, edge: int) -> bytes:
    """Return a picture as JPEG of at most `edge` pixels each way; a smaller one keeps its size.

    Raises:
        ApiError: 404; the file is gone or no picture.
    """

    def reduction(width: int, height: int) -> int:
        return next((times for times in (8, 4, 2) if max(width, height) // times >= 2 * edge), 1)

    try:
        image = decode_image(file, reduction, turn=True)
    except RejectedInputError as error:
        raise _gone(str(error)) from error
    image.info.clear()
    image.thumbnail((edge, edge), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def _file(run: ServedRun, row: int) -> Path:
    if run.folder is None:
        raise _gone("no folder of pictures")
    folder = run.folder.resolve()
    path = bring(folder / run.images.samples.content[row]).resolve()
    if not path.is_relative_to(folder):
        raise _gone("a file outside the data set's folder")
    return path


def _gone(found: str) -> ApiError:
    return ApiError(
        404, expected="the image's file", found=found, where="image", remedy="start with --data FOLDER of the data set"
    )

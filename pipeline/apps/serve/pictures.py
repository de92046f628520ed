"""Pictures out and in: thumbnails of stored images, made once, and forms with an uploaded picture, read into memory.

A thumbnail's path comes from the store's own samples, never from a request, and must lie inside the data set's folder.
Of an upload nothing is written to the disk, and nothing larger than the limits is kept: Starlette's own parser moves
files beyond 1 MB to a temporary file; here its limit lies above what the guard lets through, so that it never does.
"""

import asyncio
import io
import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Request
from PIL import Image
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from pipeline.apps.serve.schemas import (
    BODY_BYTES,
    CLASSES,
    THUMBNAIL_BYTES,
    THUMBNAIL_EDGES,
    UPLOAD_BYTES,
    UPLOAD_SECONDS,
    ApiError,
)
from pipeline.apps.serve.served import ServedRun
from pipeline.errors import RejectedInputError
from pipeline.extract.decode import decode_image

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
    try:
        path = run.folder.file(run.opened.images.samples.content[row]).resolve()
    except FileNotFoundError as error:
        raise _gone("no such file") from error
    if not path.is_relative_to(run.folder.here.resolve()):
        raise _gone("a file outside the data set's folder")
    return path


def _gone(found: str) -> ApiError:
    return ApiError(
        404, expected="the image's file", found=found, where="image", remedy="start with --data FOLDER of the data set"
    )


FORM = "multipart/form-data"


class MemoryParser(MultiPartParser):
    """A parser that keeps files in memory."""

    spool_max_size = 2 * (UPLOAD_BYTES + BODY_BYTES)

    def close(self) -> None:
        """Free what was read, also of a form that breaks off."""
        for file in self._files_to_close_on_error:
            file.close()


@dataclass(frozen=True)
class Form:
    """What a form held."""

    picture: bytes | None = None
    """The uploaded file; None where there is none."""
    fields: dict[str, list[str]] = field(default_factory=dict)
    """Name → values, in order."""


async def read_form(request: Request) -> Form:
    """Read a multipart form with at most one file, named `image`.

    Raises:
        ApiError: 415 for another content type, 400 for a broken form, 413 and 408 for a picture that is too large or
            too slow, 422 for a file that is empty or of another name.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != FORM:
        raise ApiError(415, expected=FORM, found=ascii(kind)[:100], where="Content-Type")
    parser = MemoryParser(request.headers, request.stream(), max_files=1, max_fields=CLASSES + 10)
    try:
        async with asyncio.timeout(UPLOAD_SECONDS):
            parsed = await parser.parse()
        return await _taken_apart(parsed)
    except MultiPartException as error:
        raise ApiError(400, expected="a form that can be read", found=error.message, where="body") from error
    except TimeoutError as error:
        raise ApiError(408, expected=f"the form within {UPLOAD_SECONDS} s", found="a part", where="body") from error
    finally:
        parser.close()


async def _taken_apart(parsed: FormData) -> Form:
    picture: bytes | None = None
    fields: dict[str, list[str]] = {}
    for name, value in parsed.multi_items():
        if isinstance(value, UploadFile):
            picture = await _read(name, value)
        else:
            fields.setdefault(name, []).append(value)
    return Form(picture, fields)


async def _read(name: str, file: UploadFile) -> bytes:
    if name != "image":
        raise ApiError(422, expected="a file named image", found=ascii(name)[:100], where="form")
    data = await file.read()
    if len(data) > UPLOAD_BYTES:
        raise ApiError(413, expected=f"a picture of at most {UPLOAD_BYTES:,} bytes", found=f"{len(data):,}", where=name)
    if not data:
        raise ApiError(422, expected="a picture", found="an empty file", where=name)
    return data

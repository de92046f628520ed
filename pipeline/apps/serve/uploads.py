"""Read a form with a picture into memory: nothing is written to the disk, and nothing larger than the limits is kept.

Starlette's own parser moves files beyond 1 MB to a temporary file. Here its limit lies above what the guard lets
through, so that it never does.
"""

import asyncio
from dataclasses import dataclass, field

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from pipeline.apps.serve.limits import BODY_BYTES, CLASSES, UPLOAD_BYTES, UPLOAD_SECONDS
from pipeline.apps.serve.problems import ApiError

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

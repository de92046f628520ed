"""The routes of the API. Each checks what was asked, asks the worker, and tells the answer.

Of an upload nothing is written to the disk, and nothing larger than the limits is kept: Starlette's own parser moves
files beyond 1 MB to a temporary file; here its limit lies above what the guard lets through, so that it never does.
"""

import asyncio
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from pipeline import __version__
from pipeline.apps.serve import schemas
from pipeline.apps.serve.schemas import (
    BODY_BYTES,
    CLASSES,
    DECODED_AT_ONCE,
    QUEUE,
    SAMPLE,
    UPLOAD_BYTES,
    UPLOAD_PIXELS,
    UPLOADS_HELD,
    ApiError,
    ClassAnswer,
    ClassQuery,
    Health,
    Identity,
    PictureForm,
    PictureQuery,
    Problem,
    RunsAnswer,
    SampleAnswer,
    SearchAnswer,
    TextQuery,
    form_schema,
    too_much,
)
from pipeline.apps.serve.served import Query as Picture
from pipeline.apps.serve.served import ServedRun
from pipeline.apps.serve.worker import QueueFullError, Work, Worker

FORM, MEDIA_TYPE = "multipart/form-data", "image/jpeg"
PROBLEM = {"model": Problem}
REFUSED: dict[int | str, dict[str, Any]] = dict.fromkeys((400, 403, 404, 413, 422, 503), PROBLEM)
FORM_REFUSED: dict[int | str, dict[str, Any]] = {**REFUSED, 408: PROBLEM, 415: PROBLEM}
RunParameter = Annotated[Identity | None, Query(description="One of /api/runs; the first where not given.")]


# ---- forms -----------------------------------------------------------------------------------------------------------


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

    def single(self, *lists: str) -> dict[str, str]:
        """Return the one value of each field that is no list.

        Raises:
            ApiError: 422; one has several.
        """
        for name, values in self.fields.items():
            if len(values) > 1 and name not in lists:
                found, where = f"{len(values)} times", ascii(name)[1:-1][:100]
                raise ApiError(422, expected="this field once", found=found, where=where)
        return {name: values[0] for name, values in self.fields.items() if name not in lists}


async def read_form(request: Request) -> Form:
    """Read a multipart form with at most one file, named `image`.

    Raises:
        ApiError: 415 for another content type, 400 for a broken form, 413 for a picture that is too large, 422 for a
            file that is empty or of another name.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != FORM:
        raise ApiError(415, expected=FORM, found=ascii(kind)[:100], where="Content-Type")
    parser = MemoryParser(request.headers, request.stream(), max_files=1, max_fields=CLASSES + 10)
    picture: bytes | None = None
    fields: dict[str, list[str]] = {}
    try:
        parsed = await parser.parse()
        for name, value in parsed.multi_items():
            if isinstance(value, UploadFile):
                picture = await _read(name, value)
            else:
                fields.setdefault(name, []).append(value)
    except MultiPartException as error:
        raise ApiError(400, expected="a form that can be read", found=error.message, where="body") from error
    finally:
        parser.close()
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


class Held:
    """How many forms are read or held at a time: a bound in all, and half of it for each client.

    Args:
        most: The bound.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._by_client: Counter[str] = Counter()

    @contextmanager
    def of(self, client: str) -> Iterator[None]:
        """Count a form of a client while it is there.

        Raises:
            ApiError: 503; there are too many, or too many of this client.
        """
        if self._by_client.total() >= self._most or self._by_client[client] >= max(1, self._most // 2):
            raise too_much("fewer pictures at a time", f"{self._by_client.total()} that are being sent or looked at")
        self._by_client[client] += 1
        try:
            yield
        finally:
            self._by_client[client] -= 1
            self._by_client = +self._by_client  # without those who have gone


# ---- routes ----------------------------------------------------------------------------------------------------------


class Api:
    """The routes over some runs.

    Args:
        runs: The runs, the default first.
        worker: The thread that encodes.
    """

    def __init__(self, runs: Sequence[ServedRun], worker: Worker) -> None:
        self.runs = {run.name: run for run in runs}
        self.worker = worker
        self.decoders = ThreadPoolExecutor(2, thread_name_prefix="decode")
        self.held = Held(UPLOADS_HELD)
        self.decoded = asyncio.Semaphore(DECODED_AT_ONCE)
        self.router = APIRouter(prefix="/api", responses=REFUSED)
        get, post = self.router.get, self.router.post
        get("/health")(self.health)
        get("/runs")(self.describe)
        get("/sample")(self.sample)
        picture: dict[int | str, dict[str, Any]] = {
            200: {"content": {MEDIA_TYPE: {}}, "description": "The picture as JPEG."}
        }
        get("/image/{image_id:path}", response_class=Response, responses=picture)(self.image)
        post("/search")(self.search)
        post("/search/image", openapi_extra=form_schema(PictureQuery), responses=FORM_REFUSED)(self.search_image)
        post("/zero_shot", openapi_extra=form_schema(ClassQuery), responses=FORM_REFUSED)(self.zero_shot)

    async def health(self) -> Health:
        """Say whether the server works."""
        return Health(status="ok", version=__version__, waiting=self.worker.waiting)

    async def describe(self) -> RunsAnswer:
        """List the runs and the limits of questions."""
        limits = {name.lower(): getattr(schemas, name) for name in schemas.TOLD}
        return RunsAnswer(runs=[run.describe() for run in self.runs.values()], limits=limits)

    async def sample(
        self, run: RunParameter = None, count: Annotated[int, Query(ge=1, le=SAMPLE)] = 12
    ) -> SampleAnswer:
        """Show images from all over the store, the same ones every time."""
        served = self._run(run)
        total = len(served.opened.images.samples)
        rows = [place * total // count for place in range(count)] if total > count else range(total)
        return SampleAnswer(run=served.name, total=total, images=[served.image(row) for row in rows])

    async def image(
        self, image_id: str, run: RunParameter = None, size: Literal["small", "large"] = "small"
    ) -> Response:
        """Give a stored image's picture."""
        served = self._run(run)
        row = self._row(served, image_id)
        made = await self._decoded(served.thumbnail, row, size)
        return Response(made, media_type=MEDIA_TYPE, headers={"Cache-Control": "private, max-age=300"})

    async def search(self, query: TextQuery, request: Request) -> SearchAnswer:
        """Find the images that fit a text best."""
        run, seed = self._choose(query.run, query.seed)
        key, item = ("text", run, seed), (query.text, query.top)
        answer: SearchAnswer = await self._ask(key, lambda each: run.by_texts(seed, each), item, request)
        return answer

    async def search_image(self, request: Request) -> SearchAnswer:
        """Find the images and the captions that fit a picture best."""
        with self.held.of(_client(request)):
            form = await read_form(request)
            query = PictureQuery.model_validate(form.single())
            run, seed = self._choose(query.run, query.seed)
            async with self.decoded:
                item = (await self._picture(run, form, query), query.top)
                key = ("image", run, seed)
                answer: SearchAnswer = await self._ask(key, lambda each: run.by_pictures(seed, each), item, request)
        return answer

    async def zero_shot(self, request: Request) -> ClassAnswer:
        """Say how probable each class is for a picture."""
        with self.held.of(_client(request)):
            form = await read_form(request)
            query = ClassQuery.model_validate({**form.single("classes"), "classes": form.fields.get("classes", [])})
            run, seed = self._choose(query.run, query.seed)
            async with self.decoded:
                item = (await self._picture(run, form, query), tuple(query.classes), query.template)
                key = ("class", run, seed)
                answer: ClassAnswer = await self._ask(key, lambda each: run.classify(seed, each), item, request)
        return answer

    async def _ask(self, key: tuple[str, ServedRun, int], work: Work, item: tuple[Any, ...], request: Request) -> Any:
        try:
            return await self.worker.ask(key, work, item, _client(request))
        except QueueFullError as error:
            raise too_much(f"fewer than {QUEUE} waiting questions", "a full queue") from error

    async def _decoded(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.decoders, work, *arguments)

    async def _picture(self, run: ServedRun, form: Form, query: PictureForm) -> Picture:
        if (form.picture is None) == (query.image_id is None):
            found = "neither" if form.picture is None else "both"
            raise ApiError(422, expected="a file image or an image_id", found=found, where="form")
        if query.image_id is not None:
            return self._row(run, query.image_id)
        run.require("image")
        decode = partial(run.model.decode, max_pixels=UPLOAD_PIXELS)
        decoded: Picture = await self._decoded(decode, form.picture)
        return decoded

    def _run(self, name: str | None) -> ServedRun:
        if name is None:
            return next(iter(self.runs.values()))
        if name not in self.runs:
            known = ", ".join(self.runs)
            raise ApiError(404, expected=f"one of the runs {known}", found=ascii(name)[:100], where="run")
        return self.runs[name]

    def _choose(self, name: str | None, seed: int | None) -> tuple[ServedRun, int]:
        run = self._run(name)
        seeds = run.model.run.seeds
        if seed is not None and seed not in seeds:
            known = ", ".join(map(str, seeds))
            raise ApiError(404, expected=f"one of the seeds {known}", found=str(seed)[:100], where="seed")
        return run, seeds[0] if seed is None else seed

    def _row(self, run: ServedRun, image_id: str) -> int:
        if image_id not in run.rows:
            found, remedy = ascii(image_id)[:100], "take an id from a search or from /api/sample"
            raise ApiError(404, expected="the id of a stored image", found=found, where="image_id", remedy=remedy)
        return run.rows[image_id]


def _client(request: Request) -> str:
    return request.client.host if request.client else ""

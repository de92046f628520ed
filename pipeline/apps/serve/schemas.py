"""What the API takes, gives and refuses: limits, questions and answers as pydantic models, errors of one shape.

The OpenAPI document is made of the models; /api/runs tells the limits. Raise `ApiError` for what only a web server can
find wrong; errors of the package are turned into the same shape, {expected, found, where, remedy}.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from pipeline.apps.searcher import CaptionHit
from pipeline.errors import PipelineError, UserError

# ---- limits ----------------------------------------------------------------------------------------------------------

TEXT_CHARACTERS = 2000
"""Of a query; encoders cut long before."""
TOP = 200
"""Results that can be asked for at once."""
SAMPLE = 60
"""Images of /api/sample."""
CLASSES = 200
"""Class names of one zero-shot question."""
NAME_CHARACTERS = 200
"""Of a class name and of a template."""
ID_CHARACTERS = 1000
"""Of an image's id and a run's name."""
UPLOAD_BYTES = 10_000_000
"""Of an uploaded picture, as a file."""
UPLOAD_PIXELS = 50_000_000
"""Of an uploaded picture, decoded: 150 MB as RGB."""
UPLOADS_HELD = 32
"""Forms that are read or held in memory at a time, 10 MB each; half of them of one client. One more is answered 503."""
DECODED_AT_ONCE = 4
"""Pictures that are decoded and wait for the encoder at a time; other forms wait, read whole."""
HEAD_SECONDS = 10
"""For a request's head to arrive; the connection is closed then."""
BODY_SECONDS = 30
"""For a request's whole body to arrive."""
BODY_BYTES = 64_000
"""Of a request without a picture, and of all that surrounds a picture."""
QUEUE = 256
"""Questions that wait for the encoders; one more is answered 503."""
BATCH = 32
"""Questions of one kind that are encoded together."""
RETRY_SECONDS = 1
"""What a 503 advises."""
SEEDS_KEPT = 4
"""Seeds of a run whose embeddings stay in memory."""
THUMBNAIL_EDGES = {"small": 384, "large": 1280}
"""Longest edge in pixels; nothing is enlarged."""
THUMBNAILS_KEPT = 256
"""Finished thumbnails of a run that stay in memory: about 20 kB each, a large one ten times that."""
CLASSIFIERS_KEPT = 32
"""Lists of class names of a run whose embeddings stay in memory."""
TOLD = ("TOP", "TEXT_CHARACTERS", "CLASSES", "UPLOAD_BYTES", "UPLOAD_PIXELS")
"""Limits that /api/runs tells."""

# ---- questions and answers -------------------------------------------------------------------------------------------

Name = Annotated[str, StringConstraints(min_length=1, max_length=NAME_CHARACTERS, pattern=r"\S")]
Identity = Annotated[str, StringConstraints(min_length=1, max_length=ID_CHARACTERS)]
Top = Annotated[int, Field(ge=1, le=TOP, description="How many results.")]
RunName = Annotated[Identity | None, Field(description="One of /api/runs; the first where not given.")]
Seed = Annotated[int | None, Field(description="One of the run's seeds; the first where not given.")]


class TextQuery(BaseModel):
    """A search by text."""

    model_config = ConfigDict(extra="forbid", strict=True)
    text: Annotated[str, StringConstraints(min_length=1, max_length=TEXT_CHARACTERS, pattern=r"\S")]
    top: Top = 12
    run: RunName = None
    seed: Seed = None


class PictureForm(BaseModel):
    """Fields of a form that asks about a picture: an uploaded `image`, or the id of a stored one."""

    model_config = ConfigDict(extra="forbid")
    image_id: Annotated[Identity | None, Field(description="A stored image, in place of an upload.")] = None
    run: RunName = None
    seed: Seed = None


class PictureQuery(PictureForm):
    """A search by picture."""

    top: Top = 12


class ClassQuery(PictureForm):
    """A zero-shot question."""

    classes: Annotated[
        list[Name],
        Field(
            min_length=1,
            max_length=CLASSES,
            description="Class names, one a field.",
            json_schema_extra={"uniqueItems": True},
        ),
    ]
    template: Annotated[Name, Field(description="Sentence with {c} or {} where the name goes.")] = "a photo of a {c}."

    @field_validator("template")
    @classmethod
    def _holds_a_place(cls, value: str) -> str:
        if "{c}" not in value and "{}" not in value:
            raise ValueError("a template with {c} or {} where the class name goes")
        return value

    @field_validator("classes")
    @classmethod
    def _once_each(cls, value: list[str]) -> list[str]:
        names = [name.strip() for name in value]
        if len(set(names)) < len(names):
            raise ValueError("class names, each once")
        return names


class StoredImage(BaseModel):
    """A stored image."""

    image_id: str
    captions: list[str]
    label: str
    thumbnail: str
    """Path of its picture; add `&size=large` for more pixels."""


class FoundImage(StoredImage):
    """A found image."""

    score: float
    """Cosine with the query."""


class Spent(BaseModel):
    """Milliseconds, for all that was asked together with this."""

    encode: float
    search: float


class SearchAnswer(BaseModel):
    """What a search found, best first."""

    run: str
    seed: int
    images: list[FoundImage]
    captions: list[CaptionHit]
    """Only for a picture."""
    milliseconds: Spent


class ClassProbability(BaseModel):
    """One class."""

    name: str
    probability: float
    score: float
    """Cosine of picture and class."""


class ClassAnswer(BaseModel):
    """Probabilities of the classes, most probable first; they add up to 1."""

    run: str
    seed: int
    template: str
    temperature: float
    """What cosines are divided by before the softmax."""
    temperature_source: str
    classes: list[ClassProbability]
    milliseconds: Spent


class RunAnswer(BaseModel):
    """A run that is served."""

    name: str
    method: str
    seeds: list[int]
    dim: int
    encoders: dict[str, list[str]]
    layers: dict[str, list[str]]
    images: int
    captions: int
    labels: list[str]
    can: dict[str, bool]
    """Side → whether new texts or images can be encoded."""
    dataset: dict[str, str]
    """name, licence and attribution."""


class RunsAnswer(BaseModel):
    """All that is served, and the limits of questions."""

    runs: list[RunAnswer]
    limits: dict[str, int]


class SampleAnswer(BaseModel):
    """Images from all over the store."""

    run: str
    total: int
    images: list[StoredImage]


class Health(BaseModel):
    """Whether the server works."""

    status: str
    version: str
    waiting: int
    """Questions in the queue."""


def form_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return the OpenAPI request body of a multipart form: a model's fields and the file `image`."""
    schema = model.model_json_schema()
    schema["properties"]["image"] = {"type": "string", "format": "binary", "description": "The picture's file."}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


# ---- errors ----------------------------------------------------------------------------------------------------------


class Problem(BaseModel):
    """What is wrong with a request."""

    expected: str
    """What should have been there."""
    found: str
    """What was there instead."""
    where: str
    """Field, path or header."""
    remedy: str
    """What to do; may be empty."""


class ApiError(HTTPException):
    """A request that is refused, with its status."""

    def __init__(
        self,
        status: int,
        *,
        expected: str,
        found: str,
        where: str = "",
        remedy: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.problem = Problem(expected=expected, found=found, where=where, remedy=remedy)
        super().__init__(status, expected, headers=headers)


def too_much(expected: str, found: str) -> ApiError:
    """Return the refusal of what would be too much at once: 503, to be asked again."""
    return ApiError(
        503,
        expected=expected,
        found=found,
        where="server",
        remedy=f"ask again in {RETRY_SECONDS} s",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


def problem_response(status: int, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem as JSON; pure ASCII, because what was sent may hold half a surrogate pair."""
    body = json.dumps(problem.model_dump())
    return Response(body, status, dict(headers or {}), media_type="application/json")


def add_handlers(app: FastAPI) -> None:
    """Let the application answer every error in the one shape."""
    for kind in (StarletteHTTPException, RequestValidationError, ValidationError, PipelineError, Exception):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    if isinstance(error, ApiError):
        return problem_response(error.status_code, error.problem, error.headers)
    if isinstance(error, StarletteHTTPException):
        expected = {404: "a path of this application", 405: "another method for this path"}
        found = {404: request.url.path, 405: request.method}
        problem = Problem(
            expected=expected.get(error.status_code, "a request that can be read"),
            found=found.get(error.status_code, str(error.detail)),
            where="request",
            remedy="see /openapi.json",
        )
        return problem_response(error.status_code, problem, error.headers)
    if isinstance(error, RequestValidationError | ValidationError):
        return problem_response(422, _from_validation(error.errors()))
    if isinstance(error, PipelineError):
        problem = Problem(expected=error.expected, found=error.found, where=error.where, remedy=error.remedy)
        return problem_response(422 if isinstance(error, UserError) else 500, problem)
    problem = Problem(
        expected="an answer",
        found=f"a failure of the server ({type(error).__name__})",
        where=request.url.path,
        remedy="look at what `pipeline serve` printed",
    )
    return problem_response(500, problem)


def _from_validation(errors: Iterable[Mapping[str, Any]]) -> Problem:
    told = [dict(error) for error in errors] or [{}]
    first = told[0]
    where = ".".join(str(part) for part in first.get("loc", ()) if part != "body") or "body"
    message = str(first.get("msg", "a valid request"))
    expected = message.removeprefix("Value error, ").removeprefix("Input should be ").rstrip(".")
    found = ascii(first["input"])[:100] if "input" in first else "something else"
    if first.get("type") == "missing":
        expected, found = "this field", "nothing"
    if first.get("type") == "extra_forbidden":
        expected, found = "only fields that the API knows", where
    others = f"{len(told) - 1} more of the kind" if len(told) > 1 else ""
    if expected[1:2].islower():
        expected = expected[0].lower() + expected[1:]
    return Problem(expected=expected, found=found, where=where, remedy=others)

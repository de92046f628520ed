"""Errors as the API tells them, always of one shape: {expected, found, where, remedy}.

Raise `ApiError` for what only a web server can find wrong; errors of the package are turned into the same shape.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from pipeline.errors import PipelineError, UserError


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
        self, status: int, *, expected: str, found: str, where: str = "", remedy: str = "", retry_after: int = 0
    ) -> None:
        self.problem = Problem(expected=expected, found=found, where=where, remedy=remedy)
        super().__init__(status, expected, headers={"Retry-After": str(retry_after)} if retry_after else None)


def problem_response(status: int, problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return a problem as JSON; pure ASCII, because what was sent may hold half a surrogate pair."""
    body = json.dumps(problem.model_dump())
    return Response(body, status, dict(headers or {}), media_type="application/json")


def add_handlers(app: FastAPI) -> None:
    """Let the application answer every error in the one shape."""
    app.add_exception_handler(StarletteHTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ValidationError, _invalid)
    app.add_exception_handler(PipelineError, _foreseen)
    app.add_exception_handler(Exception, _unforeseen)


async def _http(request: Request, error: Exception) -> Response:
    if isinstance(error, ApiError):
        return problem_response(error.status_code, error.problem, error.headers)
    if not isinstance(error, StarletteHTTPException):
        return await _unforeseen(request, error)
    expected = {404: "a path of this application", 405: "another method for this path"}
    found = {404: request.url.path, 405: request.method}
    problem = Problem(
        expected=expected.get(error.status_code, "a request that can be read"),
        found=found.get(error.status_code, str(error.detail)),
        where="request",
        remedy="see /openapi.json",
    )
    return problem_response(error.status_code, problem, error.headers)


async def _invalid(_: Request, error: Exception) -> Response:
    errors = error.errors() if isinstance(error, RequestValidationError | ValidationError) else []
    return problem_response(422, _from_validation(errors))


async def _foreseen(_: Request, error: Exception) -> Response:
    if not isinstance(error, PipelineError):
        return await _unforeseen(_, error)
    problem = Problem(expected=error.expected, found=error.found, where=error.where, remedy=error.remedy)
    return problem_response(422 if isinstance(error, UserError) else 500, problem)


async def _unforeseen(request: Request, error: Exception) -> Response:
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

"""The API against its own OpenAPI document: generated requests, valid and not, are answered as the document says."""

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import Case, GenerationMode
from schemathesis.checks import CHECKS

from tests.apps.serve.asking import PROBLEM
from tests.drawing import draws

OPERATIONS = [
    ("GET", "/api/health"),
    ("GET", "/api/runs"),
    ("GET", "/api/sample"),
    ("GET", "/api/image/{image_id}"),
    ("POST", "/api/search"),
    ("POST", "/api/search/image"),
    ("POST", "/api/zero_shot"),
]
# An id, a seed or a picture that is made up is valid by the document, and not found or refused all the same.
LEFT_OUT = ("positive_data_acceptance",)
EXAMPLES = 40


@pytest.fixture(scope="module")
def document(address: str) -> schemathesis.BaseSchema:
    """Return the document of a server that listens."""
    return schemathesis.openapi.from_url(f"{address}/openapi.json")


def test_every_operation_is_fuzzed(document: schemathesis.BaseSchema) -> None:
    found = [(method.upper(), path) for path, methods in document.raw_schema["paths"].items() for method in methods]
    assert sorted(found) == sorted(OPERATIONS)


@pytest.mark.parametrize("mode", list(GenerationMode), ids=lambda mode: mode.name.lower())
@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_every_answer_is_as_documented(
    document: schemathesis.BaseSchema, method: str, path: str, mode: GenerationMode
) -> None:
    operation = document[path][method]
    if mode is GenerationMode.NEGATIVE and path in ("/api/health", "/api/runs"):
        pytest.skip("nothing in this request can be wrong")
    left_out: list[Any] = [CHECKS.get_one(name) for name in LEFT_OUT]
    codes = set()

    @settings(
        max_examples=draws(EXAMPLES),
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: Case[Any]) -> None:
        response = case.call(timeout=120)
        case.validate_response(response, excluded_checks=left_out)
        codes.add(response.status_code)
        assert response.status_code < 500
        if response.status_code >= 400:
            assert set(response.json()) == PROBLEM
        assert response.headers["content-security-policy"]

    ask()
    assert codes

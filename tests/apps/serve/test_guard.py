"""Who may ask, how much may be sent, and which headers every answer has."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from pipeline.apps.serve.schemas import BODY_BYTES, UPLOAD_BYTES
from pipeline.apps.serve.served import ServedRun
from pipeline.apps.serve.server import HEADERS, create_app
from tests.apps.serve.asking import PROBLEM, encoded, upload


@pytest.mark.parametrize(
    "host", ["127.0.0.1:8000", "localhost", "LOCALHOST:1", "[::1]:8000", "192.168.1.7:8000", "localhost."]
)
def test_hosts_that_are_this_machine(client: TestClient, host: str) -> None:
    assert client.get("/api/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1"]
)
def test_a_rebound_name_is_refused(client: TestClient, host: str) -> None:
    for path in ("/", "/api/health", "/openapi.json"):
        answer = client.get(path, headers={"Host": host})
        assert answer.status_code == (200 if host == "[::1" else 403)
        if host != "[::1":
            assert answer.json()["where"] == "Host"


def test_a_name_can_be_allowed(runs: list[ServedRun]) -> None:
    with TestClient(create_app(runs, ["Lab.example"]), base_url="http://lab.example:9000") as client:
        assert client.get("/api/health").status_code == 200
        assert client.get("/api/health", headers={"Host": "other.example"}).status_code == 403


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": "http://127.0.0.1:8000"}, 200),
        ({"Origin": "http://127.0.0.1:9000"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Sec-Fetch-Site": "none"}, 200),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
    ],
)
def test_only_the_page_itself_may_ask(client: TestClient, headers: dict[str, str], status: int) -> None:
    answer = client.post("/api/search", json={"text": "red"}, headers=headers)
    assert answer.status_code == status
    if status == 403:
        assert set(answer.json()) == PROBLEM
        assert "Access-Control-Allow-Origin" not in answer.headers


def test_a_form_of_another_page_is_refused(client: TestClient) -> None:
    answer = client.post("/api/search/image", files=upload(encoded()), headers={"Origin": "http://evil.example"})
    assert answer.status_code == 403


def test_a_link_from_elsewhere_opens_the_page(client: TestClient) -> None:
    assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200
    assert client.get("/api/image/red", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 403


@pytest.mark.parametrize(
    "path", ["/", "/page/main.js", "/api/runs", "/api/image/red", "/nothing", "/api/sample?count=x"]
)
def test_every_answer_has_the_headers(client: TestClient, path: str) -> None:
    answer = client.get(path)
    for name, value in HEADERS.items():
        assert answer.headers[name] == value
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert answer.headers["Cache-Control"]
    assert "access-control-allow-origin" not in answer.headers


def test_a_failure_is_a_problem_too(runs: list[ServedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("secret detail")

    monkeypatch.setattr(ServedRun, "by_texts", fail)
    with TestClient(create_app(runs), base_url="http://localhost", raise_server_exceptions=False) as client:
        answer = client.post("/api/search", json={"text": "red"})
    assert answer.status_code == 500
    assert set(answer.json()) == PROBLEM
    assert "secret" not in answer.text
    assert answer.headers["Content-Security-Policy"]


def chunks(start: bytes, size: int) -> Iterator[bytes]:
    """Yield a body whose length no header tells."""
    yield start
    for _ in range(size // 50_000 + 1):
        yield b"x" * 50_000


@pytest.mark.parametrize(
    ("path", "limit"), [("/api/search", BODY_BYTES), ("/api/search/image", BODY_BYTES + UPLOAD_BYTES)]
)
def test_too_much_is_cut_off(client: TestClient, path: str, limit: int) -> None:
    kind = {"Content-Type": "multipart/form-data; boundary=b" if "image" in path else "application/json"}
    start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\n' if "image" in path else b""
    whole = client.post(path, content=start + b"x" * (limit + 1), headers=kind)
    streamed = client.post(path, content=chunks(start, limit), headers=kind)
    for answer in (whole, streamed):
        assert answer.status_code == 413, answer.text
        assert set(answer.json()) == PROBLEM
        assert f"at most {limit:,} bytes" in answer.json()["expected"]

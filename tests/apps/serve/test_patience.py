"""Slow and greedy clients: what is half sent ends after a while, and holds up nobody else meanwhile."""

import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import httpx
import pytest

from pipeline.apps.serve.api import Held
from pipeline.apps.serve.schemas import DECODED_AT_ONCE, ApiError
from tests.apps.serve.asking import PROBLEM, encoded, upload

HEAD = "POST {} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\nContent-Type: {}\r\n\r\n{}"
FORM = HEAD.format("/api/search/image", "multipart/form-data; boundary=b", "--b\r\n")
JSON = HEAD.format("/api/search", "application/json", '{"text": "a r')
LATER = 120


@contextmanager
def sent(address: str, text: str) -> Iterator[socket.socket]:
    """Yield a connection over which something was sent."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=LATER) as link:
        link.sendall(text.encode())
        yield link


def whole(link: socket.socket) -> str:
    """Return all that comes until the server closes the connection."""
    return b"".join(iter(lambda: link.recv(65536), b"")).decode()


@pytest.mark.parametrize("request_text", [FORM, JSON])
def test_a_body_that_does_not_arrive(address: str, request_text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.apps.serve.server.BODY_SECONDS", 0.1)
    with sent(address, request_text) as link:
        answer = whole(link)
    assert answer.startswith("HTTP/1.1 408 ")
    assert "content-security-policy" in answer
    assert '"expected": "the request within 0.1 s", "found": "a part", "where": "body"' in answer


@pytest.mark.parametrize("head", ["", "G", "GET / HTTP/1.1\r\nHost: localhost\r\nX-Long: "])
def test_a_head_that_does_not_arrive(address: str, head: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.apps.serve.server.HEAD_SECONDS", 0.1)
    with sent(address, head) as link:
        assert whole(link) == ""


def test_the_head_of_a_second_request_has_its_time_too(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.apps.serve.server.HEAD_SECONDS", 0.1)
    head = "GET /api/health HTTP/1.1\r\nHost: localhost\r\n"
    with sent(address, f"{head}\r\n") as link:
        assert link.recv(65536).startswith(b"HTTP/1.1 200 ")
        link.sendall(head.encode())
        assert "HTTP" not in whole(link)


def test_a_request_that_takes_longer_than_its_head_may_is_answered(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A body that comes after the head's time; and bytes of a head one by one buy no time."""
    monkeypatch.setattr("pipeline.apps.serve.server.HEAD_SECONDS", 0.2)
    body = '{"text": "red"}'
    head = HEAD.replace("5000", f"{len(body)}\r\nConnection: close")
    with (
        sent(address, head.format("/api/search", "application/json", "")) as link,
        sent(address, "GET / HTTP/1.1\r\n") as other,
    ):
        assert whole(other) == ""  # its time is over, and so is the first one's
        link.sendall(body.encode())
        assert whole(link).startswith("HTTP/1.1 200 ")


def test_slow_uploads_hold_up_no_other(address: str) -> None:
    with ExitStack() as links, httpx.Client(base_url=address, timeout=LATER) as client:
        for _ in range(3 * DECODED_AT_ONCE):
            links.enter_context(sent(address, FORM))
        assert client.get("/api/health").status_code == 200
        assert client.post("/api/search/image", files=upload(encoded())).status_code == 200


def test_one_client_does_not_take_all_places(address: str) -> None:
    """Here every client has the same address, and half of the places is all that it has."""
    with ExitStack() as links, httpx.Client(base_url=address, timeout=LATER) as client:
        for _ in range(16):
            links.enter_context(sent(address, FORM))
        answers = [client.post("/api/search/image", files=upload(encoded())) for _ in range(20)]
        refused = [answer for answer in answers if answer.status_code == 503]
        assert refused, "sixteen are held once all of them have been seen"
        assert refused[-1].headers["Retry-After"] == "1"
        assert set(refused[-1].json()) == PROBLEM
        assert client.post("/api/search", json={"text": "red"}).status_code == 200


def test_places_are_given_back() -> None:
    held = Held(4)
    with held.of("a"), held.of("a"):
        with pytest.raises(ApiError), held.of("a"):
            pass
        with held.of("b"), held.of("b"), pytest.raises(ApiError), held.of("c"):
            pass
        with held.of("b"), held.of("c"):
            pass
    for _ in range(10):
        with held.of("a"), held.of("a"):
            pass


def test_a_deep_or_long_question_is_refused(address: str) -> None:
    with httpx.Client(base_url=address, timeout=LATER) as client:
        for body in ("[" * 60_000, '{"text": ' + "[" * 60_000, '{"text": "a", "top": ' + "9" * 50_000 + "}"):
            answer = client.post("/api/search", content=body, headers={"Content-Type": "application/json"})
            assert answer.status_code in (400, 422), answer.text
            assert set(answer.json()) == PROBLEM
            assert len(answer.text) < 1000
        fields = {"image_id": "red", "seed": "9" * 50_000}
        answer = client.post("/api/search/image", data=fields, files={"nothing": ("", b"")})
        assert answer.status_code in (400, 422), answer.text

"""Pictures that are sent: read in memory alone, refused by size before anything is decoded, turned upright."""

import io
import tempfile

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.apps.serve import schemas as limits
from tests.apps.serve.asking import PROBLEM, encoded, upload
from tests.extract.test_decode import BROKEN, png


def noise(edge: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 255, (edge, edge, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=0)
    return buffer.getvalue()


def test_a_large_picture_never_touches_the_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a file was made")

    data = noise(1500)
    assert 6_000_000 < len(data) < limits.UPLOAD_BYTES
    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "rollover", refuse)
    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    answer = client.post("/api/search/image", files=upload(data))
    assert answer.status_code == 200
    assert len(answer.json()["images"]) == 5


def test_too_many_bytes(client: TestClient) -> None:
    answer = client.post("/api/search/image", files=upload(b"x" * (limits.UPLOAD_BYTES + 1)))
    assert answer.status_code == 413
    assert "10,000,000 bytes" in answer.json()["expected"]


def test_too_many_pixels_are_not_decoded(client: TestClient) -> None:
    answer = client.post("/api/search/image", files=upload(png(9000, 9000, 8, b"\0")))
    assert answer.status_code == 422
    assert answer.json()["found"].startswith("9000 × 9000 pixels (limit 50,000,000)")


@pytest.mark.parametrize("name", [name for name in BROKEN if name not in ("empty", "turned")])
@pytest.mark.parametrize("path", ["search/image", "zero_shot"])
def test_no_picture(client: TestClient, name: str, path: str) -> None:
    fields = {"classes": "red"} if path == "zero_shot" else {}
    answer = client.post(f"/api/{path}", files=upload(BROKEN[name][0]), data=fields)
    assert answer.status_code == 422, answer.text
    assert set(answer.json()) == PROBLEM
    assert (answer.json()["expected"], answer.json()["where"]) == ("a picture", "image")


def test_a_turned_photo_is_taken(client: TestClient) -> None:
    assert client.post("/api/search/image", files=upload(BROKEN["turned"][0])).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"--b",
        b"--b\r\n\r\n\r\n--b--",
        b'--b\r\nContent-Disposition: form-data; name="image"; filename="x"\r\n\r\nabc',
        b"--b\r\nContent-Disposition: attachment\r\n\r\nabc\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="\xff\xfe"\r\n\r\nabc\r\n--b--\r\n',
        b"--b\r\n" + b"x" * 70_000,
        b'--b\r\nContent-Disposition: form-data; name="a"\r\n' + b"X-A: b\r\n" * 5000 + b"\r\nabc\r\n--b--\r\n",
    ],
)
def test_a_broken_form(client: TestClient, body: bytes) -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    answer = client.post("/api/search/image", content=body, headers=headers)
    assert answer.status_code in (400, 422), answer.text
    assert set(answer.json()) == PROBLEM


@pytest.mark.parametrize(
    "kind", ["multipart/form-data", "multipart/form-data; boundary=", "image/png", "text/plain; x=é"]
)
def test_no_form(client: TestClient, kind: str) -> None:
    answer = client.post("/api/search/image", content=encoded(), headers={b"Content-Type": kind.encode("latin-1")})
    assert answer.status_code in (400, 415), answer.text
    assert set(answer.json()) == PROBLEM


def test_a_picture_that_is_only_an_edge(client: TestClient) -> None:
    """163 bytes that would be 5.7 GB once their short edge has 224 pixels; `search --image` says the same."""
    for size in ((20_000, 1), (1, 20_000)):
        answer = client.post("/api/search/image", files=upload(encoded(size=size)))
        assert answer.status_code == 422
        assert "one edge is more than 1000 times the other" in answer.json()["found"]

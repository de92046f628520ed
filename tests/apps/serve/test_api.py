"""Every route: what it answers, against numbers computed by hand, and how it refuses."""

import io
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import torch
from PIL import Image
from starlette.testclient import TestClient

from pipeline.apps.search import search
from pipeline.apps.serve.schemas import CLASSES, TEXT_CHARACTERS, TOP
from pipeline.apps.serve.served import ServedRun
from pipeline.projectors.run_record import DEFAULT_TEMPERATURE
from tests.apps.colours import COLOURS, ODD, ODD_CAPTION
from tests.apps.serve.asking import PROBLEM, encoded, upload


def test_text_finds_what_the_command_finds(client: TestClient, runs: list[ServedRun]) -> None:
    answer = client.post("/api/search", json={"text": "a blue thing", "top": 3}).json()
    expected = search(runs[0].model.run.folder, "a blue thing", top=3)
    assert [(hit["image_id"], hit["captions"]) for hit in answer["images"]] == [
        (hit.image_id, list(hit.captions)) for hit in expected.images
    ]
    assert [hit["score"] for hit in answer["images"]] == pytest.approx([hit.score for hit in expected.images], abs=1e-6)
    assert (answer["run"], answer["seed"], answer["captions"]) == ("run", 7, [])
    assert set(answer["milliseconds"]) == {"encode", "search"}


@pytest.mark.parametrize(("run", "seed"), [("run", 7), ("run", 8), ("other", 7)])
def test_run_and_seed_are_chosen(client: TestClient, run: str, seed: int) -> None:
    answer = client.post("/api/search", json={"text": "red", "run": run, "seed": seed}).json()
    assert (answer["run"], answer["seed"], answer["images"][0]["image_id"]) == (run, seed, "red")


def test_more_than_there_is(client: TestClient) -> None:
    assert len(client.post("/api/search", json={"text": "red", "top": TOP}).json()["images"]) == len(COLOURS) + 1


def test_picture_finds_pictures_and_captions(client: TestClient) -> None:
    answer = client.post("/api/search/image", files=upload(encoded((240, 0, 240))), data={"top": 2}).json()
    assert answer["images"][0]["image_id"] == "violet"
    assert answer["captions"][0] | {"score": 0} == {
        "caption_id": "violet#0",
        "caption": "red and blue",
        "image_id": "violet",
        "score": 0,
    }
    assert len(answer["images"]) == len(answer["captions"]) == 2


def test_a_stored_picture_finds_itself(client: TestClient) -> None:
    for name in (*COLOURS, ODD):
        answer = client.post("/api/search/image", data={"image_id": name, "run": "other"}, files={"_": b""})
        assert answer.status_code == 422, "only `image` is a file"
        answer = client.post("/api/search/image", files={"image_id": (None, name)})
        assert answer.json()["images"][0]["image_id"] == name
        assert answer.json()["images"][0]["score"] == pytest.approx(1, abs=1e-6)


def test_probabilities_are_the_softmax_of_the_cosines(client: TestClient, runs: list[ServedRun]) -> None:
    fields: list[tuple[str, Any]] = [("classes", (None, name)) for name in ("red", "green", "blue")]
    answer = client.post("/api/zero_shot", files=[("image", ("x", encoded(), "image/png")), *fields]).json()
    model = runs[0].model
    image = model.encode_image([Image.new("RGB", (8, 8), (250, 10, 10))])
    cosines = (image @ model.encode_text(["red.", "green.", "blue."]).T)[0]
    texts = model.encode_text([f"a photo of a {name}." for name in ("red", "green", "blue")])
    assert not texts.any(), "the words of the default template run into the full stop"
    assert [each["probability"] for each in answer["classes"]] == pytest.approx([1 / 3] * 3)
    data = [("image_id", (None, "red")), ("template", (None, "something {} here")), *fields]
    answer = client.post("/api/zero_shot", files=data).json()
    cosines = (model.run.encode("image", torch.tensor([COLOURS["red"]]).half().float() / 255) @ torch.eye(3))[0]
    expected = torch.softmax(cosines.double() / DEFAULT_TEMPERATURE, 0)
    found = {each["name"]: each["probability"] for each in answer["classes"]}
    assert [found[name] for name in ("red", "green", "blue")] == pytest.approx(expected.tolist(), rel=0.02)
    assert answer["classes"][0]["name"] == "red"
    assert sum(found.values()) == pytest.approx(1)
    assert (answer["temperature"], answer["temperature_source"]) == (DEFAULT_TEMPERATURE, "default")


def test_runs_are_described(client: TestClient) -> None:
    answer = client.get("/api/runs").json()
    first, second = answer["runs"]
    assert (first["name"], second["name"], first["seeds"]) == ("run", "other", [7, 8])
    assert (first["images"], first["captions"], first["can"]) == (5, 5, {"image": True, "text": True})
    assert first["encoders"] == {"image": ["tests.apps.tiny:Colours"], "text": ["tests.apps.tiny:Words"]}
    assert answer["limits"]["top"] == TOP


def test_health_and_sample(client: TestClient) -> None:
    assert client.get("/api/health").json()["status"] == "ok"
    sample = client.get("/api/sample", params={"count": 2}).json()
    assert (sample["total"], [image["image_id"] for image in sample["images"]]) == (5, ["red", "blue"])
    assert len(client.get("/api/sample").json()["images"]) == 5


@pytest.mark.parametrize("name", [*COLOURS, ODD])
def test_thumbnails_by_id(address: str, name: str) -> None:
    (told,) = [each for each in httpx.get(f"{address}/api/sample").json()["images"] if each["image_id"] == name]
    assert told["thumbnail"] == f"/api/image/{quote(name, safe='')}?run=run"
    answer = httpx.get(address + told["thumbnail"])
    assert answer.headers["content-type"] == "image/jpeg"
    with Image.open(io.BytesIO(answer.content)) as image:
        assert image.size == (9, 7)
        wanted = (90, 90, 90) if name == ODD else COLOURS[name]
        assert image.getpixel((4, 3)) == pytest.approx(wanted, abs=4)


def test_what_is_told_is_text_not_markup(client: TestClient) -> None:
    answer = client.post("/api/search", json={"text": "red green blue"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["images"][0]["captions"] == [ODD_CAPTION]


ASKED: list[tuple[Any, int, str, str]] = [
    ({}, 422, "text", "this field"),
    ({"text": ""}, 422, "text", "at least 1 character"),
    ({"text": " \t\n"}, 422, "text", "match pattern"),
    ({"text": 5}, 422, "text", "valid string"),
    ({"text": "x" * (TEXT_CHARACTERS + 1)}, 422, "text", "at most 2000 characters"),
    ({"text": "red", "top": 10**9}, 422, "top", "less than or equal to 200"),
    ({"text": "red", "top": 10**400}, 422, "top", "less than or equal to 200"),
    ({"text": "red", "top": 0}, 422, "top", "greater than or equal to 1"),
    ({"text": "red", "top": "5"}, 422, "top", "valid integer"),
    ({"text": "red", "top": True}, 422, "top", "valid integer"),
    ({"text": "red", "size": 5}, 422, "size", "only fields that the API knows"),
    ({"text": "red", "run": "../run"}, 404, "run", "one of the runs run, other"),
    ({"text": "red", "seed": 9}, 404, "seed", "one of the seeds 7, 8"),
    ([], 422, "body", "valid dictionary"),
]


@pytest.mark.parametrize(("body", "status", "where", "expected"), ASKED)
def test_a_search_that_is_refused(client: TestClient, body: Any, status: int, where: str, expected: str) -> None:
    answer = client.post("/api/search", json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == PROBLEM
    assert answer.json()["where"] == where
    assert expected in answer.json()["expected"]


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"[" * 60_000, b'{"text": "\\ud800"}', b'{"text": "red", "top": NaN}', b'{"text": null}'],
)
def test_a_body_that_is_no_query(client: TestClient, body: bytes) -> None:
    answer = client.post("/api/search", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422), answer.text
    assert set(answer.json()) == PROBLEM


def test_text_that_is_no_english(client: TestClient) -> None:
    for text in ("красный", "赤い", "\u0000", "👩‍👩‍👧", "\u202e", "red" * 600, "'; DROP TABLE images; --"):
        assert client.post("/api/search", json={"text": text}).status_code == 200


FORMS: list[tuple[str, list[tuple[str, Any]], int, str, str]] = [
    ("search/image", [("top", (None, "5"))], 422, "form", "neither"),
    ("search/image", [("image_id", (None, "red")), ("image", ("x", encoded()))], 422, "form", "both"),
    ("search/image", [("image_id", (None, "nothing"))], 404, "image_id", "'nothing'"),
    ("search/image", [("image_id", (None, "../../etc/passwd"))], 404, "image_id", "passwd"),
    ("search/image", [("image_id", (None, "red")), ("top", (None, "many"))], 422, "top", "many"),
    ("search/image", [("image_id", (None, "red"))] * 2, 422, "image_id", "2 times"),
    ("search/image", [("image", ("x", b""))], 422, "image", "an empty file"),
    ("search/image", [("picture", ("x", encoded()))], 422, "form", "picture"),
    ("search/image", [("image", ("x", encoded())), ("image", ("y", encoded()))], 400, "body", "Too many files"),
    ("zero_shot", [("image_id", (None, "red"))], 422, "classes", "[]"),
    ("zero_shot", [("image_id", (None, "red")), ("classes", (None, ""))], 422, "classes.0", "''"),
    ("zero_shot", [("image_id", (None, "red")), *[("classes", (None, "red"))] * 2], 422, "classes", "red"),
    (
        "zero_shot",
        [("image_id", (None, "red")), ("classes", (None, "a")), ("template", (None, "x"))],
        422,
        "template",
        "x",
    ),
    (
        "zero_shot",
        [("image_id", (None, "red")), *[("classes", (None, str(n))) for n in range(CLASSES + 1)]],
        422,
        "classes",
        "",
    ),
    (
        "zero_shot",
        [("image_id", (None, "red")), *[("classes", (None, str(n))) for n in range(999)]],
        400,
        "body",
        "Too many",
    ),
]


@pytest.mark.parametrize(("path", "fields", "status", "where", "found"), FORMS)
def test_a_form_that_is_refused(
    client: TestClient, path: str, fields: list[tuple[str, Any]], status: int, where: str, found: str
) -> None:
    answer = client.post(f"/api/{path}", files=fields)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == PROBLEM
    assert answer.json()["where"] == where
    assert found in answer.json()["found"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/api/nothing", 404),
        ("GET", "/docs", 404),
        ("GET", "/page/nothing.js", 404),
        ("GET", "/page/../app.py", 404),
        ("GET", "/page/%2e%2e%2fapp.py", 404),
        ("GET", "/api/image/nothing", 404),
        ("GET", "/api/image/..%2F..%2Frun%2Frun.json", 404),
        ("GET", "/api/image/red.png", 404),
        ("GET", "/api/image/red?run=no", 404),
        ("GET", "/api/image/red?size=huge", 422),
        ("GET", "/api/sample?count=0", 422),
        ("GET", "/api/search", 405),
        ("DELETE", "/api/runs", 405),
        ("POST", "/api/search/image", 415),
        ("POST", "/", 405),
    ],
)
def test_paths_that_are_not_there(client: TestClient, method: str, path: str, status: int) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == PROBLEM


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    names = {part.split('"')[0] for part in page.text.split('"/page/')[1:]}
    assert {"main.js", "style.css", "icon.svg"} <= names
    for name in (*names, "api.js", "dom.js", "pictures.js", "results.js", "viewer.js"):
        text = client.get(f"/page/{name}").text
        assert "http" not in text.replace("http://www.w3.org/2000/svg", "")
        assert "innerHTML" not in text
    assert "style=" not in page.text
    assert "<script>" not in page.text

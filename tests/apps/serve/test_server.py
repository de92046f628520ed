"""The server as a process and under load: parallel questions, a full queue, Ctrl-C, ports and addresses."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from pipeline.apps.config import ServeConfig
from pipeline.apps.serve.schemas import RETRY_SECONDS, SearchAnswer
from pipeline.apps.serve.served import ServedRun
from pipeline.apps.serve.server import address as url
from pipeline.apps.serve.server import create_app, is_loopback, listen
from pipeline.errors import UserError
from tests.apps.colours import COLOURS
from tests.apps.serve.asking import PROBLEM, encoded, upload
from tests.apps.serve.conftest import BASE
from tests.commands.running import refused

PARALLEL = 100


def test_a_hundred_parallel_questions_get_their_own_answers(address: str) -> None:
    names = list(COLOURS)[:3]
    with httpx.Client(base_url=address, limits=httpx.Limits(max_connections=PARALLEL), timeout=300) as client:
        start = threading.Barrier(PARALLEL)

        def ask(place: int) -> tuple[str, httpx.Response]:
            name = names[place % 3]
            start.wait()
            if place % 10 == 0:
                return name, client.post("/api/search/image", files=upload(encoded(COLOURS[name])))
            return name, client.post("/api/search", json={"text": f"a {name} thing", "top": 1 + place % 5})

        with ThreadPoolExecutor(PARALLEL) as pool:
            answers = list(pool.map(ask, range(PARALLEL)))
    assert [answer.status_code for _, answer in answers] == [200] * PARALLEL
    for place, (name, answer) in enumerate(answers):
        assert answer.json()["images"][0]["image_id"] == name
        assert len(answer.json()["images"]) == (5 if place % 10 == 0 else 1 + place % 5)


def test_a_full_queue_says_when_to_come_back(runs: list[ServedRun], monkeypatch: pytest.MonkeyPatch) -> None:
    go, real = threading.Event(), ServedRun.by_texts

    def slow(run: ServedRun, seed: int, items: Sequence[tuple[str, int]]) -> list[SearchAnswer]:
        go.wait(300)
        return real(run, seed, items)

    monkeypatch.setattr(ServedRun, "by_texts", slow)
    with TestClient(create_app(runs, queue=2), base_url=BASE) as client, ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(client.post, "/api/search", json={"text": "red"}) for _ in range(8)]
        deadline = time.monotonic() + 240
        while sum(each.done() for each in asked) < 4 and time.monotonic() < deadline:
            time.sleep(0.01)
        go.set()
        answers = [each.result() for each in asked]
    full = [answer for answer in answers if answer.status_code == 503]
    assert len(full) >= 4  # two at most are in work, two wait
    assert {answer.status_code for answer in answers} == {200, 503}
    assert all(answer.headers["Retry-After"] == str(RETRY_SECONDS) for answer in full)
    assert all(set(answer.json()) == PROBLEM for answer in full)


def test_served_until_interrupted(paths: list[Path], tmp_path: Path) -> None:
    words = [sys.executable, "-m", "pipeline.cli", "serve", *map(str, paths), "--port", "0"]
    words += ["--trust-module", "tests.apps.tiny"]  # the runs name encoders of this repository's tests
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        assert process.stderr is not None
        told = process.stderr.readline()
        assert told.startswith("Serving run, other at http://127.0.0.1:"), told
        place = told.split(" at ")[1].split()[0]
        answer = httpx.post(f"{place}/api/search", json={"text": "red"}, timeout=120)
        assert answer.json()["images"][0]["image_id"] == "red"
        with socket.create_connection(("127.0.0.1", int(place.rsplit(":", 1)[1]))) as idle:
            idle.sendall(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n")  # never finished
            process.send_signal(signal.SIGINT)
            rest = process.stderr.read()
        assert process.wait(120) == 0
    assert rest.splitlines()[-1] == "Stopped"
    assert "Traceback" not in rest
    assert not list(tmp_path.iterdir())


def test_a_port_that_is_taken(paths: list[Path]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        sentence = refused("serve", paths[0], "--port", port)
    assert f"--port: expected a free port, found that {port} is in use; choose another with --port" in sentence


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--port", "70000"], "--port: expected 0 to 65535, found 70000"),
        (["--port", "-1"], "--port: expected 0 to 65535, found -1"),
        (["--host", "no.such.host.invalid", "--port", "0"], "--host: expected an address of this machine"),
        (["--host", "192.0.2.1", "--port", "0"], "--host: expected an address of this machine"),
        (["--data", "nowhere", "--port", "0"], "--data nowhere: expected a folder of pictures, found no such folder"),
        (["--store", "nowhere", "--port", "0"], "nowhere: expected a feature store's folder"),
        (["nowhere", "--port", "0"], "nowhere: expected a finished run's folder"),
    ],
)
def test_what_is_refused(paths: list[Path], words: list[str], message: str) -> None:
    assert message in refused("serve", paths[0], *words)


def test_a_missing_extra_is_one_sentence(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.commands.apps.find_spec", lambda name: None)
    assert "run: pip install 'fewpairs[serve]'" in refused("serve", paths[0])


def test_answers_are_not_held_back() -> None:
    """Small answers leave at once, not 40 ms later when the client has confirmed their beginning."""
    with listen("127.0.0.1", 0) as server, socket.create_connection(server.getsockname()[:2]):
        accepted, _ = server.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.parametrize(("host", "loopback"), [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)])
def test_addresses(host: str, loopback: bool) -> None:
    with listen(host, 0) as server:
        assert is_loopback(server) is loopback
        assert url(server).endswith(f":{server.getsockname()[1]}")
        with pytest.raises(UserError, match="expected a free port"):
            listen(host, server.getsockname()[1])


def test_everybody_is_warned_of(paths: list[Path], monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from pipeline.apps.serve.server import serve

    monkeypatch.setattr("uvicorn.Server.run", lambda *_, **__: None)
    serve(ServeConfig(runs=tuple(paths[:1]), host="0.0.0.0", port=0))
    assert "Warning: everybody who reaches this address can see these images" in capsys.readouterr().err
    serve(ServeConfig(runs=tuple(paths[:1]), port=0))
    assert "Warning" not in capsys.readouterr().err


def test_the_api_describes_itself(address: str) -> None:
    document = httpx.get(f"{address}/openapi.json", timeout=120).json()
    assert set(document["paths"]) == {
        "/api/health",
        "/api/runs",
        "/api/sample",
        "/api/image/{image_id}",
        "/api/search",
        "/api/search/image",
        "/api/zero_shot",
    }
    form = document["paths"]["/api/zero_shot"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]
    assert {"image", "image_id", "classes", "template", "run", "seed"} == set(form["properties"])
    assert "HTTPValidationError" not in json.dumps(document)

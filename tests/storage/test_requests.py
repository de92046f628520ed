"""What passes is tried again, a bounded number of times; what does not is one sentence at once."""

import errno
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import pytest

from pipeline.errors import PipelineError, UserError
from pipeline.storage import requests
from pipeline.storage.requests import Requests, filesystem
from pipeline.store.reader import FeatureStore
from tests.commands.running import pipeline, refused
from tests.storage.conftest import Machine, forget_clients
from tests.store.building import fill, header

EMPTY = b'<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><KeyCount>0</KeyCount></ListBucketResult>'


class Faulty:
    """fsspec's file system in memory, which throttles every second request."""

    def __init__(self) -> None:
        self.requests = 0

    def __getattr__(self, name: str) -> Any:
        step = getattr(fsspec.filesystem("memory"), name)

        def answer(*args: Any, **kwargs: Any) -> Any:
            self.requests += 1
            if self.requests % 2:
                raise OSError(errno.EBUSY, "Please reduce your request rate")
            return step(*args, **kwargs)

        return answer


def test_a_throttled_store_is_written_and_read(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    faulty = Faulty()
    monkeypatch.setattr("pipeline.storage.requests.filesystem", lambda protocol: faulty)
    url = f"memory:/{tmp_path}/store"
    digest = fill(url, header()).content_digest
    machine("second")
    assert FeatureStore.open(url).content_digest == digest == fill(tmp_path / "here", header()).content_digest
    assert faulty.requests > 40
    assert "Please reduce your request rate; try 2 of 7" in caplog.text


@pytest.mark.parametrize(
    ("error", "tries", "kind", "found"),
    [
        (TimeoutError("slow"), requests.ATTEMPTS, PipelineError, "found slow"),
        (ConnectionResetError("gone"), requests.ATTEMPTS, PipelineError, "found gone"),
        (OSError(errno.EBUSY, "busy"), requests.ATTEMPTS, PipelineError, "busy"),
        (PermissionError("no"), 1, UserError, r"found access denied \(no\)"),
        (OSError(errno.EINVAL, "odd"), 1, PipelineError, "odd"),
        (ValueError("what"), 1, PipelineError, "found what"),
    ],
)
def test_how_often(error: Exception, tries: int, kind: type, found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    count: list[int] = []

    class Failing:
        def cat_file(self, path: str) -> bytes:
            count.append(1)
            raise error

    monkeypatch.setattr("pipeline.storage.requests.filesystem", lambda protocol: Failing())
    with pytest.raises(PipelineError, match=found) as caught:
        Requests("memory://a").read("x")
    assert type(caught.value) is kind
    assert len(count) == tries


def test_waits_double_up_to_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "FIRST_WAIT", 1.0)
    waits: list[float] = []

    def fails() -> None:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        requests.retrying(fails, "url", waits.append)
    assert len(waits) == requests.ATTEMPTS - 1
    for number, pause in enumerate(waits):
        longest = min(20.0, 2.0**number)
        assert longest / 2 <= pause <= longest


@pytest.fixture
def throttling(s3: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], list[str]]]:
    """Return what makes S3 answer 503 SlowDown so many times, and then as an empty bucket does; gives the requests."""
    servers = []

    def begin(times: int) -> list[str]:
        asked: list[str] = []

        class Answer(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append(self.path)
                slow = len(asked) <= times
                body = b"<Error><Code>SlowDown</Code><Message>Slow down</Message></Error>" if slow else EMPTY
                self.send_response(503 if slow else 200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_HEAD(self) -> None:
                self.send_response(404)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        forget_clients()
        return asked

    yield begin
    for server in servers:
        server.shutdown()
        server.server_close()


def test_503_on_the_wire(throttling: Callable[[int], list[str]], machine: Machine) -> None:
    asked = throttling(2)
    assert "found a folder without store.json" in refused("store", "ls", "s3://bucket/store")
    assert len(set(asked[:3])) == 1 < len(asked)


def test_503_for_ever(throttling: Callable[[int], list[str]], machine: Machine) -> None:
    asked = throttling(10**6)
    result = pipeline("store", "ls", "s3://bucket/store")
    assert result.code == 1
    last = result.err.splitlines()[-1]
    assert last.startswith("Error: s3://bucket/store: expected an answer, found")
    assert "what is finished stays" in last
    assert len(asked) == requests.ATTEMPTS


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, machine: Machine) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    said = refused("store", "ls", "gs://bucket/store")
    assert said.startswith("Error: expected the package 'gcsfs' (gs:// addresses), found that it is not installed")
    assert said.endswith("run: pip install 'fewpairs[gs]'.")


def test_a_protocol_that_nobody_knows(machine: Machine) -> None:
    with pytest.raises(UserError, match="expected a protocol that fsspec knows, such as s3 or gs, found 'nonsense'"):
        filesystem("nonsense")

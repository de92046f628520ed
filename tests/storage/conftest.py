"""An S3-compatible server on loopback for the whole session, a bucket a test, machines that share nothing else."""

import logging
import os
import threading
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

Machine = Callable[[str], Path]
"""Name of a machine → its cache; from then on this process works as that machine."""


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """Start moto's server and return its address; it answers one request after the other.

    Moto looks whether a condition holds and then writes; of two requests at once both could find that it does.
    """
    moto = pytest.importorskip("moto.server")
    pytest.importorskip("s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    assert running._server is not None
    application, alone = running._server.app, threading.Lock()

    def one_by_one(*args: Any) -> Any:
        with alone:
            return application(*args)

    running._server.app = one_by_one
    host, port = running.get_host_and_port()
    yield f"http://{host}:{port}"
    running.stop()


@pytest.fixture
def s3(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Make every client of this process, and of its children, talk to the server; return its address."""
    settings = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "key",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    forget_clients()
    yield server
    forget_clients()


@pytest.fixture
def bucket(s3: str, request: pytest.FixtureRequest) -> str:
    """Make a bucket and return its URL."""
    name = f"b{os.getpid()}-{abs(hash(request.node.nodeid)):x}"
    make_bucket(s3, name)
    return f"s3://{name}"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Return what turns this process into another machine: an empty cache of its own."""

    def work_as(name: str) -> Path:
        cache = tmp_path / "caches" / name
        monkeypatch.setenv("FEWPAIRS_CACHE", str(cache))
        return cache

    work_as("first")
    return work_as


@pytest.fixture(autouse=True)
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try again at once."""
    monkeypatch.setattr("pipeline.storage.requests.FIRST_WAIT", 0.0)


def make_bucket(server: str, name: str) -> None:
    """Make a bucket without any client library."""
    with urllib.request.urlopen(urllib.request.Request(f"{server}/{name}", method="PUT")) as answer:
        assert answer.status == 200


def forget_clients() -> None:
    """Let fsspec make its S3 clients anew, so that they read the environment as it is now."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()

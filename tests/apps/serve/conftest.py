"""Two small runs behind the application: asked in memory (`client`), or over a real socket (`address`)."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from starlette.testclient import TestClient

from pipeline.apps.config import ServeConfig
from pipeline.apps.serve.served import ServedRun, open_runs
from pipeline.apps.serve.server import address as url
from pipeline.apps.serve.server import create_app, listen, uvicorn_settings
from tests.apps.colours import make_run, write_run

BASE = "http://127.0.0.1:8000"


@pytest.fixture(scope="session")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the folders of two runs over the same stores; the first has two seeds."""
    folder = tmp_path_factory.mktemp("serve")
    first = make_run(folder, seeds=(7, 8), odd=True)
    from pipeline.projectors.run_record import AlignedRun

    return [first, write_run(folder / "other", AlignedRun.open(first).record["stores"])]


@pytest.fixture(scope="session")
def runs(paths: list[Path]) -> list[ServedRun]:
    """Return both runs, opened."""
    return open_runs(ServeConfig(runs=tuple(paths)))


@pytest.fixture(scope="session")
def client(runs: list[ServedRun]) -> Iterator[TestClient]:
    """Ask the application in memory."""
    with TestClient(create_app(runs), base_url=BASE) as asking:
        yield asking


@pytest.fixture(scope="session")
def address(runs: list[ServedRun]) -> Iterator[str]:
    """Serve over a socket of this process; return the URL."""
    with listen("127.0.0.1", 0) as place:
        server = uvicorn.Server(uvicorn_settings(create_app(runs)))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [place]})
        thread.start()
        yield url(place)
        server.should_exit = True
        thread.join(120)

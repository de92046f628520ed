"""The ASGI application (API, page and guard put together), and the server that runs it until Ctrl-C.

`serve` takes the port, opens the runs and answers; run by `pipeline serve`. `create_app(runs)` is for tests and for
other servers.
"""

import errno
import ipaddress
import socket
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response
from starlette.types import ASGIApp

from pipeline import __version__
from pipeline.apps.serve.api import Api
from pipeline.apps.serve.guard import Guard
from pipeline.apps.serve.schemas import BATCH, QUEUE, ApiError, add_handlers
from pipeline.apps.serve.served import ServedRun, open_runs
from pipeline.apps.serve.worker import Worker
from pipeline.errors import UserError
from pipeline.storage.contract import Place
from pipeline.words import on_stderr

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
BACKLOG = 512
SHUTDOWN_SECONDS = 5


def serve(
    runs: Sequence[Place],
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    names: Collection[str] = (),
    image: Sequence[Place] = (),
    text: Sequence[Place] = (),
    data: Place | None = None,
    device: str = "cpu",
) -> None:
    """Serve runs until the process is interrupted.

    Args:
        runs: Folders of runs, the default first.
        host: Address or name to listen on.
        port: Port; 0 takes any that is free.
        names: Host names that requests may be addressed to, beside `localhost`, IP addresses and `host`.
        image: Image stores of all runs; their own where not given.
        text: Text stores of all runs; their own where not given.
        data: Folder of the pictures; what the stores say where not given.
        device: A torch device for the encoders.

    Raises:
        PipelineError: The address cannot be taken, or a run does not open.
    """
    with listen(host, port) as server:
        opened = open_runs(runs, image=image, text=text, data=data, device=device)
        if not is_loopback(server):
            on_stderr("Warning: everybody who reaches this address can see these images; there is no password")
        on_stderr(f"Serving {', '.join(run.name for run in opened)} at {address(server)}   (Ctrl-C stops)")
        config = uvicorn.Config(
            create_app(opened, (host, *names)),
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[server])
        on_stderr("Stopped")


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; who connects before all is loaded waits.

    Raises:
        UserError: The address is unknown, not this machine's, taken, or may not be taken.
    """
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        server = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        raise UserError(expected="an address of this machine", found=repr(host), where="--host") from error
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind(place)
        server.listen(BACKLOG)
    except OSError as error:
        server.close()
        raise _refused(host, port, error) from error
    return server


def address(server: socket.socket) -> str:
    """Return the URL that a socket listens on."""
    host, port = server.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def is_loopback(server: socket.socket) -> bool:
    """Return whether only this machine reaches a socket."""
    return ipaddress.ip_address(server.getsockname()[0].partition("%")[0]).is_loopback


def _refused(host: str, port: int, error: OSError) -> UserError:
    if error.errno == errno.EADDRINUSE:
        remedy = "choose another with --port, or any free one with --port 0"
        return UserError(expected="a free port", found=f"that {port} is in use", where="--port", remedy=remedy)
    if error.errno in (errno.EACCES, errno.EPERM):
        return UserError(
            expected="a port that may be taken", found=str(port), where="--port", remedy="take one above 1023"
        )
    return UserError(expected="an address of this machine", found=f"{host!r} ({error.strerror})", where="--host")


def create_app(runs: Sequence[ServedRun], names: Collection[str] = (), *, queue: int = QUEUE) -> ASGIApp:
    """Return the application over some runs.

    Args:
        runs: The runs, the default first.
        names: Host names that are allowed beside `localhost` and IP addresses.
        queue: How many questions may wait.
    """
    return Guard(inner_app(runs, queue=queue), names)


def inner_app(runs: Sequence[ServedRun], *, queue: int = QUEUE) -> FastAPI:
    """Return the application without its guard."""
    worker = Worker(queue, BATCH)
    api = Api(runs, worker)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()
        api.decoders.shutdown(cancel_futures=True)

    app = FastAPI(
        title="fewpairs",
        version=__version__,
        description="Search images by text and by picture, and classify them by class names.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    add_handlers(app)
    app.include_router(api.router)
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    """Serve the page's files from memory: no path of a request reaches the disk."""
    files = {path.name: (path.read_bytes(), KINDS[path.suffix]) for path in PAGE.iterdir() if path.suffix in KINDS}

    async def index() -> Response:
        return Response(files["index.html"][0], media_type="text/html", headers={"Cache-Control": "no-cache"})

    async def file(name: str) -> Response:
        if name not in files:
            raise ApiError(404, expected="a file of the page", found=ascii(name)[:100], where="request")
        data, kind = files[name]
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

    app.get("/", include_in_schema=False)(index)
    app.get("/page/{name}", include_in_schema=False)(file)

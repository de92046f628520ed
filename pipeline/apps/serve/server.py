"""The ASGI application (API, page and guard put together), and the server that runs it until Ctrl-C.

`serve` takes the port, opens the runs and answers; run by `pipeline serve`. `create_app(runs)` is for tests and for
other servers.

A server on loopback is reached by every web page that its user opens. So the guard lets a request through only if its
Host header is `localhost`, an IP address or a name that was allowed (a rebound DNS name is none of these) and it
changes no origin, bounds its body in bytes and in time, and completes the headers of every answer: the page may load
only its own files.
"""

import asyncio
import errno
import ipaddress
import socket
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from pipeline import __version__
from pipeline.apps.config import ServeConfig
from pipeline.apps.serve.api import Api
from pipeline.apps.serve.schemas import (
    BATCH,
    BODY_BYTES,
    BODY_SECONDS,
    HEAD_SECONDS,
    QUEUE,
    UPLOAD_BYTES,
    ApiError,
    add_handlers,
    problem_response,
)
from pipeline.apps.serve.served import ServedRun, open_runs
from pipeline.apps.serve.worker import Worker
from pipeline.errors import UserError
from pipeline.words import on_stderr

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
BACKLOG = 512
SHUTDOWN_SECONDS = 5
UPLOADS = ("/api/search/image", "/api/zero_shot")
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


def serve(config: ServeConfig) -> None:
    """Serve runs until the process is interrupted.

    Raises:
        PipelineError: The address cannot be taken, or a run does not open.
    """
    with listen(config.host, config.port) as server:
        opened = open_runs(config)
        if not is_loopback(server):
            on_stderr("Warning: everybody who reaches this address can see these images; there is no password")
        on_stderr(f"Serving {', '.join(run.name for run in opened)} at {address(server)}   (Ctrl-C stops)")
        with suppress(KeyboardInterrupt):
            uvicorn.Server(uvicorn_settings(create_app(opened, (config.host, *config.allow_host)))).run([server])
        on_stderr("Stopped")


def uvicorn_settings(app: ASGIApp) -> uvicorn.Config:
    """Return how the application is run."""
    return uvicorn.Config(
        app,
        http=Connection,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )


class Connection(H11Protocol):
    """A connection that is closed where the head of a request is not there `HEAD_SECONDS` after its first byte.

    The time runs from the beginning of the connection, and for a next request from its first byte; uvicorn itself ends
    connections that are idle between two requests. More bytes buy no more time.
    """

    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a head."""
        super().connection_made(transport)
        self._patience = self.loop.call_later(HEAD_SECONDS, transport.close)

    def data_received(self, data: bytes) -> None:
        """Wait no longer where a request is being answered; else wait for the end of its head."""
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()
        elif self._patience is None:
            self._patience = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _stop_waiting(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; who connects before all is loaded waits.

    Raises:
        UserError: The address is unknown, not this machine's, taken, or may not be taken.
    """
    try:
        family, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise UserError(expected="an address of this machine", found=repr(host), where="--host") from error
    try:
        server = socket.create_server(place[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        raise _refused(host, port, error) from error
    # What it accepts inherits it. Without it the kernel holds back the end of an answer until the client has confirmed
    # its beginning, 40 ms later.
    server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
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
    """Return the application without its guard; the page's files are sent from memory."""
    worker = Worker(queue, BATCH)
    api = Api(runs, worker)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await worker.close()
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
    for path in PAGE.iterdir():
        if path.suffix in KINDS:
            where = "/" if path.name == "index.html" else f"/page/{path.name}"
            kept = Response(path.read_bytes(), media_type=KINDS[path.suffix], headers={"Cache-Control": "no-cache"})
            app.router.routes.append(Route(where, kept, methods=["GET"]))
    return app


# ---- the guard -------------------------------------------------------------------------------------------------------


class Guard:
    """Middleware around the whole application.

    Args:
        app: The application.
        names: Host names that are allowed beside `localhost` and IP addresses.
    """

    def __init__(self, app: ASGIApp, names: Collection[str] = ()) -> None:
        self.app = app
        self.names = frozenset(name.lower().rstrip(".") for name in ("localhost", *names))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or let it through with its body counted and its answer's headers completed."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        limit = BODY_BYTES + (UPLOAD_BYTES if scope["path"] in UPLOADS else 0)
        try:
            headers = Headers(scope=scope)
            self._check_host(headers)
            _check_origin(headers, scope)
            _check_length(headers, limit)
        except ApiError as error:
            await problem_response(error.status_code, error.problem)(scope, receive, _completed(send))
            return
        await self.app(scope, _bounded(receive, limit), _completed(send))

    def _check_host(self, headers: Headers) -> None:
        hosts = headers.getlist("host")
        name = _hostname(hosts[0]) if len(hosts) == 1 else ""
        if name not in self.names and not _is_address(name):
            raise ApiError(
                403,
                expected="a Host header of localhost, an IP address or an allowed name",
                found=", ".join(map(ascii, hosts))[:100] or "none",
                where="Host",
                remedy="start with --allow-host NAME if this name is yours",
            )


def _hostname(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].lower().rstrip(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _check_origin(headers: Headers, scope: Scope) -> None:
    foreign = ""
    if scope["method"] not in ("GET", "HEAD") and (origin := headers.get("origin")) is not None:
        foreign = "" if origin.partition("://")[2].lower() == headers["host"].lower() else origin
    if scope["path"].startswith("/api/") and headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        foreign = foreign or f"a {headers['sec-fetch-site']} request"
    if foreign:
        raise ApiError(403, expected="a request of the page itself", found=ascii(foreign)[:100], where="Origin")


def _check_length(headers: Headers, limit: int) -> None:
    length = headers.get("content-length", "0")
    if length.isdecimal() and int(length[:20]) > limit:
        raise _too_large(limit)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, expected=f"a request of at most {limit:,} bytes", found="a larger one", where="body")


def _bounded(receive: Receive, limit: int) -> Receive:
    """Return what receives a body of so many bytes, in so many seconds from now on."""
    received, whole, end = 0, False, asyncio.get_running_loop().time() + BODY_SECONDS

    async def bounded() -> Message:
        nonlocal received, whole
        try:
            async with asyncio.timeout_at(None if whole else end):  # after the body only the client's leave is told
                message = await receive()
        except TimeoutError as error:
            raise _too_slow() from error
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(limit)
        whole = not message.get("more_body", False)
        return message

    return bounded


def _too_slow() -> ApiError:
    expected, closing = f"the request within {BODY_SECONDS} s", {"Connection": "close"}
    return ApiError(408, expected=expected, found="a part", where="body", headers=closing)


def _completed(send: Send) -> Send:
    async def completing(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers.update(HEADERS)
            headers.setdefault("Cache-Control", "no-store")
        await send(message)

    return completing

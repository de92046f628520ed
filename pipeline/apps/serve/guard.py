"""What stands before the API: who may ask, how much may be sent, and the headers of every answer.

A server on loopback is reached by every web page that its user opens. So the Host header must be `localhost`, an IP
address or a name that was allowed (a rebound DNS name is none of these), a request that changes origin is refused, and
the page may load nothing but its own files.
"""

import ipaddress
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.apps.serve.schemas import BODY_BYTES, UPLOAD_BYTES, ApiError, problem_response

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
        await self.app(scope, _counted(receive, limit), _completed(send))

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


def _counted(receive: Receive, limit: int) -> Receive:
    received = 0

    async def counting() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise _too_large(limit)
        return message

    return counting


def _completed(send: Send) -> Send:
    async def completing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message.setdefault("headers", [])
            headers = MutableHeaders(raw=_raw(message))
            for name, value in HEADERS.items():
                headers[name] = value
            headers.setdefault("Cache-Control", "no-store")
            message["headers"] = headers.raw
        await send(message)

    return completing


def _raw(message: Message) -> list[tuple[bytes, bytes]]:
    headers: Any = message["headers"]
    return [(bytes(name), bytes(value)) for name, value in headers]

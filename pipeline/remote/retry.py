"""Try again what failed for a reason that passes: throttling, a 5xx, a lost connection, a timeout; nothing else.

The waits double and are drawn at random (full jitter, between half and the whole), so that many workers that were
turned away together do not come back together.
"""

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

ATTEMPTS = 7
FIRST_WAIT = 0.25
LONGEST_WAIT = 20.0

_ERRNO = frozenset(
    getattr(errno, name)
    for name in ("EAGAIN", "EBUSY", "ECONNABORTED", "ECONNREFUSED", "ECONNRESET", "EPIPE", "EREMOTEIO", "ETIMEDOUT")
    if hasattr(errno, name)
)
_NAMES = frozenset(
    {
        "ClientConnectionError",
        "ClientPayloadError",
        "ConnectionClosedError",
        "ConnectionError",
        "HTTPClientError",
        "IncompleteRead",
        "IncompleteReadError",
        "ResponseStreamingError",
        "ServerTimeoutError",
    }
)
"""Errors of botocore, aiohttp and http.client, by name, so that none of them is imported for it."""
_log = logging.getLogger(__name__)


def is_transient(error: BaseException) -> bool:
    """Say whether the same request may well succeed later."""
    if isinstance(error, (TimeoutError, ConnectionError)):
        return True
    status = _status(error)
    if status is not None:
        return status in (408, 409, 425, 429) or (status >= 500 and status != 501)  # 501: not implemented
    if isinstance(error, OSError) and error.errno in _ERRNO:
        return True
    return any(kind.__name__ in _NAMES for kind in type(error).__mro__)


def retrying(action: Callable[[], T], what: str, wait: Callable[[float], None] = time.sleep) -> T:
    """Return what an action returns, after as many as `ATTEMPTS` tries; what does not pass is raised at once."""
    for attempt in range(1, ATTEMPTS):
        try:
            return action()
        except Exception as error:
            if not is_transient(error):
                raise
            pause = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1)) * random.uniform(0.5, 1)  # noqa: S311
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            _log.warning("%s: %s; try %d of %d in %.1f s", what, reason, attempt + 1, ATTEMPTS, pause)
            wait(pause)
    return action()


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error carries, or the one that it was made of."""
    for each in (error, error.__cause__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if isinstance(status, int) and status >= 400:
                return status
        for name in ("status", "code"):
            value = getattr(each, name, None)
            if isinstance(value, int) and 400 <= value < 600:
                return value
    return None

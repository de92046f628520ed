"""Requests to an object store by fsspec: list, read, write, write on a condition, remove; tried again, and explained.

A condition is kept by the store itself where it can (S3: If-None-Match and If-Match; fsspec's `create` elsewhere);
replacing on a condition is otherwise look first, then write, which two writers may both pass.

What fails for a reason that passes (throttling, a 5xx, a lost connection, a timeout) is tried again here, and the
clients' own retries are switched off: botocore's do not cover a body that breaks off or a conditional put that
conflicts (HTTP 409), other clients of fsspec have none, and layers of them would wait for minutes at a wrong endpoint.
"""

import errno
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from pipeline.errors import MissingExtraError, PipelineError, UserError
from pipeline.files import one_line
from pipeline.storage.contract import Stored

T = TypeVar("T")

ATTEMPTS = 7
FIRST_WAIT = 0.25
LONGEST_WAIT = 20.0
"""Seconds. Waits double and are drawn between half and the whole, so that many do not come back together."""

_ERRNO = {errno.EAGAIN, errno.EBUSY, getattr(errno, "EREMOTEIO", errno.EBUSY)}
"""Beside those that Python makes a ConnectionError or TimeoutError of."""
_NAMES = {
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
"""Errors of botocore, aiohttp and http.client, by name, so that none of them is imported for it."""

_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "gcs": ("gcsfs", "gs")}
"""Protocol → the package that speaks it, and the extra that installs it."""
_S3 = ("s3", "s3a")
_ONCE = {"config_kwargs": {"retries": {"total_max_attempts": 1, "mode": "standard"}}}
"""Retries are this package's own: three layers of them would wait for minutes at a wrong endpoint."""
_CREDENTIALS = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "TokenRetrievalError",
    "RefreshError",
}

_TOKENS = ("ETag", "etag", "md5Hash", "generation", "mtime", "created", "LastModified", "last_modified")

_log = logging.getLogger(__name__)


class Requests:
    """What can be asked of the objects below a URL; names are relative to it, with `/`.

    Args:
        url: The folder's URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.protocol, _, rest = url.partition("://")
        self.conditional = self.protocol in _S3  # the store itself keeps conditions on replacing
        self._root = f"/{rest.strip('/')}" if self.protocol == "memory" else rest

    def list(self, prefix: str = "") -> dict[str, Stored]:
        """Return every object whose name begins with a prefix, folders below included; none where there is none.

        A name that could not be a path inside the folder is left out.
        """
        options = {"prefix": prefix} if prefix and self.conditional else {}
        try:
            found: Mapping[str, Mapping[str, Any]] = asked(
                lambda: self._fs.find(self._root, detail=True, withdirs=False, **options), self.url
            )
        except FileNotFoundError:
            return {}
        names = ((path[len(self._root) :].lstrip("/"), info) for path, info in found.items())
        return {name: _stored(info) for name, info in names if name.startswith(prefix) and is_inside(name)}

    def stat(self, name: str) -> Stored | None:
        """Return one object's size and token, None where there is none."""
        try:
            info = asked(lambda: self._fs.info(self._path(name)), self._url(name))
        except FileNotFoundError:
            return None
        return _stored(info) if info.get("type") == "file" else None

    def read(self, name: str) -> bytes | None:
        """Return an object's bytes, None where there is none."""
        try:
            return bytes(asked(lambda: self._fs.cat_file(self._path(name)), self._url(name)))
        except FileNotFoundError:
            return None

    def download(self, name: str, target: Path) -> None:
        """Write an object's bytes into a local file.

        Raises:
            FileNotFoundError: There is none.
        """
        asked(lambda: self._fs.get_file(self._path(name), str(target)), self._url(name))

    def upload(self, name: str, source: Path) -> Stored | None:
        """Put a local file there, in parts where it is large, and return what is there then."""
        asked(lambda: self._fs.put_file(str(source), self._path(name)), self._url(name))
        return self.stat(name)

    def write(self, name: str, data: bytes) -> str:
        """Put bytes there; return their token, "" where the store does not say."""
        return _token(asked(lambda: self._fs.pipe_file(self._path(name), data), self._url(name)))

    def create(self, name: str, data: bytes) -> bool:
        """Put bytes there if nothing is there; False if something else is.

        A request whose answer was lost is sent again and finds its own bytes: that counts as done.
        """
        sent = self._send(name, data, {"mode": "create"}, lambda there: there is None)
        return sent or self.read(name) == data

    def replace(self, name: str, data: bytes, token: str) -> bool:
        """Put bytes in the place of the object of this token; False if it is another by now."""
        condition = {"IfMatch": token} if self.conditional else {}
        sent = self._send(name, data, condition, lambda there: there is not None and there.token == token)
        return sent or self.read(name) == data

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects one after the other; those that are not there are passed over."""
        for name in names:
            try:
                asked(partial(self._fs.rm_file, self._path(name)), self._url(name))
            except FileNotFoundError:
                continue

    def _send(
        self, name: str, data: bytes, condition: Mapping[str, str], holds: Callable[[Stored | None], bool]
    ) -> bool:
        """Put bytes on a condition that the store keeps; where it knows none, look whether it holds, then write."""

        def send() -> bool | None:
            try:
                self._fs.pipe_file(self._path(name), data, **condition)
            except (OSError, NotImplementedError) as error:
                if isinstance(error, NotImplementedError) or _status(error) == 501:
                    return None
                if isinstance(error, FileExistsError | FileNotFoundError) or _status(error) == 412:
                    return False
                raise
            return True

        sent = asked(send, self._url(name)) if condition else None
        if sent is not None:
            return sent
        held = holds(self.stat(name))
        if held:
            self.write(name, data)
        return held

    @property
    def _fs(self) -> Any:
        return filesystem(self.protocol)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _url(self, name: str) -> str:
        return f"{self.url}/{name}"


def is_inside(name: str) -> bool:
    """Say whether an object's name is a plain relative path: no empty part, no `..`, no backslash."""
    return not any(part in ("", ".", "..") for part in name.split("/")) and "\\" not in name and "\0" not in name


def _stored(info: Mapping[str, Any]) -> Stored:
    size = int(info.get("size") or 0)
    return Stored(size, _token(info) or str(size))


def _token(info: Any) -> str:
    if not isinstance(info, Mapping):
        return ""
    found = next((info[name] for name in _TOKENS if info.get(name)), "")
    return str(found.timestamp() if isinstance(found, datetime) else found)  # fsspec's memory says both


# ---- fsspec and what it raises ---------------------------------------------------------------------------------------


def filesystem(protocol: str) -> Any:
    """Return the file system of a protocol; what it lists is never remembered.

    Raises:
        MissingExtraError: Its package is not installed.
        UserError: fsspec knows no such protocol.
    """
    import fsspec

    try:
        found = fsspec.filesystem(protocol, use_listings_cache=False, **(_ONCE if protocol in _S3 else {}))
    except ImportError as error:
        package, extra = _EXTRAS.get(protocol, ("", ""))
        install = f"pip install 'fewpairs[{extra}]'" if extra else "pip install the package that fsspec names"
        name = package or one_line(error)
        raise MissingExtraError(name, install, f"{protocol}:// addresses") from error
    except ValueError as error:
        expected = "a protocol that fsspec knows, such as s3 or gs"
        raise UserError(expected=expected, found=repr(protocol), where=f"{protocol}://") from error
    if protocol in _S3:
        found.retries = 1
    return found


def asked(action: Callable[[], T], url: str) -> T:
    """Return what a request returns, tried again where that may help, with a sentence where it does not.

    FileNotFoundError and FileExistsError pass through: they are answers. A missing bucket is no such answer.

    Raises:
        UserError: The bucket is missing, the credentials are, or access is denied.
        PipelineError: The store cannot be reached or refuses for another reason.
    """
    try:
        return retrying(action, url)
    except (PipelineError, FileExistsError):
        raise
    except Exception as error:
        if isinstance(error, FileNotFoundError) and not _is_bucket(error):
            raise
        raise _explained(error, url) from error


def _is_bucket(error: BaseException) -> bool:
    return any(each.get("Error", {}).get("Code") == "NoSuchBucket" for each in _responses(error))


def _responses(error: BaseException) -> list[dict[str, Any]]:
    """Return what botocore keeps of the answer, in the error or in the one that it was made of."""
    found = (getattr(each, "response", None) for each in (error, error.__cause__))
    return [each for each in found if isinstance(each, dict)]


def _explained(error: Exception, url: str) -> PipelineError:
    reason = one_line(error)[:200] or type(error).__name__
    names = {kind.__name__ for kind in type(error).__mro__}
    if _is_bucket(error):
        remedy = "make the bucket, or correct its name"
        return UserError(expected="a bucket that is there", found="none of this name", where=url, remedy=remedy)
    if isinstance(error, PermissionError):
        remedy = "check the credentials and what they may do there"
        return UserError(expected="permission", found=f"access denied ({reason})", where=url, remedy=remedy)
    if names & _CREDENTIALS:
        remedy = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, AWS_PROFILE, or what the store's own client reads"
        return UserError(expected="credentials", found=f"none that can be used ({reason})", where=url, remedy=remedy)
    if is_transient(error):
        remedy = (
            "check the endpoint (AWS_ENDPOINT_URL) and the network; what is finished stays: run again later, or with "
            "FEWPAIRS_OFFLINE=1 read what is in the cache"
        )
        return PipelineError(expected="an answer", found=reason, where=url, remedy=remedy)
    return PipelineError(expected="the request to be done", found=reason, where=url)


# ---- trying again ----------------------------------------------------------------------------------------------------


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
            reason = one_line(error)[:200] or type(error).__name__
            _log.warning("%s: %s; try %d of %d in %.1f s", what, reason, attempt + 1, ATTEMPTS, pause)
            wait(pause)
    return action()


def _status(error: BaseException) -> int | None:
    """Return the HTTP status that an error carries, or the one that it was made of."""
    said = [each.get("ResponseMetadata", {}).get("HTTPStatusCode") for each in _responses(error)]
    said += [getattr(each, name, None) for each in (error, error.__cause__) for name in ("status", "code")]
    return next((status for status in said if isinstance(status, int) and 400 <= status < 600), None)

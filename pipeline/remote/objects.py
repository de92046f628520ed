"""The objects below a URL: list, read, write, write on a condition, remove.

A condition is kept by the store itself where it can (S3: If-None-Match and If-Match; fsspec's `create` elsewhere);
replacing on a condition is otherwise look first, then write, which two writers may both pass.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.remote.filesystem import asked, filesystem, is_conflict, is_unknown

_TOKENS = ("ETag", "etag", "md5Hash", "generation", "mtime", "created", "LastModified", "last_modified")


@dataclass(frozen=True)
class Stored:
    """An object: its size in bytes, and a token that changes with its content."""

    size: int
    token: str


class Objects:
    """What lies below a URL; names are relative to it, with `/`.

    Args:
        url: The folder's URL.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.protocol, _, rest = url.partition("://")
        self._root = f"/{rest.strip('/')}" if self.protocol == "memory" else rest

    @property
    def conditional(self) -> bool:
        """Whether the store itself keeps conditions on replacing."""
        return self.protocol in ("s3", "s3a")

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

        def send() -> None:
            self._fs.pipe_file(self._path(name), data, mode="create")

        done = self._on_condition(send, name)
        if done is None and (done := self.stat(name) is None):
            self.write(name, data)
        return done or self.read(name) == data

    def replace(self, name: str, data: bytes, token: str) -> bool:
        """Put bytes in the place of the object of this token; False if it is another by now."""
        return self._replace(name, data, token) or self.read(name) == data

    def remove(self, names: Iterable[str]) -> None:
        """Remove objects one after the other; those that are not there are passed over."""
        for name in names:
            try:
                asked(partial(self._fs.rm_file, self._path(name)), self._url(name))
            except FileNotFoundError:
                continue

    def _replace(self, name: str, data: bytes, token: str) -> bool:
        def send() -> None:
            self._fs.pipe_file(self._path(name), data, IfMatch=token)

        done = self._on_condition(send, name) if self.conditional else None
        if done is None:
            now = self.stat(name)
            done = now is not None and now.token == token
            if done:
                self.write(name, data)
        return done

    def _on_condition(self, send: Callable[[], None], name: str) -> bool | None:
        """Send a conditional request: done, refused (False), or None where the store knows no conditions."""

        def answer() -> bool | None:
            try:
                send()
            except (OSError, NotImplementedError) as error:
                if is_unknown(error):
                    return None
                if is_conflict(error) or isinstance(error, FileNotFoundError):
                    return False
                raise
            return True

        return asked(answer, self._url(name))

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

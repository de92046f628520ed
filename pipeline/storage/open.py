"""Where a text or a path becomes a storage: the command line, params.yaml, what records name."""

import re
from pathlib import Path

from pipeline.errors import UserError
from pipeline.storage.contract import Place, Storage
from pipeline.storage.local import LocalStorage

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_LOCAL = ("file", "local")
_RECORDED = ("s3", "s3a", "gs", "gcs", "memory")


def open_storage(place: Place) -> Storage:
    """Return the storage at a folder or URL, and one as it is; nothing is asked of the disk or the network.

    `file:///folder` is that folder.

    Raises:
        UserError: It is no URL of a folder, or it carries a password.
    """
    if isinstance(place, Storage):
        return place
    if isinstance(place, Path) or not is_url(place):
        return LocalStorage(Path(place))
    url = _checked(place)
    protocol, _, rest = url.partition("://")
    if protocol in _LOCAL:
        return LocalStorage(Path(rest))
    from pipeline.storage.objects import open_objects

    return open_objects(url)


def open_recorded(url: str) -> Storage | None:
    """Return the storage at a URL that a record names, such as the data set of a store; None for no object store.

    A record may come from anybody: it is not to make this machine ask whatever server it names.
    """
    return open_storage(url) if url.partition("://")[0] in _RECORDED else None


def is_url(text: str) -> bool:
    """Say whether a text is meant as a URL and not as a path."""
    return "://" in text


def _checked(url: str) -> str:
    protocol, _, rest = url.partition("://")
    clean = f"{protocol}://{rest.rstrip('/')}"
    host = rest.partition("/")[0]
    if ":" in host.rpartition("@")[0]:
        remedy = "give the password by the environment or a profile: an address is written into records"
        raise UserError(expected="a URL without a password", found="one", where=f"{protocol}://", remedy=remedy)
    parts = rest.rstrip("/").split("/")
    wrong = not _SCHEME.fullmatch(protocol) or (not host and protocol not in (*_LOCAL, "memory"))
    if wrong or "::" in url or "\0" in url or any(part in (".", "..") for part in parts) or "" in parts[1:]:
        raise UserError(
            expected="the URL of a folder, such as s3://bucket/features/flickr8k/vit", found=repr(url), where="URL"
        )
    return clean

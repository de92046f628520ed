"""A URL and the folder of the local cache that stands for it.

    root = bind("s3://bucket/features/flickr8k/vit")      # ~/.cache/fewpairs/fewpairs-remote/<digest of the URL>
    address(root / "manifest.json")                       # s3://bucket/features/flickr8k/vit/manifest.json

A bound folder is known by its path alone, in any process. The cache belongs to its user (0700); it may be removed
whenever nobody uses it.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from pipeline.errors import PipelineError, UserError

MARK = "fewpairs-remote"
_BOUND = re.compile(rf"(?P<base>.*/{MARK}/[0-9a-f]{{32}})(?:/(?P<inner>.*))?", re.DOTALL)
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_LOCAL = ("file", "local")
_RECORDED = ("s3", "s3a", "gs", "gcs", "memory")


class Bound(NamedTuple):
    """Where a bound path lies: the bound folder, and the path inside it with `/`; "" for the folder itself."""

    base: Path
    inner: str


def is_url(text: str) -> bool:
    """Say whether a text is meant as a URL and not as a path."""
    return "://" in text


def local_path(place: Path | str) -> Path:
    """Return a path as it is, and a URL's bound folder.

    Raises:
        UserError: As for `bind`.
    """
    return bind(place) if isinstance(place, str) and is_url(place) else Path(place)


def bind(url: str) -> Path:
    """Return the local folder that stands for a URL, made if need be; nothing is asked of the network.

    `file:///folder` is that folder itself.

    Raises:
        UserError: It is no URL of a folder, or it carries a password.
    """
    clean = _checked(url)
    protocol, _, rest = clean.partition("://")
    if protocol in _LOCAL:
        return Path(rest)
    folder = _private(cache_root() / MARK) / hashlib.sha256(clean.encode()).hexdigest()[:32]
    folder.mkdir(mode=0o700, exist_ok=True)
    note = _note(folder)
    if not note.is_file():
        temp = note.with_name(f".{note.name}.{secrets.token_hex(8)}")
        temp.write_text(json.dumps({"url": clean}) + "\n", encoding="utf-8")
        temp.replace(note)
    return folder


def bind_recorded(url: str) -> Path | None:
    """Return the folder for a URL that a record names, such as the data set of a store; None for no object store.

    A record may come from anybody: it is not to make this machine ask whatever server it names.
    """
    return bind(url) if url.partition("://")[0] in _RECORDED else None


def cache_root() -> Path:
    """Return the folder of the cache: FEWPAIRS_CACHE, else `fewpairs` in XDG_CACHE_HOME or ~/.cache."""
    own = os.environ.get("FEWPAIRS_CACHE")
    if own:
        return Path(own).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "fewpairs"


def bound(path: Path) -> Bound | None:
    """Return where a path lies in a bound folder; None for any other path, which costs a look at its text."""
    text = str(path)
    if MARK not in text:
        return None
    match = _BOUND.fullmatch(text)
    return Bound(Path(match["base"]), match["inner"] or "") if match else None


@lru_cache(maxsize=256)
def url_of(base: Path) -> str:
    """Return the URL of a bound folder.

    Raises:
        UserError: The cache does not say.
    """
    try:
        return str(json.loads(_note(base).read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError) as error:
        remedy = "remove this folder and say the URL again"
        raise UserError(
            expected="the note of its URL beside it", found="none", where=str(base), remedy=remedy
        ) from error


def address(path: Path) -> str:
    """Return a path as people and records are to see it: its URL if it is bound."""
    place = bound(path)
    if place is None:
        return str(path)
    return f"{url_of(place.base)}/{place.inner}".rstrip("/")


def name_of(path: Path) -> str:
    """Return the last part of a path, or of its URL if it is bound."""
    return address(path).rpartition("/")[2] if bound(path) else path.resolve().name


def addressed(text: str) -> str:
    """Return a text with the URL in place of every bound folder."""
    if MARK not in text:
        return text
    here = re.compile(rf"{re.escape(str(cache_root() / MARK))}/[0-9a-f]{{32}}")
    return here.sub(lambda match: url_of(Path(match[0])), text)


@contextmanager
def urls_in_errors() -> Iterator[None]:
    """Say URLs in errors in place of the folders that stand for them."""
    try:
        yield
    except PipelineError as error:
        for field in ("expected", "found", "where", "remedy"):
            setattr(error, field, addressed(getattr(error, field)))
        raise


def _note(base: Path) -> Path:
    return base.with_name(f"{base.name}.json")


def _private(folder: Path) -> Path:
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        remedy = "set FEWPAIRS_CACHE to a folder of your own"
        raise UserError(expected="a cache of this user", found="another user's", where=str(folder), remedy=remedy)
    return folder


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

"""Digests of files and of JSON, JSON that carries its own digest, files that are written whole or not at all, locks.

An atomic write is: a temp file in the same folder, its bytes, fsync, rename, fsync of the folder. Every step is a
function of its own, looked up in this module, so that tests can kill the process at each.

sha256 names content for good. Signed JSON ends with a digest of itself and must be byte for byte what this module would
write, so that any flipped byte is seen.

The kernel releases a lock (flock) when its process dies, so that nothing stale is ever waited for. A lock file exists
while the lock is held and is removed by its holder; whoever gets the lock of a file that is no longer at its path tries
again.
"""

import errno
import fcntl
import hashlib
import json
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from pipeline.errors import DamagedStoreError, UserError, naming

_ABSENT = object()
_SHOWN = 120


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical(value: Any) -> bytes:
    """Return the one JSON text of a value: sorted keys, no spaces, UTF-8, no NaN."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode()


def json_digest(value: Any) -> str:
    """Return the sha256 of a JSON value's canonical text."""
    return hashlib.sha256(canonical(value)).hexdigest()


def spaced_json_digest(value: Any) -> str:
    """Return the sha256 of JSON as Python writes it, with sorted keys; what JSON does not know goes in as text.

    The keys of encoders and finished seeds carry it. Anything new takes `json_digest`.
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


def json_differences(ours: Any, theirs: Any, path: str = "") -> list[tuple[str, str, str]]:
    """Return (dotted field, value of ours, value of theirs) wherever two JSON values differ, values as JSON."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        names = sorted(ours.keys() | theirs.keys())
        pairs = ((name, ours.get(name, _ABSENT), theirs.get(name, _ABSENT)) for name in names)
        return [found for name, a, b in pairs for found in json_differences(a, b, f"{path}.{name}" if path else name)]
    if type(ours) is type(theirs) and ours == theirs:
        return []
    return [(path, _shown(ours), _shown(theirs))]


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "(absent)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def dump_signed(value: Mapping[str, Any]) -> bytes:
    """Return a JSON object as readable text that ends with its own digest under "self".

    Raises:
        ValueError: A value is not finite, or a text is none that UTF-8 has.
        TypeError: A value is none of JSON's.
    """
    return _signed(json.loads(json.dumps(dict(value), allow_nan=False)))  # its keys as the file will have them: text


def _signed(body: dict[str, Any]) -> bytes:
    signed = {**body, "self": json_digest(body)}
    return (json.dumps(signed, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def load_signed(data: bytes, name: str, where: str) -> dict[str, Any]:
    """Return a signed JSON object, checked.

    Args:
        data: Its text.
        name: The file that it comes from, for the error.
        where: The folder of that file.

    Raises:
        DamagedStoreError: The text is not exactly what was signed.
    """
    try:
        value = json.loads(data)
        body = {name: item for name, item in value.items() if name != "self"}
        sound = _signed(body) == data
    except (ValueError, AttributeError, RecursionError):
        sound = False
    if not sound:
        raise DamagedStoreError(name, "the digest that it carries", "other bytes", where)
    return body


def is_endless(path: Path) -> bool:
    """Say whether a pipe, a socket or a device is there: reading it might never end."""
    try:
        mode = path.stat().st_mode  # looked at once: what others delete meanwhile is not there, and no pipe
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def read_file(path: Path, remedy: str) -> bytes:
    """Return the bytes of a file that has to be there; `remedy` is the advice where it is not.

    Raises:
        UserError: There is none, or it is a pipe or a device, which might never end.
    """
    if is_endless(path):
        raise UserError(expected="a regular file", found="a pipe or a device", where=str(path), remedy=remedy)
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(expected=f"a file {path.name}", found="none", where=str(path.parent), remedy=remedy) from error


def read_json(
    path: Path, kind: str, where: str = "", *, remedy: str = "make it again, or restore it from a copy"
) -> dict[str, Any]:
    """Read a JSON object that describes a `kind` of thing.

    Args:
        path: The file.
        kind: What it describes, for errors.
        where: What errors call the file; its path if unsaid.
        remedy: What errors advise.

    Raises:
        UserError: The file is missing or is not a JSON object.
    """
    where = where or str(path)
    try:
        value = json.loads(read_file(path, remedy))
    except (ValueError, RecursionError) as error:  # of numbers with thousands of digits, too
        expected = f"JSON that describes {kind}"
        raise UserError(expected=expected, found=one_line(error), where=where, remedy=remedy) from error
    if not isinstance(value, dict):
        expected = f"a JSON object that describes {kind}"
        raise UserError(expected=expected, found=type(value).__name__, where=where, remedy=remedy)
    return value


def read_lines(path: Path, kind: str) -> list[dict[str, Any]]:
    """Read a file with a JSON object a line, each of which describes a `kind` of thing; empty lines do not count.

    Raises:
        UserError: The file is missing, or a line is something else.
    """
    found, remedy = [], "make it again, or restore it from a copy"
    for number, line in enumerate(read_file(path, remedy).split(b"\n"), 1):
        try:
            value = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError) as error:
            value = one_line(error)
        if not isinstance(value, dict):
            expected, where = f"a JSON object a line, each {kind}", f"{path}, line {number}"
            raise UserError(expected=expected, found=str(value)[:_SHOWN], where=where, remedy=remedy)
        found += [value] if value else []
    return found


def read_signed(
    path: Path, kind: str, where: str = "", *, remedy: str = "make it again, or restore it from a copy"
) -> dict[str, Any]:
    """Read a JSON object as `read_json` does, and compare it with the digest that it carries under "self".

    Files of earlier versions carry none, and a file that is edited by hand may lose that line.

    Raises:
        UserError: The file is missing, is not a JSON object, or says something else than what was signed.
    """
    body = read_json(path, kind, where, remedy=remedy)
    if "self" not in body:
        return body
    signed = body.pop("self")
    try:
        found = json_digest(body)
    except (ValueError, RecursionError):  # numbers and texts that are never signed
        found = "what cannot be signed"
    if found != signed:
        advice = f'{remedy} (or remove its line "self" if you changed it on purpose)'
        found, where = f"other content ({found[:16]}…)", where or str(path)
        raise UserError(expected=f"what its digest says ({str(signed)[:16]}…)", found=found, where=where, remedy=advice)
    return body


def one_line(error: Exception) -> str:
    """Return what an error of a library says, on one line of 300 characters at most."""
    return " ".join(str(error).split())[:300]


@contextmanager
def temp_beside(target: Path) -> Iterator[Path]:
    """Yield the path of a new temp file in the folder of `target`; what is left of it at the end is removed."""
    path = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def write_bytes(path: Path, data: bytes) -> None:
    """Write all the bytes of a small file."""
    path.write_bytes(data)


def sync_file(path: Path) -> None:
    """Wait until a file's bytes are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish(temp: Path, target: Path) -> None:
    """Give a temp file its name, replacing what had it."""
    temp.replace(target)


def sync_folder(folder: Path) -> None:
    """Wait until a folder's names are on the disk, where the file system knows how to."""
    try:
        sync_file(folder)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise


def write_atomically(
    target: Path, data: bytes, temp: Callable[[Path], AbstractContextManager[Path]] = temp_beside
) -> None:
    """Write a small file so that a reader sees the old bytes or the new, never a part, and a crash leaves one of them.

    Args:
        target: The file; its folder is there.
        data: All its bytes.
        temp: Makes the temp file's path, and removes what is left of it.
    """
    with naming(target), temp(target) as path:
        write_bytes(path, data)
        sync_file(path)
        publish(path, target)
        sync_folder(target.parent)


# ---- locks -----------------------------------------------------------------------------------------------------------


@contextmanager
def lock(path: Path, *, block: bool = True) -> Iterator[bool]:
    """Hold the lock at `path`; yields False at once if it is taken and `block` is false."""
    descriptor = open_locked(path, block=block)
    if descriptor is None:
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def open_locked(path: Path, *, block: bool) -> int | None:
    """Open (or create) a file, lock it, and return its descriptor; None if it is taken and `block` is false."""
    try:
        return _locked(path, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX | (0 if block else fcntl.LOCK_NB))
    except BlockingIOError:
        return None


def share(path: Path) -> int | None:
    """Open a file that is there, wait for a shared lock on it and return its descriptor; None if the file is gone."""
    try:
        return _locked(path, os.O_RDONLY, fcntl.LOCK_SH)
    except FileNotFoundError:
        return None


@contextmanager
def alone(path: Path) -> Iterator[bool]:
    """Lock a file that is there and stays; yields False at once if anybody shares it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(descriptor)


def is_locked(path: Path) -> bool:
    """Say whether a live process holds the lock of an existing file."""
    try:
        with alone(path) as free:
            return not free
    except FileNotFoundError:
        return False


def same_file(descriptor: int, path: Path) -> bool:
    """Say whether an open descriptor is still the file at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _locked(path: Path, flags: int, how: int) -> int:
    while True:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, how)
            if same_file(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)

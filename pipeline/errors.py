"""Typed errors that carry fields. Only programs (`pipeline`, the stages) turn them into sentences and exit codes.

Every error says what was expected, what was found, where, and what to do about it. `UserError` and what derives from it
mean that the input is at fault (exit code 2); any other `PipelineError` means that the work failed (exit code 1).
"""

import errno
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import ClassVar, NoReturn

LONGEST = 2000
"""Characters of a part of a sentence: what is found may be a file's whole content."""
UNUSABLE = (PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
"""What a path that the user chose can be: not there, not allowed, or of the other kind."""
_ROOM = ("free space", "make room, or choose another place")
_HANDLES = ("one more open file", "raise the limit (`ulimit -n`), or close other programs")
_DISK = ("a disk that reads and writes", "look after the disk, or the network that it is reached by")
NEEDED = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: ("room for a file of that size", "raise the limit (`ulimit -f`), or choose another file system"),
    errno.EROFS: ("a place that can be written", "choose another place"),
    errno.EMFILE: _HANDLES,
    errno.ENFILE: _HANDLES,
    errno.ENOMEM: ("more memory", "free some, or ask for less at once: smaller batches, fewer workers (see --help)"),
    errno.EIO: _DISK,
    errno.ESTALE: _DISK,
}
"""What the machine may lack, by errno: what is needed, and what to do. No input is at fault."""
_CODE = re.compile(r"\b(?:errno|os error)[ =]*(\d+)", re.IGNORECASE)
_NO_MEMORY = re.compile(r"bad_alloc|out of memory|allocate memory|not enough memory", re.IGNORECASE)


class PipelineError(Exception):
    """A failure that this package foresaw.

    Args:
        expected: What should have been there.
        found: What was there instead.
        where: File, folder, field or option that it was found in; empty where nothing more can be said.
        remedy: What the user can do; empty where nothing can be advised.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, *, expected: str, found: str, where: str = "", remedy: str = "") -> None:
        self.expected, self.found, self.where, self.remedy = map(bounded, (expected, found, where, remedy))
        super().__init__(self.sentence())

    def __reduce__(self) -> tuple[object, ...]:
        return _restored, (type(self), self.args, vars(self))

    def sentence(self) -> str:
        """Return the error as one sentence: where, expected, found, remedy."""
        place = f"{self.where}: " if self.where else ""
        remedy = f"; {self.remedy}" if self.remedy else ""
        return f"{place}expected {self.expected}, found {self.found}{remedy}"


def bounded(text: str) -> str:
    """Return a text, cut where it is longer than anybody reads."""
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}… ({len(text):,} characters)"


def _restored(kind: type[PipelineError], args: tuple[object, ...], fields: Mapping[str, object]) -> PipelineError:
    """Rebuild an error that comes from another process; its own constructor takes other arguments."""
    error = kind.__new__(kind, *args)
    vars(error).update(fields)
    return error


class UserError(PipelineError):
    """The input is at fault: an argument, a file, a table, a combination. Exit code 2."""

    exit_code: ClassVar[int] = 2


class UnknownNameError(UserError):
    """A name that no table knows. Lists the known ones, the closest first.

    Args:
        kind: What the name stands for, such as "encoder family" or "layer".
        name: The name that was given.
        known: The names that would have been understood.
        where: Option or file that it came from.
    """

    def __init__(self, kind: str, name: str, known: Iterable[str], where: str = "") -> None:
        self.kind = kind
        self.name = name
        self.known = tuple(known)
        close = get_close_matches(name, self.known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else "choose one of them"
        super().__init__(
            expected=f"a known {kind} ({', '.join(self.known)})", found=repr(name), where=where, remedy=hint
        )


class MissingExtraError(UserError):
    """An optional package is not installed.

    Args:
        package: The package that could not be imported.
        install: The full command that installs it.
        purpose: What it is needed for.
    """

    def __init__(self, package: str, install: str, purpose: str) -> None:
        self.package = package
        self.install = install
        super().__init__(
            expected=f"the package {package!r} ({purpose})",
            found="that it is not installed",
            remedy=f"run: {install}",
        )


class KeyMismatchError(UserError):
    """Features of another key: the cache refuses them and names every field that differs.

    Args:
        differences: (field, expected, found) for each field that differs.
        where: The store or run that was asked.
        remedy: What to do.
    """

    def __init__(self, differences: Iterable[tuple[str, str, str]], where: str, remedy: str) -> None:
        self.differences = tuple(differences)
        expected = ", ".join(f"{field} = {value}" for field, value, _ in self.differences)
        found = ", ".join(f"{field} = {value}" for field, _, value in self.differences)
        super().__init__(expected=expected, found=found, where=where, remedy=remedy)


class DamagedStoreError(UserError):
    """A shard, a manifest or a side table is not what was committed.

    Args:
        name: File name of the damaged part, relative to the store.
        expected: What the manifest promises.
        found: What lies on the disk.
        where: The store's folder.
    """

    def __init__(self, name: str, expected: str, found: str, where: str) -> None:
        self.name = name
        super().__init__(
            expected=f"{name} with {expected}",
            found=found,
            where=where,
            remedy="delete the named file and run `pipeline extract` again: only that shard is redone",
        )


class UnfinishedStoreError(UserError):
    """A store whose extraction has not finished.

    Args:
        done: Shards that are committed.
        total: Shards in all; 0 where not even the header exists.
        where: The store's folder.
    """

    def __init__(self, done: int, total: int, where: str) -> None:
        self.done = done
        self.total = total
        found = f"{done} of {total} shards" if total else "no feature store"
        super().__init__(
            expected="a finished feature store",
            found=found,
            where=where,
            remedy="run `pipeline extract` (again): only what is missing is computed",
        )


class RejectedInputError(Exception):
    """An image or a text that cannot be used and is left out; its text is the reason as rejected.csv gives it."""


def lacking(error: BaseException) -> int | None:
    """Return the errno of what the machine lacks, also where a library says so in its own words; None where nothing."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno:
        return error.errno if error.errno in NEEDED else None
    said = str(error)[:LONGEST]
    if isinstance(error, RuntimeError) and _NO_MEMORY.search(said):
        return errno.ENOMEM
    codes = [int(found) for found in _CODE.findall(said)] + [code for code in NEEDED if os.strerror(code) in said]
    return next((code for code in codes if code in NEEDED), None)


def machine_error(error: BaseException, where: str = "") -> PipelineError | None:
    """Return the sentence of what the machine lacks: the path and what is needed; None for an error of another kind.

    Args:
        error: What was raised.
        where: The place that was being read or written, where the error does not tell it.
    """
    code = lacking(error)
    if code is None:
        return None
    expected, remedy = NEEDED[code]
    told = getattr(error, "filename", None)
    return PipelineError(
        expected=expected,
        found=os.strerror(code),
        where=where if told is None else os.fsdecode(told),
        remedy=f"{remedy}, and run the same command again",
    )


@contextmanager
def naming(place: object) -> Iterator[None]:
    """Let what the machine lacks while something is written be told with its place: a failed write has no path.

    Raises:
        OSError: With the place as its `filename`; also in place of the words of a library.
    """
    try:
        yield
    except Exception as error:
        code = lacking(error)
        if code in (None, errno.ENOMEM) or getattr(error, "filename", None) is not None:
            raise
        if not (isinstance(error, OSError) and error.errno):
            raise OSError(code, os.strerror(code), str(place)) from error
        error.filename = str(place)
        raise


@contextmanager
def exit_with_sentence() -> Iterator[None]:
    """End the program with one sentence on standard error and an exit code, in place of a traceback.

    A foreseen error has its own code; a path that cannot be used is the user's (2), what the machine lacks (space,
    memory, open files) is not (1). Interrupted is 130 and a closed pipe (`pipeline store ls STORE | head -1`) is 141,
    as a shell has them. What nobody foresaw keeps its traceback.
    """
    try:
        yield
        sys.stdout.flush()
    except PipelineError as error:
        _stop(f"Error: {error.sentence()}", error.exit_code)
    except KeyboardInterrupt:
        _stop("Interrupted: what was finished stays; run the same command again to go on", 130)
    except BrokenPipeError:
        _output_is_whole()
        sys.exit(141)
    except Exception as error:
        known = machine_error(error, "" if _output_is_whole() else "standard output") or _unusable(error)
        if known is None:
            raise
        _stop(f"Error: {known.sentence()}", known.exit_code)


def _unusable(error: Exception) -> PipelineError | None:
    if not isinstance(error, OSError) or not error.strerror:
        return None
    chosen = isinstance(error, UNUSABLE) or error.errno in (errno.ENAMETOOLONG, errno.ELOOP)
    place = "" if error.filename is None else os.fsdecode(error.filename)
    fault = UserError if chosen else PipelineError
    return fault(expected="a file or folder that can be used", found=error.strerror, where=place)


def _stop(sentence: str, code: int) -> NoReturn:
    _output_is_whole()
    sys.stderr.write(f"{' '.join(sentence.split()).rstrip('.')}.\n")
    sys.exit(code)


def _output_is_whole() -> bool:
    """Say whether all that was printed could be written; what could not goes nowhere, or Python complains again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return False
    return True

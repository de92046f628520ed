"""The contract of a storage: a folder of named bytes, on this machine or in an object store.

    root = open_storage(place)
    if root.put_new("store.json", data): ...          # False if something else is there already
    rows = read_table(root.file("samples.parquet"))   # a local file with these bytes, fetched if need be
    raise UserError(..., where=str(root / "samples.parquet"))

Names are relative, with `/`. What people and records see of a storage is its address, which is also its text.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import ClassVar, NamedTuple, TypeAlias

from pipeline.files import lock


class Stored(NamedTuple):
    """What is stored under a name: its size in bytes, and a token that changes with its content."""

    size: int
    token: str


class Content(NamedTuple):
    """What must be stored under a name: the sha256 of its bytes and their number."""

    sha256: str
    size: int


class Storage(ABC):
    """A folder of named bytes. Two storages are equal if their addresses are. Several threads may use one.

    Args:
        address: The folder's path or its URL, for people and records.
        here: The folder on this machine: itself, or the cache of an object store. Locks, temp files and event logs lie
            there; anything else only through the methods.
    """

    shares_locks: ClassVar[bool]
    """Whether all that share the kernel find the locks that lie here: who gets one knows that its holder died."""

    def __init__(self, address: str, here: Path) -> None:
        self.address = address
        self.here = here

    def __str__(self) -> str:
        """Return the address."""
        return self.address

    def __repr__(self) -> str:
        """Return the kind and the address."""
        return f"{type(self).__name__}({self.address!r})"

    def __eq__(self, other: object) -> bool:
        """Say whether it is a storage of the same address."""
        return isinstance(other, Storage) and self.address == other.address

    def __hash__(self) -> int:
        """Return the address's hash."""
        return hash(self.address)

    @abstractmethod
    def __truediv__(self, name: str) -> "Storage":
        """Return the folder inside it; its text is the address of a file of this name, too."""

    @property
    def name(self) -> str:
        """Return the last part of the address."""
        return self.address.rpartition("/")[2]

    # ---- what is there -----------------------------------------------------------------------------------------------

    @abstractmethod
    def absent(self) -> str:
        """Return why nothing can be in it: "no such folder" or "a file"; "" where there is a folder (or a URL)."""

    @abstractmethod
    def list(self, prefix: str = "", *, deep: bool = False) -> dict[str, Stored]:
        """Return the files whose names begin with a prefix, sorted; with those of folders inside it if `deep`.

        For an object store this is also the moment that `file` and `fetch` go by until the next look.
        """

    @abstractmethod
    def stat(self, name: str) -> Stored | None:
        """Return what is stored under a name now, None where nothing is."""

    def age(self, name: str) -> float:
        """Return the seconds since a file was written, by the clocks of two machines; 0 where nobody's is asked."""
        return 0.0

    # ---- reading -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def file(self, name: str, content: Content | None = None) -> Path:
        """Return a local file with the bytes of a name, fetched if need be; to be read only.

        Args:
            name: Name inside the storage.
            content: What it must be. What is fetched is compared with it; in a folder that is left to the reader.

        Raises:
            FileNotFoundError: Nothing is stored under this name.
            DamagedStoreError: Other bytes are stored than `content` says, or none.
        """

    def get(self, name: str) -> bytes:
        """Return the bytes of a name; FileNotFoundError where there are none."""
        return self.file(name).read_bytes()

    @abstractmethod
    def fetch(self, wanted: Mapping[str, Content | None] | Iterable[str], *, again: bool = False) -> None:
        """Fetch several files at a time, so that `file` has them at once; nothing to do on this machine.

        Args:
            wanted: Names, and what must be stored there where that is known. A name that nothing is stored under is
                passed over, unless its content is known.
            again: Also those that are here already.

        Raises:
            DamagedStoreError: As for `file`.
        """

    # ---- writing -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def make(self) -> None:
        """Make the folder where there is none."""

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Store bytes under a name, whole or not at all, in the place of what was there."""

    @abstractmethod
    def put_new(self, name: str, data: bytes) -> bool:
        """Store bytes under a name that nothing is stored under; False if something else is."""

    @abstractmethod
    def put_if(self, name: str, data: bytes, token: str) -> bool:
        """Store bytes in the place of those of a token; False if others (or none) are there by now."""

    def put_over(self, name: str, data: bytes, seen: Stored | None) -> bool:
        """Store bytes in the place of what was seen there, be it nothing; False if that is no longer so."""
        return self.put_new(name, data) if seen is None else self.put_if(name, data, seen.token)

    @abstractmethod
    def temporary(self, name: str) -> AbstractContextManager[Path]:
        """Create an empty file on this machine to be published under a name; what is left of it at the end goes."""

    @abstractmethod
    def publish(self, temp: Path, name: str, content: Content) -> None:
        """Store a temporary file's bytes under a name; `content` says what they are.

        Raises:
            OSError: They did not arrive whole.
        """

    @abstractmethod
    def delete(self, names: Iterable[str]) -> None:
        """Delete names in this order; those that nothing is stored under are passed over."""

    # ---- small folders as a whole ------------------------------------------------------------------------------------

    @abstractmethod
    def pull(self, own: Sequence[str]) -> Path:
        """Return a local folder with the files that patterns such as `seed-*/*` name, as they are stored now."""

    @abstractmethod
    def push(self, own: Sequence[str], last: str) -> None:
        """Store what was written into the local folder of `pull`, and delete what is no longer in it.

        The file `last` goes first and comes last of all: where that one stands, everything stands.
        """

    # ---- one at a time -----------------------------------------------------------------------------------------------

    @contextmanager
    def lock(self, name: str, *, block: bool = True) -> Iterator[bool]:
        """Hold a lock among the processes of this machine; yields False at once if it is taken and `block` is false."""
        with lock(self.here / name, block=block) as mine:
            yield mine


Place: TypeAlias = Storage | str | Path
"""A storage, or the folder or URL of one: what may be given where `pipeline.storage.local.open_storage` is called."""


def chosen(names: Iterable[str], own: Sequence[str]) -> list[str]:
    """Return those names that one of the patterns matches."""
    return [name for name in names if any(fnmatchcase(name, pattern) for pattern in own)]

"""What `run.json` says: its records, their checks, and how two keys differ.

Used by `run_record.AlignedRun`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, TypeVar

from pipeline.config import build
from pipeline.errors import UserError

FORMAT = 1
SIDES = ("image", "text")
REMEDY = "run `pipeline align` again to make a whole run"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class StoreRecord:
    """One feature store that a run was trained on."""

    key_digest: str
    """Digest of the store's key."""
    content_digest: str
    """Digest of its ids and values."""
    key: dict[str, Any]
    """The key itself, as JSON."""
    spec: str = ""
    """The encoder as the user typed it."""
    path: str = ""
    """Where the store lay."""


@dataclass(frozen=True, kw_only=True)
class SeedRecord:
    """One seed's training."""

    seed: int
    """The seed."""
    folder: str
    """Folder of its projectors, inside the run's."""
    validation: dict[str, Any] = field(default_factory=dict)
    """Metrics on the validation split, as fractions."""
    steps: int = 0
    """Optimiser steps; 0 for a closed form."""
    seconds: float = 0.0
    """Wall time."""

    def __post_init__(self) -> None:
        """Refuse a folder outside the run's."""
        path = PurePosixPath(self.folder)
        if path.is_absolute() or ".." in path.parts or "\\" in self.folder or not path.parts:
            raise UserError(expected="a folder inside the run's", found=repr(self.folder))


def check_record(record: Mapping[str, Any], where: str) -> None:
    """Check the outline of a record, all mistakes at once.

    Raises:
        UserError: Lists each field that is missing or of the wrong kind.
    """
    problems = list(_problems(record))
    if problems:
        raise UserError(expected="the record of a run", found="; ".join(problems), where=where, remedy=REMEDY)


def fill(cls: type[T], entry: Any, where: str) -> T:
    """Make a record from one JSON object; fields that this version does not know are passed over.

    Raises:
        UserError: A field is missing or of the wrong kind.
    """
    if not isinstance(entry, Mapping):
        raise UserError(expected="a JSON object", found=repr(entry)[:100], where=where, remedy=REMEDY)
    names = {spec.name for spec in fields(cls)}  # type: ignore[arg-type]
    return build(cls, {name: value for name, value in entry.items() if name in names}, where=where)


def key_differences(expected: Any, found: Any, path: str = "") -> list[tuple[str, str, str]]:
    """Return (dotted field, expected, found) wherever two keys, as JSON, differ."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        prefix = f"{path}." if path else ""
        return [
            entry
            for name in sorted({*expected, *found})
            for entry in key_differences(expected.get(name, "nothing"), found.get(name, "nothing"), f"{prefix}{name}")
        ]
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        expected, found = list(expected), list(found)
    return [] if expected == found else [(path, str(expected), str(found))]


def _problems(record: Mapping[str, Any]) -> Iterator[str]:
    kinds = {"method": str, "config": dict, "layers": dict, "stores": dict, "dim": int, "seeds": list}
    if record.get("format") != FORMAT:
        yield f"format should be {FORMAT}, not {record.get('format')!r}"
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            yield f"{name} should be {kind.__name__}, not {record.get(name)!r}"
    if record.get("seeds") == []:
        yield "seeds is empty"
    yield from _side_problems("layers", record.get("layers"), str)
    yield from _side_problems("stores", record.get("stores"), dict)


def _side_problems(name: str, sides: Any, kind: type) -> Iterator[str]:
    for side in SIDES if isinstance(sides, Mapping) else ():
        entries: Any = sides.get(side)
        if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
            yield f"{name}.{side} should be a list that is not empty"
        elif not all(isinstance(entry, kind) for entry in entries):
            yield f"{name}.{side} should hold {kind.__name__} entries only"

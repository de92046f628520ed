"""Import webdataset tars: members of one stem are one sample (`key.jpg`, `key.txt`, `key.json`, `key.cls`).

One tar, a folder of tars, or a pattern with braces (`train-{0000..0012}.tar`, `{a,b}.tar`). Nothing is unpacked: bytes
are read member by member, and members that are links, or whose names leave the folder, are refused and listed.
"""

import json
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import UserError
from pipeline.extract.datasets.records import (
    IMAGE_SUFFIXES,
    ImportOptions,
    LabelNames,
    Record,
    Records,
    Skipped,
    find_column,
)

MAX_MEMBER = 256 * 2**20
"""Bytes; a larger member is refused (a compressed tar may promise any size)."""

_BRACES = re.compile(r"\{([^{}]+)\}")
_ENDINGS = (".tar", ".tar.gz", ".tgz")


def expand_braces(pattern: str) -> list[str]:
    """Return the names of a pattern: `{000..012}` counts with its zeros kept, `{a,b}` lists."""
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [name for item in _items(match.group(1)) for name in expand_braces(before + item + after)]


def _items(inside: str) -> list[str]:
    first, dots, last = inside.partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return inside.split(",")


def _tars(source: str) -> list[Path]:
    if Path(source).is_dir():
        return sorted(path for path in Path(source).iterdir() if path.name.endswith(_ENDINGS))
    return [Path(name) for name in expand_braces(source)] if source.endswith(_ENDINGS) else []


def recognises(source: str) -> bool:
    """Tell whether the source is a tar, a pattern of tars or a folder of tars."""
    return bool(_tars(source))


def read(source: str, options: ImportOptions) -> Records:
    """Open the tars.

    Raises:
        UserError: A tar of the pattern is missing or is no tar.
    """
    tars = _tars(source)
    missing = [str(path) for path in tars if not path.is_file()]
    if missing or not tars:
        raise UserError(
            expected=f"{len(tars) or 'some'} tar files",
            found=f"{len(missing)} missing, such as {(missing or [source])[0]}",
            where=source,
        )
    labels = LabelNames.beside(tars[0])
    return Records(
        records=_records(tars, options, labels),
        classes=labels.classes,
        has_splits=bool(options.split),
        origin=tars[0].name if len(tars) == 1 else f"{tars[0].name} and {len(tars) - 1} more",
    )


def _records(tars: list[Path], options: ImportOptions, labels: LabelNames) -> Iterator[Record | Skipped]:
    for path in tars:
        prefix = f"{path.name.split('.')[0]}/" if len(tars) > 1 else ""
        members = _members(path)
        for key, group in groupby(members, key=lambda member: member[0]):
            parts: dict[str, bytes] = {}
            for _, suffix, data in group:
                if isinstance(data, Skipped):
                    yield data
                else:
                    parts[suffix] = data
            if parts:
                yield _sample(prefix + key, parts, options, labels)


def _members(path: Path) -> Iterator[tuple[str, str, bytes | Skipped]]:
    try:
        with tarfile.open(path, "r|*") as tar:
            for member in tar:
                if member.isdir():
                    continue
                problem = _problem(member)
                key, suffix = _split_name(member.name)
                name = f"{path.name}:{member.name}"
                if problem:
                    yield key, suffix, Skipped(name, problem)
                    continue
                file = tar.extractfile(member)
                yield key, suffix, file.read() if file else Skipped(name, "it cannot be read")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise UserError(expected="a tar file", found=str(error) or type(error).__name__, where=str(path)) from error


def _problem(member: tarfile.TarInfo) -> str:
    if member.name.startswith(("/", "\\")) or ".." in PurePosixPath(member.name.replace("\\", "/")).parts:
        return "the member's name leaves the folder"
    if not member.isfile():
        return "the member is a link or a device"
    return "the member is too large" if member.size > MAX_MEMBER else ""


def _split_name(name: str) -> tuple[str, str]:
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, dot, suffix = base.partition(".")
    return folder + slash + stem, (dot + suffix).lower()


def _sample(key: str, parts: dict[str, bytes], options: ImportOptions, labels: LabelNames) -> Record | Skipped:
    suffix = next((name for name in parts if name in IMAGE_SUFFIXES), "")
    fields = _fields(parts.get(".json", b"{}"))
    if fields is None:
        return Skipped(key, "its .json is not a JSON object")
    names = list(fields)
    found = {field: _column(options, field, names) for field in ("caption", "label", "split")}
    text = parts.get(".txt", parts.get(".caption"))
    captions: Any = fields.get(found["caption"]) if found["caption"] else None
    if text is not None:
        captions = [line for line in text.decode("utf-8", "surrogateescape").splitlines() if line.strip()] or [""]
    label = parts[".cls"].decode("utf-8", "surrogateescape") if ".cls" in parts else fields.get(found["label"])
    record = Record(
        image_id=key if suffix else "",
        source=parts.get(suffix),
        name=key + suffix,
        split=str(fields.get(found["split"]) or ""),
        label=labels.of(label) if suffix else "",
        captions=tuple(map(str, captions if isinstance(captions, list) else [] if captions is None else [captions])),
    )
    return record if suffix or record.captions else Skipped(key, f"neither image nor caption ({', '.join(parts)})")


def _fields(data: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(data.decode("utf-8", "surrogateescape"))
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _column(options: ImportOptions, field: str, names: list[str]) -> str:
    asked = getattr(options, field)
    return asked if asked else find_column(options, field, names, "")

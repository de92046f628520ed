"""An index on the disk: `index.faiss` (and `index.ivfdata`, where its lists stay there) beside `index.json`.

`index.json` says what it is an index of, how it was built, and its recall against exact search. It is read first: what
does not fit is refused by name, and faiss opens no file whose SHA-256 is not the recorded one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import KeyMismatchError, UnknownNameError, UserError
from pipeline.files import file_sha256
from pipeline.indexes.index import Index
from pipeline.indexes.kinds import INDEXES, need_faiss
from pipeline.indexes.on_disk import ON_DISK, read_mapped
from pipeline.projectors.run_record import key_differences
from pipeline.projectors.table import read_json

FORMAT = 1
RECORD = "index.json"
FAISS = "index.faiss"
_KINDS: dict[str, type] = {"kind": str, "rows": int, "width": int, "of": dict, "effort": dict, "files": dict}
_REMEDY = "build it again with `pipeline index`"


def write_index(folder: Path, index: Index, of: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Write an index into a folder of its own, `index.json` last, and return what that says.

    Args:
        folder: An empty folder, or one that holds the lists on the disk.
        index: The index.
        of: What it is an index of: digests of features and projector, split, and so on. Compared when it is read.
        about: How it was built, and its recall.
    """
    faiss = need_faiss("stored indexes")
    faiss.write_index(index.own, str(folder / FAISS))
    names = [name for name in (FAISS, ON_DISK) if (folder / name).is_file()]
    record = {
        "format": FORMAT,
        "kind": index.kind.name,
        "rows": index.rows,
        "width": index.width,
        "seed": index.seed,
        "of": dict(of),
        "effort": {index.kind.effort: index.effort} if index.kind.effort else {},
        **about,
        "build": {**index.layout(), **about.get("build", {}), "faiss": str(faiss.__version__)},
        "files": {name: file_sha256(folder / name) for name in names},
    }
    text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    (folder / RECORD).write_text(text, encoding="utf-8")
    return record


def read_record(folder: Path) -> dict[str, Any]:
    """Read `index.json`.

    Raises:
        UserError: It is missing, damaged or of another format.
    """
    if not (folder / RECORD).is_file():
        found = f"no {RECORD} in it" if folder.is_dir() else "no such folder"
        remedy = "make one with `pipeline index`"
        raise UserError(expected="the folder of an index", found=found, where=str(folder), remedy=remedy)
    record = read_json(folder / RECORD, "an index")
    wrong = [name for name, kind in _KINDS.items() if not isinstance(record.get(name), kind)]
    if record.get("format") != FORMAT or wrong:
        found = f"format {record.get('format')!r}" if not wrong else f"nothing usable in {', '.join(wrong)}"
        raise _unusable(folder / RECORD, f"the record of an index, format {FORMAT}", found)
    return record


def read_index(folder: Path, of: Mapping[str, Any]) -> Index:
    """Load a stored index; lists on the disk are mapped, read-only, and their pages read when they are searched.

    Args:
        folder: Its folder.
        of: What is to be searched, as given to `write_index`.

    Raises:
        KeyMismatchError: It is an index of something else: names each field that differs.
        UserError: A file is missing or not the recorded one, or the index is not what its record says.
    """
    record = read_record(folder)
    differences = key_differences(record["of"], json.loads(json.dumps(of)))
    if differences:
        raise KeyMismatchError(differences, str(folder), f"{_REMEDY}: it is of other features or another projector")
    storable = {name: kind for name, kind in INDEXES.items() if kind.recipe}
    if record["kind"] not in storable:
        raise UnknownNameError("stored index", record["kind"], storable, str(folder / RECORD))
    kind = storable[record["kind"]]
    own = _read_faiss(folder, record["files"])
    rows, width = record["rows"], record["width"]
    if (int(own.ntotal), int(own.d)) != (rows, width):
        raise _unusable(folder / FAISS, f"{rows} rows of width {width}", f"{own.ntotal} of width {own.d}")
    if not isinstance(own, type(kind.empty(width, rows))):
        raise _unusable(folder / FAISS, f"an index of kind {kind.name}", type(own).__name__)
    index = Index(kind, own, int(record.get("seed") or 0))
    effort = record["effort"].get(kind.effort)
    if isinstance(effort, int) and 0 < effort <= index.most_effort:
        index.effort = effort
    return index


def _read_faiss(folder: Path, files: Mapping[str, Any]) -> Any:
    """Return faiss's index after comparing every byte of its files with their digests."""
    if FAISS not in files or not set(files) <= {FAISS, ON_DISK}:
        raise _unusable(folder / RECORD, f"the digest of {FAISS}", ", ".join(map(str, files)) or "none")
    for name, digest in files.items():
        found = file_sha256(folder / name) if (folder / name).is_file() else "no such file"
        if found != digest:
            raise _unusable(folder / name, f"the sha256 {digest}", found)
    try:
        faiss = need_faiss("stored indexes")
        return read_mapped(folder / FAISS) if ON_DISK in files else faiss.read_index(str(folder / FAISS))
    except RuntimeError as error:
        found = " ".join(str(error).split())[:200]
        raise _unusable(folder / FAISS, "an index that this faiss reads", found) from error


def _unusable(path: Path, expected: str, found: str) -> UserError:
    return UserError(expected=expected, found=found, where=str(path), remedy=_REMEDY)

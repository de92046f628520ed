"""An index on the disk: `index.faiss` (and `index.ivfdata`, where its lists stay there) beside `index.json`.

`index.json` says what it is an index of, how it was built, and its recall against exact search. It is read first: what
does not fit is refused by name, and faiss opens no file whose SHA-256 is not the recorded one.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import KeyMismatchError, UnknownNameError, UserError
from pipeline.evaluate.indexes.faiss_index import FaissIndex
from pipeline.evaluate.indexes.faiss_module import need_faiss
from pipeline.evaluate.indexes.on_disk import ON_DISK, keeps_lists_on_disk, read_beside, write_beside
from pipeline.evaluate.indexes.table import INDEXES
from pipeline.files import file_sha256
from pipeline.projectors.run_record import key_differences
from pipeline.projectors.table import read_json

FORMAT = 1
RECORD = "index.json"
FAISS = "index.faiss"
_REMEDY = "build it again with `pipeline index`"


def write_index(folder: Path, index: FaissIndex, of: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """Write an index into a folder of its own, `index.json` last, and return what that says.

    Args:
        folder: An empty folder, or one that holds the lists on the disk.
        index: The index.
        of: What it is an index of: digests of features and projector, split, and so on. Compared when it is read.
        about: How it was built, and its recall.
    """
    faiss = need_faiss("stored indexes")
    if keeps_lists_on_disk(index.own):
        write_beside(index.own, folder / FAISS)
    else:
        faiss.write_index(index.own, str(folder / FAISS))
    names = [name for name in (FAISS, ON_DISK) if (folder / name).is_file()]
    record = {
        "format": FORMAT,
        "kind": index.name,
        "rows": index.rows,
        "width": index.width,
        "seed": index.seed,
        "of": dict(of),
        "effort": {index.effort_name: index.effort} if index.effort_name else {},
        **about,
        "build": {**index.build_settings(), **about.get("build", {}), "faiss": str(faiss.__version__)},
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
        raise UserError(
            expected="the folder of an index", found=found, where=str(folder), remedy="make one with `pipeline index`"
        )
    record = read_json(folder / RECORD, "an index")
    kinds: dict[str, type] = {"kind": str, "rows": int, "width": int, "of": dict, "effort": dict, "files": dict}
    wrong = [name for name, kind in kinds.items() if not isinstance(record.get(name), kind)]
    if record.get("format") != FORMAT or wrong:
        found = f"format {record.get('format')!r}" if not wrong else f"nothing usable in {', '.join(wrong)}"
        where = str(folder / RECORD)
        raise UserError(expected=f"the record of an index, format {FORMAT}", found=found, where=where, remedy=_REMEDY)
    return record


def read_index(folder: Path, of: Mapping[str, Any]) -> FaissIndex:
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
    kind = INDEXES.get(record["kind"])
    if kind is None or not issubclass(kind, FaissIndex):
        known = [name for name, each in INDEXES.items() if issubclass(each, FaissIndex)]
        raise UnknownNameError("stored index", str(record["kind"]), known, str(folder / RECORD))
    _check_files(folder, record["files"])
    faiss = need_faiss("stored indexes")
    try:
        own = read_beside(folder / FAISS) if ON_DISK in record["files"] else faiss.read_index(str(folder / FAISS))
    except RuntimeError as error:
        found = " ".join(str(error).split())[:200]
        expected = "an index that this faiss reads"
        raise UserError(expected=expected, found=found, where=str(folder / FAISS), remedy=_REMEDY) from error
    if (int(own.ntotal), int(own.d)) != (record["rows"], record["width"]):
        expected, found = f"{record['rows']} rows of width {record['width']}", f"{own.ntotal} of width {own.d}"
        raise UserError(expected=expected, found=found, where=str(folder / FAISS), remedy=_REMEDY)
    if type(own) is not type(kind.empty(record["width"], record["rows"], 0, record["rows"])):
        expected, found = f"an index of kind {kind.name}", type(own).__name__
        raise UserError(expected=expected, found=found, where=str(folder / FAISS), remedy=_REMEDY)
    index = kind.wrap(own, int(record.get("seed") or 0))
    effort = record["effort"].get(index.effort_name)
    if isinstance(effort, int) and 0 < effort <= index.most_effort:
        index.set_effort(effort)
    return index


def _check_files(folder: Path, files: Mapping[str, Any]) -> None:
    if FAISS not in files or not set(files) <= {FAISS, ON_DISK}:
        found = ", ".join(map(str, files)) or "none"
        where = str(folder / RECORD)
        raise UserError(expected=f"the digest of {FAISS}", found=found, where=where, remedy=_REMEDY)
    for name, digest in files.items():
        path = folder / name
        found = file_sha256(path) if path.is_file() else "no such file"
        if found != digest:
            raise UserError(expected=f"the sha256 {digest}", found=found, where=str(path), remedy=_REMEDY)

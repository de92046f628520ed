"""An index on the disk: `index.faiss` (and `index.ivfdata`, where its lists stay there) beside `index.json`.

`index.json` says what it is an index of, how it was built, and its recall against exact search. It is read first: what
does not fit is refused by name, and faiss opens no file whose SHA-256 is not the recorded one.

`index.ivfdata` is byte for byte what `faiss.contrib.ondisk.merge_ondisk` makes of the same parts. That function is not
used: it prints on standard output, which `--json` owns, and it writes through a memory map, where a full disk is no
error but the death of the process. Here one list at a time is copied out of the parts, which faiss maps.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import KeyMismatchError, UnknownNameError, UserError
from pipeline.files import dump_signed, file_sha256, json_differences, read_signed
from pipeline.indexes.index import INDEXES, LINKS, Index, need_faiss

FORMAT = 1
RECORD = "index.json"
FAISS, ON_DISK = "index.faiss", "index.ivfdata"
_KINDS: dict[str, type] = {
    "kind": str,
    "rows": int,
    "width": int,
    "seed": int,
    "of": dict,
    "effort": dict,
    "files": dict,
}
_REMEDY = "build it again with `pipeline index`"
_BUFFER = 2**22
_PREFETCH = 0
"""Threads that faiss starts at every search to touch the lists: 32 of them made a warm query cost 6 times the CPU."""


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
        "build": {**_layout(index), **about.get("build", {}), "faiss": str(faiss.__version__)},
        "files": {name: file_sha256(folder / name) for name in names},
    }
    (folder / RECORD).write_bytes(dump_signed(record))
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
    record = read_signed(folder / RECORD, "an index", remedy=_REMEDY)
    said = {"seed": 0, **record}
    wrong = [name for name, kind in _KINDS.items() if not isinstance(said.get(name), kind)]
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
    differences = json_differences(record["of"], json.loads(json.dumps(of)))
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
    index = Index(kind, own, record.get("seed", 0))
    effort = record["effort"].get(kind.effort)
    if isinstance(effort, int) and 0 < effort <= index.most_effort:
        index.effort = effort
    return index


def _read_faiss(folder: Path, files: Mapping[str, Any]) -> Any:
    """Return faiss's index after comparing every byte of its files with their digests."""
    if FAISS not in files or not set(files) <= {FAISS, ON_DISK}:
        raise _unusable(folder / RECORD, f"the digest of {FAISS}", ", ".join(map(str, files)) or "none")
    for name, digest in files.items():
        check_digest(folder / name, digest, _REMEDY)
    try:
        faiss = need_faiss("stored indexes")
        return read_mapped(folder / FAISS) if ON_DISK in files else faiss.read_index(str(folder / FAISS))
    except RuntimeError as error:
        found = " ".join(str(error).split())[:200]
        raise _unusable(folder / FAISS, "an index that this faiss reads", found) from error


def _layout(index: Index) -> dict[str, int]:
    if index.kind.has_lists:
        return {"lists": int(index.own.nlist), "bytes_a_row": int(index.own.code_size)}
    return {"links": LINKS, "efConstruction": int(index.own.hnsw.efConstruction)} if index.kind.effort else {}


def check_digest(path: Path, sha256: str, remedy: str) -> Path:
    """Return a file; a `UserError` says that it is missing or not the recorded one."""
    found = file_sha256(path) if path.is_file() else "no such file"
    if found != sha256:
        raise UserError(expected=f"the sha256 {sha256}", found=found, where=str(path), remedy=remedy)
    return path


def _unusable(path: Path, expected: str, found: str) -> UserError:
    return UserError(expected=expected, found=found, where=str(path), remedy=_REMEDY)


# ---- lists on the disk -----------------------------------------------------------------------------------------------


def merge_lists(empty: Any, parts: Sequence[Path], data: Path) -> None:
    """Write the lists of part files, in their order, into one new file, and let the empty index read them from there.

    Args:
        empty: A trained `IndexIVF` of faiss without rows, as the parts were made from.
        parts: Files of `faiss.write_index` whose ids are global.
        data: The file to write, `index.ivfdata`: for each list the codes of all parts, then their ids. The index holds
            the bare name, so that it can be written beside the file and both may be moved.

    Raises:
        RuntimeError: A part is shorter than it says.
    """
    faiss = need_faiss("lists on the disk")
    opened = [faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY) for path in parts]
    lists = [faiss.downcast_InvertedLists(index.invlists) for index in opened]
    table = faiss.OnDiskOneListVector()
    with data.open("wb", buffering=_BUFFER) as out:
        for number in range(int(empty.nlist)):
            entry = faiss.OnDiskOneList()
            entry.offset = out.tell()
            held = [(each, each.list_size(number)) for each in lists if each.list_size(number)]
            for each, rows in held:
                out.write(faiss.rev_swig_ptr(each.get_codes(number), rows * each.code_size))
            for each, rows in held:
                out.write(faiss.rev_swig_ptr(each.get_ids(number), rows))
            entry.size = entry.capacity = sum(rows for _, rows in held)
            table.push_back(entry)
        size = out.tell()
    on_disk = faiss.OnDiskInvertedLists(empty.nlist, empty.code_size, str(data))
    on_disk.lists, on_disk.totsize, on_disk.read_only, on_disk.prefetch_nthread = table, size, True, _PREFETCH
    if size:
        on_disk.do_mmap()
    on_disk.filename = data.name
    empty.replace_invlists(on_disk, True)
    on_disk.this.disown()
    empty.ntotal = sum(index.ntotal for index in opened)


def read_mapped(path: Path) -> Any:
    """Read an index whose lists lie in `index.ivfdata` in the same folder, and map them, read-only.

    Raises:
        RuntimeError: Its lists are not there, or that file is of another size.
    """
    faiss = need_faiss("lists on the disk")
    # IO_FLAG_ONDISK_SAME_DIR would do it, but prints; IO_FLAG_MMAP would leave them unmapped (a crash in faiss 1.15)
    index = faiss.read_index(str(path), faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_SKIP_IVF_DATA)
    lists = faiss.downcast_InvertedLists(index.invlists) if hasattr(index, "invlists") else None
    if not isinstance(lists, faiss.OnDiskInvertedLists):
        raise RuntimeError("its lists are not in a file of their own")
    data = path.with_name(ON_DISK)
    if lists.totsize != data.stat().st_size:
        raise RuntimeError(f"lists of {lists.totsize} bytes, and {data.stat().st_size} bytes in {ON_DISK}")
    lists.filename, lists.prefetch_nthread = str(data), _PREFETCH
    if lists.totsize:
        lists.do_mmap()
    return index

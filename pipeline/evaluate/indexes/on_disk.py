"""Inverted lists that stay on the disk: `merge_lists` writes them from part files, `map_lists` reads them as needed.

The file is byte for byte what `faiss.contrib.ondisk.merge_ondisk` makes of the same parts. That function is not used:
it prints on standard output, which `--json` owns; it writes through a memory map, where a full disk is no error but the
death of the process; and all that it reads and writes counts as its memory. Here one list at a time is in memory.
"""

import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import PipelineError
from pipeline.evaluate.indexes.faiss_module import need_faiss

ON_DISK = "index.ivfdata"
_ID_BYTES = 8
_BUFFER = 2**22
_PREFETCH = 0
"""Threads that faiss starts at every search to touch the lists: 32 of them made a warm query cost 6 times the CPU."""


class _List(NamedTuple):
    rows: int
    offset: int


def merge_lists(empty: Any, parts: Sequence[Path], data: Path) -> None:
    """Write the lists of part files, in their order, into one new file, and let the empty index read them from there.

    Args:
        empty: A trained `IndexIVF` of faiss without rows, as the parts were made from.
        parts: Files of `faiss.write_index` whose ids are global.
        data: The file to write: for each list the codes of all parts, then their ids.

    Raises:
        PipelineError: A part is shorter than it says.
    """
    code = int(empty.code_size)
    lists: list[_List] = []
    end = 0
    with ExitStack() as stack:
        opened = [(stack.enter_context(path.open("rb", buffering=0)), table_of(path)) for path in parts]
        out = stack.enter_context(data.open("wb", buffering=_BUFFER))
        for number in range(int(empty.nlist)):
            raw = [_read(file, table[number], code + _ID_BYTES) for file, table in opened]
            rows = [len(each) // (code + _ID_BYTES) for each in raw]
            for each, count in zip(raw, rows, strict=True):
                out.write(each[: count * code])
            for each, count in zip(raw, rows, strict=True):
                out.write(each[count * code :])
            lists.append(_List(rows=sum(rows), offset=end))
            end += sum(map(len, raw))
    _attach(empty, lists, data, end)


def table_of(path: Path) -> list[_List]:
    """Return where each list of a part lies in its file; nothing of the lists is read."""
    faiss = need_faiss("lists on the disk")
    index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    lists = faiss.downcast_InvertedLists(faiss.extract_index_ivf(index).invlists).lists
    entries = (lists.at(number) for number in range(lists.size()))
    return [_List(rows=int(entry.size), offset=int(entry.offset)) for entry in entries]


def keeps_lists_on_disk(index: Any) -> bool:
    """Say whether an index of faiss reads its lists from a file of their own."""
    faiss = need_faiss("lists on the disk")
    lists = getattr(index, "invlists", None)
    return lists is not None and isinstance(faiss.downcast_InvertedLists(lists), faiss.OnDiskInvertedLists)


def write_beside(index: Any, path: Path) -> None:
    """Write an index whose lists lie in `index.ivfdata` beside it; the file holds no folder, so both may be moved."""
    faiss = need_faiss("lists on the disk")
    lists = faiss.downcast_InvertedLists(index.invlists)
    there = lists.filename
    lists.filename = ON_DISK
    try:
        faiss.write_index(index, str(path))
    finally:
        lists.filename = there


def read_beside(path: Path) -> Any:
    """Read an index and map its lists, read-only, from `index.ivfdata` in the same folder, whatever path it holds."""
    faiss = need_faiss("lists on the disk")
    # IO_FLAG_MMAP would leave the lists unmapped, and the first search would crash (faiss 1.15)
    index = faiss.read_index(str(path), faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_SKIP_IVF_DATA)
    if not keeps_lists_on_disk(index):
        raise RuntimeError("its lists are not in a file of their own")
    lists = faiss.downcast_InvertedLists(index.invlists)
    data = path.with_name(ON_DISK)
    if lists.totsize != data.stat().st_size:
        raise RuntimeError(f"lists of {lists.totsize} bytes, and {data.stat().st_size} bytes in {ON_DISK}")
    lists.filename, lists.prefetch_nthread = str(data), _PREFETCH
    if lists.totsize:
        lists.do_mmap()
    return index


def _read(file: Any, entry: _List, row_bytes: int) -> memoryview:
    wanted = entry.rows * row_bytes
    raw = memoryview(bytearray(wanted))
    got = 0
    while got < wanted:
        step = os.preadv(file.fileno(), [raw[got:]], entry.offset + got)
        if not step:
            raise PipelineError(
                expected=f"{wanted} bytes of a list at {entry.offset}", found=f"{got} bytes", where=str(file.name)
            )
        got += step
    return raw


def _attach(index: Any, lists: Sequence[_List], data: Path, size: int) -> None:
    faiss = need_faiss("lists on the disk")
    table = faiss.OnDiskOneListVector()
    for each in lists:
        entry = faiss.OnDiskOneList()
        entry.size = entry.capacity = each.rows
        entry.offset = each.offset
        table.push_back(entry)
    on_disk = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(data))
    on_disk.lists, on_disk.totsize, on_disk.read_only, on_disk.prefetch_nthread = table, size, True, _PREFETCH
    if size:
        on_disk.do_mmap()
    index.replace_invlists(on_disk, True)
    on_disk.this.disown()
    index.ntotal = sum(each.rows for each in lists)

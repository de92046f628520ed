"""Inverted lists that stay on the disk: `merge_lists` writes them from part files, `read_mapped` maps them.

The file is byte for byte what `faiss.contrib.ondisk.merge_ondisk` makes of the same parts. That function is not used:
it prints on standard output, which `--json` owns, and it writes through a memory map, where a full disk is no error but
the death of the process. Here one list at a time is copied out of the parts, which faiss maps.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.indexes.kinds import need_faiss

ON_DISK = "index.ivfdata"
_BUFFER = 2**22
_PREFETCH = 0
"""Threads that faiss starts at every search to touch the lists: 32 of them made a warm query cost 6 times the CPU."""


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

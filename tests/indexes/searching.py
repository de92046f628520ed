"""Build an index of 54 MB, or search it and say how much memory that took: `python -m ... FOLDER build|mapped|loaded`.

Loads neither torch nor the rest of the package before it measures. A script, not a test.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.indexes.index import need_faiss
from pipeline.indexes.stored import ON_DISK, merge_lists, read_mapped

ROWS, WIDTH, LISTS, BLOCK = 200_000, 64, 400, 50_000


def block(number: int) -> Any:
    values = np.random.default_rng(number).standard_normal((BLOCK, WIDTH), dtype=np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def build(folder: Path) -> dict[str, Any]:
    faiss = need_faiss("this test")
    empty = faiss.index_factory(WIDTH, f"IVF{LISTS},Flat", faiss.METRIC_INNER_PRODUCT)
    empty.cp.niter = 2
    empty.train(block(0)[: 40 * LISTS])
    paths = []
    for number in range(ROWS // BLOCK):
        part = faiss.clone_index(empty)
        part.add_with_ids(block(number), np.arange(number * BLOCK, (number + 1) * BLOCK))
        paths.append(folder / f"{number}.faiss")
        faiss.write_index(part, str(paths[-1]))
    merge_lists(empty, paths, folder / ON_DISK)
    faiss.write_index(empty, str(folder / "index.faiss"))
    return {"bytes": (folder / ON_DISK).stat().st_size}


def memory() -> dict[str, int]:
    """Return the resident bytes, and those that are the process's own: no pages of files."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    said = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return {"resident": said["Rss"], "own": said["Anonymous"]}


def search(folder: Path, how: str) -> dict[str, Any]:
    """Ask two queries; `loaded` reads every list into memory first, as an index that is not mapped does."""
    faiss = need_faiss("this test")
    queries = np.random.default_rng(99).standard_normal((2, WIDTH), dtype=np.float32)
    faiss.IndexFlatIP(WIDTH).search(queries, 1)
    before = memory()
    index = read_mapped(folder / "index.faiss")
    if how == "loaded":
        held = faiss.ArrayInvertedLists(index.nlist, index.code_size)
        index.invlists.copy_subset_to(held, 0, 0, index.ntotal)
        index.replace_invlists(held, False)
    found = index.search(queries, 5)[1].tolist()
    after = memory()
    return {**{name: after[name] - size for name, size in before.items()}, "found": found}


if __name__ == "__main__":
    place, mode = Path(sys.argv[1]), sys.argv[2]
    need_faiss("this test").omp_set_num_threads(1)
    sys.stdout.write(json.dumps(build(place) if mode == "build" else search(place, mode)) + "\n")

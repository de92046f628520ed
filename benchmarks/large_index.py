"""An index built in parts of vectors that are never in one place: time, memory, recall and queries a second.

Run: `python -m benchmarks.large_index [--rows 1000000] [--width 128] [--parts 20] [--kind ivf] [--beside FOLDER]`.
Every step is a process of its own, as it would be on several machines: train, each part, merge, search. Shown of each:
seconds, CPU seconds, the peak of its resident memory, of that the peak that is its own (the rest are pages of mapped
files, which the kernel takes back when it needs them), and what was its own before the step (libraries).

The vectors are drawn block by block from a seed when they are read, so that there is no input file: unit vectors around
10,000 centres in 32 of the dimensions; queries are other ones of the same kind. Drawing them is part of the times of
train and of the parts, and is shown by itself. Exact search goes over all of them. The folder is deleted at the end.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.alternate import Work, in_own_process, timed
from benchmarks.raw import Drawn
from pipeline.indexes import index as indexes
from pipeline.indexes.index import INDEXES, Gallery, Index, need_faiss
from pipeline.indexes.parts import BLOCK_ROWS, TRAINED, IndexParts, Wanted
from pipeline.indexes.recall import recalls, tune
from pipeline.indexes.stored import ON_DISK, read_index, read_mapped, write_index

UNIT_ROWS = 8 * BLOCK_ROWS
MEMORY = 8 * 2**30
OF = {"benchmark": "large_index"}


def memory_now() -> dict[str, int]:
    """Return this process's resident bytes, those that are its own, and the peak of the former."""
    said = Path("/proc/self/status").read_text().splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in said if line.endswith(" kB")}
    return {"resident": sizes["VmRSS"], "own": sizes["RssAnon"], "peak": sizes["VmHWM"]}


@contextmanager
def watched(found: dict[str, Any]) -> Iterator[None]:
    """Note the seconds, CPU seconds and peaks of memory of what is done meanwhile."""
    done, own = threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.02):
            own[0] = max(own[0], memory_now()["own"])

    watcher = threading.Thread(target=watch, daemon=True)
    before = memory_now()
    wall, cpu = time.perf_counter(), time.process_time()
    watcher.start()
    try:
        yield
    finally:
        found.update(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)
        done.set()
        watcher.join()
        found.update(before=before["resident"], own_before=before["own"], peak=memory_now()["peak"])
        found.update(own=max(own[0], memory_now()["own"]))


class Steps:
    """The steps, each of which runs in a process of its own.

    Args:
        arguments: What the program was called with.
    """

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments
        if arguments.lists:
            vars(indexes)["list_count"] = lambda rows: arguments.lists
        self.drawn = Drawn(arguments.rows, arguments.width)
        self.gallery = Gallery(rows=arguments.rows, width=arguments.width, read=self.drawn.read)
        self.wanted = Wanted(
            of=OF,
            kind=arguments.kind,
            seed=0,
            k=10,
            width=arguments.width,
            units=(*range(0, arguments.rows, UNIT_ROWS), arguments.rows),
            parts=arguments.parts,
        )
        self.folder, self.index = arguments.beside / "parts", arguments.beside / "index"
        self.parts = IndexParts(self.folder, self.wanted, self.gallery)

    def planned(self) -> IndexParts:
        """Return the parts, the plan read; made where there is none."""
        return self.parts.begin(lambda: (self.drawn.queries(2 * self.arguments.queries), "images"), MEMORY)

    def draw(self) -> dict[str, Any]:
        """Draw a part's vectors and do nothing with them."""
        for rows in self.wanted.blocks(0):
            self.drawn.read(rows)
        return {}

    def train(self) -> dict[str, Any]:
        """Do step 1."""
        return {"trained_on": self.planned().plan["trained_on"]}

    def part(self) -> dict[str, Any]:
        """Do step 2 for one part."""
        self.planned().add(self.arguments.part)
        return {"bytes": (self.folder / f"part-{self.arguments.part:05d}.faiss").stat().st_size}

    def merge(self) -> dict[str, Any]:
        """Do step 3."""
        self.index.mkdir()
        index = self.planned().merge(self.index)
        write_index(self.index, index, OF, {})
        return {"bytes": (self.index / ON_DISK).stat().st_size, "lists": index.most_effort}

    def search(self) -> dict[str, Any]:
        """Open the index and search it: from a cold page cache, then again; tuned before, in the same process."""
        truth = self.planned().truth()
        half = len(truth.queries) // 2
        index = read_index(self.index, OF)
        reached = tune(index, truth.part(slice(half)), 0.95)
        recall = float(recalls(index, truth.part(slice(half, None))).mean())
        found = {"effort": index.effort, "recall": recall, "reached": reached}
        queries = truth.queries[half:]
        alone = clocked(lambda: [index.search(query[None], 10) for query in queries])
        together = clocked(lambda: index.search(queries, 10))
        return {**found, "alone": alone, "together": together, "queries": len(queries)}

    def cold(self) -> dict[str, Any]:
        """Open the index without checking it, with nothing of it in the page cache, and ask at the tuned effort."""
        with (self.index / ON_DISK).open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        index = Index(INDEXES[self.wanted.kind], read_mapped(self.index / "index.faiss"))
        index.effort = self.arguments.effort
        queries = self.drawn.queries(2 * self.arguments.queries)[self.arguments.queries :]
        alone = clocked(lambda: [index.search(query[None], 10) for query in queries])
        return {"alone": alone, "queries": len(queries)}

    def apart(self) -> dict[str, Any]:
        """Search the parts as they are, mapped and stacked by faiss, in place of the merged index."""
        faiss: Any = need_faiss("this benchmark")
        parts = self.planned()
        flags = faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY
        paths = sorted(self.folder.glob("part-*.faiss"))
        opened = [faiss.read_index(str(path), flags) for path in paths]
        pointers = faiss.InvertedListsPtrVector()
        for each in opened:
            faiss.downcast_InvertedLists(each.invlists).prefetch_nthread = 0  # as the merged ones
            pointers.push_back(each.invlists)
        stacked = faiss.HStackInvertedLists(len(paths), pointers.data())
        index = faiss.read_index(str(self.folder / TRAINED))
        index.replace_invlists(stacked, False)
        index.ntotal = self.wanted.rows
        index.nprobe = self.arguments.effort
        queries = parts.truth().queries.numpy()[self.arguments.queries :]
        index.search(queries[:8], 10)
        alone = clocked(lambda: [index.search(query[None], 10) for query in queries])
        together = clocked(lambda: index.search(queries, 10))
        return {"alone": alone, "together": together, "queries": len(queries)}


def clocked(work: Work) -> tuple[float, float]:
    """Return the seconds on the clock and the CPU seconds of some work."""
    taken = timed(work)
    return taken.wall, taken.cpu


def contend(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do one step in this process."""
    torch.set_num_threads(arguments.threads)
    need_faiss("this benchmark").omp_set_num_threads(arguments.threads)
    steps = Steps(arguments)
    found: dict[str, Any] = {}
    with watched(found):
        more = getattr(steps, arguments.step)()
    return {**found, **more}


def main() -> None:
    """Run every step in its own process and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--parts", type=int, default=20)
    parser.add_argument("--kind", default="ivf")
    parser.add_argument("--lists", type=int, default=0, help="4 times the root of the rows if unsaid")
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--apart", action="store_true", help="search the parts unmerged too")
    parser.add_argument("--beside", type=Path, default=Path(), help="folder for a temporary one")
    parser.add_argument("--step", choices=("draw", "train", "part", "merge", "search", "cold", "apart"))
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--effort", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.step:
        print(json.dumps(contend(arguments)))
        return
    load = os.getloadavg()[0]
    print(f"{arguments.rows:,} × {arguments.width}, {arguments.kind}, {arguments.parts} parts, load {load:.1f}")
    print(f"{'':10} {'s':>8} {'CPU s':>8} {'peak MB':>8} {'own MB':>7} {'before':>7}")
    with tempfile.TemporaryDirectory(dir=arguments.beside, prefix=".large-index-") as folder:
        arguments.beside = Path(folder)
        _all(arguments)


def _all(arguments: argparse.Namespace) -> None:
    _line("draw", _run(arguments, "draw"))
    trained = _run(arguments, "train")
    _line("train", trained)
    count = len(Steps(arguments).parts.spans)
    parts = [_run(arguments, "part", part=number) for number in range(count)]
    for name, pick in (("part, most", max), ("part, least", min)):
        _line(name, {key: pick(part[key] for part in parts) for key in parts[0]})
    _line("all parts", {**{key: max(part[key] for part in parts) for key in parts[0]}, **_sums(parts)})
    merged = _run(arguments, "merge")
    _line("merge", merged)
    searched = _run(arguments, "search")
    _line("search", searched)
    effort = searched["effort"]
    cold = _run(arguments, "cold", effort=effort)
    _line("cold", cold)
    print(f"{merged['lists']} lists trained on {trained['trained_on']:,} rows, {merged['bytes'] / 1e9:.2f} GB")
    print(f"recall@10 {searched['recall']:.4f}, wanted 0.95, nprobe {effort}, reached: {searched['reached']}")
    _rates("merged, cold", cold)
    _rates("merged, warm", searched)
    if arguments.apart:
        _rates("parts apart", _run(arguments, "apart", effort=effort))


def _sums(parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {key: sum(part[key] for part in parts) for key in ("wall", "cpu")}


def _line(name: str, found: dict[str, Any]) -> None:
    sizes = " ".join(f"{found[key] / 1e6:7.0f}" for key in ("peak", "own", "own_before"))
    print(f"{name:10} {found['wall']:8.1f} {found['cpu']:8.1f}  {sizes}", flush=True)


def _rates(name: str, found: dict[str, Any]) -> None:
    for how in ("alone", "together"):
        if how in found:
            wall, cpu = (found["queries"] / each for each in found[how])
            print(f"{name}, queries {how}: {wall:.0f} a second, {cpu:.0f} a CPU second", flush=True)


def _run(arguments: argparse.Namespace, step: str, *, part: int = 0, effort: int = 1) -> dict[str, Any]:
    names = ("rows", "width", "parts", "kind", "lists", "queries", "threads", "beside")
    own = {"step": step, "part": part, "effort": effort}
    return in_own_process("benchmarks.large_index", own | {name: getattr(arguments, name) for name in names})


if __name__ == "__main__":
    main()

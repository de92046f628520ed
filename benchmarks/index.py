"""Indexes of a million vectors: ours against the same calls to faiss, build and search, in one run.

Run: `python -m benchmarks.index [--rows 1000000] [--width 256] [--queries 1000] [--kinds ivf,sq8,ivfpq,hnsw]`. Each
contender works in a process of its own on the same vectors. "faiss" trains, adds and searches what `index_factory`
makes with the same lists, codes, training rows and effort. "ours" adds rows block by block (a memory limit), tunes the
effort to the wanted recall, writes the folder and reads it back; tuning and storing are shown by themselves and are not
in the ratios. Exact search by torch is the truth, and the first line.

Vectors are unit vectors around 10,000 centres in 32 of the dimensions; queries are other ones of the same kind.
"""

import argparse
import json
import resource
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.alternate import in_own_process, measured, timed
from benchmarks.raw import Drawn
from pipeline.indexes.index import (
    INDEXES,
    LINKS,
    NUMBERS_PER_CODE,
    Gallery,
    Index,
    add_rows,
    build_index,
    list_count,
    train,
    training_sample,
)
from pipeline.indexes.parts import BLOCK_ROWS
from pipeline.indexes.recall import Truth, recalls, tune
from pipeline.indexes.stored import read_index, write_index


def make(rows: int, width: int, queries: int) -> tuple[Tensor, Tensor]:
    """Return the gallery [N, D] and the queries, half of them for tuning [2Q, D]."""
    drawn, vectors = Drawn(rows, width), torch.empty(rows, width)
    for start in range(0, rows, BLOCK_ROWS):
        stop = min(start + BLOCK_ROWS, rows)
        vectors[start:stop] = drawn.read(np.arange(start, stop))
    return vectors, drawn.queries(2 * queries)


def truth_of(vectors: Tensor, queries: Tensor, cache: Path) -> Truth:
    """Return what exact search finds, computed once for all contenders."""
    file = cache / "truth.npz"
    if not file.is_file():
        found = Truth(queries, 10)
        for start in range(0, len(vectors), 2**17):
            found.see(start, vectors[start : start + 2**17])
        np.savez(file, positions=found.positions.numpy(), scores=found.scores.numpy())
    saved, truth = np.load(file), Truth(queries, 10)
    truth.merge(torch.from_numpy(saved["scores"]), torch.from_numpy(saved["positions"]))
    return truth


def ours(kind: str, vectors: Tensor, truth: Truth, recall: float, memory: int, cache: Path) -> dict[str, Any]:
    """Build, tune, store, read back and search."""
    half = len(truth.queries) // 2
    with tempfile.TemporaryDirectory(dir=cache) as name:
        folder = Path(name)
        made = build_and_store(kind, vectors, truth.part(slice(half)), recall, memory, folder)
        index, reading = measured(lambda: read_index(folder, {"benchmark": kind}))
        index.search(truth.queries[:8], 10)
        search = timed(lambda: index.search(truth.queries[half:], 10))
        return {
            **made,
            "search": (search.wall, search.cpu),
            "recall": float(recalls(index, truth.part(slice(half, None))).mean()),
            "reading_cpu": reading.cpu,
            "bytes": sum(path.stat().st_size for path in folder.iterdir()),
        }


def build_and_store(
    kind: str, vectors: Tensor, truth: Truth, recall: float, memory: int, folder: Path
) -> dict[str, Any]:
    """Build an index, tune its effort and write it; what was built is let go of before it is read back."""
    gallery = Gallery.of(vectors)

    def build() -> Index:
        own, _ = train(INDEXES[kind], gallery, 0, memory)
        add_rows(own, gallery, gallery.blocks(memory), lambda start, block: None)
        return Index(INDEXES[kind], own)

    index, building = measured(build)
    reached, tuning = measured(lambda: tune(index, truth, recall))
    writing = timed(lambda: write_index(folder, index, {"benchmark": kind}, {}))
    return {
        "build": (building.wall, building.cpu),
        "reached": reached,
        "effort": index.effort,
        "tuning_cpu": tuning.cpu,
        "writing_cpu": writing.cpu,
    }


def raw(kind: str, vectors: Tensor, truth: Truth, effort: int) -> dict[str, Any]:
    """Do the same with faiss alone."""
    import faiss

    half = len(truth.queries) // 2
    array = vectors.numpy()
    rows = INDEXES[kind].training_rows(len(array))
    lists = list_count(len(array))
    codes = array.shape[1] // NUMBERS_PER_CODE
    recipe = {
        "flat": "Flat",
        "ivf": f"IVF{lists},Flat",
        "sq8": f"IVF{lists},SQ8",
        "ivfpq": f"IVF{lists},PQ{codes}",
        "hnsw": f"HNSW{LINKS}",
    }[kind]

    def build() -> Any:
        index = faiss.index_factory(array.shape[1], recipe, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(array[training_sample(len(array), rows, 0)])
        index.add(array)
        return index

    index, building = measured(build)
    if kind == "hnsw":
        index.hnsw.efSearch = max(effort, 10)
    elif effort:
        index.nprobe = effort
    queries = truth.queries[half:].numpy()
    index.search(queries[:8], 10)
    search = timed(lambda: index.search(queries, 10))
    return {"build": (building.wall, building.cpu), "search": (search.wall, search.cpu), "recall": None}


def exact(vectors: Tensor, truth: Truth) -> dict[str, Any]:
    """Search exactly with torch."""
    half = len(truth.queries) // 2
    index, building = measured(lambda: build_index(vectors, "torch"))
    search = timed(lambda: index.search(truth.queries[half:], 10))
    return {"build": (building.wall, building.cpu), "search": (search.wall, search.cpu), "recall": 1.0}


def contend(arguments: argparse.Namespace) -> dict[str, Any]:
    """Do one contender's work in this process."""
    torch.set_num_threads(arguments.threads)
    import faiss

    faiss.omp_set_num_threads(arguments.threads)
    vectors, queries = make(arguments.rows, arguments.width, arguments.queries)
    truth = truth_of(vectors, queries, arguments.cache)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    kind, memory = arguments.kind, int(arguments.memory * 2**30)
    if arguments.contender == "ours":
        found = ours(kind, vectors, truth, arguments.recall, memory, arguments.cache)
    elif kind == "torch":
        found = exact(vectors, truth)
    else:
        found = raw(kind, vectors, truth, arguments.effort)
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {**found, "peak_mb": round(peak)}


def main() -> None:
    """Run every contender in its own process and print seconds, recall and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--kinds", default="flat,ivf,sq8,ivfpq")
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--memory", type=float, default=8.0, help="gigabytes that an eighth of is added at once")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contender", choices=("ours", "faiss"))
    parser.add_argument("--kind", default="torch")
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--cache", type=Path)
    arguments = parser.parse_args()
    if arguments.contender:
        print(json.dumps(contend(arguments)))
        return
    print(f"{arguments.rows:,} × {arguments.width}, {arguments.queries} queries, {arguments.threads} threads")
    print(f"{'':12} {'build s':>8} {'CPU s':>8} {'ms/query':>9} {'CPU ms':>8} {'recall@10':>9} {'effort':>6} {'MB':>6}")
    with tempfile.TemporaryDirectory() as cache:
        _line("torch", _run(arguments, "faiss", "torch", 0, cache), arguments.queries)
        for kind in arguments.kinds.split(","):
            mine = _run(arguments, "ours", kind, 0, cache)
            theirs = _run(arguments, "faiss", kind, mine["effort"], cache)
            _line(f"{kind} ours", mine, arguments.queries)
            _line(f"{kind} faiss", theirs, arguments.queries)
            pairs = [mine[part][place] / theirs[part][place] for part in ("build", "search") for place in (0, 1)]
            print(
                f"  ours / faiss: build {pairs[0]:.2f} (CPU {pairs[1]:.2f}), search {pairs[2]:.2f} (CPU {pairs[3]:.2f})"
            )
            apart = {name: round(mine[f"{name}_cpu"], 1) for name in ("tuning", "writing", "reading")}
            peaks = f"peak above the vectors {mine['peak_mb']} MB, faiss {theirs['peak_mb']} MB"
            print(f"  apart, CPU s: {apart}; wanted recall reached: {mine['reached']}; {peaks}")


def _line(name: str, found: dict[str, Any], queries: int) -> None:
    build, search = found["build"], found["search"]
    recall = f"{found['recall']:.4f}" if found["recall"] is not None else ""
    size = f"{found['bytes'] / 1e6:.0f}" if "bytes" in found else ""
    wall, cpu = (1000 * each / queries for each in search)
    print(
        f"{name:12} {build[0]:8.1f} {build[1]:8.1f} {wall:9.2f} {cpu:8.2f} "
        f"{recall:>9} {found.get('effort', '')!s:>6} {size:>6}",
        flush=True,
    )


def _run(arguments: argparse.Namespace, contender: str, kind: str, effort: int, cache: str) -> dict[str, Any]:
    sizes = {name: getattr(arguments, name) for name in ("rows", "width", "queries", "recall", "memory", "threads")}
    own = {"contender": contender, "kind": kind, "effort": effort, "cache": cache}
    return in_own_process("benchmarks.index", own | sizes)


if __name__ == "__main__":
    main()

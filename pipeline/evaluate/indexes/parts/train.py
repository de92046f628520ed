"""Step 1: train the lists once, on a drawn sample, and commit them with the queries that the recall is measured on."""

import time
from collections.abc import Callable
from pathlib import Path

from pipeline.evaluate.indexes.building import Gallery
from pipeline.evaluate.indexes.faiss_index import training_sample, training_vectors
from pipeline.evaluate.indexes.parts.files import commit, write_faiss, write_tensors
from pipeline.evaluate.indexes.parts.plan import (
    BLOCK_ROWS,
    QUERIES,
    TRAINED,
    Plan,
    Wanted,
    read_plan,
    write_plan,
)
from pipeline.evaluate.indexes.tuning import Queries
from pipeline.store.locks import lock

LOCK = ".plan.lock"


def plan_and_train(folder: Path, wanted: Wanted, gallery: Gallery, queries: Callable[[], Queries], memory: int) -> Plan:
    """Return the folder's plan; whoever comes first trains, the others wait for it.

    Args:
        folder: Folder of the parts; made if it is not there.
        wanted: What is to be built.
        gallery: All rows.
        queries: Makes the queries.
        memory: Bytes that the sample may take, twice.

    Raises:
        KeyMismatchError: The folder is of another index.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / LOCK):
        return read_plan(folder, wanted) or _train(folder, wanted, gallery, queries(), memory)


def _train(folder: Path, wanted: Wanted, gallery: Gallery, queries: Queries, memory: int) -> Plan:
    started = time.perf_counter()
    kind = wanted.index_class
    most = max(1, memory // (8 * wanted.width))
    sample = training_sample(wanted.rows, min(kind.training_rows(wanted.rows), most), wanted.seed)
    empty = kind.empty(wanted.width, wanted.rows, wanted.seed, len(sample))
    empty.train(training_vectors(gallery.drawn(sample, BLOCK_ROWS)))
    seconds = time.perf_counter() - started
    files = {
        TRAINED: commit(folder / TRAINED, lambda path: write_faiss(empty, path)),
        QUERIES: commit(folder / QUERIES, lambda path: write_tensors({"queries": queries.vectors}, path)),
    }
    plan = Plan(
        wanted=wanted,
        queries=queries.kind,
        trained_on=len(sample),
        seconds=round(seconds, 3),
        files={name: said["sha256"] for name, said in files.items()},
    )
    write_plan(folder, plan)
    return plan

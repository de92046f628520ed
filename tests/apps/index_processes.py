"""Kill real builds of an index: `python -m tests.apps.index_processes MODE FOLDER EVERY`; prints JSON lines.

One process imports everything and forks before anything is computed; each child is one build of the index of a run in
FOLDER. `steps` kills at every EVERY-th step, and half-way through each writing, then builds again.
"""

import functools
import hashlib
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from pipeline import files
from pipeline.apps import indexing, output_folder
from pipeline.apps.indexing import build as build_index
from pipeline.apps.indexing import make_parts
from pipeline.indexes import parts as building
from pipeline.indexes.index import need_faiss
from pipeline.runtime import Share
from tests.apps.index_runs import config, index_bytes
from tests.store.processes import TORN, Death, in_child, say

STEPS: list[tuple[Any, str]] = [
    (building, "add_rows"),
    (building, "write_faiss"),
    (building, "write_tensors"),
    (files, "sync_folder"),
    (files, "publish"),
    (files, "write_bytes"),
    (building, "merge_lists"),
    (indexing, "write_index"),
    (output_folder, "_take_place"),
    (building.IndexParts, "remove"),
]
TORN.update({"write_faiss": 1, "write_tensors": 1, "merge_lists": 2})


def build(folder: Path, number: int | None = None, torn: bool = False) -> list[str]:
    """Build the index, dying at a step; return the steps' names."""
    death = Death(number, torn)
    for module, name in STEPS:
        setattr(module, name, death.at(name, getattr(module, name)))
    build_index(config(folder))
    return death.names


def recover(folder: Path) -> dict[str, Any]:
    """Build again; say which parts were there, which were made, and what is left besides the index."""
    parts = folder / "index.parts"
    before = sorted(path.name for path in parts.glob("part-*.json")) if parts.is_dir() else []
    names = build(folder)
    digest = {name: hashlib.sha256(data).hexdigest() for name, data in index_bytes(folder / "index").items()}
    left = sorted(path.name for path in folder.iterdir())
    return {"before": len(before), "made": names.count("add_rows"), "digest": digest, "left": left}


def clear(folder: Path) -> None:
    for name in ("index", "index.parts"):
        shutil.rmtree(folder / name, ignore_errors=True)


def steps(folder: Path, every: int) -> None:
    names = in_child(lambda: build(folder))
    say({"whole": in_child(lambda: recover(folder)), "steps": names})
    turns = [(number, False) for number in range(0, len(names), every)]
    turns += [(number, True) for number, name in enumerate(names) if name in TORN and (every == 1 or number % 2)]
    for number, torn in turns:
        clear(folder)
        ended = in_child(functools.partial(build, folder, number, torn))
        say({"step": names[number], "torn": torn, "ended": ended, "result": in_child(lambda: recover(folder))})


def work_beside(folder: Path, count: int) -> None:
    """Be one of several workers that begin at the same moment; they are told apart by their number."""
    children = []
    for index in range(count):
        child = os.fork()
        if child == 0:
            done = make_parts(config(folder, parts=8), Share(index=index, count=count))
            (folder / f"worker-{index}.json").write_text(json.dumps(done.made))
            os._exit(0)
        children.append(child)
    for child in children:
        _, status = os.waitpid(child, 0)
        say({"status": status})


if __name__ == "__main__":
    torch.set_num_threads(1)
    need_faiss("this test").omp_set_num_threads(1)
    modes = {"steps": steps, "beside": work_beside}
    modes[sys.argv[1]](Path(sys.argv[2]), int(sys.argv[3]))

"""Step 2: one part. Its rows go into a copy of the trained lists under their global ids, in one pass over the features.

In the same pass exact search finds the part's nearest rows of each query, so that no second pass is needed for the
truth that recall is measured against. `add_part` takes everything that it needs from its arguments and the folder: any
engine may map it over `missing`, on any machine that sees both folders.
"""

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.errors import DamagedStoreError, UserError
from pipeline.evaluate.indexes.building import Gallery
from pipeline.evaluate.indexes.faiss_module import need_faiss
from pipeline.evaluate.indexes.parts.files import commit, read_tensors, require, write_faiss, write_tensors
from pipeline.evaluate.indexes.parts.plan import QUERIES, TRAINED, Plan, Wanted, start_over
from pipeline.evaluate.indexes.tuning import Nearest
from pipeline.files import dump_signed, load_signed
from pipeline.store import atomic
from pipeline.store.commit import retire
from pipeline.store.layout import lock_name
from pipeline.store.locks import lock

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Part:
    """What the record of a committed part says."""

    number: int
    seconds: float
    """Time that it took."""
    files: Mapping[str, Mapping[str, Any]]
    """Bytes and sha256 of its files."""


def lists_name(number: int) -> str:
    """Return the file of a part's rows in their lists."""
    return f"part-{number:05d}.faiss"


def truth_name(number: int) -> str:
    """Return the file of what exact search found in a part."""
    return f"part-{number:05d}.safetensors"


def record_path(folder: Path, number: int) -> Path:
    """Return the commit record of a part."""
    return folder / f"part-{number:05d}.json"


def missing(folder: Path, plan: Plan) -> list[int]:
    """Return the numbers of the parts that are not committed."""
    return [number for number in range(len(plan.wanted.spans())) if committed(folder, plan, number) is None]


def committed(folder: Path, plan: Plan, number: int) -> Part | None:
    """Return the record of a part; None where it is not there, damaged, or its files are not there with their sizes.

    Raises:
        UserError: It is of another plan.
    """
    path = record_path(folder, number)
    try:
        said = load_signed(path)
    except FileNotFoundError:
        return None
    except DamagedStoreError:
        _log.warning("%s: expected a commit record, found other bytes; its part is made again", path)
        return None
    if said.get("plan") != plan.digest:
        raise UserError(
            expected=f"parts of the plan {plan.digest[:12]}…",
            found=f"{path.name}, a part of the plan {str(said.get('plan'))[:12]}…",
            where=str(folder),
            remedy=f"remove the files of that part, or {start_over(folder)}",
        )
    for name, file in said["files"].items():
        found = (folder / name).stat().st_size if (folder / name).is_file() else None
        if found != file["bytes"]:
            _log.warning("%s: expected %s bytes, found %s; its part is made again", folder / name, file["bytes"], found)
            return None
    return Part(number=number, seconds=float(said["seconds"]), files=said["files"])


def check_memory(wanted: Wanted, memory: int) -> None:
    """Refuse parts that do not fit the memory: a part is in memory until it is written, and its lists grow by doubling.

    Raises:
        UserError: The largest one does not fit.
    """
    most = max(stop - start for start, stop in wanted.spans())
    empty = wanted.index_class.empty(wanted.width, wanted.rows, wanted.seed, wanted.rows)
    need = 2 * most * (int(empty.code_size) + 8)
    if need > memory:
        raise UserError(
            expected=f"parts that take {memory:,} bytes of memory at most",
            found=f"one of {most:,} rows that may take {need:,}",
            where="--parts",
            remedy=f"take {-(-need // memory)} times as many parts, or allow more with --memory",
        )


def add_part(folder: Path, plan: Plan, gallery: Gallery, number: int, *, wait: bool = False) -> bool:
    """Make a part and commit it; say whether it was made here.

    Args:
        folder: Folder of the parts.
        plan: Its plan.
        gallery: All rows; those of the part are read.
        number: Which part.
        wait: Wait for a living process that makes this part, and make it if that one fails; else leave it to that one.

    Raises:
        PipelineError: The disk is at fault, or a file of the plan is not what was committed.
    """
    with lock(folder / lock_name(number), block=wait) as mine:
        if not mine or committed(folder, plan, number) is not None:
            return False
        _make(folder, plan, gallery, number)
        return True


def _make(folder: Path, plan: Plan, gallery: Gallery, number: int) -> None:
    started = time.perf_counter()
    faiss = need_faiss("an index in parts")
    for name, sha256 in plan.files.items():
        require(folder / name, sha256, start_over(folder))
    part = faiss.read_index(str(folder / TRAINED))
    nearest = Nearest(read_tensors(folder / QUERIES)["queries"], plan.wanted.k)
    for rows in plan.wanted.blocks(number):
        block = gallery.read(rows)
        part.add_with_ids(np.ascontiguousarray(block.numpy(), dtype=np.float32), rows)
        nearest.see(int(rows[0]), block)
    found = nearest.truth()
    record = record_path(folder, number)
    retire(record)
    truth = {"scores": found.scores, "positions": found.positions}
    files = {
        lists_name(number): commit(folder / lists_name(number), lambda path: write_faiss(part, path)),
        truth_name(number): commit(folder / truth_name(number), lambda path: write_tensors(truth, path)),
    }
    seconds = round(time.perf_counter() - started, 3)
    start, stop = plan.wanted.spans()[number]
    said = {"plan": plan.digest, "part": number, "start": start, "stop": stop, "seconds": seconds, "files": files}
    atomic.put(record, dump_signed(said))

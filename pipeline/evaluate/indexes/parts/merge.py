"""Step 3: the parts become one index whose lists stay on the disk, and what they found by exact search one truth.

Parts are merged in their order, so that a list holds its rows by rising id: the same bytes whoever made the parts.
"""

import shutil
from pathlib import Path
from typing import Any

from pipeline.errors import PipelineError, UserError
from pipeline.evaluate.indexes.building import Built
from pipeline.evaluate.indexes.faiss_module import need_faiss
from pipeline.evaluate.indexes.on_disk import ON_DISK, merge_lists
from pipeline.evaluate.indexes.parts.add import Part, committed, lists_name, record_path, truth_name
from pipeline.evaluate.indexes.parts.files import read_tensors, require
from pipeline.evaluate.indexes.parts.plan import PLAN, QUERIES, TRAINED, Plan, start_over
from pipeline.evaluate.indexes.parts.train import LOCK
from pipeline.evaluate.indexes.tuning import Nearest, Truth
from pipeline.store.commit import writing
from pipeline.store.layout import is_temp, lock_name


def merge(folder: Path, plan: Plan, into: Path) -> Built:
    """Merge all parts into lists on the disk, one list at a time in memory.

    Args:
        folder: Folder of the parts, which stay.
        plan: Its plan.
        into: Folder for `index.ivfdata`.

    Raises:
        UserError: A part is missing, or is not what was committed.
        PipelineError: There is no room on the disk.
    """
    parts = checked_parts(folder, plan)
    paths = [folder / lists_name(part.number) for part in parts]
    need, free = sum(path.stat().st_size for path in paths), shutil.disk_usage(into).free
    if need > free:
        raise PipelineError(
            expected=f"{need:,} free bytes for the merged lists",
            found=f"{free:,}",
            where=str(into.parent),
            remedy="make room and run again: the parts stay",
        )
    trained = require(folder / TRAINED, plan.files[TRAINED], start_over(folder))
    empty: Any = need_faiss("an index in parts").read_index(str(trained))
    with writing(into / ON_DISK):
        merge_lists(empty, paths, into / ON_DISK)
    if int(empty.ntotal) != plan.wanted.rows:
        raise PipelineError(
            expected=f"{plan.wanted.rows} rows in the parts", found=str(int(empty.ntotal)), where=str(folder)
        )
    index = plan.wanted.index_class.wrap(empty, plan.wanted.seed)
    return Built(index=index, parts=len(parts), files=(into / ON_DISK,))


def merge_truth(folder: Path, plan: Plan) -> Truth:
    """Return what exact search finds among all rows; the parts were checked by `merge`."""
    queries = read_tensors(require(folder / QUERIES, plan.files[QUERIES], start_over(folder)))["queries"]
    nearest = Nearest(queries, plan.wanted.k)
    for number in range(len(plan.wanted.spans())):
        found = read_tensors(folder / truth_name(number))
        nearest.merge(found["scores"], found["positions"])
    return nearest.truth()


def checked_parts(folder: Path, plan: Plan) -> list[Part]:
    """Return all parts after comparing every byte of theirs with its record.

    Raises:
        UserError: One is missing, or is not what was committed.
    """
    found = [committed(folder, plan, number) for number in range(len(plan.wanted.spans()))]
    parts = [part for part in found if part is not None]
    if len(parts) < len(found):
        left = ", ".join(str(number) for number, part in enumerate(found) if part is None)
        raise UserError(
            expected=f"{len(found)} parts", found=f"no part {left}", where=str(folder), remedy="make what is missing"
        )
    for part in parts:
        for name, file in part.files.items():
            require(folder / name, file["sha256"], f"remove {folder / name} and run again: only that part is redone")
    return parts


def remove_parts(folder: Path, plan: Plan) -> None:
    """Remove a folder of parts: records first and the plan last, so that what is left of it on the way is sound."""
    numbers = range(len(plan.wanted.spans()))
    names = [lists_name(number) for number in numbers] + [truth_name(number) for number in numbers]
    locks = [lock_name(number) for number in numbers]
    for path in (record_path(folder, number) for number in numbers):
        path.unlink(missing_ok=True)
    for name in (*names, *locks, QUERIES, TRAINED, PLAN, LOCK):
        (folder / name).unlink(missing_ok=True)
    for path in folder.iterdir():
        if is_temp(path.name):
            path.unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()

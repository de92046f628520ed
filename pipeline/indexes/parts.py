"""An index that several processes build, on one machine or many, in a folder whose files survive a kill.

    parts = IndexParts(folder, wanted, gallery).begin(queries, memory)   # 1: whoever comes first trains, others wait
    for number in parts.missing(): parts.add(number)                     # 2: by any process, in any order
    index = parts.merge(into); truth = parts.truth(); parts.remove()     # 3: once

A part is a run of units, and a unit is what no block of rows crosses (a shard of the store). Parts are merged in their
order, so that a list holds its rows by rising id. So every bit is the same for any number of parts and of processes.
In the pass that adds a part's rows exact search finds the nearest of them to each query: the truth for the recall.
"""

import errno
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline import files
from pipeline.errors import DamagedStoreError, KeyMismatchError, PipelineError, UserError, lacking
from pipeline.files import json_differences, lock
from pipeline.indexes.index import INDEXES, Gallery, Index, add_rows, need_faiss, train
from pipeline.indexes.recall import Truth
from pipeline.indexes.stored import ON_DISK, check_digest, merge_lists
from pipeline.storage.local import writing

FORMAT = 2
PLAN, TRAINED, QUERIES = "plan.json", "trained.faiss", "queries.safetensors"
_OWN = ("part-*.json", "part-*.faiss", "part-*.safetensors", ".*.tmp", ".*.lock")
BLOCK_ROWS = 2**14
"""Rows that are embedded at once, in every process: another number may change the last bits of a vector."""
_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is to be built; processes that want different things cannot work in one folder."""

    of: Mapping[str, Any]
    """What it is an index of, as `write_index` takes it."""
    kind: str
    """ivf, sq8 or ivfpq."""
    seed: int
    """Seed of the training sample and of the clustering."""
    k: int
    """Neighbours that are compared with exact search."""
    width: int
    """D."""
    units: Sequence[int]
    """[U + 1] rising positions, from 0 to N, between which the units lie."""
    parts: int
    """Parts that were asked for; there are fewer where there are fewer units."""

    def __post_init__(self) -> None:
        """Refuse what cannot be built in parts."""
        known = [name for name, kind in INDEXES.items() if kind.has_lists]
        if self.kind not in known:
            expected = f"a kind that is built in parts ({', '.join(known)})"
            raise UserError(expected=expected, found=self.kind, where="--kind")
        if self.parts < 1:
            raise UserError(expected="1 part or more", found=str(self.parts), where="--parts")

    @property
    def rows(self) -> int:
        """N."""
        return int(self.units[-1])

    def spans(self) -> list[tuple[int, int]]:
        """Return the rows [start, stop) of each part: about the same number, cut between units."""
        ideal = np.linspace(0, self.rows, self.parts + 1)
        edges = np.unique(np.asarray(self.units)[np.searchsorted(self.units, ideal)])
        return [(int(start), int(stop)) for start, stop in pairwise(edges)]

    def blocks(self, part: int) -> Iterator[NDArray[np.int64]]:
        """Yield the positions of the blocks of a part."""
        start, stop = self.spans()[part]
        inside = [int(edge) for edge in self.units if start <= edge <= stop]
        for first, last in pairwise(inside):
            for at in range(first, last, BLOCK_ROWS):
                yield np.arange(at, min(at + BLOCK_ROWS, last), dtype=np.int64)

    def check_memory(self, memory: int) -> None:
        """Refuse parts that do not fit: a part is in memory until it is written, and its lists grow by doubling.

        Raises:
            UserError: The largest one does not fit.
        """
        most = max(stop - start for start, stop in self.spans())
        need = 2 * most * INDEXES[self.kind].row_bytes(self.width, self.rows)
        if need > memory:
            raise UserError(
                expected=f"parts that take {memory:,} bytes of memory at most",
                found=f"one of {most:,} rows that may take {need:,}",
                where="--parts",
                remedy=f"take {-(-need // memory)} times as many parts, or allow more with --memory",
            )

    def to_json(self) -> dict[str, Any]:
        """Return what is compared; the units by their digest."""
        units = files.json_digest([int(edge) for edge in self.units])
        return dict(json.loads(json.dumps({**asdict(self), "rows": self.rows, "units": units})))


class IndexParts:
    """The folder in which an index is built part by part.

    Args:
        folder: The folder; made if it is not there.
        wanted: What is to be built.
        gallery: All rows; of them those that a step needs are read.
    """

    def __init__(self, folder: Path, wanted: Wanted, gallery: Gallery) -> None:
        self.folder, self.wanted, self.gallery = folder, wanted, gallery
        self.spans = wanted.spans()
        self.plan: dict[str, Any] = {}
        """What `plan.json` says, from `begin` on."""
        self._start_over = f"remove the folder {folder} to start over"

    def begin(self, queries: Callable[[], tuple[Tensor, str]], memory: int) -> Self:
        """Read the folder's plan; whoever comes first trains the lists and commits it, the others wait for that.

        Args:
            queries: Makes the queries [Q, D] that the recall is measured on, and says what they are.
            memory: Bytes that the training sample may take, twice.

        Raises:
            KeyMismatchError: The folder is of another index: names each field that differs.
            UserError: Its plan is damaged.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock(self.folder / ".plan.lock"):
            self.plan = self._read_plan() if (self.folder / PLAN).is_file() else self._train(*queries(), memory)
        return self

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not committed."""
        return [number for number in range(len(self.spans)) if self.record(number) is None]

    def records(self) -> list[dict[str, Any]]:
        """Return the records of the parts that are committed."""
        return [record for number in range(len(self.spans)) if (record := self.record(number)) is not None]

    def record(self, number: int) -> dict[str, Any] | None:
        """Return the record of a part; None where it is not there or damaged, or a file of its has another size.

        Raises:
            UserError: It is of another plan.
        """
        path = self.folder / f"{_stem(number)}.json"
        try:
            said = _load(path)
        except FileNotFoundError:
            return None
        except DamagedStoreError:
            _log.warning("%s: expected a commit record, found other bytes; its part is made again", path)
            return None
        if said.get("plan") != self._digest:
            expected, found = f"parts of the plan {self._digest[:12]}…", f"a part of the plan {said.get('plan'):.12}…"
            remedy = f"remove the files of that part, or {self._start_over}"
            raise UserError(expected=expected, found=f"{path.name}, {found}", where=str(self.folder), remedy=remedy)
        for file, wanted in ((self.folder / name, each["bytes"]) for name, each in said["files"].items()):
            if (size := file.stat().st_size if file.is_file() else None) != wanted:
                _log.warning("%s: expected %s bytes, found %s; its part is made again", file, wanted, size)
                return None
        return said

    def add(self, number: int, *, wait: bool = False) -> bool:
        """Make a part and commit it, unless it is there; say whether it was made here.

        Args:
            number: Which part.
            wait: Wait for a living process that makes this part, and make it if that fails; else leave it to that one.

        Raises:
            PipelineError: The disk is at fault, or a file of the plan is not what was committed.
        """
        with lock(self.folder / f".{_stem(number)}.lock", block=wait) as mine:
            if not mine or self.record(number) is not None:
                return False
            started, stem, (start, stop) = time.perf_counter(), _stem(number), self.spans[number]
            own, truth = self._trained(), self._truth()
            add_rows(own, self.gallery, self.wanted.blocks(number), truth.see)
            found = {"scores": truth.scores, "positions": truth.positions}
            about = {"plan": self._digest, "part": number, "start": start, "stop": stop}
            self._commit(stem, about, {f"{stem}.faiss": own, f"{stem}.safetensors": found}, started)
            return True

    def merge(self, into: Path) -> Index:
        """Merge all parts, which stay, into lists on the disk in a folder, one list at a time in memory.

        Raises:
            UserError: A part is missing, or a byte of it is not what was committed.
            PipelineError: There is no room on the disk.
        """
        if left := self.missing():
            expected, found = f"{len(self.spans)} parts", f"no part {', '.join(map(str, left))}"
            raise UserError(expected=expected, found=found, where=str(self.folder), remedy="make what is missing")
        for record in self.records():
            for path, file in ((self.folder / name, each) for name, each in record["files"].items()):
                check_digest(path, file["sha256"], f"remove {path} and run again: only that part is redone")
        paths = [self.folder / f"{_stem(number)}.faiss" for number in range(len(self.spans))]
        need, free = sum(path.stat().st_size for path in paths), shutil.disk_usage(into).free
        if need > free:
            expected, remedy = f"{need:,} free bytes for the merged lists", "make room and run again: the parts stay"
            raise PipelineError(expected=expected, found=f"{free:,}", where=str(into.parent), remedy=remedy)
        own = self._trained()
        with writing(into, ON_DISK):
            merge_lists(own, paths, into / ON_DISK)
        return Index(INDEXES[self.wanted.kind], own, self.wanted.seed)

    def truth(self) -> Truth:
        """Return what exact search finds among all rows; the parts were checked by `merge`."""
        truth = self._truth()
        for number in range(len(self.spans)):
            truth.merge(**load_file(self.folder / f"{_stem(number)}.safetensors"))
        return truth

    def remove(self) -> None:
        """Remove the folder: records first and the plan last, so that what is left of it on the way is sound."""
        for pattern in (*_OWN, QUERIES, TRAINED, PLAN):
            for path in self.folder.glob(pattern):
                path.unlink(missing_ok=True)
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    @property
    def _digest(self) -> str:
        """What names this plan in the records of its parts; the time it took is no part of it."""
        return files.json_digest({name: value for name, value in self.plan.items() if name != "seconds"})

    def _read_plan(self) -> dict[str, Any]:
        path, remedy = self.folder / PLAN, self._start_over
        try:
            said = _load(path)
        except DamagedStoreError as error:
            expected = "a plan that is what was written"
            raise UserError(expected=expected, found="other bytes", where=str(path), remedy=remedy) from error
        asked = {"format": FORMAT, **self.wanted.to_json()}
        differences = json_differences({"format": said.get("format"), **said.get("wanted", {})}, asked)
        if differences:
            remedy = f"give the options that it was begun with, or {remedy}"
            raise KeyMismatchError(differences, str(self.folder), remedy)
        return said

    def _train(self, queries: Tensor, asked: str, memory: int) -> dict[str, Any]:
        started = time.perf_counter()
        own, rows = train(INDEXES[self.wanted.kind], self.gallery, self.wanted.seed, memory, BLOCK_ROWS)
        about = {"format": FORMAT, "wanted": self.wanted.to_json(), "queries": asked, "trained_on": rows}
        return self._commit("plan", about, {TRAINED: own, QUERIES: {"queries": queries}}, started)

    def _commit(
        self, stem: str, about: Mapping[str, Any], contents: Mapping[str, Any], started: float
    ) -> dict[str, Any]:
        """Write indexes and tensors, each file whole or not at all, and then the record that vouches for them."""
        path, written = self.folder / f"{stem}.json", {}
        path.unlink(missing_ok=True)  # a damaged one must not speak of new files
        files.sync_folder(self.folder)
        for name, content in contents.items():
            target = self.folder / name
            with writing(self.folder, name), files.temp_beside(target) as temp:
                (write_tensors if isinstance(content, dict) else write_faiss)(content, temp)
                files.sync_file(temp)
                written[name] = {"bytes": temp.stat().st_size, "sha256": files.file_sha256(temp)}
                files.publish(temp, target)
                files.sync_folder(self.folder)
        record = {**about, "files": written, "seconds": round(time.perf_counter() - started, 3)}
        files.write_atomically(path, files.dump_signed(record))
        return record

    def _trained(self) -> Any:
        return need_faiss("an index in parts").read_index(self._planned(TRAINED))

    def _truth(self) -> Truth:
        return Truth(load_file(self._planned(QUERIES))["queries"], self.wanted.k)

    def _planned(self, name: str) -> str:
        return str(check_digest(self.folder / name, self.plan["files"][name]["sha256"], self._start_over))


def write_faiss(index: Any, path: Path) -> None:
    """Write an index; what faiss raises comes out as OSError."""
    try:
        need_faiss("an index in parts").write_index(index, str(path))
    except RuntimeError as error:
        said = " ".join(str(error).split())
        code = lacking(error)
        raise OSError(code or errno.EIO, os.strerror(code) if code else said) from error


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors."""
    path.write_bytes(save({name: value.contiguous() for name, value in tensors.items()}))


def _load(path: Path) -> dict[str, Any]:
    return files.load_signed(path.read_bytes(), path.name, str(path.parent))


def _stem(number: int) -> str:
    return f"part-{number:05d}"

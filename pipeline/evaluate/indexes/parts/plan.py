"""What an index in parts is to be, and `plan.json`, which says it to every process that works on it.

A part is a run of units, and a unit is what no block of rows crosses (a shard of the store). So the blocks, and with
them every bit of the vectors and every list, are the same for any number of parts and of processes.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DamagedStoreError, KeyMismatchError, UserError
from pipeline.evaluate.indexes.ivf import ListsIndex
from pipeline.evaluate.indexes.table import INDEXES
from pipeline.files import dump_signed, json_digest, load_signed
from pipeline.projectors.run_record import key_differences
from pipeline.store import atomic

FORMAT = 1
PLAN = "plan.json"
TRAINED = "trained.faiss"
QUERIES = "queries.safetensors"
BLOCK_ROWS = 2**14
"""Rows that are embedded at once, in every process: another number may change the last bits of a vector."""


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
        if self.kind not in LISTS:
            raise UserError(
                expected=f"a kind that is built in parts ({', '.join(LISTS)})", found=self.kind, where="--kind"
            )
        if self.parts < 1:
            raise UserError(expected="1 part or more", found=str(self.parts), where="--parts")

    @property
    def rows(self) -> int:
        """Return the number of rows N."""
        return int(self.units[-1])

    @property
    def index_class(self) -> type[ListsIndex]:
        """Return the kind's class."""
        return LISTS[self.kind]

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

    def to_json(self) -> dict[str, Any]:
        """Return what is compared; the units by their digest."""
        units = json_digest([int(edge) for edge in self.units])
        said = {"of": dict(self.of), "kind": self.kind, "seed": self.seed, "k": self.k, "rows": self.rows}
        return dict(json.loads(json.dumps({**said, "width": self.width, "parts": self.parts, "units": units})))


LISTS: dict[str, type[ListsIndex]] = {name: kind for name, kind in INDEXES.items() if issubclass(kind, ListsIndex)}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What `plan.json` says: what is wanted, and the files that every part is made with."""

    wanted: Wanted
    queries: str
    """What the queries are: captions or images."""
    trained_on: int
    """Rows that the lists were trained on."""
    seconds: float
    """Time that the training took."""
    files: Mapping[str, str]
    """SHA-256 of the trained index and of the queries."""

    @property
    def digest(self) -> str:
        """Return what names this plan in the records of its parts; the time it took is no part of it."""
        return json_digest({name: value for name, value in self.to_json().items() if name != "seconds"})

    def to_json(self) -> dict[str, Any]:
        """Return what the file says."""
        return {
            "format": FORMAT,
            "wanted": self.wanted.to_json(),
            "queries": self.queries,
            "trained_on": self.trained_on,
            "seconds": self.seconds,
            "files": dict(self.files),
        }


def write_plan(folder: Path, plan: Plan) -> None:
    """Commit a plan: with it, step 1 is done."""
    atomic.put(folder / PLAN, dump_signed(plan.to_json()))


def read_plan(folder: Path, wanted: Wanted) -> Plan | None:
    """Read the plan of a folder; None where there is none yet.

    Raises:
        KeyMismatchError: It is of another index: names each field that differs.
        UserError: It is damaged.
    """
    path = folder / PLAN
    if not path.is_file():
        return None
    try:
        said = load_signed(path)
    except DamagedStoreError as error:
        raise UserError(
            expected="a plan that is what was written", found="other bytes", where=str(path), remedy=start_over(folder)
        ) from error
    differences = key_differences(said.get("wanted"), wanted.to_json())
    if said.get("format") != FORMAT:
        differences = [("format", str(said.get("format")), str(FORMAT)), *differences]
    if differences:
        remedy = f"give the options that it was begun with, or {start_over(folder)}"
        raise KeyMismatchError(differences, str(folder), remedy)
    return Plan(
        wanted=wanted,
        queries=str(said["queries"]),
        trained_on=int(said["trained_on"]),
        seconds=float(said["seconds"]),
        files=dict(said["files"]),
    )


def start_over(folder: Path) -> str:
    """Return the advice that always helps."""
    return f"remove the folder {folder} to start over"

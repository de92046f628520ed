"""An index that several processes build, on one machine or many: `make_parts` by each of them, then once `finish`.

Run by `pipeline index --parts N`, with `--worker-index I --num-workers M` or without. What is made on the way lies in
`<out>.parts`, each file committed by rename: whoever is killed, only what is missing is made again. An index has the
same bytes for any number of parts and processes, as long as each computes with the same libraries and threads.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.apps.indexing import INDEX, Subject, check_numbers, measure
from pipeline.errors import UserError
from pipeline.evaluate.indexes.faiss_module import need_faiss
from pipeline.evaluate.indexes.kinds import MEMORY
from pipeline.evaluate.indexes.parts.add import add_part, check_memory, committed, missing
from pipeline.evaluate.indexes.parts.merge import merge, merge_truth, remove_parts
from pipeline.evaluate.indexes.parts.plan import Plan, Wanted
from pipeline.evaluate.indexes.parts.train import plan_and_train
from pipeline.evaluate.indexes.stored import write_index
from pipeline.extract.shares import Share
from pipeline.store.locks import lock

MERGED = "merged"
_LOCK = ".merge.lock"


@dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """What is built; every process says the same."""

    run: Path
    """Folder of a run or of an export."""
    out: Path
    """Folder of the finished index; `<out>.parts` holds what is made on the way."""
    parts: int
    """Parts; fewer where the store has fewer shards."""
    image: Sequence[Path] = ()
    """Image stores; those of the training where not given."""
    text: Sequence[Path] = ()
    """Text stores, whose captions are the queries; likewise."""
    seed: int | None = None
    """Which seed's projectors; the first where not given."""
    split: str | None = None
    """Only images of this split."""
    kind: str = "auto"
    """ivf, sq8 or ivfpq; auto is ivf, whose lists need not fit the memory here."""
    recall: float = 0.95
    """Wanted recall@k."""
    k: int = 10
    """Neighbours that are compared."""
    memory: int = MEMORY
    """Bytes that a part, or the sample that is trained on, may take."""

    @property
    def folder(self) -> Path:
        """Return the folder of the parts."""
        return self.out.with_name(f"{self.out.name}.parts")


@dataclass(frozen=True, kw_only=True)
class PartsMade:
    """What a process did."""

    parts: int
    """Parts in all."""
    made: tuple[int, ...]
    """Those that it made."""
    missing: tuple[int, ...]
    """Those that are not committed yet: another process is at work on them, or was killed."""
    folder: str
    """Where they lie."""


class _Work:
    """A configuration with everything opened.

    Raises:
        KeyMismatchError: The folder of parts is of another index, or a store of another key than the run's.
        UserError: A number makes no sense, or something is missing.
    """

    def __init__(self, config: PartsConfig) -> None:
        need_faiss("stored indexes")
        check_numbers(config.kind, config.recall, config.k, config.memory)
        INDEX.check(config.out)
        self.config = config
        self.subject = Subject.open(config.run, config.image, config.seed, config.split)
        self.gallery = self.subject.gallery

    @cached_property
    def plan(self) -> Plan:
        """Return the plan; the lists are trained if nobody has done so."""
        config, subject = self.config, self.subject
        store_rows = subject.side.rows[0][subject.rows]
        wanted = Wanted(
            of=subject.identity,
            kind="ivf" if config.kind == "auto" else config.kind,
            seed=subject.seed,
            k=min(config.k, self.gallery.rows),
            width=self.gallery.width,
            units=np.searchsorted(store_rows, subject.side.stores[0].shard_edges).tolist(),
            parts=config.parts,
        )
        check_memory(wanted, config.memory)
        return plan_and_train(config.folder, wanted, self.gallery, lambda: subject.queries(config.text), config.memory)

    def add(self, numbers: Sequence[int], *, wait: bool) -> tuple[int, ...]:
        """Make those of some parts that nobody has made and return their numbers."""
        folder = self.config.folder
        return tuple(number for number in numbers if add_part(folder, self.plan, self.gallery, number, wait=wait))


def make_parts(config: PartsConfig, share: Share) -> PartsMade:
    """Do one process's share of the parts, then what is left and nobody is at work on.

    Raises:
        KeyMismatchError: The folder of parts is of another index, or a store of another key than the run's.
        UserError: Something that was asked for is missing or makes no sense.
    """
    work = _Work(config)
    parts = len(work.plan.wanted.spans())
    made = work.add(in_turn(parts, share), wait=False)
    return PartsMade(
        parts=parts, made=made, missing=tuple(missing(config.folder, work.plan)), folder=str(config.folder)
    )


def in_turn(parts: int, share: Share) -> list[int]:
    """Return the parts in a worker's order: its own run of them, then the others', the next worker's first, backwards.

    An owner takes its own from the front, so that who helps meets it last.
    """
    spans = [(worker * parts // share.count, (worker + 1) * parts // share.count) for worker in range(share.count)]
    own, *others = (range(*spans[(share.index + step) % share.count]) for step in range(share.count))
    return [*own, *(number for each in others for number in reversed(each))]


def finish(config: PartsConfig) -> dict[str, Any]:
    """Make what is missing, merge it, tune and measure the index, put it in place and remove the parts.

    Returns:
        What `index.json` says.

    Raises:
        KeyMismatchError: The folder of parts is of another index, or a store of another key than the run's.
        UserError: A part is damaged, or another process is merging; or something that was asked for is missing.
        PipelineError: There is no room for the merged lists.
    """
    work = _Work(config)
    work.add(range(len(work.plan.wanted.spans())), wait=True)
    with lock(config.folder / _LOCK, block=False) as mine:
        if not mine:
            raise UserError(
                expected="parts that nobody is merging", found="a live process that does", where=str(config.folder)
            )
        record = _merge(work)
    remove_parts(config.folder, work.plan)
    return record


def _merge(work: _Work) -> dict[str, Any]:
    config, plan = work.config, work.plan
    parts = [part for number in range(len(plan.wanted.spans())) if (part := committed(config.folder, plan, number))]
    with INDEX.new(config.out, config.folder / MERGED) as folder:
        built = merge(config.folder, plan, folder)
        about = {
            "recall": measure(built.index, merge_truth(config.folder, plan), plan.queries, config.recall),
            "build": {
                "parts": built.parts,
                "memory": config.memory,
                "trained_on": plan.trained_on,
                "seconds": {"train": plan.seconds, "parts": [part.seconds for part in parts]},
            },
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return write_index(folder, built.index, plan.wanted.of, about)

"""A stored search index over a run's images: `build(IndexConfig(...))`.

Run by `pipeline index` and `pipeline search --index`. The images' features are projected block by block, so neither
they nor their embeddings need to lie in memory as a whole. The effort is tuned on captions that the run was not tested
on, and the recall is measured on others; where the run has too few, images ask for other images.

Several processes share the work with `make_parts`, then one calls `build`. What is made on the way lies in
`<out>.parts`: whoever is killed, only what is missing is made again. The index has the same bytes for any number of
parts and processes, as long as each computes with the same libraries and threads.
"""

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.apps.config import IndexConfig
from pipeline.apps.opening import OpenedRun, open_run
from pipeline.apps.output_folder import OutputFolder
from pipeline.errors import UserError
from pipeline.files import lock
from pipeline.indexes.index import INDEXES, Gallery, Index, Kind, add_rows, choose_kind, need_faiss, train
from pipeline.indexes.parts import IndexParts, Wanted
from pipeline.indexes.recall import Truth, measure
from pipeline.indexes.stored import RECORD, read_record, write_index
from pipeline.runtime import Share
from pipeline.store.samples import join

QUERIES = 1000
"""Queries that the effort is tuned on; as many others measure the recall."""
INDEX = OutputFolder(RECORD, lambda path: read_record(path.parent), "an index", "pipeline index", "--out")


@dataclass(frozen=True, kw_only=True)
class PartsMade:
    """What one of several processes did: parts in all, those that it made, and the folder where they lie.

    Another process is at work on those that are missing, or was killed.
    """

    parts: int
    made: tuple[int, ...]
    missing: tuple[int, ...]
    folder: str


class Subject:
    """The images that an index is built over, their run and stores opened.

    Raises:
        KeyMismatchError: A store holds features of another key than the run was trained on.
        MissingExtraError: faiss is not installed.
        UserError: A folder or seed is missing, no image is in the split, or something else lies where it is to be.
    """

    def __init__(self, config: IndexConfig) -> None:
        need_faiss("stored indexes")
        INDEX.check(config.out)
        self.config = config
        self.opened = opened = OpenedRun(open_run(config.run), config.image, config.text)
        self.seed = opened.run.seeds[0] if config.seed is None else config.seed
        self.rows = opened.image_rows(config.split)
        self.identity = opened.identity(self.seed, config.split)
        self.gallery = Gallery(
            rows=len(self.rows),
            width=opened.run.dim,
            read=lambda at: opened.embed(opened.images, self.rows[at], self.seed),
        )

    def queries(self) -> tuple[Tensor, str]:
        """Return queries [Q, d] in a drawn order: captions of the splits the run was made with, else gallery images."""
        images, texts, config = self.opened.images, self.opened.texts, self.opened.run.config
        draw = np.random.default_rng(self.seed)
        if texts is not None:
            known = [config.get(name) for name in ("train_split", "validation_split")]
            found = [join(images.samples, texts.samples, str(split)).caption_rows for split in known if split]
            captions = np.concatenate([np.array([], dtype=np.int64), *found])
            if len(captions) >= 2 * QUERIES:
                chosen = draw.choice(captions, size=2 * QUERIES, replace=False)
                return self.opened.embed(texts, chosen, self.seed), "captions"
        chosen = draw.choice(self.rows, size=min(len(self.rows), 2 * QUERIES), replace=False)
        return self.opened.embed(images, chosen, self.seed), "images"

    @cached_property
    def parts(self) -> IndexParts | None:
        """The parts that it is built in, their lists trained if nobody has done so; None where it is built at once.

        Parts that were asked for are cut at the shards, so that each process reads its own; others by the memory alone.

        Raises:
            KeyMismatchError: The folder of parts is of another index.
            UserError: A part, or a kind that lies in memory as a whole, does not fit the memory.
        """
        config, gallery, count = self.config, self.gallery, self.config.parts
        if count is None:
            if not self.kind.has_lists:
                self._check_whole()
                return None
            most = config.memory // (2 * self.kind.row_bytes(gallery.width, gallery.rows))
            if most >= gallery.rows:
                return None
            units = [*range(0, gallery.rows, max(1, most)), gallery.rows]
            count = len(units) - 1
        else:
            images = self.opened.images
            units = np.searchsorted(images.rows[0][self.rows], images.stores[0].shard_edges).tolist()
        wanted = Wanted(
            of=self.identity,
            kind=self.kind.name,
            seed=self.seed,
            k=min(config.k, gallery.rows),
            width=gallery.width,
            units=units,
            parts=count,
        )
        wanted.check_memory(config.memory)
        return IndexParts(config.folder, wanted, gallery).begin(self.queries, config.memory)

    @cached_property
    def kind(self) -> Kind:
        """What is built; auto goes by size, and in parts is ivf."""
        config = self.config
        if config.kind == "auto" and config.parts is not None:
            return INDEXES["ivf"]
        return INDEXES[choose_kind(config.kind, self.gallery.rows, self.gallery.width, config.memory)]

    def _check_whole(self) -> None:
        need = 4 * self.gallery.rows * self.gallery.width
        if need > self.config.memory:
            raise UserError(
                expected=f"an index of at most {self.config.memory:,} bytes",
                found=f"{need:,} bytes of vectors, which {self.kind.name} holds whole",
                where="--memory",
                remedy="take --kind ivf, sq8 or ivfpq, or allow more memory",
            )


def build(config: IndexConfig) -> dict[str, Any]:
    """Build an index over the images of a run's stores, tune and measure it, and write it as one folder.

    In parts, those that are there are taken and what is missing is made.

    Returns:
        What `index.json` says.

    Raises:
        KeyMismatchError: A store is of another key than the run's, or the folder of parts of another index.
        MissingExtraError: faiss is not installed.
        UserError: Something is missing, does not fit the memory, is damaged, or another process is merging.
        PipelineError: There is no room for the merged lists.
    """
    subject = Subject(config)
    parts = subject.parts
    if parts is None:
        with INDEX.new(config.out) as folder:
            return _build_at_once(subject, folder)
    for number in range(len(parts.spans)):
        parts.add(number, wait=True)
    with lock(parts.folder / ".merge.lock", block=False) as mine:
        if not mine:
            expected, found = "parts that nobody is merging", "a live process that does"
            raise UserError(expected=expected, found=found, where=str(parts.folder))
        with INDEX.new(config.out, parts.folder / "merged") as folder:
            record = _merge(subject, parts, folder)
    parts.remove()
    return record


def make_parts(config: IndexConfig, share: Share) -> PartsMade:
    """Do one process's share of the parts, then what is left and nobody is at work on.

    Raises:
        KeyMismatchError: A store is of another key than the run's, or the folder of parts of another index.
        UserError: Something that was asked for is missing or makes no sense.
    """
    parts = Subject(config).parts
    if parts is None:
        raise UserError(expected="a number of parts", found="none", where="--parts")
    count = len(parts.spans)
    made = tuple(number for number in in_turn(count, share) if parts.add(number))
    return PartsMade(parts=count, made=made, missing=tuple(parts.missing()), folder=str(parts.folder))


def in_turn(parts: int, share: Share) -> list[int]:
    """Return the parts in a worker's order: its own run of them, then the others', the next worker's first, backwards.

    An owner takes its own from the front, so that who helps meets it last.
    """
    spans = [(worker * parts // share.count, (worker + 1) * parts // share.count) for worker in range(share.count)]
    own, *others = (range(*spans[(share.index + step) % share.count]) for step in range(share.count))
    return [*own, *(number for each in others for number in reversed(each))]


def _build_at_once(subject: Subject, folder: Path) -> dict[str, Any]:
    started = time.perf_counter()
    config, gallery = subject.config, subject.gallery
    blocks = gallery.blocks(config.memory)
    queries, asked = subject.queries()
    truth = Truth(queries, min(config.k, gallery.rows))
    own, _ = train(subject.kind, gallery, subject.seed, config.memory, len(blocks[0]))
    add_rows(own, gallery, blocks, truth.see)
    index = Index(subject.kind, own, subject.seed)
    about = {"parts": 1, "memory": config.memory, "seconds": round(time.perf_counter() - started, 3)}
    return _write(folder, subject, index, measure(index, truth, asked, config.recall), about)


def _merge(subject: Subject, parts: IndexParts, folder: Path) -> dict[str, Any]:
    index = parts.merge(folder)
    recall = measure(index, parts.truth(), parts.plan["queries"], subject.config.recall)
    seconds = {"train": parts.plan["seconds"], "parts": [record["seconds"] for record in parts.records()]}
    about = {
        "parts": len(parts.spans),
        "memory": subject.config.memory,
        "trained_on": parts.plan["trained_on"],
        "seconds": seconds,
    }
    return _write(folder, subject, index, recall, about)


def _write(
    folder: Path, subject: Subject, index: Index, recall: dict[str, Any], build: dict[str, Any]
) -> dict[str, Any]:
    created = datetime.now(UTC).isoformat(timespec="seconds")
    return write_index(folder, index, subject.identity, {"recall": recall, "build": build, "created": created})

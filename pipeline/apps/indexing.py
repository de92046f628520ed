"""A stored search index over a run's images: `build(run, out)` and, when it is searched, `open_index`.

Run by `pipeline index` and `pipeline search --index`. The images' features are projected block by block, so neither
they nor their embeddings need to lie in memory as a whole. The effort is tuned on captions that the run was not tested
on, and the recall is measured on others; where the run has too few, images ask for other images.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.apps.export.exported import open_run
from pipeline.apps.own_folder import OwnFolder
from pipeline.apps.places import open_images, open_texts
from pipeline.errors import UserError
from pipeline.evaluate.data import check_side, run_features
from pipeline.evaluate.indexes.building import Gallery, build_in_blocks
from pipeline.evaluate.indexes.faiss_index import FaissIndex
from pipeline.evaluate.indexes.faiss_module import need_faiss
from pipeline.evaluate.indexes.kinds import MEMORY
from pipeline.evaluate.indexes.stored import RECORD, read_index, read_record, write_index
from pipeline.evaluate.indexes.table import INDEXES, choose_kind
from pipeline.evaluate.indexes.tuning import Queries, Truth, exact_neighbours, recalls, tune
from pipeline.projectors.run_record import AlignedRun
from pipeline.projectors.table import pack_projector
from pipeline.store.join import join
from pipeline.store.side import Rows, Side

QUERIES = 1000
"""Queries that the effort is tuned on; as many others measure the recall."""
INDEX = OwnFolder(
    record=RECORD,
    read=lambda path: read_record(path.parent),
    what="an index",
    made_by="pipeline index",
    option="--out",
)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """The images that an index is built over."""

    run: AlignedRun
    """The run whose projector makes the vectors."""
    side: Side
    """Its image stores."""
    rows: Rows
    """[N] which of their images."""
    seed: int
    """Which seed's projector."""
    split: str | None
    """The split that they are; None for all."""

    @classmethod
    def open(cls, run: Path, image: Sequence[Path], seed: int | None, split: str | None) -> "Subject":
        """Open a run and its image stores, those of the training where none is given.

        Raises:
            KeyMismatchError: A store holds features of another key than the run was trained on.
            UserError: A folder or seed is missing, or no image is in the split.
        """
        opened = open_run(run)
        side = open_images(opened, image)
        check_side(opened, side)
        chosen = opened.seeds[0] if seed is None else seed
        return cls(run=opened, side=side, rows=rows_of(side, split), seed=chosen, split=split)

    @property
    def gallery(self) -> Gallery:
        """Return their unit vectors, embedded when they are read."""
        return Gallery(
            rows=len(self.rows),
            width=self.run.dim,
            read=lambda at: embed(self.run, self.side, self.rows[at], self.seed),
        )

    @property
    def identity(self) -> dict[str, Any]:
        """Return what decides the index's rows and vectors."""
        return identity(self.run, self.side, self.seed, self.split)

    def queries(self, text: Sequence[Path]) -> Queries:
        """Return what the index is asked, captions of these text stores if there are enough."""
        return queries_of(self.run, self.side, text, self.rows, self.seed)


def build(
    run: Path,
    out: Path,
    *,
    image: Sequence[Path] = (),
    text: Sequence[Path] = (),
    seed: int | None = None,
    split: str | None = None,
    kind: str = "auto",
    recall: float = 0.95,
    k: int = 10,
    memory: int = MEMORY,
) -> dict[str, Any]:
    """Build an index over the images of a run's stores, tune and measure it, and write it as one folder.

    Args:
        run: Folder of a run or of an export.
        out: Folder to write; may be there if it is empty or an older index.
        image: Image stores; those of the training where not given.
        text: Text stores, whose captions are the queries; likewise.
        seed: Which seed's projectors; the first where not given.
        split: Only images of this split.
        kind: One of `KINDS` but torch; `auto` goes by size.
        recall: Wanted recall@k.
        k: Neighbours that are compared.
        memory: Bytes that vectors and codes may take while it is built.

    Returns:
        What `index.json` says.

    Raises:
        KeyMismatchError: A store holds features of another key than the run was trained on.
        MissingExtraError: faiss is not installed.
        UserError: A folder or seed is missing, the kind does not fit the memory, or a number makes no sense.
    """
    need_faiss("stored indexes")
    check_numbers(kind, recall, k, memory)
    INDEX.check(out)
    subject = Subject.open(run, image, seed, split)
    gallery = subject.gallery
    name = choose_kind(kind, gallery.rows, gallery.width, memory)
    cls = INDEXES[name]
    if not issubclass(cls, FaissIndex):
        raise UserError(expected="a kind that can be stored", found=name, where="--kind", remedy="take --kind flat")
    started = time.perf_counter()
    with INDEX.new(out) as folder:
        built = build_in_blocks(cls, gallery, folder, seed=subject.seed, memory=memory)
        seconds = time.perf_counter() - started
        queries = subject.queries(text)
        blocks = gallery.blocks(gallery.block_rows(memory))
        truth = exact_neighbours(queries.vectors, blocks, min(k, gallery.rows))
        about = {
            "recall": measure(built.index, truth, queries.kind, recall),
            "build": {"parts": built.parts, "memory": memory, "seconds": round(seconds, 3)},
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        return write_index(folder, built.index, subject.identity, about)


def open_index(folder: Path, run: AlignedRun, side: Side, seed: int, split: str | None) -> FaissIndex:
    """Load a stored index over these images.

    Raises:
        KeyMismatchError: It was built of other features, another projector, seed or split: names each that differs.
        UserError: It is missing or damaged.
    """
    return read_index(folder, identity(run, side, seed, split))


def identity(run: AlignedRun, side: Side, seed: int, split: str | None) -> dict[str, Any]:
    """Return what decides an index's rows and vectors."""
    return {
        "features": [
            {"key_digest": store.key.digest(), "content_digest": store.content_digest} for store in side.stores
        ],
        "layers": list(run.layers["image"]),
        "projector": pack_projector(run.projector("image", seed), "image")[0]["sha256"],
        "split": split,
    }


def rows_of(side: Side, split: str | None) -> Rows:
    """Return the positions of the images in a split, of all where it is None.

    Raises:
        UserError: There are none.
    """
    rows = [row for row, name in enumerate(side.samples.split) if split in (None, name)]
    if not rows:
        remedy = f"its splits are {', '.join(sorted({name or '(none)' for name in side.samples.split}))}"
        raise UserError(expected=f"images in split {split}", found="none", where=side.where, remedy=remedy)
    return np.array(rows, dtype=np.int64)


def embed(run: AlignedRun, side: Side, rows: Rows, seed: int) -> Tensor:
    """Return the unit vectors [n, d] of some samples of a side."""
    return run.encode(side.modality, run_features(run, side, rows, constant_allowed=True), seed)


def queries_of(run: AlignedRun, images: Side, text: Sequence[Path], rows: Rows, seed: int) -> Queries:
    """Return queries in a drawn order: captions of the splits the run was made with, else images of the gallery."""
    texts = open_texts(run, images, text)
    draw = np.random.default_rng(seed)
    if texts is not None:
        check_side(run, texts)
        known = [run.config.get(name) for name in ("train_split", "validation_split")]
        found = [join(images.samples, texts.samples, str(split)).caption_rows for split in known if split]
        captions = np.concatenate(found) if found else np.array([], dtype=np.int64)
        if len(captions) >= 2 * QUERIES:
            chosen = draw.choice(captions, size=2 * QUERIES, replace=False)
            return Queries(vectors=embed(run, texts, chosen, seed), kind="captions")
    chosen = draw.choice(rows, size=min(len(rows), 2 * QUERIES), replace=False)
    return Queries(vectors=embed(run, images, chosen, seed), kind="images")


def measure(index: FaissIndex, truth: Truth, of: str, wanted: float) -> dict[str, Any]:
    """Tune an index on one half of the queries and return its recall on the other half, for its record.

    Args:
        index: The index.
        truth: What exact search finds.
        of: What the queries are: captions or images.
        wanted: The recall that is wanted.
    """
    half = max(1, len(truth.queries) // 2)
    tuned = tune(index, truth[:half], wanted)
    held: Truth = truth[half:] if len(truth.queries) > 1 else truth
    reached = float(recalls(index, held).mean())
    return {
        "k": truth.positions.shape[1],
        "wanted": wanted,
        "recall": reached,
        "queries": len(held.queries),
        "of": of,
        "tuned_on": half,
        "recall_tuned": tuned.recall,
        "reached": tuned.reached,
    }


def check_numbers(kind: str, recall: float, k: int, memory: int) -> None:
    """Refuse numbers that make no sense.

    Raises:
        UserError: Says which.
    """
    choose_kind(kind, 1)
    if kind == "torch":
        raise UserError(expected="a kind that can be stored", found=kind, where="--kind", remedy="take --kind flat")
    if not 0 < recall <= 1:
        raise UserError(expected="a recall above 0 and at most 1", found=str(recall), where="--recall")
    if k < 1:
        raise UserError(expected="1 or more neighbours", found=str(k), where="--k")
    if memory < 2**20:
        raise UserError(expected="a megabyte of memory at least", found=f"{memory} bytes", where="--memory")

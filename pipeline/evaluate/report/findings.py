"""What a report speaks of, and example queries of the best run: a fixed random sample and the worst failures.

Thumbnails are small JPEGs as base64, from the data set's own folder and from nowhere else.
"""

import base64
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import TestPairs, ZeroShotSet, run_features
from pipeline.evaluate.features import Duplicates, Probe
from pipeline.evaluate.report.page import Example, ExampleGroup, Thumb
from pipeline.evaluate.results import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, Leaderboard, Ranks, RunResult
from pipeline.indexes.index import Index, build_index
from pipeline.indexes.recall import recall_against_exact
from pipeline.projectors.run_record import AlignedRun
from pipeline.storage.contract import Storage

SHOWN = 5
RECALL_QUERIES = 256
EDGE = 176


@dataclass
class Pictures:
    """A data set's folder, asked for thumbnails.

    Args:
        folder: The folder; None or missing leaves every picture out.
        missing: How many files could not be shown.
    """

    folder: Storage | None
    missing: int = 0
    _known: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def available(self) -> bool:
        """Whether the folder is there."""
        return self.folder is not None and not self.folder.absent()

    @property
    def note(self) -> str:
        """Why pictures are missing; empty where none is."""
        if not self.available:
            where = f" ({self.folder})" if self.folder else ""
            return f"Pictures are left out: the data set's folder{where} is not here."
        return f"{self.missing} pictures could not be shown." if self.missing else ""

    def thumbnail(self, file: str) -> str:
        """Return a file of the folder as base64 of a square JPEG; empty where it cannot be shown."""
        if self.folder is None or not self.available:
            return ""
        if file not in self._known:
            try:
                path = self.folder.file(file).resolve()
                inside = path.is_relative_to(self.folder.here.resolve())
                self._known[file] = encode_thumbnail(path) if inside else ""
            except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
                self._known[file] = ""
            self.missing += not self._known[file]
        return self._known[file]


def encode_thumbnail(path: Path, edge: int = EDGE) -> str:
    """Return a picture as base64 of a square JPEG of so many pixels, cropped in the middle.

    Raises:
        OSError: The file is no picture or is damaged.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with Image.open(path) as image:
            image.draft("RGB", (edge, edge))
            picture = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (edge, edge))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=72, optimize=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that the page speaks of."""

    board: Leaderboard
    """The runs."""
    pairs: TestPairs
    """The test pairs."""
    sets: Sequence[ZeroShotSet]
    """The sets to classify."""
    config: EvaluateConfig
    """The settings of this evaluation."""
    duplicates: Duplicates
    """What the test split shares with the training split."""
    probes: Sequence[Probe]
    """What labels can be read off the features."""
    examples: Sequence[ExampleGroup]
    """Example queries."""
    pictures: Pictures
    """Where thumbnails come from."""
    surroundings: Mapping[str, str]
    """Versions, hardware and times of this evaluation."""


@dataclass(frozen=True)
class Gallery:
    """Embeddings of the test pairs by one seed, indexed both ways.

    Args:
        pairs: The test pairs.
        vectors: Modality → embeddings: images [M, d], captions [P, d].
        indexes: Modality → index of its embeddings.
        pictures: Where thumbnails come from.
    """

    pairs: TestPairs
    vectors: Mapping[str, Tensor]
    indexes: Mapping[str, Index]
    pictures: Pictures

    @classmethod
    def build(cls, result: RunResult, pairs: TestPairs, config: EvaluateConfig, pictures: Pictures) -> "Gallery":
        """Embed and index the test pairs by a run's first seed."""
        run = AlignedRun.open(result.address)
        asked = ((pairs.image, pairs.pairs.image_rows), (pairs.text, pairs.pairs.caption_rows))
        vectors = {
            side.modality: run.encode(side.modality, run_features(run, side, rows), run.seeds[0])
            for side, rows in asked
        }
        indexes = {name: build_index(part, config.index, config.seed) for name, part in vectors.items()}
        return cls(pairs, vectors, indexes, pictures)

    def index_recall(self) -> dict[str, float]:
        """Return the recall@10 of an approximate index against exact search, by direction; empty for an exact one."""
        return {
            f"{side}_retrieval_index_recall@10": recall_against_exact(
                self.indexes[side], self.vectors[side], self.vectors[asked][:RECALL_QUERIES]
            )
            for side, asked in (("image", "text"), ("text", "image"))
            if not self.indexes[side].kind.exact
        }

    def examples(self, asked: str, queries: Sequence[int], ranks: Ranks) -> tuple[Example, ...]:
        """Return captions ("text") as queries with the images found for them, or images with captions."""
        other = "image" if asked == "text" else "text"
        _, found = self.indexes[other].search(self.vectors[asked][torch.tensor(queries, dtype=torch.int64)], SHOWN)
        rows = zip(queries, found.tolist(), strict=True)
        return tuple(self._example(asked, other, query, row, int(ranks[query])) for query, row in rows)

    def _example(self, asked: str, other: str, query: int, found: Sequence[int], rank: int) -> Example:
        owner = self.pairs.pairs.caption_image
        right = owner[[query]] if asked == "text" else np.flatnonzero(owner == query)
        held = [position for position in found if position >= 0]
        missed = None
        if not np.isin(held, right).any():
            best = right[int((self.vectors[other][right] @ self.vectors[asked][query]).argmax())]
            missed = self._shown(other, int(best), f"rank {rank:,}", right=True)
        question = self._shown(asked, query)
        return Example(
            query=question.text,
            note=f"{'right image' if asked == 'text' else 'best right caption'} at rank {rank:,}",
            answers=tuple(self._shown(other, at, str(n), right=at in right) for n, at in enumerate(held, 1)),
            image=question.image,
            missed=missed,
        )

    def _shown(self, modality: str, position: int, note: str = "", *, right: bool = False) -> Thumb:
        """Return a caption's words, or an image's picture, its id where there is none."""
        if modality == "text":
            words = self.pairs.text.samples.content[int(self.pairs.pairs.caption_rows[position])]
            return Thumb(text=words, note=note, right=right)
        row, samples = int(self.pairs.pairs.image_rows[position]), self.pairs.image.samples
        picture = self.pictures.thumbnail(samples.content[row])
        return Thumb(image=picture, text="" if picture else samples.image_id[row], note=note, right=right)


def example_groups(result: RunResult, gallery: Gallery, config: EvaluateConfig) -> tuple[ExampleGroup, ...]:
    """Return a random sample and the worst failures, captions and images as queries, by the run's first seed."""
    size = config.examples
    if not size:
        return ()
    drawn = "Drawn once with the seed of this evaluation, not picked. The first five images found, best first."
    again = "Drawn the same way. The first five captions found, best first."
    fault = "The captions whose image came last. Often the caption is at fault, not the model."
    ranks = {
        "text": result.answers[IMAGE_RETRIEVAL].queries.ranks[0],
        "image": result.answers[TEXT_RETRIEVAL].queries.ranks[0],
    }
    some = {asked: sample(len(held), size, config.seed) for asked, held in ranks.items()}
    last = {asked: worst(held, size) for asked, held in ranks.items()}
    groups = (
        ("Captions asked for images: a random sample", drawn, "text", some),
        ("Images asked for captions: a random sample", again, "image", some),
        ("The worst failures, captions asked for images", fault, "text", last),
        ("The worst failures, images asked for captions", "The images whose captions came last.", "image", last),
    )
    return tuple(
        ExampleGroup(
            title=title, lead=lead, examples=gallery.examples(asked, chosen[asked], ranks[asked]), open=number == 0
        )
        for number, (title, lead, asked, chosen) in enumerate(groups)
    )


def sample(count: int, size: int, seed: int) -> list[int]:
    """Return a fixed random sample of positions, in rising order."""
    return sorted(np.random.default_rng(seed).permutation(count)[:size].tolist())


def worst(ranks: Ranks, size: int) -> list[int]:
    """Return the positions of the largest ranks, the worst first, leaving out queries that were answered rightly."""
    order = np.lexsort((np.arange(len(ranks)), -ranks))[:size]
    return [int(position) for position in order if ranks[position] > 1]

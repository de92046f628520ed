"""Example queries of the best run: a fixed random sample and the worst failures, with what was found for them.

Thumbnails are small JPEGs as base64, from the data set's own folder and from nowhere else.
"""

import base64
import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import TestPairs, run_features
from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL
from pipeline.evaluate.report.page import Example, ExampleGroup, Thumb
from pipeline.evaluate.single import RunResult
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
        if not self.available:
            return ""
        if file not in self._known:
            self._known[file] = self._make(file)
            self.missing += not self._known[file]
        return self._known[file]

    def _make(self, file: str) -> str:
        if self.folder is None:
            return ""
        try:
            path = self.folder.file(file).resolve()
            if not path.is_relative_to(self.folder.here.resolve()):
                return ""
            return encode_thumbnail(path)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
            return ""


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


@dataclass(frozen=True)
class Gallery:
    """Embeddings of the test pairs by one seed, indexed both ways.

    Args:
        pairs: The test pairs.
        image: [M, d] image embeddings.
        text: [P, d] caption embeddings.
        images: Index of the images.
        texts: Index of the captions.
        pictures: Where thumbnails come from.
    """

    pairs: TestPairs
    image: Tensor
    text: Tensor
    images: Index
    texts: Index
    pictures: Pictures

    @classmethod
    def build(cls, result: RunResult, pairs: TestPairs, config: EvaluateConfig, pictures: Pictures) -> "Gallery":
        """Embed and index the test pairs by a run's first seed."""
        run = AlignedRun.open(result.address)
        seed = run.seeds[0]
        image = run.encode("image", run_features(run, pairs.image, pairs.pairs.image_rows), seed)
        text = run.encode("text", run_features(run, pairs.text, pairs.pairs.caption_rows), seed)
        images, texts = (build_index(part, config.index, config.seed) for part in (image, text))
        return cls(pairs, image, text, images, texts, pictures)

    def index_recall(self) -> dict[str, float]:
        """Return the recall@10 of an approximate index against exact search, by direction; empty for an exact one."""
        sides = (
            (IMAGE_RETRIEVAL, self.images, self.image, self.text),
            (TEXT_RETRIEVAL, self.texts, self.text, self.image),
        )
        return {
            f"{name}_index_recall@10": recall_against_exact(index, gallery, queries[:RECALL_QUERIES])
            for name, index, gallery, queries in sides
            if not index.kind.exact
        }

    def text_queries(self, captions: Sequence[int], ranks: NDArray[np.int64]) -> tuple[Example, ...]:
        """Return captions as queries with the images found for them."""
        _, found = self.images.search(self.text[torch.tensor(captions, dtype=torch.int64)], SHOWN)
        return tuple(self._text_query(c, row, int(ranks[c])) for c, row in zip(captions, found.tolist(), strict=True))

    def image_queries(self, images: Sequence[int], ranks: NDArray[np.int64]) -> tuple[Example, ...]:
        """Return images as queries with the captions found for them."""
        _, found = self.texts.search(self.image[torch.tensor(images, dtype=torch.int64)], SHOWN)
        return tuple(self._image_query(i, row, int(ranks[i])) for i, row in zip(images, found.tolist(), strict=True))

    def _text_query(self, caption: int, found: Sequence[int], rank: int) -> Example:
        own = int(self.pairs.pairs.caption_image[caption])
        held = [position for position in found if position >= 0]
        return Example(
            query=self._caption(caption),
            note=f"right image at rank {rank:,}",
            answers=tuple(self._thumb(at, str(place), right=at == own) for place, at in enumerate(held, 1)),
            missed=None if own in held else self._thumb(own, f"rank {rank:,}", right=True),
        )

    def _image_query(self, image: int, found: Sequence[int], rank: int) -> Example:
        owner = self.pairs.pairs.caption_image
        held = [position for position in found if position >= 0]
        answers = tuple(
            Thumb(text=self._caption(at), note=str(place), right=int(owner[at]) == image)
            for place, at in enumerate(held, 1)
        )
        missed = None
        if not any(answer.right for answer in answers):
            own = np.flatnonzero(owner == image)
            best = int(own[int((self.text[own] @ self.image[image]).argmax())])
            missed = Thumb(text=self._caption(best), note=f"rank {rank:,}", right=True)
        asked, note = self._thumb(image, ""), f"best right caption at rank {rank:,}"
        return Example(query=asked.text, note=note, answers=answers, image=asked.image, missed=missed)

    def _caption(self, caption: int) -> str:
        return self.pairs.text.samples.content[int(self.pairs.pairs.caption_rows[caption])]

    def _thumb(self, position: int, note: str, *, right: bool = False) -> Thumb:
        row, samples = int(self.pairs.pairs.image_rows[position]), self.pairs.image.samples
        picture = self.pictures.thumbnail(samples.content[row])
        return Thumb(image=picture, text="" if picture else samples.image_id[row], note=note, right=right)


def example_groups(result: RunResult, gallery: Gallery, config: EvaluateConfig) -> tuple[ExampleGroup, ...]:
    """Return a random sample and the worst failures, captions and images as queries, by the run's first seed."""
    if not config.examples:
        return ()
    by_text, by_image = (result.queries[name].ranks[0] for name in (IMAGE_RETRIEVAL, TEXT_RETRIEVAL))
    drawn = "Drawn once with the seed of this evaluation, not picked. The first five images found, best first."
    fault = "The captions whose image came last. Often the caption is at fault, not the model."
    random_text, random_image = (sample(len(ranks), config.examples, config.seed) for ranks in (by_text, by_image))
    worst_text, worst_image = (worst(ranks, config.examples) for ranks in (by_text, by_image))
    groups = (
        ("Captions asked for images: a random sample", drawn, gallery.text_queries(random_text, by_text)),
        (
            "Images asked for captions: a random sample",
            "Drawn the same way. The first five captions found, best first.",
            gallery.image_queries(random_image, by_image),
        ),
        ("The worst failures, captions asked for images", fault, gallery.text_queries(worst_text, by_text)),
        (
            "The worst failures, images asked for captions",
            "The images whose captions came last.",
            gallery.image_queries(worst_image, by_image),
        ),
    )
    return tuple(
        ExampleGroup(title=title, lead=lead, examples=examples, open=number == 0)
        for number, (title, lead, examples) in enumerate(groups)
    )


def sample(count: int, size: int, seed: int) -> list[int]:
    """Return a fixed random sample of positions, in rising order."""
    return sorted(np.random.default_rng(seed).permutation(count)[:size].tolist())


def worst(ranks: NDArray[np.int64], size: int) -> list[int]:
    """Return the positions of the largest ranks, the worst first, leaving out queries that were answered rightly."""
    order = np.lexsort((np.arange(len(ranks)), -ranks))[:size]
    return [int(position) for position in order if ranks[position] > 1]

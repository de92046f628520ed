"""Search the images of a run's store by a sentence or by a picture: `search(run, "two dogs")`.

Run by `pipeline search` and, many queries at a time, by `pipeline serve`. The store's features are projected once; the
search is exact below a million images.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from pipeline.apps.dual_encoder import DualEncoder
from pipeline.apps.indexing import open_index
from pipeline.apps.places import dataset_folder, open_images, open_texts
from pipeline.errors import UserError
from pipeline.evaluate.data import check_side, run_features
from pipeline.indexes.index import Index, build_index
from pipeline.store.side import Rows, Side


@dataclass(frozen=True, kw_only=True)
class ImageHit:
    """A found image."""

    image_id: str
    score: float
    """Cosine with the query."""
    file: str
    """File relative to the data set's folder."""
    captions: tuple[str, ...]
    """Its captions, where the text store is there."""


@dataclass(frozen=True, kw_only=True)
class CaptionHit:
    """A found caption."""

    caption_id: str
    score: float
    """Cosine with the query."""
    caption: str
    image_id: str
    """Image that it describes; empty where it has none."""


@dataclass(frozen=True, kw_only=True)
class SearchResult:
    """What was found, best first."""

    query: str
    images: tuple[ImageHit, ...]
    captions: tuple[CaptionHit, ...] = ()
    """For a picture as query; for a text where asked."""
    data: str = ""
    """The data set's folder, which the files are relative to; empty where the store does not say."""


class Searcher:
    """A run's stores, projected and indexed, to be asked many times.

    Args:
        model: The run as a dual encoder.
        image: The image stores.
        text: The text stores; None leaves captions out.
        split: Only images of this split (and their captions); None takes all.
        index: Search index: auto, torch, flat, ivf, hnsw, sq8 or ivfpq.
        stored: Folder of `pipeline index` with the images' index; what is over other images is refused.

    Raises:
        KeyMismatchError: A store holds features of another key than the run was trained on.
        UserError: No image is in the split.
    """

    def __init__(
        self,
        model: DualEncoder,
        image: Side,
        text: Side | None = None,
        *,
        split: str | None = None,
        index: str = "auto",
        stored: Path | None = None,
    ) -> None:
        self.model, self.image, self.text = model, image, text
        self._kind, self._stored, self._split = index, stored, split
        rows = [row for row, name in enumerate(image.samples.split) if split in (None, name)]
        if not rows:
            remedy = f"its splits are {', '.join(sorted({name or '(none)' for name in image.samples.split}))}"
            raise UserError(expected=f"images in split {split}", found="none", where=image.where, remedy=remedy)
        self._image_rows = np.array(rows, dtype=np.int64)
        self._caption_rows = np.array([], dtype=np.int64)
        self.captions_of: dict[str, list[str]] = {}
        """Image id → its captions."""
        check_side(model.run, image)
        if text is not None:
            check_side(model.run, text)
            self._add_captions(text, {image.samples.image_id[row] for row in rows})

    @classmethod
    def open(
        cls,
        run: Path,
        *,
        image: Sequence[Path] = (),
        text: Sequence[Path] = (),
        seed: int | None = None,
        split: str | None = None,
        index: str = "auto",
        stored: Path | None = None,
        device: str = "cpu",
    ) -> "Searcher":
        """Open a run with its stores: those given, else those that it was trained on.

        Raises:
            UserError: The run or its image store is not there.
        """
        model = DualEncoder.open(run, seed=seed, device=device)
        images = open_images(model.run, image)
        return cls(model, images, open_texts(model.run, images, text), split=split, index=index, stored=stored)

    def by_text(self, text: str, top: int = 10, *, captions: bool = False) -> SearchResult:
        """Return the images (and, where asked, the captions) that fit a text best.

        Raises:
            UserError: The text is empty or `top` is not positive.
        """
        if not text.strip():
            raise UserError(expected="a text to search for", found="an empty one")
        query = self.model.encode_text([text])
        told = self.find_captions(query, top)[0] if captions else ()
        return SearchResult(query=text, images=self.find_images(query, top)[0], captions=told, data=self.data)

    def by_image(self, picture: Path | Image.Image, top: int = 10) -> SearchResult:
        """Return the images and the captions that fit a picture best.

        Raises:
            UserError: The file is no picture or `top` is not positive.
        """
        query = self.model.encode_image([picture])
        found = SearchResult(
            query="", images=self.find_images(query, top)[0], captions=self.find_captions(query, top)[0]
        )
        return replace(found, query=str(picture) if isinstance(picture, Path) else "", data=self.data)

    def require_captions(self) -> None:
        """Make sure that there are captions to be found.

        Raises:
            UserError: There are none.
        """
        if not len(self._caption_rows):
            raise UserError(
                expected="captions of the images",
                found="none" if self.text else "no store of captions",
                where=self.image.where,
                remedy="say where it lies with --text-store",
            )

    @cached_property
    def data(self) -> str:
        """The data set's folder, as far as it is known."""
        recorded = str(self.image.stores[0].manifest.provenance.get("dataset") or "")
        return str(dataset_folder(self.image) or recorded)

    def find_images(self, queries: Tensor, top: int) -> list[tuple[ImageHit, ...]]:
        """Return the `top` images of each of Q query vectors [Q, d], best first."""
        samples = self.image.samples
        return [
            tuple(
                ImageHit(
                    image_id=samples.image_id[row],
                    score=score,
                    file=samples.content[row],
                    captions=tuple(self.captions_of.get(samples.image_id[row], ())),
                )
                for score, row in hits
            )
            for hits in _hits(self.images, self._image_rows, queries, top)
        ]

    def find_captions(self, queries: Tensor, top: int) -> list[tuple[CaptionHit, ...]]:
        """Return the `top` captions of each of Q query vectors [Q, d], best first; none without a text store."""
        if self.text is None or self.captions is None:
            return [() for _ in queries]
        samples = self.text.samples
        return [
            tuple(
                CaptionHit(
                    caption_id=samples.sample_id[row],
                    score=score,
                    caption=samples.content[row],
                    image_id=samples.image_id[row],
                )
                for score, row in hits
            )
            for hits in _hits(self.captions, self._caption_rows, queries, top)
        ]

    def vector(self, row: int) -> Tensor:
        """Return the unit vector [1, d] of the image in a row of the store."""
        return self._encode(self.image, np.array([row], dtype=np.int64))

    @cached_property
    def images(self) -> Index:
        """The images' index, loaded or built when it is first asked for."""
        if self._stored is not None:
            return open_index(self._stored, self.model.run, self.image, self.model.seed, self._split)
        return build_index(self._encode(self.image, self._image_rows), self._kind)

    @cached_property
    def captions(self) -> Index | None:
        """The captions' index, built when it is first asked for; None where there are none."""
        if self.text is None or not len(self._caption_rows):
            return None
        return build_index(self._encode(self.text, self._caption_rows), self._kind)

    def _add_captions(self, text: Side, images: set[str]) -> None:
        rows = [row for row, name in enumerate(text.samples.image_id) if name in images]
        for row in rows:
            self.captions_of.setdefault(text.samples.image_id[row], []).append(text.samples.content[row])
        self._caption_rows = np.array(rows, dtype=np.int64)

    def _encode(self, side: Side, rows: Rows) -> Tensor:
        features = run_features(self.model.run, side, rows, constant_allowed=True)
        return self.model.run.encode(side.modality, features, self.model.seed)


def _hits(index: Index, rows: Rows, queries: Tensor, top: int) -> list[list[tuple[float, int]]]:
    """Return (score, row of the store) of each query's hits; an approximate index may find fewer than `top`."""
    scores, positions = index.search(queries, top)
    return [
        [(score, int(rows[at])) for score, at in zip(*pair, strict=True) if at >= 0]
        for pair in zip(scores.tolist(), positions.tolist(), strict=True)
    ]


def search(
    run: Path,
    query: str | Path,
    *,
    top: int = 10,
    seed: int | None = None,
    image: Sequence[Path] = (),
    text: Sequence[Path] = (),
    split: str | None = None,
    index: str = "auto",
    device: str = "cpu",
) -> SearchResult:
    """Search a run's images once.

    Args:
        run: The run's folder.
        query: A text (`str`) or a picture's file (`Path`).
        top: How many to return.
        seed: Which seed's projectors; the first where not given.
        image: Image stores; those of the run where not given.
        text: Text stores; those of the run where not given and still there.
        split: Only images of this split.
        index: Search index: auto, torch, flat, ivf or hnsw.
        device: A torch device for the encoder.

    Raises:
        KeyMismatchError: A store or an encoder does not fit the run.
        UserError: A folder, file, seed or split is missing.
    """
    searcher = Searcher.open(run, image=image, text=text, seed=seed, split=split, index=index, device=device)
    return searcher.by_image(query, top) if isinstance(query, Path) else searcher.by_text(query, top)

"""Search the images of a run's store by a sentence or by a picture: `search(run, "two dogs")`.

Run by `pipeline search`. The store's features are projected once; the search is exact below a million images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from pipeline.apps.dual_encoder import DualEncoder
from pipeline.errors import UserError
from pipeline.evaluate.data import check_side, run_features
from pipeline.evaluate.indexes.base import Index
from pipeline.evaluate.indexes.table import build_index
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.side import Side


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
    """Only for a picture as query."""
    data: str = ""
    """The data set's folder, which the files are relative to; empty where the store does not say."""


class Searcher:
    """A run's stores, projected and indexed, to be asked many times.

    Args:
        model: The run as a dual encoder.
        image: The image stores.
        text: The text stores; None leaves captions out.
        split: Only images of this split (and their captions); None takes all.
        index: Search index: auto, torch, flat, ivf or hnsw.

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
    ) -> None:
        self.model, self.image, self.text = model, image, text
        rows = [row for row, name in enumerate(image.samples.split) if split in (None, name)]
        if not rows:
            remedy = f"its splits are {', '.join(sorted({name or '(none)' for name in image.samples.split}))}"
            raise UserError(expected=f"images in split {split}", found="none", where=image.where, remedy=remedy)
        self._image_rows = np.array(rows, dtype=np.int64)
        self._images = self._index(image, self._image_rows, index)
        self._captions: dict[str, list[str]] = {}
        self._caption_rows = np.array([], dtype=np.int64)
        self._texts: Index | None = None
        if text is not None:
            self._add_captions(text, {image.samples.image_id[row] for row in rows}, index)

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
        device: str = "cpu",
    ) -> "Searcher":
        """Open a run with its stores: those given, else those that it was trained on.

        Raises:
            UserError: The run or its image store is not there.
        """
        model = DualEncoder.open(run, seed=seed, device=device)
        images = Side.open("image", image or _recorded(model.run, "image"))
        texts = text or _recorded(model.run, "text")
        found = Side.open("text", texts) if text or all(path.is_dir() for path in texts) else None
        return cls(model, images, found, split=split, index=index)

    def by_text(self, text: str, top: int = 10) -> SearchResult:
        """Return the images that fit a text best.

        Raises:
            UserError: The text is empty or `top` is not positive.
        """
        if not text.strip():
            raise UserError(expected="a text to search for", found="an empty one")
        return self._result(text, self.model.encode_text([text]), top)

    def by_image(self, file: Path, top: int = 10) -> SearchResult:
        """Return the images and the captions that fit a picture best.

        Raises:
            UserError: The file is no picture or `top` is not positive.
        """
        query = self.model.encode_image([file])
        found = self._result(str(file), query, top)
        return SearchResult(
            query=found.query, images=found.images, captions=self._caption_hits(query, top), data=found.data
        )

    def _result(self, query: str, vector: Tensor, top: int) -> SearchResult:
        scores, positions = self._images.search(vector, top)
        samples = self.image.samples
        hits = []
        for score, position in zip(scores[0].tolist(), positions[0].tolist(), strict=True):
            if position >= 0:
                row = int(self._image_rows[position])
                name = samples.image_id[row]
                captions = tuple(self._captions.get(name, ()))
                hits.append(ImageHit(image_id=name, score=score, file=samples.content[row], captions=captions))
        folder = self.image.stores[0].manifest.provenance.get("dataset", "")
        return SearchResult(query=query, images=tuple(hits), data=str(folder))

    def _caption_hits(self, vector: Tensor, top: int) -> tuple[CaptionHit, ...]:
        if self._texts is None or self.text is None:
            return ()
        scores, positions = self._texts.search(vector, top)
        samples = self.text.samples
        rows = [
            (score, int(self._caption_rows[p]))
            for score, p in zip(scores[0].tolist(), positions[0].tolist(), strict=True)
            if p >= 0
        ]
        return tuple(
            CaptionHit(
                caption_id=samples.sample_id[row],
                score=score,
                caption=samples.content[row],
                image_id=samples.image_id[row],
            )
            for score, row in rows
        )

    def _add_captions(self, text: Side, images: set[str], index: str) -> None:
        rows = [row for row, name in enumerate(text.samples.image_id) if name in images]
        for row in rows:
            self._captions.setdefault(text.samples.image_id[row], []).append(text.samples.content[row])
        if rows:
            self._caption_rows = np.array(rows, dtype=np.int64)
            self._texts = self._index(text, self._caption_rows, index)

    def _index(self, side: Side, rows: np.ndarray[tuple[int], np.dtype[np.int64]], kind: str) -> Index:
        check_side(self.model.run, side)
        features = run_features(self.model.run, side, rows, constant_allowed=True)
        return build_index(self.model.run.encode(side.modality, features, self.model.seed), kind)


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


def _recorded(run: AlignedRun, side: str) -> list[Path]:
    paths = [Path(record.path) for record in run.stores[side]]
    if side == "image" and not all(
        record.path and path.is_dir() for record, path in zip(run.stores[side], paths, strict=True)
    ):
        raise UserError(
            expected="the image store that the run was trained on",
            found="no such folder",
            where=", ".join(map(str, paths)),
            remedy="say where it lies with --store",
        )
    return paths

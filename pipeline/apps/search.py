"""Search the images of a run's store by a sentence or by a picture: `search(run, "two dogs")`.

Run by `pipeline search` and, many queries at a time, by `pipeline serve`. The store's features are projected once; the
search is exact below a million images.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image
from torch import Tensor

from pipeline.apps.config import SearchConfig
from pipeline.apps.dual_encoder import DualEncoder
from pipeline.apps.found import CaptionHit, ImageHit, SearchResult
from pipeline.apps.opening import OpenedRun
from pipeline.encoders.load import trust_modules
from pipeline.errors import UserError
from pipeline.indexes.index import Index, build_index
from pipeline.indexes.stored import read_index
from pipeline.storage.contract import Place
from pipeline.store.views import Rows

Hit = TypeVar("Hit")


class Searcher:
    """A run's stores, projected by one seed and indexed when they are first asked, to be asked many times.

    Args:
        model: The run as a dual encoder.
        opened: The run with its stores.
        split: Only images of this split and their captions (default: all).
        index: Search index: auto, torch, flat, ivf, hnsw, sq8 or ivfpq.
        stored: Folder of `pipeline index` with the images' index; what is over other images is refused.

    Raises:
        KeyMismatchError: A store holds features of another key than the run was trained on.
        UserError: No image is in the split.
    """

    def __init__(
        self,
        model: DualEncoder,
        opened: OpenedRun,
        *,
        split: str | None = None,
        index: str = "auto",
        stored: Path | None = None,
    ) -> None:
        self.model, self.opened = model, opened
        self._kind, self._stored, self._split = index, stored, split
        self._image_rows = opened.image_rows(split)
        self.captions_of: dict[str, list[str]] = {opened.images.samples.image_id[row]: [] for row in self._image_rows}
        """Image id → its captions."""
        rows = []
        if opened.texts is not None:
            texts = opened.texts.samples
            rows = [row for row, name in enumerate(texts.image_id) if name in self.captions_of]
            for row in rows:
                self.captions_of[texts.image_id[row]].append(texts.content[row])
        self._caption_rows = np.array(rows, dtype=np.int64)

    @classmethod
    def open(cls, config: SearchConfig, kind: str = "auto") -> "Searcher":
        """Open a run with its stores: those given, else those that it was trained on; an index is of the kind.

        Raises:
            UserError: The run or its image store is not there, or a module that is trusted.
        """
        trust_modules(config.trust_module)
        model = DualEncoder.open(config.run, seed=config.seed, device=config.device)
        opened = OpenedRun(model.run, config.store, config.text_store)
        return cls(model, opened, split=config.split, index=kind, stored=config.index)

    def by_text(self, text: str, top: int = 10, *, captions: bool = False) -> SearchResult:
        """Return the images (and, where asked, the captions) that fit a text best.

        Raises:
            UserError: The text is empty or `top` is not positive.
        """
        if not text.strip():
            raise UserError(expected="a text to search for", found="an empty one")
        return self._result(text, self.model.encode_text([text]), top, captions=captions)

    def by_image(self, picture: Path | Image.Image, top: int = 10) -> SearchResult:
        """Return the images and the captions that fit a picture best.

        Raises:
            UserError: The file is no picture or `top` is not positive.
        """
        query = str(picture) if isinstance(picture, Path) else ""
        return self._result(query, self.model.encode_image([picture]), top, captions=True)

    def require_captions(self) -> None:
        """Make sure that there are captions to be found.

        Raises:
            UserError: There are none.
        """
        if not len(self._caption_rows):
            raise UserError(
                expected="captions of the images",
                found="none" if self.opened.texts else "no store of captions",
                where=self.opened.images.where,
                remedy="say where it lies with --text-store",
            )

    def find_images(self, queries: Tensor, top: int) -> list[tuple[ImageHit, ...]]:
        """Return the `top` images of each of Q query vectors [Q, d], best first."""
        samples = self.opened.images.samples

        def hit(score: float, row: int) -> ImageHit:
            name = samples.image_id[row]
            return ImageHit(
                image_id=name, score=score, file=samples.content[row], captions=tuple(self.captions_of[name])
            )

        return _hits(self.images, self._image_rows, queries, top, hit)

    def find_captions(self, queries: Tensor, top: int) -> list[tuple[CaptionHit, ...]]:
        """Return the `top` captions of each of Q query vectors [Q, d], best first; none without a text store."""
        if self.opened.texts is None or self.captions is None:
            return [() for _ in queries]
        samples = self.opened.texts.samples

        def hit(score: float, row: int) -> CaptionHit:
            return CaptionHit(
                caption_id=samples.sample_id[row],
                score=score,
                caption=samples.content[row],
                image_id=samples.image_id[row],
            )

        return _hits(self.captions, self._caption_rows, queries, top, hit)

    def vector(self, row: int) -> Tensor:
        """Return the unit vector [1, d] of the image in a row of the store."""
        return self.opened.embed(self.opened.images, np.array([row], dtype=np.int64), self.model.seed)

    @cached_property
    def images(self) -> Index:
        """The images' index, loaded or built when it is first asked for."""
        if self._stored is not None:
            return read_index(self._stored, self.opened.identity(self.model.seed, self._split))
        vectors = self.opened.embed(self.opened.images, self._image_rows, self.model.seed)
        return build_index(vectors, self._kind)

    @cached_property
    def captions(self) -> Index | None:
        """The captions' index, built when it is first asked for; None where there are none."""
        if self.opened.texts is None or not len(self._caption_rows):
            return None
        return build_index(self.opened.embed(self.opened.texts, self._caption_rows, self.model.seed), self._kind)

    def _result(self, query: str, vector: Tensor, top: int, *, captions: bool) -> SearchResult:
        recorded = str(self.opened.images.stores[0].manifest.provenance.get("dataset") or "")
        return SearchResult(
            query=query,
            images=self.find_images(vector, top)[0],
            captions=self.find_captions(vector, top)[0] if captions else (),
            data=str(self.opened.pictures or recorded),
        )


def search(
    run: Place,
    query: str | Path,
    *,
    top: int = 10,
    seed: int | None = None,
    image: Sequence[Place] = (),
    text: Sequence[Place] = (),
    split: str | None = None,
    index: str = "auto",
    device: str = "cpu",
) -> SearchResult:
    """Search a run's images once.

    Args:
        run: The run's folder.
        query: A text (`str`) or a picture's file (`Path`).
        top: How many to return.
        seed: Which seed's projectors (default: the first).
        image: Image stores (default: those of the run).
        text: Text stores (default: those of the run, where they are still there).
        split: Only images of this split.
        index: Search index: auto, torch, flat, ivf or hnsw.
        device: A torch device for the encoder.

    Raises:
        KeyMismatchError: A store or an encoder does not fit the run.
        UserError: A folder, file, seed or split is missing.
    """
    stores, texts = tuple(image), tuple(text)
    config = SearchConfig(run=run, store=stores, text_store=texts, seed=seed, split=split, device=device)
    searcher = Searcher.open(config, index)
    return searcher.by_image(query, top) if isinstance(query, Path) else searcher.by_text(query, top)


def _hits(
    index: Index, rows: Rows, queries: Tensor, top: int, make: Callable[[float, int], Hit]
) -> list[tuple[Hit, ...]]:
    """Return what is made of (score, row of the store) for each query; an approximate index may find fewer."""
    scores, positions = index.search(queries, top)
    return [
        tuple(make(score, int(rows[at])) for score, at in zip(*pair, strict=True) if at >= 0)
        for pair in zip(scores.tolist(), positions.tolist(), strict=True)
    ]

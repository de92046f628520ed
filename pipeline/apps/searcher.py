"""A run's stores, to be searched many times, and what is found: shown as a line, in a notebook, or as one picture."""

import html
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from pipeline.apps.opening import OpenedRun
from pipeline.errors import RejectedInputError, UserError, naming
from pipeline.extract.decode import decode_image
from pipeline.indexes.index import Index, build_index
from pipeline.indexes.stored import read_index
from pipeline.storage.contract import Place, Storage
from pipeline.storage.local import open_storage
from pipeline.store.views import Rows
from pipeline.words import count, html_table

EDGE, GAP, LABEL, COLUMNS = 224, 12, 22, 5
Hit = TypeVar("Hit")
PAPER, INK, EMPTY = (252, 251, 248), (28, 29, 32), (222, 219, 210)


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


@dataclass(frozen=True, kw_only=True, repr=False)
class SearchResult:
    """What was found, best first. A notebook shows the pictures."""

    query: str
    images: tuple[ImageHit, ...]
    captions: tuple[CaptionHit, ...] = ()
    """For a picture as query; for a text where asked."""
    data: str = ""
    """The data set's folder, which the files are relative to; empty where the store does not say."""

    def __repr__(self) -> str:
        best = f", best {self.images[0].image_id} ({self.images[0].score:.3f})" if self.images else ""
        found = f"{count(len(self.images), 'image')}, {count(len(self.captions), 'caption')}"
        return f"<SearchResult {self.query!r}: {found}{best}>"

    def _repr_html_(self) -> str:
        captions = [(f"{hit.score:.3f}", hit.caption, hit.image_id) for hit in self.captions]
        below = html_table(self.query, ("score", "caption", "image"), captions) if captions else ""
        return f"{''.join(self._figures())}{below}"

    def _figures(self) -> Iterator[str]:
        from pipeline.evaluate.report.page import Pictures  # heavy, and for notebooks alone

        pictures = Pictures(open_storage(self.data) if self.data else None)
        yield f"<p>{html.escape(self.query)}</p><div style='display:flex;flex-wrap:wrap;gap:12px'>"
        for hit in self.images:
            words, jpeg = html.escape("; ".join(hit.captions)), pictures.thumbnail(hit.file)
            picture = f"<img width='176' height='176' alt='' src='data:image/jpeg;base64,{jpeg}'>" if jpeg else ""
            said = f"{hit.score:.3f} {html.escape(hit.image_id)}<br>{words}"
            yield f"<figure style='margin:0;width:176px'>{picture}<figcaption>{said}</figcaption></figure>"
        yield "</div>"


def contact_sheet(result: SearchResult, out: Path, data: Place | None = None) -> Path:
    """Write the found images as one PNG, best first, and return its path.

    A picture that cannot be read, or that lies outside the folder, stays a grey field.

    Args:
        result: What a search found.
        out: File to write.
        data: The data set's folder (default: the one that the store says).

    Raises:
        UserError: The folder of pictures is not there, or nothing was found.
    """
    folder = open_storage(data or result.data)
    if not (data or result.data) or folder.absent():
        found = f"no folder {folder}" if result.data else "no folder"
        raise UserError(expected="the data set's folder with the pictures", found=found, remedy="say where with --data")
    if not result.images:
        raise UserError(expected="one found image at least", found="none")
    columns = min(COLUMNS, len(result.images))
    rows = -(-len(result.images) // columns)
    sheet = Image.new("RGB", (GAP + columns * (EDGE + GAP), GAP + rows * (EDGE + LABEL + GAP)), PAPER)
    pen = ImageDraw.Draw(sheet)
    for place, hit in enumerate(result.images):
        left = GAP + place % columns * (EDGE + GAP)
        top = GAP + place // columns * (EDGE + LABEL + GAP)
        sheet.paste(_picture(folder, hit.file), (left, top))
        pen.text((left, top + EDGE + 5), f"{place + 1}   {hit.score:.3f}", fill=INK)
    out.parent.mkdir(parents=True, exist_ok=True)
    with naming(out):
        sheet.save(out, "PNG")
    return out


def _picture(folder: Storage, file: str) -> Image.Image:
    empty = Image.new("RGB", (EDGE, EDGE), EMPTY)
    try:
        path = folder.file(file).resolve()
        if not path.is_relative_to(folder.here.resolve()):
            return empty
        return ImageOps.pad(decode_image(path, turn=True), (EDGE, EDGE), color=PAPER)
    except (OSError, ValueError, RejectedInputError):
        return empty


class Model(Protocol):
    """What encodes queries into the run's space, such as a `DualEncoder`."""

    @property
    def seed(self) -> int:
        """Whose projectors it has."""

    def encode_text(self, texts: Sequence[str], /) -> Tensor:
        """Return unit vectors [N, d]."""

    def encode_image(self, images: Sequence[Path | Image.Image], /) -> Tensor:
        """Return unit vectors [N, d]."""


class Searcher:
    """A run's stores, projected by one seed and indexed when they are first asked, to be asked many times.

    Args:
        model: The run, as what encodes queries.
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
        model: Model,
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


def _hits(
    index: Index, rows: Rows, queries: Tensor, top: int, make: Callable[[float, int], Hit]
) -> list[tuple[Hit, ...]]:
    """Return what is made of (score, row of the store) for each query; an approximate index may find fewer."""
    scores, positions = index.search(queries, top)
    return [
        tuple(make(score, int(rows[at])) for score, at in zip(*pair, strict=True) if at >= 0)
        for pair in zip(scores.tolist(), positions.tolist(), strict=True)
    ]

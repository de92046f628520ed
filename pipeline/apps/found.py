"""What a search finds: images and captions with their scores, shown as a line, in a notebook, or as one picture."""

import html
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from pipeline.errors import RejectedInputError, UserError
from pipeline.extract.decode import decode_image
from pipeline.storage.contract import Place, Storage
from pipeline.storage.local import open_storage
from pipeline.words import count, html_table

EDGE, GAP, LABEL, COLUMNS = 224, 12, 22, 5
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

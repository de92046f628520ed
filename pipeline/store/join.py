"""Join rows of images and rows of captions by image id, never by position."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.store.samples import Samples


@dataclass(frozen=True)
class Pairs:
    """Images that have captions, and those captions.

    Args:
        image_rows: Rows of the image store, int64 [M], ascending, each once.
        caption_rows: Rows of the text store, int64 [P], ascending, each once; all captions of an image are kept.
        caption_image: For each of the P captions, the position of its image in `image_rows`, int64 [P].
    """

    image_rows: NDArray[np.int64]
    caption_rows: NDArray[np.int64]
    caption_image: NDArray[np.int64]


def join(image: Samples, text: Samples, split: str | None = None) -> Pairs:
    """Pair images with all their captions.

    Images without captions, captions without an image id, and captions of images that are not there are left out.

    Args:
        image: Samples of the image store.
        text: Samples of the text store.
        split: Keep only images of this split (the captions' own split does not count); None keeps all.

    Raises:
        UserError: Two rows of the image store have one image id.
    """
    row_of = _image_rows(image)
    wanted = {name: row for name, row in row_of.items() if split is None or image.split[row] == split}
    pairs = [(wanted[name], caption) for caption, name in enumerate(text.image_id) if name in wanted]
    images = np.array([row for row, _ in pairs], dtype=np.int64)
    captions = np.array([caption for _, caption in pairs], dtype=np.int64)
    image_rows, caption_image = np.unique(images, return_inverse=True)
    return Pairs(image_rows, captions, caption_image.astype(np.int64, copy=False))


def _image_rows(image: Samples) -> dict[str, int]:
    rows: dict[str, int] = {}
    for row, name in enumerate(image.image_id):
        if name and rows.setdefault(name, row) != row:
            raise UserError(
                expected="each image id once among the images",
                found=f"{name!r} in rows {rows[name]} and {row}",
                remedy="give each image its own id in images.csv",
            )
    return rows

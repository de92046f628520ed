"""Thumbnails for the report: small JPEGs as base64, from the data set's own folder and from nowhere else."""

import base64
import io
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image, ImageOps

from pipeline.remote.folder import bring

EDGE = 176


@dataclass
class Pictures:
    """A data set's folder, asked for thumbnails.

    Args:
        folder: The folder; None or missing leaves every picture out.
        missing: How many files could not be shown.
    """

    folder: Path | None
    missing: int = 0
    _known: dict[str, str] = field(default_factory=dict, repr=False)

    @property
    def available(self) -> bool:
        """Whether the folder is there."""
        return self.folder is not None and self.folder.is_dir()

    def thumbnail(self, file: str) -> str:
        """Return a file of the folder as base64 of a square JPEG; empty where it cannot be shown."""
        if not self.available:
            return ""
        if file not in self._known:
            self._known[file] = self._make(file)
            self.missing += not self._known[file]
        return self._known[file]

    def _make(self, file: str) -> str:
        folder = (self.folder or Path()).resolve()
        try:
            path = bring(folder / file).resolve()
            if not path.is_relative_to(folder) or not path.is_file():
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

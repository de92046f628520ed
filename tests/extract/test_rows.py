"""Right rows for awkward data: equal contents, shared captions, images and captions that stand alone, broken shares."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.encoders.base import LoadOptions
from pipeline.errors import UserError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.datasets.importers import import_dataset
from pipeline.extract.run import extract
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import join
from tests.extract import tiny_encoders
from tests.extract.building import IMAGE, TEXT, encoded, picture, write_raw, write_table

FORMATS = ("hdf5", "parquet")


def extracted(raw: Path, out: Path, encoder: str, **options: object) -> FeatureStore:
    values = {"shard_rows": 2, "batch_size": 2, **options}
    extract(ExtractConfig(dataset=raw, encoder=encoder, out=out, **values))  # type: ignore[arg-type]
    return FeatureStore.open(out)


def text_alone(text: str, prompt: str = "") -> Tensor:
    """Encode one text by itself."""
    encoder = tiny_encoders.TinyText(LoadOptions(prompt=prompt))
    return encoder.encode([encoder.prepare(text)], ["output"])["output"][0]


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_bytes_under_two_ids(tmp_path: Path, kind: str) -> None:
    raw = write_raw(tmp_path / "raw", images=5)
    (raw / "images" / "i003.png").write_bytes((raw / "images" / "i000.png").read_bytes())
    store = extracted(raw, tmp_path / "out", IMAGE, format=kind)
    rows = store.read("output")
    assert store.ids == [f"i{n:03d}" for n in range(5)]
    assert torch.equal(rows[0], rows[3])
    assert len(torch.unique(rows, dim=0)) == 4
    samples = store.samples
    assert samples.content[0] != samples.content[3], "each keeps its own file, split and label"
    assert (samples.split[0], samples.split[3]) == ("test", "train")


def test_one_file_under_two_ids(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", images=2, captions=0)
    rows = [("a", "images/i000.png"), ("b", "images/i000.png"), ("c", "images/i001.png")]
    write_table(raw / "images.csv", ("image_id", "file"), rows)
    store = extracted(raw, tmp_path / "out", IMAGE)
    assert store.ids == ["a", "b", "c"]
    assert torch.equal(*store.read("output")[:2])


@pytest.mark.parametrize("kind", FORMATS)
def test_the_same_text_under_two_prompts(tmp_path: Path, kind: str) -> None:
    raw = write_raw(tmp_path / "raw", images=3, captions=2, classes=())
    plain = extracted(raw, tmp_path / "plain", TEXT, format=kind)
    asked = extracted(raw, tmp_path / "asked", TEXT, format=kind, prompt="query again ")
    assert plain.ids == asked.ids
    assert plain.samples.content == asked.samples.content, "the prompt is no part of the text"
    assert [field for field, *_ in plain.key.differences(asked.key)] == ["preprocessing.prompt"]
    for row, text in enumerate(plain.samples.content):
        assert torch.equal(plain.read("output")[row], text_alone(text))
        assert torch.equal(asked.read("output")[row], text_alone(text, "query again "))


def test_the_same_pixels_in_two_shapes(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", images=2, captions=0)
    pixels = np.random.default_rng(0).integers(0, 256, (6 * 24, 3), np.uint8)
    for name, shape in (("i000", (6, 24, 3)), ("i001", (24, 6, 3))):
        (raw / "images" / f"{name}.png").write_bytes(encoded(Image.fromarray(pixels.reshape(shape))))
    store = extracted(raw, tmp_path / "out", IMAGE)
    encoder = tiny_encoders.TinyImage(LoadOptions())
    for row, shape in enumerate([(6, 24, 3), (24, 6, 3)]):
        alone = encoder.encode([encoder.prepare(Image.fromarray(pixels.reshape(shape)))], ["output"])["output"][0]
        assert torch.equal(store.read("output")[row], alone)
    assert not torch.equal(*store.read("output"))


@pytest.mark.parametrize("kind", FORMATS)
def test_shared_captions_and_items_that_stand_alone(tmp_path: Path, kind: str) -> None:
    """Two images share a caption, one image has none, one caption has no image: each row is there, joined by id."""
    source = tmp_path / "source"
    (source / "images").mkdir(parents=True)
    for number in range(4):
        (source / "images" / f"{number}.png").write_bytes(picture(number))
    lines = [
        ("images/0.png", "a shared caption"),
        ("images/1.png", "a shared caption"),
        ("images/1.png", "one more of the second"),
        ("images/2.png", ""),
        ("", "a caption of nothing"),
        ("images/3.png", "the last"),
    ]
    table = write_table(source / "table.csv", ("filepath", "caption"), lines)
    import_dataset(table, tmp_path / "raw")
    images = extracted(tmp_path / "raw", tmp_path / "images", IMAGE, format=kind)
    texts = extracted(tmp_path / "raw", tmp_path / "texts", TEXT, format=kind)
    assert images.rows == 4
    assert sorted(texts.samples.content) == sorted(text for _, text in lines if text)
    owners = [images.ids[number] for number in (0, 1, 1, 3)]
    found = {(text, owner) for text, owner in zip(texts.samples.content, texts.samples.image_id, strict=True)}
    expected = {(text, owner) for text, owner in zip([lines[n][1] for n in (0, 1, 2, 5)], owners, strict=True)}
    assert found == expected | {("a caption of nothing", "")}
    for row, text in enumerate(texts.samples.content):
        assert torch.equal(texts.read("output")[row], text_alone(text))
    shared = [row for row, text in enumerate(texts.samples.content) if text == "a shared caption"]
    assert torch.equal(*texts.read("output")[shared])
    pairs = join(images.samples, texts.samples, None)
    joined = {
        (texts.samples.content[caption], images.ids[pairs.image_rows[image]])
        for caption, image in zip(pairs.caption_rows, pairs.caption_image, strict=True)
    }
    assert joined == expected, "neither the lone image nor the lone caption is a pair"


def test_captions_alone(tmp_path: Path) -> None:
    write_table(tmp_path / "captions.csv", ("caption",), [("one",), ("two words",), ("one",)])
    store = extracted(tmp_path, tmp_path / "out", TEXT)
    assert store.ids == ["#0", "#1", "#2"]
    assert store.samples.image_id == [""] * 3
    assert torch.equal(*store.read("output")[[0, 2]])


# ---- how many may be broken ------------------------------------------------------------------------------------------


def broken(tmp_path: Path, count: int, items: int = 100) -> Path:
    """Write captions of which the first so many are empty."""
    (tmp_path / "raw").mkdir()
    lines = [("" if number < count else f"caption {number}",) for number in range(items)]
    write_table(tmp_path / "raw" / "captions.csv", ("caption",), lines)
    return tmp_path / "raw"


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.29, 29), (0.07, 7), (0.57, 57), (1.0, 99)])
def test_exactly_the_allowed_share_goes_on_and_one_more_stops(tmp_path: Path, share: float, count: int) -> None:
    raw = broken(tmp_path, count)
    store = extracted(raw, tmp_path / "out", TEXT, max_rejected=share, shard_rows=50)
    assert store.rows == 100 - count
    if count == 99:
        return
    (tmp_path / "more").mkdir()
    with pytest.raises(UserError, match=rf"broken captions, found {count + 1} of 100"):
        extracted(broken(tmp_path / "more", count + 1), tmp_path / "stopped", TEXT, max_rejected=share, shard_rows=50)
    assert not (tmp_path / "stopped" / "manifest.json").exists()


def test_nothing_but_broken_inputs(tmp_path: Path) -> None:
    store = extracted(broken(tmp_path, 3, 3), tmp_path / "out", TEXT, max_rejected=1.0)
    assert (store.rows, store.ids) == (0, [])
    assert store.read("output").shape == (0, 5)


# ---- values that are no numbers --------------------------------------------------------------------------------------


class Overflowing(tiny_encoders.TinyImage):
    """Its late layer overflows half precision, its output holds a NaN in every row."""

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        given = {name: value.clamp(-1, 1) for name, value in super().encode(prepared, layers).items()}
        given["late"][:] = 1e6
        given["output"][:, 0] = float("nan")
        return given


def test_values_that_are_no_numbers_are_said_by_layer(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", images=6, captions=0)
    config = ExtractConfig(
        dataset=raw, encoder=f"{__name__}:Overflowing", out=tmp_path / "out", storage_dtype="fp16", shard_rows=4
    )
    result = extract(config)
    assert result.nonfinite_layers == {"late": 24, "output": 6}
    assert result.nonfinite == 30
    assert "30 values are no finite numbers (late 24, output 6)" in result.sentence()
    assert {layer.name: layer.nonfinite for layer in FeatureStore.open(tmp_path / "out").layers} == {
        "early": 0, "late": 24, "output": 6,
    }  # fmt: skip
    assert extract(config).nonfinite_layers == {"late": 24, "output": 6}, "and so by a run that computes nothing"

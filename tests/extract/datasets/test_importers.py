"""Every importer gives the same raw layout: images, all their captions, labels, splits, and what it left out."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UnknownNameError, UserError
from pipeline.extract.datasets.importers import IMPORTERS, detect, import_dataset
from pipeline.extract.datasets.layout import RawDataset, open_dataset
from pipeline.extract.datasets.records import ImportOptions
from tests.extract.building import picture, read_table, write_json, write_table


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Return a folder with images/0.png .. images/3.png."""
    folder = tmp_path / "source"
    (folder / "images").mkdir(parents=True)
    for number in range(4):
        (folder / "images" / f"{number}.png").write_bytes(picture(number))
    return folder


def imported(source: Path | str, out: Path, kind: str, **options: object) -> RawDataset:
    assert detect(str(source)) == kind
    import_dataset(source, out, ImportOptions(**options))  # type: ignore[arg-type]
    return open_dataset(out)


def captions_of(dataset: RawDataset) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {row.image_id: [] for row in dataset.images}
    for row in dataset.captions:
        found.setdefault(row.image_id, []).append(row.caption)
    return found


ROWS = [
    ("images/0.png", "zero", "cat", "train"),
    ("images/1.png", "one", "dog", "validation"),
    ("images/0.png", "null", "cat", "train"),
    ("images/2.png", "", "dog", "test"),
    ("", "nothing seen", "", ""),
]
FIELDS = ("filepath", "caption", "label", "split")


def as_csv(folder: Path) -> Path:
    return write_table(folder / "table.csv", FIELDS, ROWS)


def as_tsv(folder: Path) -> Path:
    return write_table(folder / "table.tsv", FIELDS, ROWS, "\t")


def as_jsonl(folder: Path) -> Path:
    path = folder / "table.jsonl"
    path.write_text("\n".join(json.dumps(dict(zip(FIELDS, row, strict=True))) for row in ROWS), encoding="utf-8")
    return path


def as_parquet(folder: Path) -> Path:
    columns = dict(zip(FIELDS, map(list, zip(*ROWS, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "table.parquet")
    return folder / "table.parquet"


@pytest.mark.parametrize("make", [as_csv, as_tsv, as_jsonl, as_parquet])
def test_tables_of_every_kind(source: Path, tmp_path: Path, make: object) -> None:
    dataset = imported(make(source), tmp_path / "out", "table")  # type: ignore[operator]
    assert [(row.image_id, row.split, row.label) for row in dataset.images] == [
        ("images/0.png", "train", "cat"),
        ("images/1.png", "val", "dog"),
        ("images/2.png", "test", "dog"),
    ]
    assert captions_of(dataset) == {
        "images/0.png": ["zero", "null"],
        "images/1.png": ["one"],
        "images/2.png": [],
        "": ["nothing seen"],
    }
    assert dataset.classes is not None
    assert dataset.classes.names == ("cat", "dog")
    assert read_table(tmp_path / "out" / "skipped.csv")[0]["reason"] == "the caption is empty"
    assert (tmp_path / "out" / dataset.images[1].file).read_bytes() == picture(1)


def test_columns_can_be_named(source: Path, tmp_path: Path) -> None:
    table = write_table(source / "t.csv", ("pic", "says"), [("images/0.png", "zero")])
    with pytest.raises(UserError, match=r"a column 'caption', found pic, says; name the column with --caption"):
        import_dataset(table, tmp_path / "out")
    dataset = imported(table, tmp_path / "out", "table", filepath="pic", caption="says")
    assert captions_of(dataset) == {"images/0.png": ["zero"]}
    with pytest.raises(UserError, match="a column 'nope', found pic, says"):
        import_dataset(table, tmp_path / "other", ImportOptions(filepath="nope"))


def test_without_splits_the_ids_decide(source: Path, tmp_path: Path) -> None:
    table = write_table(source / "t.csv", ("filepath",), [(f"images/{n}.png",) for n in range(4)])
    dataset = imported(table, tmp_path / "out", "table")
    assert {row.split for row in dataset.images} <= {"train", "val", "test"}
    assert dataset.info["split_rule"] == "sha256 of image_id: train 0.8, val 0.1, test 0.1"


def test_a_caption_may_be_shared_and_stand_alone(source: Path, tmp_path: Path) -> None:
    table = write_table(source / "t.csv", FIELDS[:2], [("images/0.png", "same"), ("images/1.png", "same")])
    assert captions_of(imported(table, tmp_path / "a", "table")) == {"images/0.png": ["same"], "images/1.png": ["same"]}
    texts = write_table(source / "u.csv", ("caption",), [("one",), ("two",)])
    assert captions_of(imported(texts, tmp_path / "b", "table")) == {"": ["one", "two"]}


def test_a_jsonl_row_may_hold_several_captions(source: Path, tmp_path: Path) -> None:
    path = source / "t.jsonl"
    path.write_text('{"image": "images/0.png", "captions": ["a", "b"]}\n\n{"image": "images/1.png"}\n')
    assert captions_of(imported(path, tmp_path / "out", "table")) == {"images/0.png": ["a", "b"], "images/1.png": []}


@pytest.mark.parametrize(("line", "found"), [("{", "Expecting"), ("[1]", "list")])
def test_a_broken_jsonl_names_its_line(source: Path, tmp_path: Path, line: str, found: str) -> None:
    path = source / "t.jsonl"
    path.write_text(f'{{"filepath": "images/0.png"}}\n{line}\n')
    with pytest.raises(UserError, match=f"t.jsonl, line 2: expected a JSON object a line, found {found}"):
        import_dataset(path, tmp_path / "out")


def test_broken_captions_are_listed_and_the_rest_comes_through(source: Path, tmp_path: Path) -> None:
    right = "images/0.png,thé ou café\nimages/0.png,à côté\n".encode()
    (source / "t.csv").write_bytes(b"filepath,caption\nimages/0.png,caf\xe9\n" + right + b"images/1.png,\xff\n")
    dataset = imported(source / "t.csv", tmp_path / "out", "table")
    assert captions_of(dataset) == {"images/0.png": ["thé ou café", "à côté"], "images/1.png": []}
    assert [row["id"] for row in read_table(tmp_path / "out" / "skipped.csv")] == ["images/0.png#0", "images/1.png#0"]


@pytest.mark.parametrize("path", ["../source/images/0.png", "/etc/passwd", "images/../../x.png"])
def test_a_table_s_paths_stay_in_its_folder(source: Path, tmp_path: Path, path: str) -> None:
    table = write_table(source / "t.csv", ("filepath",), [(path,)])
    with pytest.raises(UserError, match=r"line 2: expected a path inside .*; say --root DIR"):
        import_dataset(table, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_absolute_paths_are_fine_inside_the_root(source: Path, tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", ("filepath", "caption"), [(str(source / "images/0.png"), "x")])
    import_dataset(table, tmp_path / "out", ImportOptions(root=source))
    assert open_dataset(tmp_path / "out").images[0].image_id == "images/0.png"


def test_a_folder_with_captions_and_images(source: Path, tmp_path: Path) -> None:
    write_table(
        source / "captions.csv",
        ("image_id", "split", "caption"),
        [("0.png", "train", "a"), ("0.png", "train", "b"), ("1", "dev", "c"), ("2.png", "extra", "d")],
    )
    dataset = imported(source, tmp_path / "out", "table")
    assert captions_of(dataset) == {"0.png": ["a", "b"], "1": ["c"], "2.png": ["d"]}
    assert [row.split for row in dataset.images] == ["train", "val", "extra"]


def test_a_folder_a_class(tmp_path: Path) -> None:
    for number, name in enumerate(["big_cat/a.png", "dog/a.PNG", "dog/deep/b.png", ".hidden/x.png", "dog/notes.txt"]):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(picture(number))
    dataset = imported(tmp_path / "set", tmp_path / "out", "classes")
    assert [(row.image_id, row.label) for row in dataset.images] == [
        ("big_cat/a.png", "big cat"),
        ("dog/a.PNG", "dog"),
        ("dog/deep/b.png", "dog"),
    ]


def test_a_folder_a_class_below_splits(tmp_path: Path) -> None:
    for number, name in enumerate(["train/cat/a.png", "train/dog/b.png", "valid/cat/c.png"]):
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(picture(number))
    dataset = imported(tmp_path / "set", tmp_path / "out", "classes")
    assert [(row.split, row.label) for row in dataset.images] == [("train", "cat"), ("train", "dog"), ("val", "cat")]


def test_images_with_texts_of_the_same_stem(source: Path, tmp_path: Path) -> None:
    (source / "images" / "0.txt").write_text("first\n\nsecond\n", encoding="utf-8")
    (source / "images" / "1.txt").write_bytes(b"\xef\xbb\xbfmarked")
    (source / "images" / "2.txt").write_text("", encoding="utf-8")
    dataset = imported(source / "images", tmp_path / "out", "captions")
    assert captions_of(dataset) == {"0.png": ["first", "second"], "1.png": ["marked"], "2.png": [], "3.png": []}
    assert read_table(tmp_path / "out" / "skipped.csv") == [{"id": "2.png#0", "reason": "the caption is empty"}]


def test_images_alone(source: Path, tmp_path: Path) -> None:
    (source / "images" / "out.png").symlink_to(tmp_path / "elsewhere.png")
    dataset = imported(source / "images", tmp_path / "out", "images")
    assert captions_of(dataset) == {f"{n}.png": [] for n in range(4)}
    assert read_table(tmp_path / "out" / "skipped.csv")[0]["reason"] == "it is a link that leaves the folder"


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_parquet_of_image_bytes(tmp_path: Path, kind: str) -> None:
    images = [picture(n) for n in range(3)]
    values = images if kind == "bytes" else [{"bytes": data, "path": f"p{n}.png"} for n, data in enumerate(images)]
    folder = tmp_path / "set"
    folder.mkdir()
    pq.write_table(pa.table({"image": values, "label": [1, 0, 1], "split": ["test"] * 3}), folder / "data.parquet")
    write_json(folder / "classes.json", {"classes": ["cat", "dog"], "raw_classes": ["c", "d"], "templates": ["a {}."]})
    dataset = imported(folder, tmp_path / "out", "image-parquet")
    assert [(row.split, row.label) for row in dataset.images] == [("test", "dog"), ("test", "cat"), ("test", "dog")]
    assert dataset.images[0].image_id == ("000000" if kind == "bytes" else "000000-p0")
    assert [(tmp_path / "out" / row.file).read_bytes() for row in dataset.images] == images
    assert dataset.classes is not None
    assert dataset.classes.templates == ("a {}.",)


def test_a_label_beyond_the_classes_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [picture(1)], "label": [7]}), tmp_path / "data.parquet")
    write_json(tmp_path / "classes.json", {"classes": ["cat"]})
    with pytest.raises(UserError, match=r"a label of 0..0 or a class name, found '7'"):
        import_dataset(tmp_path / "data.parquet", tmp_path / "out")


def test_karpathy_json(source: Path, tmp_path: Path) -> None:
    sentences = [{"raw": "a"}, {"raw": "b", "tokens": ["b"]}]
    entries = [
        {"filename": "0.png", "split": "restval", "sentences": sentences},
        {"filename": "1.png", "filepath": "images", "split": "val", "sentences": []},
    ]
    dataset = imported(write_json(source / "dataset.json", {"images": entries}), tmp_path / "out", "karpathy")
    assert captions_of(dataset) == {"0.png": ["a", "b"], "images/1.png": []}
    assert [row.split for row in dataset.images] == ["train", "val"]


def test_karpathy_paths_stay_in_their_folder(source: Path, tmp_path: Path) -> None:
    path = write_json(source / "d.json", {"images": [{"filename": "../x.png", "sentences": []}]})
    with pytest.raises(UserError, match=r"image 0: expected a path inside"):
        import_dataset(path, tmp_path / "out")


def test_what_nobody_knows_lists_the_kinds(tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(b"?")
    with pytest.raises(UserError, match=r"expected one of \(huggingface: .*; images: .*\), found something else"):
        detect(str(tmp_path / "x.bin"))
    with pytest.raises(UserError, match="found nothing"):
        detect(str(tmp_path / "none"))
    with pytest.raises(UnknownNameError, match="kind of source"):
        import_dataset(tmp_path, tmp_path / "out", ImportOptions(kind="tabel"))


def test_origin_and_licence_can_be_said(source: Path, tmp_path: Path) -> None:
    options = ImportOptions(kind="images", origin="my camera", licence="mine", attribution="me")
    import_dataset(source, tmp_path / "out", options)
    info = open_dataset(tmp_path / "out").info
    assert (info["source"], info["licence"], info["attribution"]) == ("my camera", "mine", "me")


def test_an_import_gives_the_same_bytes_each_time(source: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        import_dataset(as_csv(source), tmp_path / name / "set")
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 8
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_every_importer_says_what_it_reads() -> None:
    assert all(importer.about for importer in IMPORTERS.values())


@pytest.mark.parametrize(("name", "images", "captions"), [("flickr8k", 8091, 40455), ("caltech101", 2748, 0)])
def test_the_research_sets(shared: Path, tmp_path: Path, name: str, images: int, captions: int) -> None:
    summary = import_dataset(shared / "data" / name, tmp_path / name, ImportOptions(link=True))
    assert (summary.images, summary.captions, summary.skipped) == (images, captions, 0)
    with (tmp_path / name / "images.csv").open(newline="", encoding="utf-8") as file:
        splits = [row["split"] for row in csv.DictReader(file)]
    wanted = {"train": 6000, "val": 1000, "test": 1000, "extra": 91} if captions else {"test": images}
    assert {split: splits.count(split) for split in wanted} == wanted

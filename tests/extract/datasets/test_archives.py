"""Tables that carry pictures: Parquet and Hugging Face folders, and what they must not do."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.extract.datasets.importers import detect, import_dataset
from pipeline.extract.datasets.layout import RawDataset, open_dataset
from pipeline.extract.datasets.records import ImportOptions
from tests.extract.building import picture, read_table, write_json


def imported(source: Path | str, out: Path, kind: str) -> RawDataset:
    assert detect(str(source)) == kind
    import_dataset(source, out)
    return open_dataset(out)


@pytest.mark.parametrize("kind", ["struct", "text"])
def test_a_text_where_bytes_should_be_is_no_path(kind: str, tmp_path: Path) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(0))
    column: list[object] = [{"bytes": str(secret)}] if kind == "struct" else [str(secret)]
    folder = tmp_path / "brought"
    folder.mkdir()
    pq.write_table(pa.table({"image": column, "caption": ["a"]}), folder / "data.parquet")
    with pytest.raises(UserError, match="expected a column of image bytes, found image, caption"):
        import_dataset(folder, tmp_path / "out", ImportOptions(kind="image-parquet"))
    with pytest.raises(UserError, match="the first because: the row carries no image bytes"):
        import_dataset(folder, tmp_path / "out", ImportOptions(kind="image-parquet", filepath="image"))
    assert not (tmp_path / "out").exists()


def write_arrow(
    folder: Path, table: pa.Table, *, indices: list[int] | None = None, names: list[str] | None = None
) -> Path:
    """Write what `save_to_disk` writes: Arrow streams, state.json and dataset_info.json."""
    folder.mkdir(parents=True)

    def stream(name: str, content: pa.Table) -> None:
        with pa.OSFile(str(folder / name), "wb") as file, pa.ipc.new_stream(file, content.schema) as writer:
            writer.write_table(content)

    half = len(table) // 2
    stream("data-00000-of-00002.arrow", table.slice(0, half))
    stream("data-00001-of-00002.arrow", table.slice(half))
    files = [{"filename": f"data-0000{n}-of-00002.arrow"} for n in range(2)]
    state: dict[str, object] = {"_data_files": files, "_indices_files": None}
    if indices is not None:
        stream("indices.arrow", pa.table({"indices": pa.array(indices, pa.uint64())}))
        state["_indices_files"] = [{"filename": "indices.arrow"}]
    write_json(folder / "state.json", state)
    features = {"label": {"names": names, "_type": "ClassLabel"}} if names else {}
    write_json(folder / "dataset_info.json", {"features": features})
    return folder


def arrow(rows: int, first: int = 0) -> pa.Table:
    images = [{"bytes": picture(first + n), "path": None} for n in range(rows)]
    return pa.table(
        {"image": images, "label": [n % 2 for n in range(rows)], "text": [f"t{first + n}" for n in range(rows)]}
    )


def test_a_hugging_face_folder(tmp_path: Path) -> None:
    folder = write_arrow(tmp_path / "set", arrow(5), indices=[4, 0], names=["cat", "dog"])
    dataset = imported(folder, tmp_path / "out", "huggingface")
    assert [row.label for row in dataset.images] == ["cat", "cat"]
    assert [row.caption for row in dataset.captions] == ["t4", "t0"]
    assert (tmp_path / "out" / dataset.images[0].file).read_bytes() == picture(4)


def test_a_hugging_face_folder_of_splits(tmp_path: Path) -> None:
    write_arrow(tmp_path / "set" / "train", arrow(3))
    write_arrow(tmp_path / "set" / "validation", arrow(2, first=3))
    write_json(tmp_path / "set" / "dataset_dict.json", {"splits": ["train", "validation"]})
    dataset = imported(tmp_path / "set", tmp_path / "out", "huggingface")
    assert [row.split for row in dataset.images] == ["train"] * 3 + ["val"] * 2
    assert len({row.image_id for row in dataset.images}) == 5


def test_a_hugging_face_folder_stays_in_its_folder(tmp_path: Path) -> None:
    folder = write_arrow(tmp_path / "set", arrow(2))
    write_json(folder / "state.json", {"_data_files": [{"filename": "../other.arrow"}]})
    with pytest.raises(UserError, match=r"state.json: expected a path inside"):
        import_dataset(folder, tmp_path / "out")


def test_rows_without_bytes_are_listed(tmp_path: Path) -> None:
    images = pa.array([{"bytes": None, "path": "/etc/passwd"}, {"bytes": picture(1), "path": "x.png"}])
    folder = write_arrow(tmp_path / "set", pa.table({"image": images}))
    import_dataset(folder, tmp_path / "out")
    assert read_table(tmp_path / "out" / "skipped.csv") == [
        {"id": "000000-passwd", "reason": "the row carries no image bytes"}
    ]


def test_no_images_in_it(tmp_path: Path) -> None:
    folder = write_arrow(tmp_path / "set", pa.table({"text": ["a", "b"]}))
    with pytest.raises(UserError, match="a column of image bytes, found text"):
        import_dataset(folder, tmp_path / "out", ImportOptions())


LABEL = {"names": ["cat", "dog"], "_type": "ClassLabel"}


def hub(folder: Path, features: object, labels: dict[str, list[object]], **columns: list[object]) -> Path:
    """Write Parquet as the hub has it: {bytes, path} and labels, the features in the schema's metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    first = 0
    for name, some in labels.items():
        images = [{"bytes": picture(first + at), "path": f"{name}-{at}.png"} for at in range(len(some))]
        table = pa.table({"image": images, "label": some, **columns})
        about = json.dumps({"info": {"features": features}}).encode()
        pq.write_table(table.replace_schema_metadata({b"huggingface": about}), folder / f"{name}.parquet")
        first += len(some)
    return folder


HUB: dict[str, list[object]] = {
    "train-00000-of-00002": [0, 1],
    "train-00001-of-00002": [1],
    "validation-00000-of-00001": [0],
    "test-00000-of-00001": [1, -1],
}


@pytest.mark.parametrize("inner", ["", "data"])
def test_parquet_of_the_hub(inner: str, tmp_path: Path) -> None:
    hub(tmp_path / "set" / inner, {"image": {"_type": "Image"}, "label": LABEL}, HUB)
    (tmp_path / "set" / "README.md").write_text("a card")
    dataset = imported(tmp_path / "set", tmp_path / "out", "image-parquet")
    assert sorted((row.split, row.label) for row in dataset.images) == [
        ("test", ""),
        ("test", "dog"),
        ("train", "cat"),
        ("train", "dog"),
        ("train", "dog"),
        ("val", "cat"),
    ]
    assert dataset.classes is not None
    assert dataset.classes.names == ("cat", "dog")
    assert dataset.info["split_rule"] == "the source's own"
    for row in dataset.images:
        number = int(row.image_id.rpartition("-")[2]) + {"val": 3, "test": 4}.get(row.split, 0)
        number += 2 * ("train-00001" in row.image_id)
        assert (tmp_path / "out" / row.file).read_bytes() == picture(number)


@pytest.mark.parametrize(
    "features",
    [
        {"label": {"feature": LABEL, "_type": "Sequence"}},
        {"label": [LABEL]},
        [{"name": "label", "dtype": {"class_label": {"names": {"0": "cat", "1": "dog"}}}}],
        [{"name": "label", "sequence": {"class_label": {"names": {"1": "dog", "0": "cat"}}}}],
    ],
)
def test_class_names_in_lists_of_labels(features: object, tmp_path: Path) -> None:
    """A picture with two labels has none here, and is listed; with one or none it is as any other."""
    hub(tmp_path / "set", features, {"test-00000-of-00001": [[1], [], [0, 1], [0]]})
    dataset = imported(tmp_path / "set", tmp_path / "out", "image-parquet")
    assert [row.label for row in dataset.images] == ["dog", "", "", "cat"]
    (skipped,) = read_table(tmp_path / "out" / "skipped.csv")
    assert skipped["id"].startswith("000002-")
    assert skipped["reason"] == "2 labels, and an image has one: it is kept without"


def test_names_beside_the_files_come_before_those_of_the_schema(tmp_path: Path) -> None:
    hub(tmp_path / "set", {"label": LABEL}, {"test-00000-of-00001": [1]})
    write_json(tmp_path / "set" / "classes.json", {"classes": ["Katze", "Hund"]})
    assert imported(tmp_path / "set", tmp_path / "out", "image-parquet").images[0].label == "Hund"


def test_a_column_of_splits_comes_before_the_names_of_files(tmp_path: Path) -> None:
    """Flickr30k on the hub has all its rows in `test-...`, and a column that says the real split."""
    hub(tmp_path / "set", {}, {"test-00000-of-00001": ["a", "a", "a"]}, split=["train", "restval", ""])
    dataset = imported(tmp_path / "set", tmp_path / "out", "image-parquet")
    assert [row.split for row in dataset.images] == ["train", "train", "test"]


def test_parquet_that_names_no_split_is_split_by_the_rule(tmp_path: Path) -> None:
    hub(tmp_path / "set", {}, {"data-00000-of-00002": ["a"], "data-00001-of-00002": ["b"]})
    assert imported(tmp_path / "set", tmp_path / "out", "image-parquet").info["split_rule"].startswith("sha256")


@pytest.mark.parametrize("about", ["{", "[" * 100_000, "[]", '{"info": {"features": [1]}}', '{"info": 3}'])
def test_rubbish_in_the_schema_s_metadata_is_one_sentence(about: str, tmp_path: Path) -> None:
    table = pa.table({"image": [picture(0)]}).replace_schema_metadata({b"huggingface": about.encode()})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet: expected features in the metadata 'huggingface' of the schema"):
        import_dataset(tmp_path / "a.parquet", tmp_path / "out")


def test_damaged_pages_of_parquet_are_one_sentence(tmp_path: Path) -> None:
    path = hub(tmp_path / "set", {}, {"a": [0, 1]}) / "a.parquet"
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"a.parquet: expected sound rows of Parquet or Arrow"):
        import_dataset(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_of_another_schema_are_named(tmp_path: Path) -> None:
    hub(tmp_path / "set", {}, {"test-00000-of-00002": [0]})
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "set" / "test-00001-of-00002.parquet")
    with pytest.raises(UserError, match=r"00001-of-00002.parquet: expected the column 'image', .* found text"):
        import_dataset(tmp_path / "set", tmp_path / "out")


def test_a_zero_byte_in_a_path_or_a_label_is_listed(tmp_path: Path) -> None:
    images = [{"bytes": picture(at), "path": path} for at, path in enumerate(["a\0b.png", "c.png", "d.png"])]
    table = pa.table({"image": images, "label": ["x", "y\0", "z"]})
    pq.write_table(table, tmp_path / "a.parquet")
    dataset = imported(tmp_path / "a.parquet", tmp_path / "out", "image-parquet")
    assert [row.image_id for row in dataset.images] == ["000002-d"]
    reasons = {row["reason"] for row in read_table(tmp_path / "out" / "skipped.csv")}
    assert reasons == {"its id, label or split holds a zero byte"}

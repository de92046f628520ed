"""Archives: webdataset tars and Hugging Face folders, and what they must not do."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import UserError
from pipeline.extract.datasets.archives import expand_braces
from pipeline.extract.datasets.importers import detect, import_dataset
from pipeline.extract.datasets.layout import RawDataset, open_dataset
from pipeline.extract.datasets.records import ImportOptions
from tests.extract.building import picture, read_table, write_json


def write_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def imported(source: Path | str, out: Path, kind: str) -> RawDataset:
    assert detect(str(source)) == kind
    import_dataset(source, out)
    return open_dataset(out)


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("a-{00..02}.tar", ["a-00.tar", "a-01.tar", "a-02.tar"]),
        ("{a,b}.tar", ["a.tar", "b.tar"]),
        ("{x,y}-{8..10}", ["x-8", "x-9", "x-10", "y-8", "y-9", "y-10"]),
        ("plain.tar", ["plain.tar"]),
        ("{5..4}", []),
    ],
)
def test_braces(pattern: str, names: list[str]) -> None:
    assert expand_braces(pattern) == names


def test_members_of_one_stem_are_one_sample(tmp_path: Path) -> None:
    fields = json.dumps({"caption": "from json", "label": "cat", "split": "val"}).encode()
    members = {
        "000.png": picture(0),
        "000.txt": b"one\ntwo\n",
        "001.JPG": picture(1, kind="JPEG"),
        "001.json": fields,
        "002.txt": b"no image",
        "003.cls": b"1",
        "004.png": picture(4),
        "004.json": b"[]",
    }
    dataset = imported(write_tar(tmp_path / "set.tar", members), tmp_path / "out", "webdataset")
    assert [(row.image_id, row.label) for row in dataset.images] == [("000", ""), ("001", "cat")]
    assert [(row.image_id, row.caption) for row in dataset.captions] == [
        ("000", "one"),
        ("000", "two"),
        ("001", "from json"),
        ("", "no image"),
    ]
    assert read_table(tmp_path / "out" / "skipped.csv") == [
        {"id": "003", "reason": "neither image nor caption (.cls)"},
        {"id": "004", "reason": "its .json is not a JSON object"},
    ]
    assert (tmp_path / "out" / dataset.images[0].file).read_bytes() == picture(0)


def test_several_tars_keep_equal_keys_apart(tmp_path: Path) -> None:
    for number in range(3):
        members = {"x/000.png": picture(number), "x/000.cls": str(number % 2).encode()}
        write_tar(tmp_path / f"t-{number:02d}.tar.gz", members, "w:gz")
    write_json(tmp_path / "classes.json", {"classes": ["cat", "dog"]})
    dataset = imported(f"{tmp_path}/t-{{00..02}}.tar.gz", tmp_path / "out", "webdataset")
    assert [row.image_id for row in dataset.images] == ["t-00/x/000", "t-01/x/000", "t-02/x/000"]
    assert [row.label for row in dataset.images] == ["cat", "dog", "cat"]


def captions_of(dataset: RawDataset) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for row in read_table(dataset.root.here / "captions.csv"):
        found.setdefault(row["image_id"], []).append(row["caption"])
    return found


def test_names_of_tars_with_several_dots_keep_equal_keys_apart(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    for number in range(2):
        members = {"000000.png": picture(number), "000000.txt": b"picture %d" % number}
        write_tar(folder / f"data.{number:03d}.tar", members)
    dataset = imported(folder, tmp_path / "out", "webdataset")
    assert captions_of(dataset) == {"data.000/000000": ["picture 0"], "data.001/000000": ["picture 1"]}
    assert not read_table(tmp_path / "out" / "skipped.csv")


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:bz2"])
def test_members_of_a_sample_may_lie_far_apart(mode: str, tmp_path: Path) -> None:
    members = {f"{number}.png": picture(number) for number in range(3)}
    members |= {f"{number}.txt": b"picture %d" % number for number in range(3)}
    dataset = imported(write_tar(tmp_path / "set.tar", members, mode), tmp_path / "out", "webdataset")
    assert captions_of(dataset) == {str(number): [f"picture {number}"] for number in range(3)}
    assert not read_table(tmp_path / "out" / "skipped.csv")


@pytest.mark.parametrize("place", range(-8, 0))
def test_a_changed_checksum_of_a_packed_tar_is_an_error(place: int, tmp_path: Path) -> None:
    """The last eight bytes of gzip are the CRC and the length: nothing else is wrong with the file."""
    path = write_tar(tmp_path / "set.tar.gz", {"0.png": picture(0), "0.txt": b"a picture"}, "w:gz")
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"set.tar.gz: expected a tar file, found (CRC|Incorrect length)"):
        import_dataset(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_packed_member_that_claims_more_than_there_is(tmp_path: Path) -> None:
    member = tarfile.TarInfo("0.png")
    member.size = 10**13
    (tmp_path / "set.tar.gz").write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + b"x" * 1024))
    with pytest.raises(UserError, match=r"expected (a tar file|at least one image)"):
        import_dataset(tmp_path / "set.tar.gz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_packed_tar_that_would_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.extract.datasets.archives.MAX_MEMBER", 2**20)
    (tmp_path / "set.tar.gz").write_bytes(gzip.compress(bytes(2**25)))
    with pytest.raises(UserError, match="expected a tar file, found more than 100 times its size when unpacked"):
        import_dataset(tmp_path / "set.tar.gz", tmp_path / "out")


def test_of_two_members_of_one_name_the_earlier_is_listed(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "set.tar", {"0.png": picture(0), "0.txt": b"first"})
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo("0.txt")
        member.size = 6
        tar.addfile(member, io.BytesIO(b"second"))
    dataset = imported(path, tmp_path / "out", "webdataset")
    assert captions_of(dataset) == {"0": ["second"]}
    (skipped,) = read_table(tmp_path / "out" / "skipped.csv")
    assert skipped == {"id": "set.tar:0.txt", "reason": "a later member has the same name"}


def test_rubbish_in_an_extended_header(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("0.png")
        member.size = 4
        member.pax_headers = {"size": "many", "mtime": "never", "GNU.sparse.map": "a,b"}
        tar.addfile(member, io.BytesIO(b"data"))
    with pytest.raises(UserError, match=r"set.tar: expected a tar file|none \("):
        import_dataset(path, tmp_path / "out")


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


def test_a_folder_of_tars(tmp_path: Path) -> None:
    (tmp_path / "tars").mkdir()
    write_tar(tmp_path / "tars" / "a.tar", {"0.png": picture(0)})
    assert len(imported(tmp_path / "tars", tmp_path / "out", "webdataset").images) == 1


@pytest.mark.parametrize("name", ["../evil.png", "/tmp/evil.png", "a/../../evil.png", "..\\evil.png"])
def test_a_member_that_leaves_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    members = {name: picture(0), "fine.png": picture(1)}
    dataset = imported(write_tar(tmp_path / "set.tar", members), tmp_path / "deep" / "out", "webdataset")
    assert [row.image_id for row in dataset.images] == ["fine"]
    assert read_table(tmp_path / "deep" / "out" / "skipped.csv") == [
        {"id": f"set.tar:{name}", "reason": "the member's name leaves the folder"}
    ]
    assert not list(tmp_path.rglob("*evil*"))


def test_links_and_devices_are_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "set.tar", "w") as tar:
        for name, kind in (("link.png", tarfile.SYMTYPE), ("hard.png", tarfile.LNKTYPE), ("dev.png", tarfile.CHRTYPE)):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, "/etc/passwd"
            tar.addfile(member)
    with pytest.raises(
        UserError, match=r"found none \(3 left out, the first because: the member is a link or a device"
    ):
        import_dataset(tmp_path / "set.tar", tmp_path / "out")


def test_a_huge_member_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.extract.datasets.archives.MAX_MEMBER", 10)
    path = write_tar(tmp_path / "set.tar", {"big.png": picture(0), "t.txt": b"small"})
    import_dataset(path, tmp_path / "out")
    assert read_table(tmp_path / "out" / "skipped.csv")[0]["reason"] == "the member is too large"


def test_broken_and_missing_tars(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(b"no tar" * 200)
    with pytest.raises(UserError, match=r"x.tar: expected a tar file"):
        import_dataset(tmp_path / "x.tar", tmp_path / "out")
    with pytest.raises(UserError, match=r"expected 2 tar files, found 2 missing, such as .*y0.tar"):
        import_dataset(f"{tmp_path}/y{{0..1}}.tar", tmp_path / "out")


def test_a_cut_tar_is_an_error(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", {"a.png": picture(0), "b.png": picture(1, 64)})
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match="expected a tar file"):
        import_dataset(path, tmp_path / "out")


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

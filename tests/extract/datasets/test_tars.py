"""webdataset tars and the folders of CLIP_benchmark, and what they must not do."""

import gzip
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.extract.datasets.importers import detect, import_dataset
from pipeline.extract.datasets.layout import RawDataset, open_dataset
from pipeline.extract.datasets.records import ImportOptions
from pipeline.extract.datasets.tars import expand_braces
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
    monkeypatch.setattr("pipeline.extract.datasets.tars.MAX_MEMBER", 2**20)
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
    monkeypatch.setattr("pipeline.extract.datasets.tars.MAX_MEMBER", 10)
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


def skipped_of(out: Path) -> dict[str, str]:
    return {row["id"]: row["reason"] for row in read_table(out / "skipped.csv")}


def clip_benchmark(
    root: Path, *, names: str = "tabby cat\ngolden retriever\n", labels: Sequence[bytes] = (b"1", b"0")
) -> Path:
    """Write what CLIP_benchmark's `webdataset_builder.py` writes: two splits, shards by number, lists above them."""
    number = 0
    for split in ("train", "test"):
        (root / split).mkdir(parents=True)
        for shard, label in enumerate(labels):
            members = {f"s{shard:07d}.webp": picture(number, kind="WEBP"), f"s{shard:07d}.cls": label}
            write_tar(root / split / f"{shard}.tar", members)
            number += 1
        (root / split / "nshards.txt").write_text(f"{len(labels)}\n")
    (root / "classnames.txt").write_text(names)
    (root / "zeroshot_classification_templates.txt").write_text("a photo of a {c}.\nart of the {c}.\n")
    return root


def test_the_folders_of_clip_benchmark(tmp_path: Path) -> None:
    dataset = imported(clip_benchmark(tmp_path / "set"), tmp_path / "out", "webdataset")
    assert sorted((row.image_id, row.split, row.label) for row in dataset.images) == [
        ("test/0/s0000000", "test", "golden retriever"),
        ("test/1/s0000001", "test", "tabby cat"),
        ("train/0/s0000000", "train", "golden retriever"),
        ("train/1/s0000001", "train", "tabby cat"),
    ]
    assert dataset.classes is not None
    assert dataset.classes.names == ("tabby cat", "golden retriever")
    assert dataset.classes.templates == ("a photo of a {c}.", "art of the {c}.")
    assert dataset.info["split_rule"] == "the source's own"
    assert not skipped_of(tmp_path / "out")


def test_one_split_of_clip_benchmark_knows_the_names_beside_it(tmp_path: Path) -> None:
    source = clip_benchmark(tmp_path / "set")
    for name in ("classnames.txt", "zeroshot_classification_templates.txt"):
        (source / name).rename(source / "test" / name)
    dataset = imported(source / "test", tmp_path / "out", "webdataset")
    assert [row.label for row in dataset.images] == ["golden retriever", "tabby cat"]


def test_shards_are_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (10, 2, 1):
        write_tar(tmp_path / f"{number}.tar", {"0.png": picture(number)})
    dataset = imported(tmp_path, tmp_path / "out", "webdataset")
    assert [row.image_id for row in dataset.images] == ["1/0", "2/0", "10/0"]


def test_a_class_name_that_comes_twice_keeps_its_place_and_its_prompts(tmp_path: Path) -> None:
    """Lists of ImageNet's names have `sunglasses` for two of the thousand classes."""
    source = clip_benchmark(tmp_path / "set", names="sunglasses\r\nsunglasses\r\n")
    dataset = imported(source, tmp_path / "out", "webdataset")
    assert dataset.classes is not None
    assert dataset.classes.names == ("sunglasses", "sunglasses (1)")
    first, second = map(dataset.classes.sentences, dataset.classes.names)
    assert first == second == ("a photo of a sunglasses.", "art of the sunglasses.")
    assert {row.label for row in dataset.images} == {"sunglasses", "sunglasses (1)"}


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("label", [b"9" * 5000, b"2"])
def test_a_label_that_is_no_class_is_one_sentence(label: bytes, named: bool, tmp_path: Path) -> None:
    source = clip_benchmark(tmp_path / "set", labels=(label,), names="a\nb\n" if named else "")
    if not named and label == b"2":
        assert {row.label for row in imported(source, tmp_path / "out", "webdataset").images} == {"2"}
        return
    with pytest.raises(
        UserError,
        match=r"0/s0000000: expected a (label of 0\.\.1 or a class name|class name or number), found ('2'|5,000)",
    ):
        import_dataset(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_templates_without_a_place_and_lists_that_are_no_text(tmp_path: Path) -> None:
    source = clip_benchmark(tmp_path / "set")
    (source / "zeroshot_classification_templates.txt").write_text("a photo.\n")
    with pytest.raises(UserError, match=r"templates.txt: expected templates with \{c\} or \{\}, found 'a photo.'"):
        import_dataset(source, tmp_path / "out")
    (source / "classnames.txt").write_bytes(b"\xff\xfe\x80")
    with pytest.raises(UserError, match=r"classnames.txt: expected UTF-8"):
        import_dataset(source, tmp_path / "out")
    (source / "classnames.txt").unlink()
    (source / "classnames.txt").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match="it is a link that leaves the folder"):
        import_dataset(source, tmp_path / "out")


def test_several_pictures_of_one_stem_are_all_kept(tmp_path: Path) -> None:
    """A stem ends at the first dot: names with more of them, and two formats of one picture, share theirs."""
    members = {
        "a.b.png": picture(0),
        "a.c.png": picture(1),
        "a.txt": b"of both",
        "img.1.png": picture(2),
        "img.1.txt": b"one",
        "img.2.png": picture(3),
        "img.2.txt": b"two",
        "x.JPG": picture(4, kind="JPEG"),
        "x.png": picture(5),
        "x.TXT": b"either",
        "only.rgb.png": picture(6),
        "only.txt": b"alone",
    }
    dataset = imported(write_tar(tmp_path / "set.tar", members), tmp_path / "out", "webdataset")
    assert captions_of(dataset) == {
        "a.b": ["of both"],
        "a.c": ["of both"],
        "img.1": ["one"],
        "img.2": ["two"],
        "x.jpg": ["either"],
        "x.png": ["either"],
        "only": ["alone"],
    }
    expected = dict(zip(("a.b", "a.c", "img.1", "img.2", "x.jpg", "x.png", "only"), range(7), strict=True))
    for row in dataset.images:
        kind = "JPEG" if row.image_id == "x.jpg" else "PNG"
        assert (tmp_path / "out" / row.file).read_bytes() == picture(expected[row.image_id], kind=kind)
    assert not skipped_of(tmp_path / "out")


def test_what_lies_beside_a_picture_in_a_tar_is_listed(tmp_path: Path) -> None:
    members = {
        "0.jpg": picture(0, kind="JPEG"),
        "0.mask.png": picture(1),
        "0.npy": b"features",
        "1.png": picture(2),
        "1.npy": b"features",
        "2.CR2": b"raw",
        "2.txt": b"never developed",
        "3.svg": b"<svg/>",
        "3.png": picture(3),
    }
    dataset = imported(write_tar(tmp_path / "set.tar", members), tmp_path / "out", "webdataset")
    assert [row.image_id for row in dataset.images] == ["0", "1", "3"]
    assert skipped_of(tmp_path / "out") == {
        "0.mask.png": "another picture of the same stem",
        "2": "a camera's raw file: develop it to JPEG, PNG or TIFF",
        "3.svg": "pictures of the kind .svg are not read: save it as JPEG, PNG or TIFF",
        "other members": "2 members of which nothing was read (.npy 2)",
    }


def test_side_cars_whose_captions_are_structures(tmp_path: Path) -> None:
    fields = json.dumps({"captions": [{"raw": "one"}, {"raw": "two"}], "width": 12}).encode()
    members = {"0.png": picture(0), "0.json": fields, "1.heic": b"phone", "1.json": b'{"caption": "by phone"}'}
    dataset = imported(write_tar(tmp_path / "set.tar", members), tmp_path / "out", "webdataset")
    assert captions_of(dataset) == {"0": ["one", "two"], "1": ["by phone"]}


def test_a_zero_byte_in_the_name_of_a_member_is_listed(tmp_path: Path) -> None:
    path = tmp_path / "set.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a\0b.png", "c.png"):
            member = tarfile.TarInfo("x.png")
            member.size = len(picture(0))
            member.pax_headers = {"path": name}
            tar.addfile(member, io.BytesIO(picture(0)))
    dataset = imported(path, tmp_path / "out", "webdataset")
    assert [row.image_id for row in dataset.images] == ["c"]
    assert list(skipped_of(tmp_path / "out").values()) == ["its id, label or split holds a zero byte"]


def test_a_tar_whose_sentences_are_in_an_unknown_field_says_which(tmp_path: Path) -> None:
    fields = json.dumps({"alt": "a dog on a bench", "url": "https://example.org/a-dog.jpg", "key": "0"}).encode()
    path = write_tar(tmp_path / "set.tar", {"0.png": picture(0), "0.json": fields})
    with pytest.raises(UserError, match=r"expected captions, found none, but sentences in the columns alt;"):
        import_dataset(path, tmp_path / "out")
    import_dataset(path, tmp_path / "out", ImportOptions(caption="alt"))
    assert captions_of(open_dataset(tmp_path / "out")) == {"0": ["a dog on a bench"]}

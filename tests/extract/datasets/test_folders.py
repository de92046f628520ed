"""Folders of pictures as people have them: files of phones and cameras, names in any spelling; nothing unlisted."""

import unicodedata
from pathlib import Path
from typing import Literal

import pytest

from pipeline.errors import UserError
from pipeline.extract.datasets.importers import detect, import_dataset
from pipeline.extract.datasets.layout import RawDataset, open_dataset
from tests.extract.building import picture, read_table


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def imported(source: Path, out: Path, kind: str) -> tuple[RawDataset, dict[str, str]]:
    assert detect(str(source)) == kind
    import_dataset(source, out)
    return open_dataset(out), {row["id"]: row["reason"] for row in read_table(out / "skipped.csv")}


def captions_of(dataset: RawDataset) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {row.image_id: [] for row in dataset.images}
    for row in dataset.captions:
        found.setdefault(row.image_id, []).append(row.caption)
    return found


def test_every_file_beside_the_pictures_is_read_or_listed(tmp_path: Path) -> None:
    """Two phones, a camera, a drawing, a text without picture, and what operating systems leave behind."""
    files = {
        "a.heic": b"phone",
        "a.txt": b"from a phone",
        "b.HIF": b"camera",
        "b.TXT": b"from a camera",
        "c.avif": picture(2, kind="AVIF"),
        "c.txt": b"small",
        "d.NEF": b"raw",
        "d.txt": b"never developed",
        "e.svg": b"<svg/>",
        "f.jpg": picture(3, kind="JPEG"),
        "Thumbs.db": b"x",
        "notes.pdf": b"x",
        "more/notes.pdf": b"x",
        "README": b"x",
        ".hidden": b"x",
    }
    dataset, skipped = imported(folder_of(tmp_path / "set", files), tmp_path / "out", "captions")
    assert captions_of(dataset) == {
        "a.heic": ["from a phone"],
        "b.HIF": ["from a camera"],
        "c.avif": ["small"],
        "f.jpg": [],
    }
    assert skipped == {
        "d.NEF": "a camera's raw file: develop it to JPEG, PNG or TIFF",
        "e.svg": "pictures of the kind .svg are not read: save it as JPEG, PNG or TIFF",
        "d.txt": "no picture of this name lies beside it",
        "other files": "4 files of which nothing was read (.pdf 2, README 1, .db 1)",
    }


def test_class_folders_list_what_they_do_not_read(tmp_path: Path) -> None:
    files = {"cat/0.heif": b"phone", "cat/0.dng": b"raw", "dog/1.JPEG": picture(1, kind="JPEG"), "dog/1.txt": b"a dog"}
    dataset, skipped = imported(folder_of(tmp_path / "set", files), tmp_path / "out", "captions")
    assert {"cat/0.dng"} == set(skipped)
    assert captions_of(dataset) == {"cat/0.heif": [], "dog/1.JPEG": ["a dog"]}
    (tmp_path / "set" / "dog" / "1.txt").rename(tmp_path / "set" / "licence.txt")
    dataset, skipped = imported(tmp_path / "set", tmp_path / "other", "classes")
    assert [(row.image_id, row.label) for row in dataset.images] == [("cat/0.heif", "cat"), ("dog/1.JPEG", "dog")]
    assert skipped["other files"] == "1 file of which nothing was read (.txt 1)"


def test_a_folder_of_raw_files_alone_says_what_to_do(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "set", {"0.CR2": b"raw", "0.txt": b"a picture"})
    with pytest.raises(UserError, match=r"found none \(2 left out, the first because: a camera's raw file: develop it"):
        imported(source, tmp_path / "out", "images")


@pytest.mark.parametrize(("image", "text"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_written_either_way(
    image: Literal["NFC", "NFD"], text: Literal["NFC", "NFD"], tmp_path: Path
) -> None:
    """macOS takes names apart (NFD), Windows and Linux do not (NFC): one folder may hold both."""
    name = "caf\u00e9 d\u2019\u00e9t\u00e9"
    files = {
        unicodedata.normalize(image, name) + ".JPG": picture(0, kind="JPEG"),
        unicodedata.normalize(text, name) + ".Txt": "un caf\u00e9".encode(),
    }
    dataset, skipped = imported(folder_of(tmp_path / "set", files), tmp_path / "out", "captions")
    assert list(captions_of(dataset).values()) == [["un caf\u00e9"]]
    assert not skipped


def test_two_spellings_of_one_name_are_two_pictures_with_their_own_texts(tmp_path: Path) -> None:
    names = [unicodedata.normalize("NFC", "\u00e9"), unicodedata.normalize("NFD", "\u00e9")]
    files = {f"{name}.png": picture(number) for number, name in enumerate(names)}
    files |= {f"{name}.txt": b"picture %d" % number for number, name in enumerate(names)}
    dataset, skipped = imported(folder_of(tmp_path / "set", files), tmp_path / "out", "captions")
    assert captions_of(dataset) == {f"{name}.png": [f"picture {number}"] for number, name in enumerate(names)}
    assert not skipped
    for row in dataset.images:
        assert (tmp_path / "out" / row.file).read_bytes() == files[row.image_id]
    placed = {unicodedata.normalize("NFC", row.file) for row in dataset.images}
    assert len(placed) == 2, "macOS takes two spellings for one name"


def test_a_text_that_is_a_link_out_of_the_folder_is_listed(tmp_path: Path) -> None:
    (tmp_path / "secret.txt").write_text("secret")
    source = folder_of(tmp_path / "set", {"0.png": picture(0), "1.png": picture(1), "1.txt": b"one"})
    (source / "0.txt").symlink_to(tmp_path / "secret.txt")
    dataset, skipped = imported(source, tmp_path / "out", "captions")
    assert captions_of(dataset) == {"0.png": [], "1.png": ["one"]}
    assert skipped == {"0.txt": "it is a link that leaves the folder"}

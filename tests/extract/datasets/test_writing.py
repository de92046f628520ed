"""Writing a raw data set: whole or not at all, names unique, nothing dropped unseen."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.extract.datasets.classes import Classes
from pipeline.extract.datasets.layout import open_dataset
from pipeline.extract.datasets.records import Record, Records, Skipped, SplitRule
from pipeline.extract.datasets.writing import MadeDataset, write_dataset
from pipeline.progress import Update
from pipeline.store.samples import rejected_bytes
from tests.extract.building import picture, read_table


def write(
    out: Path, *records: Record | Skipped, replace: bool = False, link: bool = False, **rest: object
) -> MadeDataset:
    source = Records(records=iter(records), **rest)  # type: ignore[arg-type]
    return write_dataset(out, source, replace=replace, link=link, rule=SplitRule(1, 0, 0))


def test_records_become_tables(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "set"
    one = Record(image_id="a", source=picture(1), name="a", split="dev", label="cat", captions=("x", 'y, "z"\nw'))
    summary = write(
        out, one, Record(captions=("alone",)), Skipped("b", "why"), has_splits=True, licence="L", attribution="A"
    )
    assert summary == MadeDataset(out, images=1, captions=3, classes=1, skipped=1, alone=1)
    dataset = open_dataset(out)
    assert dataset.images[0] == ("a", "images/a.png", "val", "cat")
    assert [tuple(row) for row in dataset.captions] == [
        ("a#0", "a", "x"),
        ("a#1", "a", 'y, "z"\nw'),
        ("#0", "", "alone"),
    ]
    assert read_table(out / "skipped.csv") == [{"id": "b", "reason": "why"}]
    assert (out / "images" / "a.png").read_bytes() == picture(1)
    assert dataset.info["licence"] == "L"
    assert dataset.info["split_rule"] == "the source's own"
    assert sorted(path.name for path in out.parent.iterdir()) == ["set"]


def test_the_same_image_may_come_again_with_more_captions(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(picture(1))
    again = [Record(image_id="x", source=path, captions=(text,)) for text in ("one", "two")]
    write(tmp_path / "set", *again)
    dataset = open_dataset(tmp_path / "set")
    assert len(dataset.images) == 1
    assert [row.caption for row in dataset.captions] == ["one", "two"]


def test_another_image_of_the_same_id_is_listed(tmp_path: Path) -> None:
    write(tmp_path / "set", *[Record(image_id="x", source=picture(seed)) for seed in (1, 2)])
    assert "same image id" in read_table(tmp_path / "set" / "skipped.csv")[0]["reason"]


def test_names_are_safe_and_unique(tmp_path: Path) -> None:
    names = ["a.png", "A.PNG", "../../up.png", "/abs/x.png", 'odd:?"\x01.png', "b\\c.png", "x" * 300 + ".png"]
    write(tmp_path / "set", *[Record(image_id=str(n), source=picture(n), name=name) for n, name in enumerate(names)])
    files = [row.file for row in open_dataset(tmp_path / "set").images]
    assert files[:6] == [
        "images/a.png",
        "images/A-2.PNG",
        "images/up.png",
        "images/abs/x.png",
        "images/odd____.png",
        "images/b/c.png",
    ]
    assert len(files[6]) < 80
    assert all((tmp_path / "set" / file).is_file() for file in files)


def test_broken_captions_are_listed(tmp_path: Path) -> None:
    write(tmp_path / "set", Record(image_id="x", source=picture(1), captions=("  ", "caf\udce9", "fine")))
    assert [(row.caption_id, row.caption) for row in open_dataset(tmp_path / "set").captions] == [("x#2", "fine")]
    assert read_table(tmp_path / "set" / "skipped.csv") == [
        {"id": "x#0", "reason": "the caption is empty"},
        {"id": "x#1", "reason": "the caption is not UTF-8"},
    ]


def test_a_missing_image_is_listed_with_its_captions_left_out(tmp_path: Path) -> None:
    missing = Record(image_id="x", source=tmp_path / "none.png", captions=("one",))
    write(tmp_path / "set", missing, Record(image_id="y", source=picture(1)))
    reason = read_table(tmp_path / "set" / "skipped.csv")[0]["reason"]
    assert reason == f"the image cannot be read: there is no such file: {tmp_path / 'none.png'}"
    assert open_dataset(tmp_path / "set").captions == ()


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found none \(1 left out, the first because: the image cannot be read"):
        write(tmp_path / "set", Record(image_id="x", source=tmp_path / "none.png"))
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    def records() -> Iterator[Record]:
        yield Record(image_id="x", source=picture(1))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_dataset(tmp_path / "set", Records(records=records()))
    assert list(tmp_path.iterdir()) == []


def test_an_existing_set_is_replaced_only_if_asked(tmp_path: Path) -> None:
    out = tmp_path / "set"
    write(out, Record(image_id="x", source=picture(1)))
    with pytest.raises(UserError, match="found the data set 'set'; say --replace"):
        write(out, Record(image_id="y", source=picture(1)))
    write(out, Record(image_id="y", source=picture(1)), replace=True)
    assert [row.image_id for row in open_dataset(out).images] == ["y"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_another_set_or_folder_is_never_replaced(tmp_path: Path) -> None:
    out = tmp_path / "set"
    write(out, Record(image_id="x", source=picture(1)))
    (out / "dataset.json").write_text(json.dumps({"name": "other"}), encoding="utf-8")
    with pytest.raises(UserError, match="found the data set 'other'; choose another --out"):
        write(out, Record(image_id="y", source=picture(1)), replace=True)
    (out / "dataset.json").unlink()
    with pytest.raises(UserError, match="found a folder that holds something else"):
        write(out, Record(image_id="y", source=picture(1)), replace=True)
    (tmp_path / "empty").mkdir()
    assert write(tmp_path / "empty", Record(image_id="y", source=picture(1))).images == 1


def test_classes_come_from_the_source_or_from_the_labels(tmp_path: Path) -> None:
    record = Record(image_id="x", source=picture(1), label="b")
    write(tmp_path / "one", record, classes=Classes(names=("b", "a"), templates=("{}",), prompts={"a": ("an a",)}))
    assert json.loads((tmp_path / "one" / "classes.json").read_text()) == {
        "classes": ["b", "a"],
        "templates": ["{}"],
        "prompts": {"a": ["an a"]},
    }
    write(tmp_path / "two", record, Record(image_id="y", source=picture(2), label="a"))
    assert json.loads((tmp_path / "two" / "classes.json").read_text())["classes"] == ["a", "b"]


def test_files_can_be_linked(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(picture(1))
    write(tmp_path / "linked", Record(image_id="x", source=path, name="x.png"), link=True)
    write(tmp_path / "copied", Record(image_id="x", source=path, name="x.png"))
    assert path.samefile(tmp_path / "linked" / "images" / "x.png")
    assert not path.samefile(tmp_path / "copied" / "images" / "x.png")


def test_progress_is_told(tmp_path: Path) -> None:
    told: list[Update] = []
    records = [Record(image_id=str(number), source=picture(number)) for number in range(3)]
    write_dataset(tmp_path / "set", Records(records=iter(records), total=3), progress=told.append)
    assert [(update.what, update.done, update.total) for update in (told[0], told[-1])] == [
        ("images", 0, 3),
        ("images", 3, 3),
    ]
    assert told[-1].eta == 0


def test_what_is_read_back_is_what_was_brought_and_what_people_read_calculates_nothing(tmp_path: Path) -> None:
    texts = ("=1+1", "+a", "-a", "@a")
    write(tmp_path / "set", Record(image_id="=i", source=picture(1), captions=texts), Skipped("=b", "@why"))
    dataset = open_dataset(tmp_path / "set")
    assert [row.caption for row in dataset.captions] == list(texts)
    assert dataset.images[0].image_id == "=i"
    assert read_table(tmp_path / "set" / "skipped.csv") == [{"id": "'=b", "reason": "'@why"}]
    assert rejected_bytes([("=a", "-b"), ("a", "b")]) == b"sample_id,reason\n'=a,'-b\na,b\n"

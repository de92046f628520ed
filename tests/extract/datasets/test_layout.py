"""Reading a raw data set by hand: what is right comes through, what is wrong is named with its line."""

import os
from pathlib import Path

import pytest

from pipeline.errors import UserError
from pipeline.extract.datasets.classes import read_classes
from pipeline.extract.datasets.layout import CaptionRow, ImageRow, open_dataset
from tests.extract.building import write_json, write_raw, write_table


def test_a_hand_made_set_is_read(tmp_path: Path) -> None:
    dataset = open_dataset(write_raw(tmp_path / "mine", images=2, captions=1))
    assert dataset.name == "mine"
    assert dataset.images == (
        ImageRow("i000", "images/i000.png", "test", "cat"),
        ImageRow("i001", "images/i001.png", "train", "dog"),
    )
    assert dataset.captions[1] == CaptionRow("i001#0", "i001", "picture number 1 said ")
    assert dataset.classes is not None
    assert dataset.classes.sentences("dog") == ("a dog.", "the dog")


def test_the_least_that_is_needed(tmp_path: Path) -> None:
    write_table(tmp_path / "captions.csv", ("caption",), [("one",), ("two",)])
    dataset = open_dataset(tmp_path)
    assert [row.caption_id for row in dataset.captions] == ["#0", "#1"]
    assert dataset.images == ()
    assert dataset.classes is None


def test_captions_are_numbered_within_their_image(tmp_path: Path) -> None:
    write_table(tmp_path / "images.csv", ("image_id", "file"), [("a", "a.png"), ("b", "b.png")])
    write_table(tmp_path / "captions.csv", ("image_id", "caption"), [("a", "x"), ("b", "y"), ("a", "z"), ("", "w")])
    assert [row.caption_id for row in open_dataset(tmp_path).captions] == ["a#0", "b#0", "a#1", "#0"]


def images(tmp_path: Path, *rows: tuple[str, ...], header: tuple[str, ...] = ("image_id", "file")) -> Path:
    write_table(tmp_path / "images.csv", header, rows)
    return tmp_path


def test_a_missing_column_lists_what_was_found(tmp_path: Path) -> None:
    root = images(tmp_path, ("a", "b"), header=("image_id", "path"))
    with pytest.raises(UserError, match=r"image_id, file, found image_id, path \(missing: file\)"):
        open_dataset(root)


@pytest.mark.parametrize("file", ["../secret.png", "images/../../x.png", "/etc/passwd", "C:\\x.png", "..\\x.png", ""])
def test_a_path_that_leaves_the_folder_is_refused(tmp_path: Path, file: str) -> None:
    with pytest.raises(UserError, match=r"images.csv, line 2: expected a path inside"):
        open_dataset(images(tmp_path, ("a", file)))


@pytest.mark.parametrize("level", ["file", "folder"])
def test_a_link_that_leaves_the_folder_is_refused(tmp_path: Path, level: str) -> None:
    outside, root = tmp_path / "outside", tmp_path / "set"
    outside.mkdir()
    root.mkdir()
    (outside / "x.png").write_bytes(b"secret")
    (root / "images").symlink_to(outside) if level == "folder" else (root / "images").mkdir()
    if level == "file":
        (root / "images" / "x.png").symlink_to(outside / "x.png")
    with pytest.raises(UserError, match="link that leaves the folder"):
        open_dataset(images(root, ("a", "images/x.png")))


def test_a_link_inside_the_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(b"x")
    (tmp_path / "link.png").symlink_to(tmp_path / "real.png")
    assert len(open_dataset(images(tmp_path, ("a", "link.png"))).images) == 1


def test_repeated_ids_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="every image_id once, found 'a' twice"):
        open_dataset(images(tmp_path, ("a", "x.png"), ("a", "y.png")))
    (tmp_path / "images.csv").unlink()
    write_table(tmp_path / "captions.csv", ("caption_id", "caption"), [("c", "x"), ("c", "y")])
    with pytest.raises(UserError, match="every caption_id once, found 'c' twice"):
        open_dataset(tmp_path)


def test_a_label_that_is_no_class_is_refused(tmp_path: Path) -> None:
    root = images(tmp_path, ("a", "x.png", "cow"), header=("image_id", "file", "label"))
    assert open_dataset(root).images[0].label == "cow"
    write_json(root / "classes.json", {"classes": ["cat"]})
    with pytest.raises(UserError, match=r"line 2: expected a class of classes.json \(cat\), found label 'cow'"):
        open_dataset(root)


def test_a_caption_of_an_unknown_image_is_refused(tmp_path: Path) -> None:
    images(tmp_path, ("a", "x.png"))
    write_table(tmp_path / "captions.csv", ("image_id", "caption"), [("b", "x")])
    with pytest.raises(
        UserError, match=r"captions.csv, line 2: expected an image_id of images.csv, or none, found 'b'"
    ):
        open_dataset(tmp_path)


def test_rows_of_another_length_are_refused(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("caption,image_id\nx,y,z\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"line 2: expected 2 fields \(caption, image_id\), found 3"):
        open_dataset(tmp_path)


def test_only_captions_may_be_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_bytes(b"caption\ncaf\xe9\n")
    assert open_dataset(tmp_path).captions[0].caption == "caf\udce9"
    (tmp_path / "images.csv").write_bytes(b"image_id,file\ncaf\xe9,x.png\n")
    with pytest.raises(UserError, match=r"images.csv, line 2: expected UTF-8"):
        open_dataset(tmp_path)


def test_no_data_set_says_what_is_there_instead(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"found none; make one with `pipeline data"):
        open_dataset(tmp_path / "none")
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"expected images.csv or captions.csv, found photo.jpg"):
        open_dataset(tmp_path)


def test_another_format_is_refused(tmp_path: Path) -> None:
    write_json(images(tmp_path, ("a", "x.png")) / "dataset.json", {"format": 2})
    with pytest.raises(UserError, match="expected format 1, found 2"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "classes: expected a list of texts"),
        ({"classes": ["a", "a"]}, "every class once, found 'a' twice"),
        ({"classes": ["a", " "]}, "none of them empty"),
        ({"classes": ["a"], "templates": ["a photo"]}, "templates with {c} or {}, found 'a photo'"),
        ({"classes": ["a"], "prompts": {"b": ["x"]}}, "prompts of classes"),
        ({"classes": ["a"], "prompts": {"a": []}}, "prompts.a: expected a list of texts"),
    ],
)
def test_wrong_classes_are_refused(tmp_path: Path, content: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_classes(write_json(tmp_path / "classes.json", content))


def test_a_class_may_have_prompts_of_its_own(tmp_path: Path) -> None:
    content = {"classes": ["a", "b"], "templates": ["{c}!"], "prompts": {"b": ["bee", "the letter"]}}
    classes = read_classes(write_json(tmp_path / "classes.json", content))
    assert classes.sentences("a") == ("a!",)
    assert classes.sentences("b") == ("bee", "the letter")


@pytest.mark.parametrize("content", ["[" * 100_000, '{"classes": ' + "1" * 5000 + "}", None])
def test_hostile_json_is_one_sentence(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    os.mkfifo(path) if content is None else path.write_text(content)
    with pytest.raises(UserError, match=r"classes.json: expected (a regular file|JSON that describes classes)"):
        read_classes(path)


def test_json_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(UserError, match="expected a JSON object that describes classes, found list"):
        read_classes(tmp_path / "classes.json")
    (tmp_path / "classes.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match="expected JSON that describes classes, found Expecting"):
        read_classes(tmp_path / "classes.json")

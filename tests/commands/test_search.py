"""`pipeline search`: by sentence and by picture, as a table, as JSON and as a sheet of pictures."""

from pathlib import Path

import pytest
from PIL import Image

from pipeline.files import dump_signed, read_signed
from tests.commands.project import IMAGE, IMAGES, RUN, TEXT
from tests.commands.running import done, refused


def test_a_sentence_finds_its_picture(project: Path) -> None:
    found = done("search", RUN, "a large red circle", "--top", 4, "--json").json()
    assert len(found) == 4
    assert set(found[0]) == {"image_id", "score", "file", "captions"}
    assert found[0]["image_id"] == "large_red_circle.png"
    assert found[0]["captions"] == ["a large red circle", "red circle"]
    assert [hit["score"] for hit in found] == sorted((hit["score"] for hit in found), reverse=True)
    shown = done("search", RUN, "a large red circle", "--top", 4).out.splitlines()
    assert len(shown) == 7
    assert found[0]["file"] in shown[2].split()
    assert shown[6] == "Files are relative to data/0_raw/shapes"


def test_a_picture_finds_pictures_and_captions(project: Path) -> None:
    shown = done("search", RUN, "--picture", "large_blue_bar.png", "--top", 2).out
    images, captions = shown.split("\n\n")
    assert "large_blue_bar.png" in images.splitlines()[2]
    assert "blue bar" in captions


def test_the_older_name_of_a_picture_works_and_says_so(project: Path) -> None:
    words = ("search", RUN, "--image", "large_blue_bar.png", "--top", 2, "--json")
    older = done(*words)
    assert older.err == "--image is now called --picture: the older name works in this release and not in the next\n"
    assert older.out == done(*(word if word != "--image" else "--picture" for word in words)).out
    said = refused(*words, "--picture", "large_blue_bar.png")
    assert "--image: expected --picture, which is what --image is called now, found both" in said


def test_captions_in_place_of_images(project: Path) -> None:
    by_picture = done("search", RUN, "--picture", "large_blue_bar.png", "--top", 1, "--captions", "--json").json()
    assert set(by_picture[0]) == {"caption_id", "score", "caption", "image_id"}
    assert by_picture[0]["caption"] == "a large blue bar"
    by_text = done("search", RUN, "a large red circle", "--top", 1, "--captions").out.splitlines()
    assert len(by_text) == 3
    assert "a large red circle" in by_text[2]


def test_a_run_is_used_from_anywhere(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = done("search", project / RUN, "a large red circle", "--top", 1, "--show", tmp_path / "x.png").out
    assert "large_red_circle.png" in found
    assert (tmp_path / "x.png").is_file()


def test_only_one_split_and_all_there_is(project: Path) -> None:
    assert len(done("search", RUN, "red", "--split", "test", "--top", 1000, "--json").json()) == 9
    assert len(done("search", RUN, "red", "--top", 1000, "--json").json()) == IMAGES


def test_show_writes_the_pictures(project: Path, tmp_path: Path) -> None:
    result = done("search", RUN, "red", "--top", 3, "--show", tmp_path / "new" / "sheet.png", "--json")
    assert len(result.json()) == 3
    with Image.open(tmp_path / "new/sheet.png") as sheet:
        assert sheet.width > 3 * 200


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], 'expected a sentence or --picture FILE, such as pipeline search RUN "a red heart", found neither'),
        (["red", "--picture", "large_red_bar.png"], "found both"),
        (["", "--picture", "large_red_bar.png"], "found both"),
        ([""], "expected a text to search for, found an empty one"),
        ([" \t"], "expected a text to search for, found an empty one"),
        (["red", "--top", "0"], "--top: expected 1 or more, found 0"),
        (["red", "--top", "-1"], "--top: expected 1 or more, found -1"),
        (["red", "--split", "later"], "expected images in split later, found none; its splits are test, train, val"),
        (["red", "--seed", "9"], f"{RUN}: expected one of the seeds 1, found 9"),
        (["--picture", "nowhere.png"], "nowhere.png: expected a picture, found the file cannot be read: No such file"),
        (["--picture", "params.yaml"], "params.yaml: expected a picture, found not an image of a known format"),
        (["--picture", "data"], "data: expected a picture, found the file cannot be read: Is a directory"),
        (["red", "--store", "nowhere"], "nowhere: expected a feature store's folder, found no such folder"),
        (["red", "--store", TEXT], "found a store of text features; give the store of the images with --store"),
        (["red", "--text-store", IMAGE], "found a store of image features; give the store of the captions with"),
        (["red", "--device", "tpu"], "--device: expected a device such as cpu, cuda or cuda:1, found 'tpu'"),
        (["red", "--show", "data"], "--show data: expected a file to write, found a folder"),
        (["red", "--show", "params.yaml/x.png"], "expected a folder to write into, found the file params.yaml"),
    ],
)
def test_what_is_refused(project: Path, words: list[str], message: str) -> None:
    assert message in refused("search", RUN, *words)


@pytest.mark.parametrize("run", ["nowhere", IMAGE, "params.yaml"])
def test_no_run(project: Path, run: str) -> None:
    assert f"{run}: expected a finished run's folder, found " in refused("search", run, "red")


def test_a_store_that_moved_is_asked_for(own: Path) -> None:
    (own / IMAGE).rename(own / "moved")
    sentence = refused("search", RUN, "red")
    assert f"{IMAGE}: expected the image store that the run was trained on, found no such folder; say where" in sentence
    assert "--store" in sentence
    assert done("search", RUN, "red", "--store", "moved", "--top", 1).out


@pytest.mark.parametrize("command", [["search", RUN, "a red bar"], ["search", RUN, "--picture", "large_blue_bar.png"]])
def test_a_run_that_names_code_runs_none(own: Path, command: list[str]) -> None:
    path, module = own / RUN / "run.json", f"sent_by_a_stranger_{len(command)}"
    record = read_signed(path, "a run")
    for stores in record["stores"].values():
        stores[0]["spec"] = f"{module}:Encoder"
    path.write_bytes(dump_signed(record))
    (own / f"{module}.py").write_text("import pathlib\npathlib.Path('it_ran').touch()\n")
    sentence = refused(*command)
    assert f"found '{module}:Encoder', whose code would run because a file says so" in sentence
    assert f"--trust-module {module}" in sentence
    assert not (own / "it_ran").exists()
    assert "expected a known encoder class" in refused(*command, "--trust-module", module)
    assert (own / "it_ran").exists()

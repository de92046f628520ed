"""`pipeline data import`: a table becomes a raw data set; what cannot be one is refused in a sentence."""

import csv
import json
from pathlib import Path

import pytest

from tests.commands.project import DATA, IMAGES, SHAPES, snapshot, write_table
from tests.commands.running import done, pipeline, refused

READ = 'table: captions from column "caption", 2 a picture; labels from column "label"; splits from column "split"'


def test_import_tells_what_it_made(own: Path) -> None:
    result = done("data", "import", "shapes.csv", "--out", "data/0_raw/again", "--licence", "CC0", "--json")
    expected = {"path": "data/0_raw/again", "images": IMAGES, "captions": 2 * IMAGES, "classes": len(SHAPES)}
    assert result.json() == {**expected, "skipped": 0, "alone": 0, "read": READ}
    assert json.loads((own / "data/0_raw/again/dataset.json").read_text())["licence"] == "CC0"
    shown = done("data", "import", "shapes.csv", "--out", "data/0_raw/again", "--replace", "--quiet")
    assert shown.out == f"data/0_raw/again: {IMAGES} images, {2 * IMAGES} captions, {len(SHAPES)} classes\n"
    assert shown.err == f"{READ}\n"


def test_broken_rows_are_listed_and_left_out(own: Path) -> None:
    rows = [("large_red_bar.png", "a bar"), ("missing.png", "nothing"), ("small_red_bar.png", " ")]
    write_table(own / "some.csv", ("filepath", "caption"), rows)
    result = done("data", "import", "some.csv", "--out", "x/some", "--quiet")
    assert result.out == "x/some: 2 images, 1 caption, 0 classes; 2 left out, see x/some/skipped.csv\n"
    with (own / "x/some/skipped.csv").open(newline="", encoding="utf-8") as file:
        reasons = {row["id"]: row["reason"] for row in csv.DictReader(file)}
    assert len(reasons) == 2
    assert any("cannot be read" in reason for reason in reasons.values())
    assert any("empty" in reason for reason in reasons.values())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.csv"], "found nothing; name the kind with --kind"),
        (["params.yaml"], "found something else; name the kind with --kind"),
        (["shapes.csv", "--kind", "shapes"], "expected a known kind of source (huggingface,"),
        (["shapes.csv", "--kind", "karpathy"], "shapes.csv: expected JSON that describes images and sentences"),
        (["shapes.csv", "--filepath", "photo"], "expected a column 'photo', found filepath, caption, label, split"),
        (["shapes.csv", "--caption", "text"], "expected a column 'text', found filepath, caption, label, split"),
        (["shapes.csv", "--shares", "a/b"], "--shares: expected three shares such as 0.8/0.1/0.1, found 'a/b'"),
        (["shapes.csv", "--split", "1/2/3"], "sum to 1, found 1/2/3"),
        (["shapes.csv", "--out", DATA], "found the data set 'shapes'; say --replace to make it again"),
        (["shapes.csv", "--out", "data", "--replace"], "found a folder that holds something else; choose another"),
        (["shapes.csv", "--out", ".", "--replace"], "found a folder that holds something else; choose another"),
        (["shapes.csv", "--out", "params.yaml"], "params.yaml: expected a folder that does not exist yet"),
        (["shapes.csv", "--out", "params.yaml/x"], "params.yaml: expected a file or folder that can be used"),
    ],
)
def test_what_is_refused(project: Path, words: list[str], message: str) -> None:
    out = [] if "--out" in words else ["--out", "x/raw"]
    assert message in refused("data", "import", *words, *out)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("s.csv", b"", "expected a column 'caption', found none"),
        ("s.csv", b"a,b\n1,2\n", "expected a column 'caption', found a, b; name the column with --caption"),
        ("s.csv", b"filepath,caption\n", "expected at least one image or caption, found none"),
        ("s.csv", b"filepath,caption\ngone.png,x\n", "1 left out, the first because: the image cannot be read"),
        ("s.csv", b"filepath,caption\n../s.png,x\n", "s.csv, line 2: expected a path inside"),
        ("s.jsonl", b'{"filepath": 3}\n[]\n', "s.jsonl, line 2: expected a JSON object a line, found list"),
        ("s.jsonl", b"[" * 100_000, "s.jsonl, line 1: expected a JSON object a line, found maximum recursion depth"),
        ("s.tar", b"x" * 1024, "s.tar: expected a tar file, found invalid header"),
        ("s.parquet", b"PAR1xx", "s.parquet: expected a Parquet file, found Parquet file size is 6 bytes"),
        ("s.json", b"{}", "found something else; name the kind with --kind"),
    ],
)
def test_sources_that_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(content)
    assert message in refused("data", "import", name, "--out", "x/raw", "--quiet")
    assert not list(tmp_path.rglob("*raw*"))


def test_a_broken_parquet_of_images_is_refused_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.parquet").write_bytes(b"PAR1xx")
    words = ("--kind", "image-parquet", "--out", "raw")
    assert "s.parquet: expected a Parquet file" in refused("data", "import", "s.parquet", *words)
    assert "gone.parquet: expected a Parquet file" in refused("data", "import", "gone.parquet", *words)


def test_interrupted_it_leaves_the_old_one_as_it_was(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.extract.datasets import writing

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = snapshot(own)
    monkeypatch.setattr(writing, "_write_info", interrupt)
    result = pipeline("data", "import", "shapes.csv", "--out", DATA, "--replace", "--quiet")
    assert (result.code, result.out) == (130, "")
    assert result.err.startswith(f"{READ}\nInterrupted: ")
    assert result.err.count("\n") == 2
    assert snapshot(own) == before


def test_without_out_there_is_only_looking(own: Path) -> None:
    before = snapshot(own)
    assert "expected --out FOLDER, found none" in refused("data", "import", "shapes.csv")
    shown = done("data", "import", "shapes.csv", "--dry-run", "--quiet").out.splitlines()
    assert shown[0] == f"read: {READ}"
    assert shown[1] == f"{IMAGES} images, {2 * IMAGES} captions ({IMAGES} with 2)"
    assert snapshot(own) == before


def test_a_dry_run_says_what_would_be_left_out_and_why(own: Path) -> None:
    rows = [
        ("large_red_bar.png", "a bar"),
        ("missing.png", "nothing"),
        ("gone.png", "more"),
        ("small_red_bar.png", " "),
    ]
    write_table(own / "some.csv", ("filepath", "caption"), rows)
    told = done("data", "import", "some.csv", "--dry-run", "--quiet", "--json").json()
    assert (told["images"], told["captions"], told["left_out"]) == (2, 1, 3)
    counts = {reason: about["count"] for reason, about in told["reasons"].items()}
    assert counts == {"the image cannot be read": 2, "the caption is empty": 1}
    assert told["reasons"]["the image cannot be read"]["first"] == "missing.png"
    assert [row["captions"] for row in told["rows"]] == [["a bar"], []]

"""Every form in which people bring pictures with captions or labels: all of it is read, or one sentence says why not.

Each picture has a colour of its own, so that a test knows it again whatever the importer calls it.
"""

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.commands.running import done

COLOURS = {"dog": (200, 20, 20), "cat": (20, 200, 20), "owl": (20, 20, 200)}
CAPTIONS = {"dog": ["a dog runs", "a red dog"], "cat": ["a cat, asleep"], "owl": ["an owl", 'an "owl" looks']}
ROWS = [(name, caption) for name, captions in CAPTIONS.items() for caption in captions]


@dataclass(frozen=True)
class Read:
    """What an import made: colour name → captions in order, label, split; and what the command said."""

    captions: dict[str, list[str]]
    labels: dict[str, str]
    splits: dict[str, str]
    classes: dict[str, Any]
    skipped: list[dict[str, str]]
    said: str


def picture(name: str, form: str = "PNG") -> bytes:
    """Return a picture of its colour."""
    stream = io.BytesIO()
    Image.new("RGB", (12, 10), COLOURS[name]).save(stream, form)
    return stream.getvalue()


def put(folder: Path, name: str, path: str = "") -> str:
    """Write a picture into a folder and return its path there."""
    target = folder / (path or f"{name}.png")
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(picture(name))
    return path or f"{name}.png"


def pictures(folder: Path, inner: str = "") -> dict[str, str]:
    """Write all pictures into a folder; return name → path below `folder`."""
    return {name: put(folder, name, f"{inner}{name}.png") for name in COLOURS}


def name_of(path: Path) -> str:
    """Return whose picture it is, by its colour."""
    with Image.open(path) as image:
        found = image.convert("RGB").getpixel((5, 5))
    assert isinstance(found, tuple)
    return min(COLOURS, key=lambda name: sum(abs(a - b) for a, b in zip(COLOURS[name], found, strict=True)))


def table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file of the layout; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def imported(source: object, out: Path, *words: object) -> Read:
    """Import a source and read what was made."""
    result = done("data", "import", source, "--out", out, "--quiet", *words)
    images = {row["image_id"]: row for row in table(out / "images.csv")}
    names = {image: name_of(out / row["file"]) for image, row in images.items()}
    captions: dict[str, list[str]] = {}
    for row in table(out / "captions.csv"):
        captions.setdefault(names.get(row["image_id"], ""), []).append(row["caption"])
    classes = out / "classes.json"
    return Read(
        captions=captions,
        labels={names[image]: row.get("label", "") for image, row in images.items()},
        splits={names[image]: row.get("split", "") for image, row in images.items()},
        classes=json.loads(classes.read_text()) if classes.is_file() else {},
        skipped=table(out / "skipped.csv"),
        said=result.out + result.err,
    )


def lines(rows: Iterable[Iterable[str]], delimiter: str = ",", header: str = "filepath,caption") -> str:
    """Return rows as a table with a header."""
    stream = io.StringIO()
    writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
    writer.writerow(header.split(","))
    writer.writerows(rows)
    return stream.getvalue()


def rows(files: dict[str, str]) -> list[tuple[str, str]]:
    """Return (path, caption) of every caption."""
    return [(files[name], caption) for name, caption in ROWS]


# ---- tables of all spellings -----------------------------------------------------------------------------------------


def encoded(encoding: str) -> Callable[[Path], Path]:
    """Return what writes a CSV in another encoding."""

    def write(folder: Path) -> Path:
        path = folder / "photos.csv"
        path.write_text(lines(rows(pictures(folder))), encoding=encoding)
        return path

    return write


def headed(header: str) -> Callable[[Path], Path]:
    """Return what writes a CSV with other names of its two columns."""

    def write(folder: Path) -> Path:
        path = folder / "photos.csv"
        path.write_text(lines(rows(pictures(folder)), header=header), encoding="utf-8")
        return path

    return write


def numbered(folder: Path) -> Path:
    """Write a CSV with a column for each caption of a picture, some of them empty."""
    files = pictures(folder)
    wide = [(files[name], *captions, *[""] * (5 - len(captions))) for name, captions in CAPTIONS.items()]
    header = "file_name," + ",".join(f"caption_{number}" for number in range(5))
    path = folder / "photos.csv"
    path.write_text(lines(wide, header=header), encoding="utf-8")
    return path


def listed(column: str, wrap: Callable[[str], Any]) -> Callable[[Path], Path]:
    """Return what writes JSON lines with a list of captions a picture."""

    def write(folder: Path) -> Path:
        files = pictures(folder)
        path = folder / "photos.jsonl"
        path.write_text(
            "".join(
                json.dumps({"file_name": files[name], column: [wrap(text) for text in captions]}) + "\n"
                for name, captions in CAPTIONS.items()
            )
        )
        return path

    return write


def parquet_list(folder: Path) -> Path:
    """Write a Parquet table of paths and lists of structs."""
    files = pictures(folder)
    path = folder / "photos.parquet"
    captions = [[{"raw": text, "tokens": text.split()} for text in CAPTIONS[name]] for name in files]
    pq.write_table(pa.table({"image_path": list(files.values()), "sentences": captions}), path)
    return path


CAPTIONED: dict[str, Callable[[Path], Path]] = {
    "UTF-8 with a mark": encoded("utf-8-sig"),
    "columns image, text": headed("image,text"),
    "columns file_name, text": headed("file_name,text"),
    "columns image_path, title": headed("image_path,title"),
    "columns Image, Caption": headed("Image,Caption"),
    "columns filename, sentence": headed("filename,sentence"),
    "a column a caption": numbered,
    "a list of captions": listed("captions", str),
    "a list of sentences": listed("sentences", str),
    'a list of {"raw"}': listed("sentences", lambda text: {"raw": text, "sentid": 3}),
    'a list of {"caption"}': listed("captions", lambda text: {"caption": text}),
    "Parquet with structs": parquet_list,
}


@pytest.mark.parametrize("form", CAPTIONED)
def test_all_captions_are_read(form: str, tmp_path: Path) -> None:
    source = tmp_path / "brought"
    source.mkdir()
    found = imported(CAPTIONED[form](source), tmp_path / "out")
    assert found.captions == CAPTIONS
    assert not found.skipped


# ---- quotes, missing values, the same picture twice ------------------------------------------------------------------


def test_missing_captions_are_listed(tmp_path: Path) -> None:
    files = list(pictures(tmp_path).values())
    frame = pa.table({"filepath": files, "caption": pa.array(["a dog", None, "an\u2028owl"])})
    pq.write_table(frame, tmp_path / "photos.parquet")
    found = imported(tmp_path / "photos.parquet", tmp_path / "out")
    assert found.captions == {"dog": ["a dog"], "owl": ["an\u2028owl"]}
    (skipped,) = found.skipped
    assert "caption" in skipped["reason"]


def test_nan_is_no_caption(tmp_path: Path) -> None:
    files = pictures(tmp_path)
    text = "".join(
        f'{{"filepath": "{files[name]}", "caption": {caption}}}\n'
        for name, caption in (("dog", '"a dog"'), ("cat", "NaN"), ("owl", "null"))
    )
    (tmp_path / "photos.jsonl").write_text(text)
    found = imported(tmp_path / "photos.jsonl", tmp_path / "out")
    assert found.captions == {"dog": ["a dog"]}
    assert len(found.skipped) == 2


def test_a_separator_of_lines_is_a_letter_of_its_caption(tmp_path: Path) -> None:
    pictures(tmp_path)
    (tmp_path / "dog.txt").write_text("a\u2028dog\nrunning\x0cfast\n", encoding="utf-8")
    (tmp_path / "cat.txt").write_text("a cat\n")
    found = imported(tmp_path, tmp_path / "out")
    assert found.captions["dog"] == ["a\u2028dog", "running\x0cfast"]


@pytest.mark.parametrize("column", ["label", "split"])
def test_rows_that_contradict_each_other_are_told(column: str, tmp_path: Path) -> None:
    files = pictures(tmp_path)
    table = [(files["dog"], "one", "train"), (files["dog"], "two", "test"), (files["cat"], "three", "train")]
    (tmp_path / "photos.csv").write_text(lines(table, header=f"filepath,caption,{column}"))
    found = imported(tmp_path / "photos.csv", tmp_path / "out")
    kept = found.labels if column == "label" else found.splits
    assert kept["dog"] == "train"
    assert found.captions["dog"] == ["one", "two"]
    assert any("test" in row["reason"] and "train" in row["reason"] for row in found.skipped)


def test_nullable_numbers_are_labels_without_a_point(tmp_path: Path) -> None:
    files = list(pictures(tmp_path).values())
    pq.write_table(pa.table({"filepath": files, "label": pa.array([1.0, None, 0.0])}), tmp_path / "photos.parquet")
    found = imported(tmp_path / "photos.parquet", tmp_path / "out")
    assert found.labels == {"dog": "1", "cat": "", "owl": "0"}


def test_integer_ids_and_missing_ids(tmp_path: Path) -> None:
    put(tmp_path, "dog", "7.png")
    put(tmp_path, "cat", "8.png")
    frame = pa.table({"image_id": pa.array([7, 8, None]), "caption": ["a dog", "a cat", "nothing"]})
    pq.write_table(frame, tmp_path / "photos.parquet")
    found = imported(tmp_path / "photos.parquet", tmp_path / "out")
    assert {name: captions for name, captions in found.captions.items() if name} == {"dog": ["a dog"], "cat": ["a cat"]}

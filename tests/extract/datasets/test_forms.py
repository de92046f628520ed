"""Every form in which people bring pictures with captions or labels: all of it is read, or one sentence says why not.

Each picture has a colour of its own, so that a test knows it again whatever the importer calls it.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.extract.datasets.tables import READERS
from tests.commands.running import done, refused
from tests.documented import ROOT

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


def spreadsheet(folder: Path) -> Path:
    """Write a CSV as a European spreadsheet does: semicolons, a byte order mark, CRLF."""
    path = folder / "photos.csv"
    path.write_bytes(b"\xef\xbb\xbf" + lines(rows(pictures(folder)), ";").replace("\n", "\r\n").encode())
    return path


def separated(delimiter: str) -> Callable[[Path], Path]:
    """Return what writes a `.csv` with another separator."""

    def write(folder: Path) -> Path:
        path = folder / "photos.csv"
        path.write_text(lines(rows(pictures(folder)), delimiter), encoding="utf-8")
        return path

    return write


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


def back_slashes(folder: Path) -> Path:
    """Write a CSV with Windows' paths."""
    files = {name: path.replace("/", "\\") for name, path in pictures(folder, "photos/day 1/").items()}
    path = folder / "photos.csv"
    path.write_text(lines(rows(files)), encoding="utf-8")
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


def json_list(folder: Path) -> Path:
    """Write one JSON list in place of lines."""
    files = pictures(folder)
    path = folder / "photos.json"
    path.write_text(json.dumps([{"image": files[name], "caption": caption} for name, caption in ROWS]))
    return path


def parquet_list(folder: Path) -> Path:
    """Write a Parquet table of paths and lists of structs."""
    files = pictures(folder)
    path = folder / "photos.parquet"
    captions = [[{"raw": text, "tokens": text.split()} for text in CAPTIONS[name]] for name in files]
    pq.write_table(pa.table({"image_path": list(files.values()), "sentences": captions}), path)
    return path


def without_header(folder: Path) -> Path:
    """Write a TSV of caption and path without a header."""
    files = pictures(folder)
    path = folder / "photos.tsv"
    path.write_text("".join(f"{caption}\t{files[name]}\n" for name, caption in ROWS))
    return path


def tokens(name: str, inner: str) -> Callable[[Path], Path]:
    """Return what writes Flickr's `name.jpg#0<TAB>caption` beside a folder of pictures."""

    def write(folder: Path) -> Path:
        pictures(folder, inner)
        text = "".join(
            f"{name}.png#{number}\t{caption}\n"
            for name, captions in CAPTIONS.items()
            for number, caption in enumerate(captions)
        )
        (folder / name).write_text(text)
        return folder / name

    return write


def captions_txt(folder: Path) -> Path:
    """Write Kaggle's Flickr8k: `captions.txt` beside `Images/`."""
    pictures(folder, "Images/")
    (folder / "captions.txt").write_text(lines(rows({name: f"{name}.png" for name in COLOURS}), header="image,caption"))
    return folder


def coco(folder: Path) -> Path:
    """Write COCO's root: annotations/captions_val2017.json and val2017/."""
    names = list(COLOURS)
    for number, name in enumerate(names):
        put(folder, name, f"val2017/{number:012d}.png")
    images = [{"id": 10 + i, "file_name": f"{i:012d}.png", "height": 10, "width": 12} for i in range(len(names))]
    notes = [
        {"id": place, "image_id": 10 + names.index(name), "caption": caption}
        for place, (name, caption) in enumerate(ROWS)
    ]
    (folder / "annotations").mkdir()
    path = folder / "annotations" / "captions_val2017.json"
    path.write_text(json.dumps({"info": {}, "licenses": [], "images": images, "annotations": notes}))
    (folder / "annotations" / "instances_val2017.json").write_text(json.dumps({"images": images, "categories": []}))
    return folder


def coco_file(folder: Path) -> Path:
    """Return COCO's annotation file itself."""
    return coco(folder) / "annotations" / "captions_val2017.json"


CAPTIONED: dict[str, Callable[[Path], Path]] = {
    "a European spreadsheet": spreadsheet,
    "tabs in a .csv": separated("\t"),
    "bars in a .csv": separated("|"),
    "UTF-16": encoded("utf-16"),
    "UTF-8 with a mark": encoded("utf-8-sig"),
    "columns image, text": headed("image,text"),
    "columns file_name, text": headed("file_name,text"),
    "columns image_path, title": headed("image_path,title"),
    "columns Image, Caption": headed("Image,Caption"),
    "columns filename, sentence": headed("filename,sentence"),
    "a column a caption": numbered,
    "back slashes": back_slashes,
    "a list of captions": listed("captions", str),
    "a list of sentences": listed("sentences", str),
    'a list of {"raw"}': listed("sentences", lambda text: {"raw": text, "sentid": 3}),
    'a list of {"caption"}': listed("captions", lambda text: {"caption": text}),
    "one JSON list": json_list,
    "Parquet with structs": parquet_list,
    "no header": without_header,
    "Flickr8k.token.txt": tokens("Flickr8k.token.txt", "Images/"),
    "results.token": tokens("results.token", "flickr30k_images/"),
    "captions.txt and Images": captions_txt,
    "the COCO root": coco,
    "COCO's file": coco_file,
}


@pytest.mark.parametrize("form", CAPTIONED)
def test_all_captions_are_read(form: str, tmp_path: Path) -> None:
    source = tmp_path / "brought"
    source.mkdir()
    found = imported(CAPTIONED[form](source), tmp_path / "out")
    assert found.captions == CAPTIONS
    assert not found.skipped


@pytest.mark.parametrize("form", CAPTIONED)
def test_a_dry_run_makes_nothing_and_says_the_same(form: str, tmp_path: Path) -> None:
    source = tmp_path / "brought"
    source.mkdir()
    words = ("data", "import", CAPTIONED[form](source), "--out", tmp_path / "out", "--dry-run")
    told = done(*words, "--json").json()
    assert (told["images"], told["captions"]) == (len(COLOURS), len(ROWS))
    assert told["kind"]
    assert told["columns"] is not None
    assert "dog" in json.dumps(told["rows"])
    assert not (tmp_path / "out").exists()


def test_what_was_read_is_said(tmp_path: Path) -> None:
    found = imported(headed("image,text")(tmp_path), tmp_path / "out")
    assert 'captions from column "text"' in found.said
    found = imported(spreadsheet(tmp_path), tmp_path / "other")
    assert "';'" in found.said


def test_text_that_is_no_caption_is_refused_by_name(tmp_path: Path) -> None:
    source = headed("filepath,remark")(tmp_path)
    sentence = refused("data", "import", source, "--out", tmp_path / "out", "--quiet")
    assert "remark" in sentence
    assert "--caption" in sentence
    assert not (tmp_path / "out").exists()
    found = imported(source, tmp_path / "out", "--caption", "remark")
    assert found.captions == CAPTIONS


def test_a_missing_picture_names_the_path_that_was_tried(tmp_path: Path) -> None:
    files = pictures(tmp_path)
    (tmp_path / "photos.csv").write_text(lines([*rows(files), ("far/away.png", "gone")]))
    found = imported(tmp_path / "photos.csv", tmp_path / "out")
    assert found.captions == CAPTIONS
    (skipped,) = found.skipped
    assert "far/away.png" in skipped["id"] + skipped["reason"]
    assert "no such file" in skipped["reason"]


# ---- quotes, missing values, the same picture twice ------------------------------------------------------------------


def test_a_lone_quote_in_a_tsv_is_a_letter(tmp_path: Path) -> None:
    files = pictures(tmp_path)
    text = f'filepath\tcaption\n{files["dog"]}\t"a dog\n{files["cat"]}\ta 6" cat\n{files["owl"]}\tan owl\n'
    (tmp_path / "photos.tsv").write_text(text)
    found = imported(tmp_path / "photos.tsv", tmp_path / "out")
    assert found.captions == {"dog": ['"a dog'], "cat": ['a 6" cat'], "owl": ["an owl"]}


def test_an_unclosed_quote_in_a_csv_is_refused_with_its_line(tmp_path: Path) -> None:
    files = pictures(tmp_path)
    text = f'filepath,caption\n{files["dog"]},a dog\n{files["cat"]},"a cat\n{files["owl"]},an owl\n'
    (tmp_path / "photos.csv").write_text(text)
    sentence = refused("data", "import", tmp_path / "photos.csv", "--out", tmp_path / "out", "--quiet")
    assert "line 3" in sentence
    assert "quote" in sentence


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


def test_forms_of_unicode_and_upper_case_endings(tmp_path: Path) -> None:
    put(tmp_path, "dog", "cafe\u0301.PNG")  # decomposed on the disk
    put(tmp_path, "cat", "CAT.Png")
    (tmp_path / "photos.csv").write_text(lines([("caf\u00e9.PNG", "a dog"), ("CAT.Png", "a cat")]), encoding="utf-8")
    found = imported(tmp_path / "photos.csv", tmp_path / "out")
    assert found.captions == {"dog": ["a dog"], "cat": ["a cat"]}


# ---- folders of splits, the hub's Parquet ----------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_imagefolder_with_metadata(ending: str, tmp_path: Path) -> None:
    source = tmp_path / "brought"
    for split, name in (("train", "dog"), ("train", "cat"), ("test", "owl")):
        put(source, name, f"{split}/{name}.png")
    for split, names in (("train", ["dog", "cat"]), ("test", ["owl"])):
        meta = [{"file_name": f"{name}.png", "text": caption} for name in names for caption in CAPTIONS[name][:1]]
        path = source / split / f"metadata.{ending}"
        if ending == "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in meta))
        elif ending == "csv":
            path.write_text(lines([tuple(row.values()) for row in meta], header="file_name,text"))
        else:
            pq.write_table(pa.Table.from_pylist(meta), path)
    found = imported(source, tmp_path / "out")
    assert found.captions == {name: captions[:1] for name, captions in CAPTIONS.items()}
    assert found.splits == {"dog": "train", "cat": "train", "owl": "test"}


# ---- found out and said, or refused in one sentence ------------------------------------------------------------------

WESTERN = {"dog": ["un chien très gai"], "cat": ["eine Katze schläft – müde"], "owl": ["una lechuza pequeña"]}


def western(folder: Path, encoding: str) -> Path:
    files = pictures(folder)
    path = folder / "photos.csv"
    path.write_bytes(lines([(files[name], text) for name, (text,) in WESTERN.items()]).encode(encoding))
    return path


def test_western_letters_are_read_and_said(tmp_path: Path) -> None:
    found = imported(western(tmp_path, "cp1252"), tmp_path / "out")
    assert found.captions == WESTERN
    assert "letters in cp1252" in found.said


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1250", "pies biegnie przez łąkę"),
        ("cp1251", "собака бежит по траве"),
        ("gb18030", "一只狗在草地上奔跑"),
        ("shift_jis", "犬が草の上を走っている"),
        ("mac_roman", "un café très serré"),
    ],
)
def test_letters_of_other_encodings_are_asked_for(encoding: str, text: str, tmp_path: Path) -> None:
    files = pictures(tmp_path)
    (tmp_path / "photos.csv").write_bytes(lines([(files["dog"], text)]).encode(encoding))
    words = ("data", "import", tmp_path / "photos.csv", "--out", tmp_path / "out", "--quiet")
    assert "--encoding" in refused(*words)
    assert imported(tmp_path / "photos.csv", tmp_path / "out", "--encoding", encoding).captions == {"dog": [text]}


@pytest.mark.parametrize("encoding", ["rot13", "klingon", "ascii"])
def test_an_encoding_that_is_none_or_does_not_fit(encoding: str, tmp_path: Path) -> None:
    source = western(tmp_path, "utf-8")
    words = ("data", "import", source, "--out", tmp_path / "out", "--quiet", "--encoding", encoding)
    assert "encoding" in refused(*words)


def test_other_texts_that_are_no_captions_can_be_left_aside(tmp_path: Path) -> None:
    source = headed("filepath,photographed by")(tmp_path)
    told = done("data", "import", source, "--dry-run", "--caption", "none", "--json").json()
    assert (told["images"], told["captions"]) == (3, 0)
    assert told["columns"]["unread"] == ["photographed by"]


def test_empty_captions_beside_other_texts_are_refused_by_name(tmp_path: Path) -> None:
    files = pictures(tmp_path)
    wide = [(files[name], "", caption) for name, caption in ROWS]
    (tmp_path / "photos.csv").write_text(lines(wide, header="filepath,caption,remark"))
    sentence = refused("data", "import", tmp_path / "photos.csv", "--out", tmp_path / "out", "--quiet")
    assert "sentences in the columns remark" in sentence


def test_columns_beside_the_captions_are_named(tmp_path: Path) -> None:
    files = pictures(tmp_path)
    wide = [(files[name], caption, caption.upper(), "x") for name, caption in ROWS]
    (tmp_path / "photos.csv").write_text(lines(wide, header="filepath,caption,caption,mood"))
    found = imported(tmp_path / "photos.csv", tmp_path / "out")
    assert found.captions == {name: [t for c in some for t in (c, c.upper())] for name, some in CAPTIONS.items()}
    assert "not read: mood" in found.said


def test_bars_with_spaces_and_a_number(tmp_path: Path) -> None:
    """Flickr30k's `results.csv`."""
    pictures(tmp_path, "flickr30k_images/")
    rows_ = [f"{name}.png| {number}| {text}" for number, (name, text) in enumerate(ROWS)]
    (tmp_path / "results.csv").write_text("\n".join(["image_name| comment_number| comment", *rows_]))
    found = imported(tmp_path, tmp_path / "out")
    assert found.captions == CAPTIONS
    assert "not read: comment_number" in found.said


def test_lines_in_quotes_stay_together_in_a_tsv(tmp_path: Path) -> None:
    files = pictures(tmp_path)
    text = f'filepath\tcaption\n{files["dog"]}\t"a dog\nruns"\n{files["cat"]}\t"a ""cat"""\n'
    (tmp_path / "photos.tsv").write_text(text)
    found = imported(tmp_path / "photos.tsv", tmp_path / "out")
    assert found.captions["dog"] == ["a dog\nruns"]
    assert found.captions["cat"] == ['a "cat"']


def test_json_lines_in_utf_16(tmp_path: Path) -> None:
    files = pictures(tmp_path)
    text = "".join(json.dumps({"file_name": files[name], "text": caption}) + "\n" for name, caption in ROWS)
    (tmp_path / "photos.jsonl").write_text(text, encoding="utf-16")
    assert imported(tmp_path / "photos.jsonl", tmp_path / "out").captions == CAPTIONS


@pytest.mark.parametrize(
    ("value", "expected"),
    [('{"tokens": ["a"], "words": ["b"]}', "found the fields tokens, words"), ('[["a dog"]]', "found a list")],
)
def test_structures_without_a_text_are_refused(value: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text(f'{{"image": "{put(tmp_path, "dog")}", "captions": {value}}}\n')
    sentence = refused("data", "import", tmp_path / "t.jsonl", "--out", tmp_path / "out", "--quiet")
    assert expected in sentence


def test_one_file_under_two_names_is_one_image(tmp_path: Path) -> None:
    put(tmp_path, "dog", "photos/dog.png")
    (tmp_path / "t.csv").write_text(lines([("photos/dog.png", "a"), ("dog.png", "b"), ("photos\\DOG.png", "c")]))
    found = imported(tmp_path / "t.csv", tmp_path / "out")
    assert found.captions == {"dog": ["a", "b", "c"]}
    assert len(table(tmp_path / "out" / "images.csv")) == 1


def test_a_name_that_several_files_have_is_listed(tmp_path: Path) -> None:
    put(tmp_path, "dog", "a/x.png")
    put(tmp_path, "cat", "b/x.png")
    put(tmp_path, "owl", "owl.png")
    (tmp_path / "t.csv").write_text(lines([("x.png", "which"), ("owl.png", "an owl")]))
    found = imported(tmp_path / "t.csv", tmp_path / "out")
    assert found.captions == {"owl": ["an owl"]}
    assert found.skipped == [{"id": "x.png", "reason": "several files have this name: a/x.png, b/x.png"}]


def test_pictures_a_folder_below_and_a_folder_each(tmp_path: Path) -> None:
    for name in COLOURS:
        put(tmp_path, name, f"set/{name}/images/x.png")
    (tmp_path / "t.csv").write_text(lines([(f"{name}/images/x", text) for name, text in ROWS]))
    assert imported(tmp_path / "t.csv", tmp_path / "out").captions == CAPTIONS


def test_paths_and_dates_are_no_sentences(tmp_path: Path) -> None:
    files = pictures(tmp_path)
    wide = [(path, f"small/{path}", "2024-05-01 10:00", "https://example.org/a-b.c") for path in files.values()]
    (tmp_path / "t.csv").write_text(lines(wide, header="filepath,thumbnail,taken,page"))
    found = imported(tmp_path / "t.csv", tmp_path / "out")
    assert not found.captions
    assert "no captions" in found.said
    assert "not read: thumbnail, taken, page" in found.said


@pytest.mark.parametrize("names", [["caption"] * 100_000, [f"caption_{n}" for n in range(100_000)]])
def test_very_many_columns_take_no_time(names: list[str], tmp_path: Path) -> None:
    """Every step of choosing columns is linear: a quadratic one would take hours."""
    row = ["a dog", *[""] * (len(names) - 1)]
    (tmp_path / "t.csv").write_text(f"{','.join(names)},filepath\n{','.join(row)},{put(tmp_path, 'dog')}\n")
    found = imported(tmp_path / "t.csv", tmp_path / "out")
    assert found.captions == {"dog": ["a dog"]}
    assert len(found.said) < 2000


def test_pictures_that_no_row_names_are_listed(tmp_path: Path) -> None:
    source = tmp_path / "brought"
    put(source, "dog", "Images/dog.png")
    put(source, "cat", "Images/cat.png")
    (source / "captions.txt").write_text("image,caption\ndog.png,a dog\n")
    found = imported(source, tmp_path / "out")
    assert found.skipped == [{"id": "Images/cat.png", "reason": "no row of the table names it"}]


def test_a_table_a_split(tmp_path: Path) -> None:
    source = tmp_path / "brought"
    pictures(source, "images/")
    for split, names in (("train", ("dog", "cat")), ("test", ("owl",))):
        some = [(f"{name}.png", text) for name in names for text in CAPTIONS[name]]
        (source / f"{split}.tsv").write_text(lines(some, "\t", "filename,caption"))
    found = imported(source, tmp_path / "out")
    assert found.captions == CAPTIONS
    assert found.splits == {"dog": "train", "cat": "train", "owl": "test"}


def test_splits_are_the_folders_that_a_table_names(tmp_path: Path) -> None:
    source = tmp_path / "brought"
    splits = {"dog": "train", "cat": "validation", "owl": "test"}
    for name, split in splits.items():
        put(source, name, f"{split}/{name}.png")
    meta = [{"file_name": f"{split}/{name}.png", "text": CAPTIONS[name][0]} for name, split in splits.items()]
    (source / "metadata.jsonl").write_text("\n".join(map(json.dumps, meta)))
    assert imported(source, tmp_path / "out").splits == splits | {"cat": "val"}


def test_one_table_of_several_has_to_be_named(tmp_path: Path) -> None:
    files = pictures(tmp_path)
    for name in ("one", "two"):
        (tmp_path / f"{name}.csv").write_text(lines(rows(files)))
    sentence = refused("data", "import", tmp_path, "--out", tmp_path / "out", "--quiet")
    assert "found one.csv, two.csv; name the one to import" in sentence


def test_rows_without_a_picture_are_counted_before_the_work(tmp_path: Path) -> None:
    files = pictures(tmp_path)
    table_ = [(files["dog"], "one"), (files["dog"], "two"), (files["cat"], "three"), ("", "alone"), ("", "so")]
    (tmp_path / "photos.csv").write_text(lines(table_, header="image,text"))
    found = imported(tmp_path / "photos.csv", tmp_path / "out")
    assert 'captions from column "text", 1 to 2 a picture, 2 rows without a picture' in found.said
    told = done("data", "import", tmp_path / "photos.csv", "--out", tmp_path / "o", "--quiet", "--json").json()
    assert told["alone"] == 2
    assert 'captions from column "text"' in told["read"]


DOCUMENTED = re.findall(
    r"^\| `([^`]+)` \| (.+) \| (\d) pictures, (\d) captions \|$",
    (ROOT / "data" / "README.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


def test_the_page_shows_every_kind_of_table() -> None:
    assert {Path(name).suffix for name, *_ in DOCUMENTED} == set(READERS) - {".ndjson", ".parquet", ".token"}
    assert len(DOCUMENTED) == 13


@pytest.mark.parametrize(("name", "shown", "images", "captions"), DOCUMENTED, ids=[name for name, *_ in DOCUMENTED])
def test_every_example_of_the_page_is_read(name: str, shown: str, images: str, captions: str, tmp_path: Path) -> None:
    for each in COLOURS:
        put(tmp_path, each, f"photos/{each}.jpg")
    text = "\n".join(line.strip("`") for line in shown.replace("\\|", "|").replace("⇥", "\t").split("<br>"))
    (tmp_path / name).write_text(text + "\n", encoding="utf-8")
    assert len(text.splitlines()) == 4
    told = done("data", "import", tmp_path / name, "--dry-run", "--json", "--quiet").json()
    assert (told["images"], told["captions"], told["left_out"]) == (int(images), int(captions), 0)


def test_pictures_in_parquet_are_no_exception(tmp_path: Path) -> None:
    images = [picture(name) for name in CAPTIONS]
    texts = [some[0] for some in CAPTIONS.values()]
    pq.write_table(pa.table({"image": images, "alt_text": texts}), tmp_path / "data.parquet")
    sentence = refused("data", "import", tmp_path / "data.parquet", "--out", tmp_path / "out", "--quiet")
    assert "sentences in the columns alt_text; name the column with --caption" in sentence
    found = imported(tmp_path / "data.parquet", tmp_path / "out", "--caption", "alt_text")
    assert 'captions from column "alt_text", 1 a picture' in found.said


# ---- annotation files that are not right -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content",
    [
        {"images": {"sentences": 1}},
        {"images": [1], "sentences": 1},
        {"images": [{"filename": {"a": 1}, "sentences": []}]},
        {"images": [{"filename": "dog.png", "sentences": [[1]]}]},
        {"images": [{"filename": "dog.png", "sentences": [{"tokens": [1], "ids": [2]}]}]},
        {"images": [{"filename": "dog.png", "split": ["train"], "sentences": []}]},
        {"images": [{"filename": "dog.png", "filepath": [1], "sentences": []}]},
        {"images": 3, "annotations": [{"caption": 1}]},
        {"images": [{"file_name": "dog.png"}], "annotations": [{"caption": 1}]},
        {"images": [{"file_name": "dog.png", "id": 1}], "annotations": [{"caption": "x"}]},
        {"images": [{"file_name": "dog.png", "id": 1}], "annotations": [{"caption": {"a": []}, "image_id": 1}]},
        {"images": [{"file_name": "dog.png", "id": 1}], "annotations": "caption"},
    ],
)
def test_wrong_types_are_one_sentence(content: object, tmp_path: Path) -> None:
    put(tmp_path, "dog")
    (tmp_path / "a.json").write_text(json.dumps(content))
    sentence = refused("data", "import", tmp_path / "a.json", "--out", tmp_path / "out", "--quiet")
    assert "a.json" in sentence
    assert len(sentence) < 500


def test_annotations_of_unknown_images_and_ids_that_come_twice_are_listed(tmp_path: Path) -> None:
    put(tmp_path, "dog", "val2017/dog.png")
    put(tmp_path, "cat", "val2017/cat.png")
    images = [{"id": 1, "file_name": "dog.png"}, {"id": 1, "file_name": "cat.png"}]
    notes = [{"id": 5, "image_id": 1, "caption": "a dog"}, {"id": 6, "image_id": 9, "caption": "gone"}]
    (tmp_path / "captions_val2017.json").write_text(json.dumps({"images": images, "annotations": notes}))
    found = imported(tmp_path / "captions_val2017.json", tmp_path / "out")
    assert found.captions == {"dog": ["a dog"]}
    assert {row["id"]: row["reason"] for row in found.skipped} == {
        "annotation 6": "no image has the id 9",
        "val2017/cat.png": "its id came before",
    }

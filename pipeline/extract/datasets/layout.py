"""The raw data set on the disk: `data/0_raw/<name>/`, made by `pipeline data` or by hand, read by `extract`.

dataset.json   name, source, licence, counts, split rule (optional where the set is hand-made)
images.csv     image_id,file[,split][,label]
captions.csv   caption[,caption_id][,image_id]
classes.json   {"classes": [...], "templates": [...], "prompts": {...}}   (optional)

Nothing is dropped unseen: a row that is not right is an error with its line. No path leaves its folder.
"""

import csv
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.extract.datasets.classes import Classes, read_classes
from pipeline.files import read_json
from pipeline.storage.contract import Place, Storage
from pipeline.storage.local import open_storage
from pipeline.words import shortened

FORMAT = 1
TABLES = ("dataset.json", "images.csv", "captions.csv", "classes.json")

csv.field_size_limit(2**24)


class ImageRow(NamedTuple):
    """A line of images.csv."""

    image_id: str
    file: str
    split: str
    label: str


class CaptionRow(NamedTuple):
    """A line of captions.csv; `caption` may hold surrogates where the file is not UTF-8."""

    caption_id: str
    image_id: str
    caption: str


@dataclass(frozen=True)
class RawDataset:
    """A raw data set, read and checked."""

    root: Storage
    """Where it lies."""
    name: str
    """Its name: dataset.json's, or else the folder's."""
    info: Mapping[str, Any]
    """dataset.json; empty where there is none."""
    images: tuple[ImageRow, ...]
    """In the order of images.csv."""
    captions: tuple[CaptionRow, ...]
    """In the order of captions.csv."""
    classes: Classes | None = None
    """classes.json, if there is one."""


def open_dataset(place: Place) -> RawDataset:
    """Read and check a raw data set.

    Raises:
        UserError: Names the file and line: missing columns, ids that come twice, a path that leaves the folder, a label
            that is not a class, a caption of an unknown image, no table at all.
    """
    root = open_storage(place)
    if root.absent():
        raise UserError(
            expected="a raw data set's folder",
            found="none",
            where=str(root),
            remedy="make one with `pipeline data openmoji` or `pipeline data import`",
        )
    there = root.list()
    root.fetch(name for name in TABLES if name in there)
    info = _read_info(root) if "dataset.json" in there else {}
    classes = None
    if "classes.json" in there:
        classes = read_classes(root.file("classes.json"), str(root / "classes.json"))
    if "images.csv" not in there and "captions.csv" not in there:
        raise UserError(
            expected="images.csv or captions.csv",
            found=", ".join(sorted(path.name for path in root.here.iterdir())[:10]) or "an empty folder",
            where=str(root),
            remedy="this is not a raw data set: make one of it with `pipeline data import`",
        )
    images = tuple(_image_rows(root, classes)) if "images.csv" in there else None
    captions = tuple(_caption_rows(root, images)) if "captions.csv" in there else ()
    return RawDataset(root, str(info.get("name") or root.name), info, images or (), captions, classes)


def _read_info(root: Storage) -> Mapping[str, Any]:
    where = str(root / "dataset.json")
    info = read_json(root.file("dataset.json"), "a data set", where)
    if info.get("format", FORMAT) != FORMAT:
        raise UserError(
            expected=f"format {FORMAT}",
            found=repr(info["format"]),
            where=where,
            remedy="make the data set again with this version of `pipeline data`",
        )
    return info


def _image_rows(root: Storage, classes: Classes | None) -> Iterator[ImageRow]:
    remedy = "put the file into the data set's folder, or import it with `pipeline data import`"
    fence = Fence(root.here, remedy, str(root))
    known = set(classes.names) if classes else None
    seen: set[str] = set()
    for where, values in _checked_rows(root, "images.csv", ("image_id", "file"), ("split", "label")):
        row = ImageRow(*values)
        if not row.image_id:
            raise UserError(expected="an image_id", found="an empty field", where=where)
        if row.label and known is not None and row.label not in known:
            raise UserError(
                expected=f"a class of classes.json ({shortened(sorted(known))})",
                found=f"label {row.label!r}",
                where=where,
                remedy="labels are written exactly as in classes.json, or left empty",
            )
        fence.check(row.file, where)
        _require_utf8(where, *row)
        _require_new(row.image_id, seen, "image_id", where)
        yield row


def _caption_rows(root: Storage, images: Sequence[ImageRow] | None) -> Iterator[CaptionRow]:
    known = {row.image_id for row in images} if images is not None else None
    count: Counter[str] = Counter()
    seen: set[str] = set()
    for where, values in _checked_rows(root, "captions.csv", ("caption",), ("caption_id", "image_id")):
        caption, caption_id, image_id = values
        if image_id and known is not None and image_id not in known:
            raise UserError(
                expected="an image_id of images.csv, or none",
                found=repr(image_id),
                where=where,
                remedy="add the image to images.csv or leave the caption's image_id empty",
            )
        _require_utf8(where, caption_id, image_id)
        row = CaptionRow(caption_id or f"{image_id}#{count[image_id]}", image_id, caption)
        _require_new(row.caption_id, seen, "caption_id", where)
        count[image_id] += 1
        yield row


def _checked_rows(
    root: Storage, name: str, required: Sequence[str], optional: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yield (file and line, values of the required and then the optional columns); absent optional ones are empty."""
    shown = str(root / name)
    rows = read_rows(root.file(name), where=shown)
    _, header = next(rows)
    missing = [name for name in required if name not in header]
    if missing:
        raise UserError(
            expected=f"the columns {', '.join(required)}",
            found=f"{', '.join(header) or 'no header'} (missing: {', '.join(missing)})",
            where=shown,
        )
    for line, row in rows:
        yield f"{shown}, line {line}", [row.get(column, "") for column in (*required, *optional)]


def _require_utf8(where: str, *fields: str) -> None:
    for text in fields:
        if "\0" in text:
            raise UserError(expected="a text without zero bytes", found=repr(text[:80]), where=where)
        if not is_utf8(text):
            raise UserError(
                expected="UTF-8 (only captions may be broken: they are listed and left out)",
                found=repr(text.encode("utf-8", "surrogateescape")),
                where=where,
                remedy="save the table as UTF-8",
            )


def _require_new(item_id: str, seen: set[str], column: str, where: str) -> None:
    if item_id in seen:
        raise UserError(
            expected=f"every {column} once",
            found=f"{item_id!r} twice",
            where=where,
            remedy="ids join images, captions and features, so each must be unique",
        )
    seen.add(item_id)


# ---- tables and paths as users write them ----------------------------------------------------------------------------


def read_rows(path: Path, where: str = "") -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, column → text) of every row, first of all the header with empty texts.

    Bytes that are not UTF-8 become surrogates (see `is_utf8`).

    Args:
        path: The file.
        where: What errors call the file; its path if unsaid.

    Raises:
        UserError: The file is missing, not CSV, or a row has more or fewer fields than the header.
    """
    if not path.is_file():
        raise UserError(expected=f"a table {path.name}", found="no such file", where=str(path.parent))
    where = where or str(path)
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        rows = csv_rows(file, ",", where)
        _, header = next(rows, (1, []))
        yield 1, dict.fromkeys(header, "")
        for line, row in rows:
            if len(row) != len(header):
                raise wrong_width(row, header, f"{where}, line {line}")
            yield line, dict(zip(header, row, strict=True))


def csv_rows(file: Iterable[str], delimiter: str, where: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of the rows of an open CSV file, as RFC 4180 has them; empty lines are no rows.

    Raises:
        UserError: A quote does not close its field; names the line where the row begins.
    """
    reader = csv.reader(file, delimiter=delimiter, strict=True)
    before = 0
    try:
        for row in reader:
            if row:
                yield reader.line_num, row
            before = reader.line_num
    except csv.Error as error:
        raise UserError(
            expected="CSV",
            found=f"a quote that does not close its field ({error})",
            where=f"{where}, line {before + 1}",
            remedy="close the quote, and double the quotes inside a quoted field",
        ) from error


def wrong_width(row: Sequence[str], header: Sequence[str], where: str) -> UserError:
    """Return the complaint about a row that has more or fewer fields than the header."""
    return UserError(
        expected=f"{len(header)} fields ({', '.join(header)})",
        found=f"{len(row)}",
        where=where,
        remedy="quote fields that hold the separator or line ends",
    )


def is_utf8(text: str) -> bool:
    """Tell whether a text from a table was valid UTF-8."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


class Fence:
    """Lets only those relative paths through that stay in a folder, links followed.

    Args:
        root: The folder.
        remedy: What the error advises.
        shown: What the error calls the folder; its path if unsaid.
    """

    def __init__(self, root: Path, remedy: str = "", shown: str = "") -> None:
        self.root = root
        self._shown = shown or str(root)
        self._real = os.path.realpath(root)
        self._remedy = remedy
        self._folders: dict[str, bool] = {}

    def path(self, name: str, where: str) -> Path:
        """Return `root / name`.

        Raises:
            UserError: The name is empty, absolute, climbs with `..`, or passes a link that leads out.
        """
        self.check(name, where)
        return self.root / name

    def check(self, name: str, where: str) -> None:
        """Raise where `path` would; makes no path, for tables of millions of rows."""
        problem = self.problem(name)
        if problem:
            raise UserError(
                expected=f"a path inside {self._shown}", found=f"{name!r} ({problem})", where=where, remedy=self._remedy
            )

    def problem(self, name: str) -> str:
        """Return why a name is not let through; empty where it is."""
        if not name or "\0" in name:
            return "empty" if not name else "it holds a zero byte"
        try:
            os.fsencode(name)
        except UnicodeEncodeError:  # half of a surrogate pair, as JSON can write it
            return "it is no text that a file can be named by"
        slashed = name.replace("\\", "/")
        if slashed.startswith("/") or (":" in name and PureWindowsPath(name).drive):
            return "it is absolute"
        if ".." in slashed.split("/"):
            return "it climbs out with .."
        return "" if self._stays(name) else "it is a link that leaves the folder"

    def _stays(self, name: str) -> bool:
        folder, _, _ = name.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = self._inside(self.root / folder)
        if not self._folders[folder]:
            return False
        path = os.path.join(self.root, name)  # noqa: PTH118 - called once a row of the data set
        try:
            is_link = stat.S_ISLNK(os.lstat(path).st_mode)
        except OSError:
            return True
        return not is_link or self._inside(Path(path))

    def _inside(self, path: Path) -> bool:
        return os.path.commonpath([os.path.realpath(path), self._real]) == self._real

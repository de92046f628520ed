"""What every importer yields and the one writer takes: records; and what importers share to make them.

Options of the user, columns found by their usual names, labels as class names, splits.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError
from pipeline.extract.datasets.layout import Classes, read_classes
from pipeline.settings import setting, settings


@dataclass(frozen=True, kw_only=True)
class Record:
    """An image with what is said about it; or, with an empty `image_id`, captions that have no image.

    The same `image_id` may come again with the same `source`: its captions are added.
    """

    image_id: str = ""
    """Unique, readable, stable: it names rows of the feature store."""
    source: Path | bytes | None = None
    """The image file, or its bytes. None only without an image."""
    name: str = ""
    """Wished path under `images/`; made safe and unique by the writer."""
    split: str = ""
    """As the source writes it; empty where it has none."""
    label: str = ""
    """Class name, or empty."""
    captions: tuple[str, ...] = ()
    """Any number of captions, in order."""


@dataclass(frozen=True)
class Skipped:
    """Something that the import left out, and why."""

    id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Records:
    """What an importer found: a stream of records and what holds for all of them."""

    records: Iterator[Record | Skipped]
    """Read once, in the source's own order."""
    total: int = 0
    """Records to come, as far as that is known; 0 otherwise."""
    classes: Classes | None = None
    """Classes in the order of the source's label numbers; None: made of the labels that are met."""
    has_splits: bool = False
    """The source says each record's split; otherwise the hash rule gives one."""
    origin: str = ""
    """Where the data come from, for dataset.json."""
    licence: str = ""
    """Under which licence, for dataset.json."""
    attribution: str = ""
    """Whom to name, for dataset.json."""


IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"})
"""File name endings that importers take for an image."""

_MAGIC = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
)


def suffix_of(data: bytes) -> str:
    """Return the file name ending that fits some image bytes; `.img` where the format is not known."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for magic, suffix in _MAGIC if data.startswith(magic)), ".img")


# ---- splits ----------------------------------------------------------------------------------------------------------

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "restval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""How sources write the three splits; `restval` is Karpathy's name for validation images that everybody trains on."""


@dataclass(frozen=True)
class SplitRule:
    """Shares of train, val and test, drawn by the sha256 of the id.

    Raises:
        UserError: A share is negative or the three do not sum to 1.
    """

    train: float = 0.8
    val: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.train, self.val, self.test)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise UserError(
                expected="three shares (train, val, test) that are not negative and sum to 1",
                found="/".join(f"{share:g}" for share in shares),
                where="--split",
                remedy="say for example --split 0.8/0.1/0.1",
            )

    @classmethod
    def parse(cls, text: str) -> "SplitRule":
        """Read `0.8/0.1/0.1` (or with commas).

        Raises:
            UserError: The text is not three numbers that sum to 1.
        """
        try:
            train, val, test = (float(part) for part in text.replace(",", "/").split("/"))
        except ValueError as error:
            raise UserError(expected="three shares such as 0.8/0.1/0.1", found=repr(text), where="--split") from error
        return cls(train, val, test)

    def of(self, item_id: str) -> str:
        """Return `train`, `val` or `test` for an id."""
        point = int.from_bytes(hashlib.sha256(item_id.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64
        return "train" if point < self.train else "val" if point < self.train + self.val else "test"

    def describe(self) -> str:
        """Return the rule in words, for dataset.json."""
        return f"sha256 of image_id: train {self.train:g}, val {self.val:g}, test {self.test:g}"


def official_split(name: str) -> str:
    """Return `train`, `val` or `test` for the names that mean them, any other name as it is."""
    return SPLIT_NAMES.get(name.strip().lower(), name.strip())


def named_splits(names: Sequence[str]) -> bool:
    """Tell whether all names (of folders, say) are names of splits, and at least one is there."""
    return bool(names) and all(name.lower() in SPLIT_NAMES for name in names)


# ---- options ---------------------------------------------------------------------------------------------------------


@settings
class ImportOptions:
    """What a user may say about an import; the rest is found out."""

    kind: str = setting(default="auto", help="What the source is; auto goes by what it looks like.")
    root: Path | None = setting(
        default=None, help="Folder that image paths are relative to. [default: the folder of the table]"
    )
    filepath: str = setting(default="", help="Column of the image's path. [default: filepath, or another usual name]")
    caption: str = setting(default="", help="Column of the caption. [default: caption, or another usual name]")
    label: str = setting(default="", help="Column of the label. [default: label, or another usual name]")
    split: str = setting(
        default="", flag="--split-column", help="Column of the split. [default: split, or another usual name]"
    )
    rule: SplitRule | None = setting(
        default=None,
        flag="--split",
        parse=SplitRule.parse,
        help="Shares of train/val/test where the source has no splits. [default: 0.8/0.1/0.1]",
    )
    link: bool = setting(default=False, help="Hard-link image files instead of copying them.")
    replace: bool = setting(default=False, help="Make the data set again in place of the one that is there.")
    origin: str = setting(default="", flag=None, help="Where the data come from. [default: the source's name]")
    licence: str = setting(default="", help="Licence, kept in dataset.json.")
    attribution: str = setting(default="", flag=None, help="Whom to name, kept in dataset.json.")


COLUMNS = {
    "filepath": ("filepath", "file", "file_name", "filename", "image", "image_path", "path", "image_id"),
    "caption": ("caption", "captions", "text", "title", "sentence"),
    "label": ("label", "class", "category"),
    "split": ("split", "set"),
}
"""Usual names of columns, the first found wins."""


def find_column(options: ImportOptions, field: str, found: list[str], where: str, *, needed: bool = False) -> str:
    """Return the column that holds a field, or an empty name.

    Args:
        options: May name the column.
        field: A key of `COLUMNS`.
        found: The table's columns.
        where: The table, for the error.
        needed: Whether its absence is an error.

    Raises:
        UserError: The named column, or a needed one, is not there.
    """
    asked: str = getattr(options, field)
    if asked and asked not in found:
        raise UserError(expected=f"a column {asked!r}", found=", ".join(found) or "none", where=where)
    column = asked or next((name for name in COLUMNS[field] if name in found), "")
    if needed and not column:
        raise UserError(
            expected=f"a column {field!r}",
            found=", ".join(found) or "none",
            where=where,
            remedy=f"name the column with --{field}",
        )
    return column


# ---- labels ----------------------------------------------------------------------------------------------------------


class LabelNames:
    """Class names by number, if the source has a list of them.

    Args:
        classes: The list; None: labels are kept as they are written.
        where: The list's file, for the error.
    """

    def __init__(self, classes: Classes | None, where: str) -> None:
        self.classes = classes
        self.where = where

    @classmethod
    def beside(cls, table: Path) -> "LabelNames":
        """Read classes.json next to a table, if it is there."""
        path = table.parent / "classes.json"
        return cls(read_classes(path) if path.is_file() else None, str(path))

    def of(self, label: object) -> str:
        """Return the class name of a label; empty for none, which a list of classes also lets be written as -1.

        Raises:
            UserError: A list of classes is there and the label is not in it.
        """
        text = "" if label is None else str(label).strip()
        if not text or self.classes is None or text in self.classes.names:
            return text
        names = self.classes.names
        if text == "-1":
            return ""
        if text.isdecimal() and int(text) < len(names):
            return names[int(text)]
        raise UserError(expected=f"a label of 0..{len(names) - 1} or a class name", found=repr(text), where=self.where)

"""What every source becomes: records, each an image with its captions, label and split.

    a source's rows, as it writes them → `Columns.record` → records and what is left out → `writing.write_dataset`

A source knows where its rows and images are; what the values of a row mean is decided here, for all of them: columns by
their usual names or the user's, captions as texts, labels as class names, splits by name or by a rule.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.extract.datasets.layout import Classes
from pipeline.settings import setting, settings

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".avif"})
"""File name endings that importers take for an image."""


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
    """Wished path under `images/`, made safe and unique by the writer; empty: the id."""
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


# ---- columns ---------------------------------------------------------------------------------------------------------

COLUMNS = {
    "filepath": ("filepath", "file", "file_name", "filename", "image", "image_path", "path", "image_id"),
    "caption": ("caption", "captions", "text", "title", "sentence"),
    "label": ("label", "class", "category"),
    "split": ("split", "set"),
}
"""Usual names of columns, the first found wins."""


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a source hold what (empty: none does), and which classes its labels are numbers of."""

    filepath: str = ""
    """An image's path, or its bytes."""
    caption: str = ""
    """A caption, or a list of them."""
    label: str = ""
    """A class name, or its number."""
    split: str = ""
    """A split's name."""
    classes: Classes | None = None
    """Class names by number; None: labels are kept as they are written."""
    where: str = ""
    """The source, for errors."""

    @classmethod
    def find(
        cls, options: ImportOptions, found: Sequence[str], where: str, classes: Classes | None = None
    ) -> "Columns":
        """Choose among the columns that a source has: the user's, else those of usual names.

        Raises:
            UserError: A column that the user names is not there.
        """
        chosen: dict[str, str] = {}
        for field, usual in COLUMNS.items():
            asked: str = getattr(options, field)
            if asked and asked not in found:
                raise UserError(expected=f"a column {asked!r}", found=", ".join(found) or "none", where=where)
            chosen[field] = asked or next((name for name in usual if name in found), "")
        return cls(**chosen, classes=classes, where=where)

    def value(self, row: Mapping[Any, Any], field: str) -> Any:
        """Return what a row holds of one of the `COLUMNS`; None where no column does."""
        column = getattr(self, field)
        return row.get(column) if column else None

    def record(
        self, row: Mapping[Any, Any], image_id: str = "", source: Path | bytes | None = None, **stated: Any
    ) -> Record:
        """Return the record of a row.

        Args:
            row: Column → value, as the source writes it.
            image_id: See `Record`.
            source: See `Record`.
            stated: `caption`, `label` or `split` where another thing than a column of the row says it.

        Raises:
            UserError: There are classes, and the label is none of them.
        """
        columns = (("caption", self.caption), ("label", self.label), ("split", self.split))
        value = {field: row.get(column) if column else None for field, column in columns} | stated
        captions = value["caption"] if isinstance(value["caption"], list | tuple) else (value["caption"],)
        return Record(
            image_id=image_id,
            source=source,
            split=_text(value["split"]),
            label=self._class_name(_text(value["label"]).strip()),
            captions=tuple([_text(caption) for caption in captions]) if value["caption"] is not None else (),
        )

    def _class_name(self, label: str) -> str:
        """Return the class name of a label; empty for none, which a list of classes also lets be written as -1."""
        if not label or self.classes is None or label in self.classes.names:
            return label
        names = self.classes.names
        if label == "-1":
            return ""
        if label.isdecimal() and int(label) < len(names):
            return names[int(label)]
        raise UserError(expected=f"a label of 0..{len(names) - 1} or a class name", found=repr(label), where=self.where)


def _text(value: Any) -> str:
    """Return a value as text; of a sentence with its tokens the sentence."""
    if isinstance(value, dict) and "raw" in value:
        value = value["raw"]
    return "" if value is None else str(value)

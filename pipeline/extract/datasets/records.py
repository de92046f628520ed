"""What every source becomes: records, each an image with its captions, label and split.

    a source's rows, as it writes them → `Columns.record` → records and what is left out → `writing.write_dataset`

A source knows where its rows and images are; what the values of a row mean is decided here, for all of them: columns by
their usual names or the user's, captions as texts, labels as class names, splits by name or by a rule.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pipeline.errors import UserError
from pipeline.extract.datasets.layout import Classes
from pipeline.settings import setting, settings

_READ = ".jpg .jpeg .jpe .jfif .png .webp .bmp .gif .tif .tiff .ppm .pgm .pbm .pnm .avif .heic .heif .hif .jp2 .j2k"
IMAGE_SUFFIXES = frozenset(_READ.split())
"""File name endings that importers take for an image."""
_RAW = ".3fr .arw .cr2 .cr3 .crw .dcr .dng .erf .iiq .kdc .mrw .nef .nrw .orf .pef .raf .raw .rw2 .rwl .sr2 .srw .x3f"
_OTHER = ".ai .cur .dds .eps .exr .hdr .ico .jxl .pcx .psd .svg .svgz .tga .wmf .xcf"
_UNREAD = dict.fromkeys(_RAW.split(), "a camera's raw file: develop it to JPEG, PNG or TIFF") | {
    suffix: f"pictures of the kind {suffix} are not read: save it as JPEG, PNG or TIFF" for suffix in _OTHER.split()
}


def unread(name: str) -> str:
    """Return why a picture is not read whose name ends like this; empty for any other file."""
    return _UNREAD.get(PurePath(name).suffix.lower(), "")


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
    "filepath": (
        "filepath", "file_path", "file", "file_name", "filename", "image", "image_path", "image_file", "image_name",
        "img", "img_path", "path", "image_id",
    ),
    "caption": (
        "caption", "captions", "text", "texts", "title", "sentence", "sentences", "description", "comment", "raw",
    ),
    "label": ("label", "class", "category"),
    "split": ("split", "set"),
}  # fmt: skip
"""Usual names of columns, the first found wins; case, spaces and hyphens do not count."""

_NUMBERED = re.compile(r"(caption|text|title|sentence|description)s?_?\d+")
_SPOKEN = ("raw", "caption", "text", "sentence", "value")
"""Fields of a structure that hold its caption, the first found wins."""


def _usual(name: str) -> str:
    return re.sub(r"[\s_-]+", "_", name.strip().casefold())


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns of a source hold what (empty: none does), and which classes its labels are numbers of."""

    filepath: str = ""
    """An image's path, or its bytes."""
    captions: tuple[str, ...] = ()
    """Captions: a text, a structure with a text, or a list of them in each."""
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

        `caption_0`, `caption_1` and so on are taken together; the user may name several with commas between them.

        Raises:
            UserError: A column that the user names is not there.
        """
        known = {_usual(name): name for name in reversed(found)}
        chosen: dict[str, str] = {}
        for field, usual in COLUMNS.items():
            asked: str = getattr(options, field)
            several = asked.split(",") if field == "caption" and asked not in found else [asked]
            if asked and not set(several) <= set(found):
                listed = ", ".join(found)
                listed = listed if len(listed) <= 400 else f"{listed[:400]}... ({len(found)} columns)"
                raise UserError(expected=f"a column {asked!r}", found=listed or "none", where=where)
            chosen[field] = asked or next((known[name] for name in usual if name in known), "")
        asked = chosen.pop("caption")
        numbered = tuple(name for name in found if _NUMBERED.fullmatch(_usual(name)))
        captions = (asked,) if asked in found else tuple(filter(None, asked.split(",")))
        return cls(
            **chosen, captions=captions if options.caption else captions or numbered, classes=classes, where=where
        )

    def value(self, row: Mapping[Any, Any], field: str) -> Any:
        """Return what a row holds of `filepath`, `label` or `split`; None where no column does."""
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
        label = stated["label"] if "label" in stated else self.value(row, "label")
        split = stated["split"] if "split" in stated else self.value(row, "split")
        return Record(
            image_id=image_id,
            source=source,
            split=_text(split),
            label=self._class_name(_number(_text(label).strip())),
            captions=tuple(_texts(stated["caption"])) if "caption" in stated else self.texts(row),
        )

    def texts(self, row: Mapping[Any, Any]) -> tuple[str, ...]:
        """Return the captions of a row; one empty text where its columns hold none, so that it is listed."""
        if len(self.captions) == 1:
            return tuple(_texts(row.get(self.captions[0]))) or ("",)
        found = (text for column in self.captions for text in _texts(row.get(column)) if text.strip())
        return tuple(found) or ("",) * bool(self.captions)

    def unread(self, row: Mapping[str, Any]) -> bool:
        """Tell whether a row holds sentences, two words or more, of which no column becomes a caption."""
        if self.captions:
            return False
        others = (value for name, value in row.items() if name not in (self.filepath, self.label, self.split))
        return any(len(text.split()) > 1 for value in others for text in _texts(value))

    def say(self, has_splits: bool = False) -> str:
        """Return in words which columns are read as what."""
        names = " and ".join(f'"{name}"' for name in self.captions)
        some = "columns" if len(self.captions) > 1 else "column"
        return "; ".join(
            (
                f"captions from {some} {names}" if names else "no captions",
                f'labels from column "{self.label}"' if self.label else "no labels",
                f'splits from column "{self.split}"'
                if self.split
                else "splits by folder" * has_splits or "splits by the rule",
            )
        )

    def _class_name(self, label: str) -> str:
        """Return the class name of a label; empty for none, which a list of classes also lets be written as -1."""
        if not label or self.classes is None or label in self.classes.names:
            return label
        names = self.classes.names
        if label == "-1":
            return ""
        if label.isdecimal() and len(label) < 10 and int(label) < len(names):
            return names[int(label)]
        raise UserError(expected=f"a label of 0..{len(names) - 1} or a class name", found=repr(label), where=self.where)


def _texts(value: Any) -> list[str]:
    """Return the texts of a value: itself, a structure's sentence, or those of all members of a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [
            text for member in value for text in (_texts(member) if not isinstance(member, list) else [str(member)])
        ]
    return [] if value is None else [_text(value)]


def _text(value: Any) -> str:
    """Return a value as text; of a structure its sentence, and nothing for what is missing."""
    if isinstance(value, dict):
        value = next((value[name] for name in _SPOKEN if name in value), value)
    if isinstance(value, float):
        return "" if value != value else str(int(value)) if value.is_integer() else str(value)
    return "" if value is None else str(value)


def _number(label: str) -> str:
    """Return a label; a whole number that a nullable column made a fraction (1.0) as it was."""
    return label[:-2] if label.endswith(".0") and label[:-2].isdecimal() else label

"""What every source becomes: records, each an image with its captions, label and split.

    a source's rows, as it writes them → `Columns.record` → records and what is left out → `writing.write_dataset`

A source knows where its rows and images are; what the values of a row mean is decided here, for all of them: columns by
their usual names or the user's, captions as texts, labels as class names, splits by name or by a rule.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.extract.datasets.classes import Classes
from pipeline.settings import setting, settings
from pipeline.words import shortened


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
    columns: "Columns | None" = None
    """Which columns are read as what; None where the source has none."""
    read: Mapping[str, str] = field(default_factory=dict)
    """Where `captions`, `labels` and `splits` come from, in words, where no column holds them."""
    form: tuple[str, ...] = ()
    """What was found out about the source, in words, such as an unusual separator."""
    kind: str = ""
    """The importer's name."""
    counted: str = ""
    """What the first records hold, in words."""

    def say(self) -> str:
        """Return in words what is read as captions, labels and splits, and what is not read."""
        said = self.sources()
        captions = ", ".join(filter(None, (said.pop("captions", ""), self.counted)))
        return f"{self.kind}: " + "; ".join(filter(None, (captions, *said.values(), *self.form, self._left())))

    def refuse_lost_texts(self) -> None:
        """Raise if columns hold sentences and no caption is read.

        Raises:
            UserError: Names the columns.
        """
        candidates = self.columns.candidates() if self.columns else ()
        if candidates:
            raise UserError(
                expected="captions",
                found=f"none, but sentences in the columns {shortened(candidates)}",
                where=self.origin,
                remedy=f"name the column with --caption, or say --caption {NO_CAPTION} if none is a caption",
            )

    def sources(self) -> dict[str, str]:
        """Return `captions`, `labels` and `splits` → where they come from, in words."""
        splits = "splits of the source" if self.has_splits else "splits by the hash of the id"
        usual = {"captions": "", "labels": "", "splits": splits}
        return usual | (self.columns.say() if self.columns else {}) | dict(self.read)

    def _left(self) -> str:
        left = self.columns.unread if self.columns else ()
        return f"not read: {shortened(left)}" if left else ""


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
                where="--shares",
                remedy="say for example --shares 0.8/0.1/0.1",
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
            raise UserError(expected="three shares such as 0.8/0.1/0.1", found=repr(text), where="--shares") from error
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


def split_within(name: str) -> str:
    """Return the split that a file's name holds (`captions_train2017.json`); empty where it is none, or several."""
    words = [word for word in re.split(r"[^a-z]+", name.lower()) if word in SPLIT_NAMES]
    return words[0] if len(words) == 1 else ""


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
    caption: str = setting(
        default="",
        help="Column of the caption, or several with commas between them; none: texts are no captions. "
        "[default: caption, or another usual name]",
    )
    label: str = setting(default="", help="Column of the label. [default: label, or another usual name]")
    split: str = setting(
        default="", flag="--split-column", help="Column of the split. [default: split, or another usual name]"
    )
    encoding: str = setting(default="", help="How a table's letters are written, such as cp1250. [default: found out]")
    rule: SplitRule | None = setting(
        default=None,
        flag="--shares",
        formerly="--split",
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
"""Usual names of columns, the first found wins; case, spaces, hyphens and points do not count."""

NO_CAPTION = "none"
"""What `--caption` says where texts are no captions."""
LONGEST_LABEL = 1000
"""Characters of a class name."""
_NUMBERED = re.compile(r"(caption|text|title|sentence|description)s?_?\d+")
_SPOKEN = ("raw", "caption", "text", "sentence", "value")
"""Fields of a structure that hold its caption, the first found wins."""
_FIRST = 50
"""Rows that are looked through for texts that no column of captions holds."""
_SENTENCE = re.compile(r"[^\W\d_][,.:;!?]?\s{1,3}[^\W\d_]|[\u3040-\u9fff\uac00-\ud7af]{3}")
"""The end of a word and the beginning of the next, or three signs of a script without spaces."""


def _usual(name: str) -> str:
    return re.sub(r"[\s_.-]+", "_", name.strip().casefold())


def is_usual(name: str, field: str = "") -> bool:
    """Tell whether a column's name is a usual one, of any field or of one."""
    fields = [field] if field else list(COLUMNS)
    return any(_usual(name) in COLUMNS[each] for each in fields) or (not field and _is_numbered(name))


def _is_numbered(name: str) -> bool:
    return bool(_NUMBERED.fullmatch(_usual(name)))


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
    unread: tuple[str, ...] = ()
    """The other columns."""
    classes: Classes | None = None
    """Class names by number; None: labels are kept as they are written."""
    where: str = ""
    """The source, for errors."""
    noticed: Counter[str] = field(default_factory=Counter, compare=False, repr=False)
    """Column → in how many of the first rows it holds a sentence that is no caption; "" counts the rows."""

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
        chosen: dict[str, tuple[str, ...]] = {}
        looked = 0
        for name, usual in COLUMNS.items():
            asked: str = getattr(options, name)
            several = tuple(asked.split(",")) if name == "caption" and asked not in found else (asked,)
            if name == "caption" and several == (NO_CAPTION,):
                several, looked = (), _FIRST
            elif asked and not set(several) <= set(found):
                raise UserError(expected=f"a column {asked!r}", found=shortened(found) or "none", where=where)
            elif not asked:
                several = tuple(islice((known[each] for each in usual if each in known), 1))
                several += _numbered(found, several) if name == "caption" else ()
            chosen[name] = several
        captions = chosen.pop("caption")
        one = {name: "".join(columns) for name, columns in chosen.items()}
        taken = {"", *captions, *one.values()}
        left = tuple(name for name in found if name not in taken)
        noticed = Counter({"": looked})
        return cls(**one, captions=captions, unread=left, classes=classes, where=where, noticed=noticed)

    def value(self, row: Mapping[Any, Any], field: str) -> Any:
        """Return what a row holds of `filepath`, `label` or `split`; None where no column does."""
        column = getattr(self, field)
        return row.get(column) if column else None

    def path(self, row: Mapping[Any, Any]) -> str:
        """Return the path of a row's image, empty where it has none."""
        value = self.value(row, "filepath")
        return _text(value.get("path") if isinstance(value, dict) else value, self.where).strip()

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
            UserError: There are classes, and the label is none of them; a structure is not a text.
        """
        if self.unread and self.noticed[""] < _FIRST:
            self._notice(row)
        label = stated["label"] if "label" in stated else self.value(row, "label")
        split = stated["split"] if "split" in stated else self.value(row, "split")
        return Record(
            image_id=image_id,
            source=source,
            split=_text(split, self.where),
            label=self._class_name(_whole(_text(label, self.where).strip())),
            captions=tuple(_texts(stated["caption"], self.where)) if "caption" in stated else self._captions(row),
        )

    def candidates(self) -> tuple[str, ...]:
        """Return the columns that hold sentences in the rows that became records so far, and are not read."""
        return tuple(name for name in self.unread if self.noticed[name])

    def say(self) -> dict[str, str]:
        """Return `captions`, `labels` and, where a column says them, `splits` → where they come from, in words."""
        names = shortened([f'"{name}"' for name in self.captions])
        captions = f"captions from column{'s' * (len(self.captions) > 1)} {names}" if names else "no captions"
        said = {"captions": captions, "labels": f'labels from column "{self.label}"' if self.label else "no labels"}
        return said | ({"splits": f'splits from column "{self.split}"'} if self.split else {})

    def _captions(self, row: Mapping[Any, Any]) -> tuple[str, ...]:
        """Return the captions of a row; one empty text where its columns hold none, so that it is listed."""
        if len(self.captions) == 1:
            return tuple(_texts(row.get(self.captions[0]), self.where)) or ("",)
        found = (text for column in self.captions for text in _texts(row.get(column), self.where) if text.strip())
        return tuple(found) or ("",) * bool(self.captions)

    def _notice(self, row: Mapping[Any, Any]) -> None:
        self.noticed[""] += 1
        for name in self.unread:
            value = row.get(name)
            texts = value if isinstance(value, list) else (value,)
            spoken = (text if not isinstance(text, dict) else _spoken(text) for text in texts)
            self.noticed[name] += any(isinstance(text, str) and bool(_SENTENCE.search(text)) for text in spoken)

    def _class_name(self, label: str) -> str:
        """Return the class name of a label; empty for none, which a list of classes also lets be written as -1."""
        names = self.classes.names if self.classes else ()
        if not label or label in names or (self.classes is None and len(label) <= LONGEST_LABEL):
            return label
        if label == "-1":
            return ""
        if label.isdecimal() and len(label) < 10 and int(label) < len(names):
            return names[int(label)]
        known = f"a label of 0..{len(names) - 1} or a class name" if names else "a class name or number"
        found = repr(label) if len(label) <= LONGEST_LABEL else f"{len(label):,} characters"
        raise UserError(expected=known, found=found, where=self.where)


def _numbered(found: Sequence[str], first: tuple[str, ...]) -> tuple[str, ...]:
    """Return the numbered columns of captions; those of one stem, that of `first` where there is one."""
    stems = {name: _usual(name).rstrip("_0123456789").removesuffix("s") for name in found if _is_numbered(name)}
    stem = _usual(first[0]).removesuffix("s") if first else next(iter(stems.values()), "")
    return tuple(name for name, each in stems.items() if each == stem and name not in first)


def _texts(value: Any, where: str) -> list[str]:
    """Return the texts of a value: itself, or those of all members of a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list | tuple):
        return [_text(member, where) for member in value]
    return [] if value is None else [_text(value, where)]


def _text(value: Any, where: str) -> str:
    """Return a value as text; of a structure its sentence, and nothing for what is missing.

    Raises:
        UserError: It is a list, or a structure in which no field is known to hold the text.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        value = _spoken(value)
    if isinstance(value, dict | list | tuple):
        inside = f"the fields {shortened(list(map(str, value)))}" if isinstance(value, dict) else "a list"
        raise UserError(expected=f"a text, or a structure with one of {', '.join(_SPOKEN)}", found=inside, where=where)
    if isinstance(value, float):
        return "" if value != value else str(int(value)) if value.is_integer() else str(value)
    return "" if value is None else str(value)


def _spoken(value: Mapping[str, Any]) -> Any:
    """Return the sentence of a structure: that of a known field, or of its only text; itself where there is none."""
    texts = [each for each in value.values() if isinstance(each, str)]
    return next((value[name] for name in _SPOKEN if name in value), texts[0] if len(texts) == 1 else value)


def _whole(label: str) -> str:
    """Return a label; a whole number that a nullable column made a fraction (1.0) as it was."""
    number = label.removesuffix(".0")
    return number if number.removeprefix("-").isdecimal() else label

"""Write a stream of records as a raw data set: whole or not at all.

The folder is built beside its final place and renamed at the end, so a killed import leaves no half data set.
"""

import csv
import json
import secrets
import shutil
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import UserError, lacking, naming
from pipeline.extract.datasets.layout import FORMAT, is_utf8
from pipeline.extract.datasets.records import Record, Records, Skipped, SplitRule, official_split
from pipeline.files import read_json
from pipeline.progress import Meter, Progress, silent
from pipeline.words import inert

SHOWN = 3
"""Images that a survey shows."""
MOST_REASONS = 100
"""Reasons for leaving something out that a survey tells apart."""
_MAGIC = (
    (b"\xff\xd8\xff", ".jpg"),
    (b"\x89PNG\r\n\x1a\n", ".png"),
    (b"GIF8", ".gif"),
    (b"BM", ".bmp"),
    (b"II*\x00", ".tif"),
    (b"MM\x00*", ".tif"),
)


@dataclass(frozen=True)
class MadeDataset:
    """What an import made."""

    path: Path
    """The new folder."""
    images: int
    """Images in it."""
    captions: int
    """Captions in it."""
    classes: int
    """Classes in it."""
    skipped: int
    """Lines of skipped.csv."""
    alone: int = 0
    """Captions without an image."""
    read: str = ""
    """What was read as captions, labels and splits, in words."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What an import would make."""

    kind: str
    """The importer's name."""
    read: str
    """What would be read as captions, labels and splits, in words."""
    columns: Mapping[str, Any]
    """`image`, `captions`, `label`, `split` and `unread` → columns of the source; empty where it has none."""
    images: int
    """Images that would be in it."""
    captions: int
    """Captions, those without an image too."""
    alone: int
    """Captions without an image."""
    captions_an_image: Mapping[int, int]
    """Number of captions → images that have so many."""
    labels: Mapping[str, int]
    """Class → images."""
    splits: Mapping[str, int]
    """Split → images."""
    rows: Sequence[Mapping[str, Any]]
    """The first images: `image_id`, `split`, `label`, `captions`."""
    left_out: int
    """Lines that skipped.csv would have."""
    reasons: Mapping[str, Mapping[str, Any]]
    """Why something would be left out → `count`, and the `first` that would be."""


def survey(source: Records, *, rule: SplitRule | None = None, progress: Progress = silent) -> Survey:
    """Go through a source's records as `write_dataset` does, and write nothing.

    Args:
        source: The records.
        rule: Split of records whose source has no splits.
        progress: Is told how far it is.

    Raises:
        UserError: As `write_dataset`.
    """
    rule = None if source.has_splits else rule or SplitRule()
    with ExitStack() as stack:
        tables = _Tables(None, stack, rule)
        _fill(tables, source, progress)
    columns = source.columns
    return Survey(
        kind=source.kind,
        read=source.say(),
        columns={
            "image": columns.filepath,
            "captions": columns.captions,
            "label": columns.label,
            "split": columns.split,
            "unread": columns.unread,
        }
        if columns
        else {},
        images=tables.images,
        captions=tables.captions,
        alone=tables.alone,
        captions_an_image=dict(sorted(Counter(tables.kept.values()).items())),
        labels=dict(sorted(tables.labels.items())),
        splits=dict(sorted(tables.splits.items())),
        rows=tuple(tables.first.values()),
        left_out=tables.skipped,
        reasons=tables.reasons,
    )


def write_dataset(
    out: Path,
    source: Records,
    *,
    name: str = "",
    rule: SplitRule | None = None,
    replace: bool = False,
    link: bool = False,
    progress: Progress = silent,
) -> MadeDataset:
    """Write a source's records to `out`.

    Args:
        out: The new folder, `data/0_raw/<name>`.
        source: The records.
        name: The data set's name; empty: the folder's.
        rule: Split of records whose source has no splits.
        replace: Take the place of an existing folder that holds a data set of the same name.
        link: Hard-link image files instead of copying them, where the file system can.
        progress: Is told how far it is.

    Raises:
        UserError: `out` exists and may not be replaced, or the source held neither images nor captions.
    """
    name = name or out.resolve().name
    _refuse_existing(out, name, replace)
    out.parent.mkdir(parents=True, exist_ok=True)
    work = out.parent / f".{out.name}.{secrets.token_hex(4)}.tmp"
    work.mkdir()
    try:
        with naming(out):
            with ExitStack() as stack:
                tables = _Tables(work, stack, rule if not source.has_splits else None, link)
                _fill(tables, source, progress)
            classes = _write_classes(work, source, tables.labels)
            counts = (tables.images, tables.captions, classes, tables.skipped, tables.alone)
            made = MadeDataset(out, *counts, read=source.say() if source.kind else "")
            _write_info(work, name, source, made, rule)
            _put_in_place(work, out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return made


def _fill(tables: "_Tables", source: Records, progress: Progress) -> None:
    """Add all records of a source; raise where nothing comes of them, or of its texts no caption."""
    meter = Meter(progress, "images", source.total)
    for record in source.records:
        tables.add(record)
        meter.advance()
    if not tables.images and not tables.captions:
        example = f", the first because: {tables.first_reason}" if tables.first_reason else ""
        raise UserError(
            expected="at least one image or caption",
            found=f"none ({tables.skipped} left out{example})",
            where=source.origin,
        )
    if not tables.captions:
        source.refuse_lost_texts()


def _refuse_existing(out: Path, name: str, replace: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    path = out / "dataset.json"
    found = str(read_json(path, "a data set").get("name")) if path.is_file() else ""
    same = bool(found) and found == name
    if replace and same:
        return
    raise UserError(
        expected="a folder that does not exist yet",
        found=f"the data set {found!r}" if found else "a folder that holds something else",
        where=str(out),
        remedy="say --replace to make it again" if same else "choose another --out or remove it yourself",
    )


def _put_in_place(work: Path, out: Path) -> None:
    if not out.exists():
        work.rename(out)
        return
    old = out.parent / f".{out.name}.{secrets.token_hex(4)}.old"
    out.rename(old)
    work.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def _write_classes(work: Path, source: Records, labels: Iterable[str]) -> int:
    """Write the classes of the source, or those of the labels that were met; return how many."""
    classes = source.classes
    content: dict[str, Any] = {"classes": sorted(labels), "templates": ["a photo of a {c}."]}
    if classes:
        content = {"classes": classes.names, "templates": classes.templates}
        content |= {"prompts": classes.prompts} if classes.prompts else {}
    if content["classes"]:
        _write_json(work / "classes.json", content)
    return len(content["classes"])


def _write_info(work: Path, name: str, source: Records, made: MadeDataset, rule: SplitRule | None) -> None:
    info = {
        "format": FORMAT,
        "name": name,
        "source": source.origin,
        "licence": source.licence,
        "attribution": source.attribution,
        "images": made.images,
        "captions": made.captions,
        "classes": made.classes,
        "skipped": made.skipped,
        "split_rule": "the source's own" if source.has_splits else (rule or SplitRule()).describe(),
    }
    _write_json(work / "dataset.json", info)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


class _Tables:
    """The tables of a data set in the making, open until `stack` closes, and the image files beside them.

    Without a folder nothing is written: the numbers are those of what would be.
    """

    def __init__(self, work: Path | None, stack: ExitStack, rule: SplitRule | None, link: bool = False) -> None:
        def table(name: str, *header: str) -> Callable[[tuple[str, ...]], object]:
            if work is None:
                return lambda _: None
            file = stack.enter_context((work / name).open("w", newline="", encoding="utf-8", errors="replace"))
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            return writer.writerow

        self._work, self._rule, self._link = work, rule, link
        self._image = table("images.csv", "image_id", "file", "split", "label")
        self._caption = table("captions.csv", "caption_id", "image_id", "caption")
        self._left = table("skipped.csv", "id", "reason")
        self._sources: dict[str, tuple[Path | None, str, str]] = {}
        self._names: set[str] = set()
        self._count: Counter[str] = Counter()
        self.labels: Counter[str] = Counter()
        self.splits: Counter[str] = Counter()
        self.kept: Counter[str] = Counter()
        self.first: dict[str, dict[str, Any]] = {}
        self.reasons: dict[str, dict[str, Any]] = {}
        self.images = self.captions = self.skipped = self.alone = 0
        self.first_reason = ""

    def add(self, record: Record | Skipped) -> None:
        if isinstance(record, Skipped):
            self._skip(record.id, record.reason)
            return
        problem = self._add_image(record) if record.image_id else ""
        if problem:
            self._skip(record.image_id, problem)
        else:
            self._add_captions(record)

    def _skip(self, item_id: str, reason: str) -> None:
        self._left(tuple(map(str, inert((item_id, reason)))))
        self.first_reason = self.first_reason or reason
        self.skipped += 1
        if self._work is None:
            kind = reason.partition(": ")[0]
            kind = kind if kind in self.reasons or len(self.reasons) < MOST_REASONS else "other reasons"
            about = self.reasons.setdefault(kind, {"count": 0, "first": item_id, "why": reason})
            about["count"] += 1

    def _add_image(self, record: Record) -> str:
        """Add an image that is not there yet; return why it cannot be, or nothing."""
        same = record.source if isinstance(record.source, Path) else None
        if record.image_id in self._sources:
            first, *said = self._sources[record.image_id]
            if same is None or first != same:
                return "the same image id came before with another image"
            self._compare(record, *said)
            return ""
        if not all(map(is_utf8, (record.image_id, record.label, record.split))):
            return "its id, label or split is not UTF-8"
        if "\0" in record.image_id + record.label + record.split:
            return "its id, label or split holds a zero byte"
        try:
            file = self._place(record)
        except FileNotFoundError:
            place = record.source if isinstance(record.source, Path) else record.image_id
            return f"the image cannot be read: there is no such file: {place}"
        except OSError as error:
            if lacking(error):  # no fault of the image: it is not left out for that
                raise
            return f"the image cannot be read: {error.strerror or error}"
        self._sources[record.image_id] = (same, record.split, record.label)
        split = self._rule.of(record.image_id) if self._rule else official_split(record.split)
        self._image((record.image_id, file, split, record.label))
        if record.label:
            self.labels[record.label] += 1
        self.splits[split] += 1
        self.images += 1
        if self._work is None:
            self.kept[record.image_id] = 0
            if len(self.first) < SHOWN:
                shown = {"image_id": record.image_id, "split": split, "label": record.label, "captions": []}
                self.first[record.image_id] = shown
        return ""

    def _compare(self, record: Record, split: str, label: str) -> None:
        """List what a later row of an image says differently; the first one's word stands."""
        for name, kept, other in (("split", split, record.split), ("label", label, record.label)):
            if other and other != kept:
                self._skip(record.image_id, f"another row says {name} {other!r}; the first one's {kept!r} is kept")

    def _place(self, record: Record) -> str:
        file = self._free_name(record)
        if self._work is None:
            if record.source is None or (isinstance(record.source, Path) and not record.source.is_file()):
                raise FileNotFoundError
            return file
        target = self._work / file
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(record.source, bytes):
            target.write_bytes(record.source)
        elif record.source is None:
            raise FileNotFoundError(2, "there is no image")
        elif not self._link or not _hard_link(record.source, target):
            _copy(record.source, target)
        return file

    def _free_name(self, record: Record) -> str:
        path = PurePosixPath("images", _safe_name(record.name or record.image_id))
        if not path.suffix and isinstance(record.source, bytes):
            path = path.with_name(path.name + _suffix_of(record.source))
        name, number = str(path), 1
        while _folded(name) in self._names:  # file systems that ignore case or spelling must not merge two images
            number += 1
            name = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
        self._names.add(_folded(name))
        return name

    def _add_captions(self, record: Record) -> None:
        for caption in record.captions:
            caption_id = f"{record.image_id}#{self._count[record.image_id]}"
            self._count[record.image_id] += 1
            text = caption.strip()
            if not text or not is_utf8(text):
                self._skip(caption_id, "the caption is empty" if not text else "the caption is not UTF-8")
                continue
            self._caption((caption_id, record.image_id, text))
            self.captions += 1
            self.alone += not record.image_id
            if record.image_id in self.kept:
                self.kept[record.image_id] += 1
                if record.image_id in self.first:
                    self.first[record.image_id]["captions"].append(text)


# ---- files -----------------------------------------------------------------------------------------------------------


def _copy(source: Path, target: Path) -> None:
    try:
        shutil.copyfile(source, target)
    except OSError:
        target.unlink(missing_ok=True)
        raise


def _hard_link(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source.resolve())
    except OSError:
        return False
    return True


def _suffix_of(data: bytes) -> str:
    """Return the file name ending that fits some image bytes; `.img` where the format is not known."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return ".webp"
    return next((suffix for magic, suffix in _MAGIC if data.startswith(magic)), ".img")


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _safe_name(name: str) -> str:
    """Return a name as a relative path that any file system takes: no `..`, no drive, no odd characters."""
    parts = (_safe_part(part) for part in name.replace("\\", "/").split("/"))
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "unnamed"


def _safe_part(part: str) -> str:
    kept = "".join("_" if character in '<>:"|?*' or ord(character) < 32 else character for character in part.strip())
    kept = kept.encode("utf-8", "replace").decode("utf-8")
    stem, dot, suffix = kept.rpartition(".")
    return kept if len(kept.encode()) <= 200 else (stem if dot else kept)[:48] + dot + suffix[:8] * bool(dot)

"""Write a stream of records as a raw data set: whole or not at all.

The folder is built beside its final place and renamed at the end, so a killed import leaves no half data set.
"""

import csv
import json
import secrets
import shutil
from collections import Counter
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.errors import UserError
from pipeline.extract.datasets.layout import FORMAT, read_json
from pipeline.extract.datasets.records import Record, Records, Skipped, SplitRule, official_split, suffix_of
from pipeline.extract.datasets.tables import is_utf8, safe_name
from pipeline.progress import Meter, Progress, silent


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
        with _Files(work, rule if not source.has_splits else None, link) as files:
            meter = Meter(progress, "images", source.total)
            for record in source.records:
                files.add(record)
                meter.advance()
        if not files.images and not files.captions:
            raise UserError(
                expected="at least one image or caption",
                found=f"none ({files.skipped} left out{files.example()})",
                where=source.origin or str(out),
            )
        made = MadeDataset(out, files.images, files.captions, _write_classes(work, source, files.labels), files.skipped)
        _write_info(work, name, source, made, rule)
        _put_in_place(work, out)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return made


def _refuse_existing(out: Path, name: str, replace: bool) -> None:
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    path = out / "dataset.json"
    found = str(read_json(path).get("name")) if path.is_file() else ""
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
    classes = source.classes
    content: dict[str, Any] = {}
    if classes:
        content = {"classes": list(classes.names), "templates": list(classes.templates)}
        if classes.prompts:
            content["prompts"] = {label: list(texts) for label, texts in classes.prompts.items()}
    elif labels:
        content = {"classes": sorted(labels), "templates": ["a photo of a {c}."]}
    if not content:
        return 0
    _write_json(work / "classes.json", content)
    return len(content["classes"])


def _write_info(work: Path, name: str, source: Records, made: MadeDataset, rule: SplitRule | None) -> None:
    counts = asdict(made)
    info = {
        "format": FORMAT,
        "name": name,
        "source": source.origin,
        "licence": source.licence,
        "attribution": source.attribution,
        **{key: counts[key] for key in ("images", "captions", "classes", "skipped")},
        "split_rule": "the source's own" if source.has_splits else (rule or SplitRule()).describe(),
    }
    _write_json(work / "dataset.json", info)


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


class _Files:
    """The open tables of a data set in the making."""

    def __init__(self, work: Path, rule: SplitRule | None, link: bool) -> None:
        self._work, self._rule, self._link = work, rule, link
        self._sources: dict[str, Path | None] = {}
        self._names: set[str] = set()
        self._count: Counter[str] = Counter()
        self._reasons: list[str] = []
        self.labels: dict[str, None] = {}
        self.images = self.captions = self.skipped = 0

    def __enter__(self) -> "_Files":
        with ExitStack() as stack:
            self._images = self._table(stack, "images.csv", "image_id", "file", "split", "label")
            self._captions = self._table(stack, "captions.csv", "caption_id", "image_id", "caption")
            self._skipped = self._table(stack, "skipped.csv", "id", "reason")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _table(self, stack: ExitStack, name: str, *header: str) -> Any:
        file = stack.enter_context((self._work / name).open("w", newline="", encoding="utf-8", errors="replace"))
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        return writer

    def add(self, record: Record | Skipped) -> None:
        if isinstance(record, Skipped):
            self._skip(record.id, record.reason)
        elif self._add_image(record):
            self._add_captions(record)

    def example(self) -> str:
        return f", the first because: {self._reasons[0]}" if self._reasons else ""

    def _skip(self, item_id: str, reason: str) -> None:
        self._skipped.writerow((item_id, reason))
        self._reasons = self._reasons or [reason]
        self.skipped += 1

    def _add_image(self, record: Record) -> bool:
        if not record.image_id:
            return True
        same = record.source if isinstance(record.source, Path) else None
        if record.image_id in self._sources:
            if same is not None and self._sources[record.image_id] == same:
                return True
            self._skip(record.image_id, "the same image id came before with another image")
            return False
        if not is_utf8(record.image_id) or not is_utf8(record.label) or not is_utf8(record.split):
            self._skip(record.image_id, "its id, label or split is not UTF-8")
            return False
        try:
            file = self._place(record)
        except OSError as error:
            self._skip(record.image_id, f"the image cannot be read: {error.strerror or error}")
            return False
        self._sources[record.image_id] = same
        split = self._rule.of(record.image_id) if self._rule else official_split(record.split)
        self._images.writerow((record.image_id, file, split, record.label))
        if record.label:
            self.labels[record.label] = None
        self.images += 1
        return True

    def _place(self, record: Record) -> str:
        file = self._free_name(record)
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
        path = PurePosixPath("images", safe_name(record.name or record.image_id))
        if not path.suffix and isinstance(record.source, bytes):
            path = path.with_name(path.name + suffix_of(record.source))
        name, number = str(path), 1
        while name.casefold() in self._names:  # file systems that ignore case must not merge two images
            number += 1
            name = str(path.with_name(f"{path.stem}-{number}{path.suffix}"))
        self._names.add(name.casefold())
        return name

    def _add_captions(self, record: Record) -> None:
        for caption in record.captions:
            caption_id = f"{record.image_id}#{self._count[record.image_id]}"
            self._count[record.image_id] += 1
            text = caption.strip()
            if not text or not is_utf8(text):
                self._skip(caption_id, "the caption is empty" if not text else "the caption is not UTF-8")
                continue
            self._captions.writerow((caption_id, record.image_id, text))
            self.captions += 1


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

"""webdataset tars: members of one stem are one sample, wherever they lie in their tar. Nothing is unpacked.

`key.jpg` with `key.txt`, `key.json`, `key.cls`: one tar, a folder of tars, a pattern with braces
(`train-{0000..0012}.tar`, `{a,b}.tar`), or folders of tars named as splits. Several tars may use the same stems.

A stem ends at the first dot (github.com/webdataset/webdataset). Several pictures of one stem are all kept, each with
the texts that have its ending before their own (`a.1.png`, `a.1.txt`) or else the stem's; beside a plain `a.jpg` one
like `a.mask.png` is none of the data set's pictures, unless it has a text. Links, names that leave the folder, and
whatever else is not read are listed.

CLIP_benchmark (github.com/LAION-AI/CLIP_benchmark, `webdataset_builder.py`): `test/0.tar` with numeric `.cls`, and
above the splits `classnames.txt` and `zeroshot_classification_templates.txt` (`a photo of a {c}.`), one a line.
"""

import gzip
import json
import re
import tarfile
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import IO, Any

from pipeline.errors import UserError
from pipeline.extract.datasets.classes import Classes, classes_beside
from pipeline.extract.datasets.image_files import IMAGE_SUFFIXES, unread
from pipeline.extract.datasets.layout import Fence
from pipeline.extract.datasets.records import (
    SPLIT_NAMES,
    Columns,
    ImportOptions,
    Record,
    Records,
    Skipped,
)
from pipeline.extract.datasets.texts import text_lines
from pipeline.files import one_line
from pipeline.words import count

MAX_MEMBER = 256 * 2**20
"""Bytes; a larger member of a tar is refused (a compressed tar may promise any size)."""

MOST_TIMES = 100
"""A packed tar that unpacks to more than so many times its size (and a large member) would fill the disk."""

_BRACES = re.compile(r"\{([^{}]+)\}")
_ENDINGS = (".tar", ".tar.gz", ".tgz")
_TEXTS = (".txt", ".caption", ".json", ".cls")
_MOST_NAMES = 2**24
"""Bytes of a list of class names or templates."""


def expand_braces(pattern: str) -> list[str]:
    """Return the names of a pattern: `{000..012}` counts with its zeros kept, `{a,b}` lists."""
    match = _BRACES.search(pattern)
    if not match:
        return [pattern]
    first, dots, last = match[1].partition("..")
    items = match[1].split(",")
    if dots and first.isdecimal() and last.isdecimal():
        items = [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return [name for item in items for name in expand_braces(pattern[: match.start()] + item + pattern[match.end() :])]


def _tars(source: str) -> dict[Path, str]:
    """Return tar → split, empty where no folder is named as one."""
    root = Path(source)
    if not root.is_dir():
        return dict.fromkeys(map(Path, expand_braces(source)), "") if source.endswith(_ENDINGS) else {}
    found = dict.fromkeys(_tars_in(root), "")
    splits = [path for path in sorted(root.iterdir()) if path.name.lower() in SPLIT_NAMES and path.is_dir()]
    return found or {path: split.name for split in splits for path in _tars_in(split)}


def _tars_in(folder: Path) -> list[Path]:
    """Return the tars of a folder, `2.tar` before `10.tar`."""
    tars = [path for path in folder.iterdir() if path.name.endswith(_ENDINGS)]
    return sorted(tars, key=lambda path: [(len(part), part) for part in re.split(r"(\d+)", path.name)])


def is_webdataset(source: str) -> bool:
    """Tell whether the source is a tar, a pattern of tars, a folder of tars, or one of splits of them."""
    return bool(_tars(source))


def read_webdataset(source: str, options: ImportOptions) -> Records:
    """Open the tars.

    Raises:
        UserError: A tar of the pattern is missing or is no tar, or a list of class names cannot be used.
    """
    tars = _tars(source)
    missing = [str(path) for path in tars if not path.is_file()]
    if missing or not tars:
        raise UserError(
            expected=f"{len(tars) or 'some'} tar files",
            found=f"{len(missing)} missing, such as {(missing or [source])[0]}",
            where=source,
        )
    first, *others = tars
    folders = (first.parent.parent, first.parent) if tars[first] else (first.parent,)
    classes = classes_beside(first) or next(filter(None, map(_listed_classes, folders)), None)
    read = {"captions": "captions from .txt, or else from .json", "labels": "labels from .cls, or else from .json"}
    if classes:
        read["labels"] += f", {len(classes.names)} names, {count(len(classes.templates), 'template')}"
    return Records(
        records=_samples(tars, options, Columns.find(options, _asked(options), first.name, classes)),
        classes=classes,
        has_splits=bool(options.split) or all(tars.values()),
        origin=f"{first.name} and {len(others)} more" if others else first.name,
        read=read | ({"splits": "splits by folder"} if tars[first] else {}),
    )


def _listed_classes(folder: Path) -> Classes | None:
    """Return the classes that CLIP_benchmark lists in a folder; None where it lists none."""
    names = _listed(folder, "classnames.txt")
    templates = list(filter(None, _listed(folder, "zeroshot_classification_templates.txt")))
    for template in templates:
        if "{c}" not in template and "{}" not in template:
            where = str(folder / "zeroshot_classification_templates.txt")
            raise UserError(expected="templates with {c} or {}", found=repr(template[:80]), where=where)
    return Classes.numbered(names, templates) if names else None


def _listed(folder: Path, name: str) -> list[str]:
    """Return the lines of a text file, none where it is not there; blank ones at its end are none."""
    path = Fence(folder).path(name, str(folder))
    if not path.is_file():
        return []
    if path.stat().st_size > _MOST_NAMES:
        raise UserError(expected="a list of names", found=f"{path.stat().st_size:,} bytes", where=str(path))
    try:
        text = path.read_text("utf-8-sig").rstrip()
        return [line.strip() for line in text.split("\n")] if text else []
    except UnicodeDecodeError as error:
        raise UserError(expected="UTF-8", found=one_line(error), where=str(path), remedy="save it as UTF-8") from error


def _samples(tars: Mapping[Path, str], options: ImportOptions, shared: Columns) -> Iterator[Record | Skipped]:
    same = Counter(map(_named, tars))
    others = Counter[str]()
    captions = 0
    for path, split in tars.items():
        name = f"{path.parent.name}/{_named(path)}" if split or same[_named(path)] > 1 else _named(path)
        with _opened(path) as tar:
            stems, replaced = _by_stem(tar)
            yield from (Skipped(f"{path.name}:{again}", "a later member has the same name") for again in replaced)
            for key, members in stems.items():
                for member in members.values():
                    problem = _problem(member)
                    if problem:
                        yield Skipped(f"{path.name}:{member.name}", problem)
                sound = {ending: member for ending, member in members.items() if not _problem(member)}
                if sound:
                    prefix = f"{name}/" if len(tars) > 1 else ""
                    for record in _Sample(tar, prefix + key, sound, split, options, shared).records(others):
                        captions += isinstance(record, Record) and len(record.captions)
                        yield record
    if others:
        kinds = ", ".join(f"{kind} {number}" for kind, number in others.most_common(10))
        yield Skipped("other members", f"{count(others.total(), 'member')} of which nothing was read ({kinds})")
    if not captions:
        fields = tuple(filter(None, shared.noticed))
        Records(records=iter(()), columns=replace(shared, unread=fields), origin=shared.where).refuse_lost_texts()


def _asked(options: ImportOptions) -> list[str]:
    """Return the fields that the user names; not every sample has each."""
    asked = (options.filepath, options.caption, options.label, options.split)
    return [name for names in asked for name in names.split(",") if name]


def _named(path: Path) -> str:
    return next(path.name.removesuffix(ending) for ending in reversed(_ENDINGS) if path.name.endswith(ending))


@contextmanager
def _opened(path: Path) -> Iterator[tarfile.TarFile]:
    """Open a tar for reading anywhere in it; a gzipped one is unpacked beside, which compares its checksum."""
    try:
        with ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(path.open("rb"))
            magic = file.read(6)
            if magic.startswith(b"\x1f\x8b"):
                plain = stack.enter_context(tempfile.TemporaryFile())
                _unpack(path, plain)
                file = plain
            file.seek(0)
            packed_otherwise = magic.startswith((b"BZh", b"\xfd7zXZ"))
            yield stack.enter_context(tarfile.open(fileobj=file, mode="r:*" if packed_otherwise else "r:"))
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(expected="a tar file", found=one_line(error) or "none", where=str(path)) from error


def _unpack(path: Path, plain: IO[bytes]) -> None:
    most = MOST_TIMES * path.stat().st_size + MAX_MEMBER
    with gzip.open(path) as packed:
        while block := packed.read(2**20):
            plain.write(block)
            if plain.tell() > most:
                raise tarfile.ReadError(f"more than {MOST_TIMES} times its size when unpacked")


def _by_stem(tar: tarfile.TarFile) -> tuple[dict[str, dict[str, tarfile.TarInfo]], list[str]]:
    """Return stem → ending → member, the stems as they first come; and the names that a later member has again."""
    found: dict[str, dict[str, tarfile.TarInfo]] = {}
    replaced = []
    for member in tar:
        if not member.isdir():
            folder, slash, base = member.name.removeprefix("./").rpartition("/")
            stem, dot, suffix = base.partition(".")
            members, ending = found.setdefault(folder + slash + stem, {}), (dot + suffix).lower()
            replaced += [members[ending].name] if ending in members else []
            members[ending] = member
    return found, replaced


def _problem(member: tarfile.TarInfo) -> str:
    if member.name.startswith(("/", "\\")) or ".." in PurePosixPath(member.name.replace("\\", "/")).parts:
        return "the member's name leaves the folder"
    if not member.isfile():
        return "the member is a link or a device"
    return "the member is too large" if member.size > MAX_MEMBER else ""


@dataclass(frozen=True)
class _Sample:
    """The members of one stem."""

    tar: tarfile.TarFile
    key: str
    """The stem, with its tar's name before it where there are several tars."""
    members: Mapping[str, tarfile.TarInfo]
    """Ending → member; a stem ends at the first dot, so an ending may hold several."""
    split: str
    """Of the tar; empty where it has none."""
    options: ImportOptions
    shared: Columns
    """The columns of all samples: their classes, and what was noticed in those that are not read."""

    def records(self, others: Counter[str]) -> Iterator[Record | Skipped]:
        """Yield a record a picture, or the captions alone; what is neither is listed, or counted in `others`."""
        pictures = self._pictures()
        used = set(pictures)
        for picture in pictures or [""]:
            texts = self._texts(picture)
            used |= set(texts.values())
            found = self._record(
                self._id(picture, pictures), picture, {kind: self._read(texts[kind]) for kind in texts}
            )
            yield found
        if not pictures and isinstance(found, Skipped):
            return
        for ending in self.members:
            if ending not in used and (_last(ending) in IMAGE_SUFFIXES or unread(f"_{ending}")):
                yield Skipped(self.key + ending, unread(f"_{ending}") or "another picture of the same stem")
            elif ending not in used:
                others[ending] += 1

    def _pictures(self) -> list[str]:
        """Return the endings of the pictures to keep."""
        pictures = [ending for ending in self.members if _last(ending) in IMAGE_SUFFIXES]
        plain = [ending for ending in pictures if ending == _last(ending)]
        described = {_before(ending) for ending in self.members if _last(ending) in _TEXTS} - {""}
        return [ending for ending in pictures if not plain or ending in plain or _before(ending) in described]

    def _texts(self, picture: str) -> dict[str, str]:
        """Return kind of text → ending of its member: the picture's own, or else the stem's."""
        tries = {kind: (_before(picture) + kind, kind) for kind in _TEXTS}
        found = {kind: next((each for each in tries[kind] if each in self.members), "") for kind in _TEXTS}
        return {kind: ending for kind, ending in found.items() if ending}

    def _id(self, picture: str, pictures: Sequence[str]) -> str:
        if len(pictures) < 2:
            return self.key
        before = _before(picture)
        alone = before and sum(_before(other) == before for other in pictures) == 1
        return self.key + (before if alone else picture)

    def _read(self, ending: str) -> bytes:
        file = self.tar.extractfile(self.members[ending])
        return file.read() if file else b""

    def _record(self, image_id: str, picture: str, texts: Mapping[str, bytes]) -> Record | Skipped:
        """Make a record of a picture and its texts; what .txt and .cls say comes before the fields of .json."""
        reason = "" if picture else next(filter(None, (unread(f"_{ending}") for ending in self.members)), "")
        if reason:
            return Skipped(image_id, reason)
        try:
            fields = json.loads(texts.get(".json", b"{}").decode("utf-8", "surrogateescape"))
        except (ValueError, RecursionError):
            fields = None
        if not isinstance(fields, dict):
            return Skipped(image_id, "its .json is not a JSON object")
        columns = Columns.find(self.options, [*fields, *_asked(self.options)], image_id, self.shared.classes)
        columns = replace(columns, noticed=self.shared.noticed)
        text = texts.get(".txt", texts.get(".caption"))
        stated: dict[str, Any] = {"caption": text_lines(text)} if text is not None else {}
        if ".cls" in texts:
            stated["label"] = texts[".cls"].decode("utf-8", "surrogateescape")
        if not picture:
            stated["label"] = None
        if self.split and not columns.value(fields, "split"):
            stated["split"] = self.split
        source = self._read(picture) if picture else None
        record = columns.record(fields, image_id if picture else "", source, **stated)
        if not picture and not record.captions:
            return Skipped(image_id, f"neither image nor caption ({', '.join(self.members)})")
        return replace(record, name=image_id.removesuffix(_last(picture)) + _last(picture)) if picture else record


def _last(ending: str) -> str:
    return "." + ending.rpartition(".")[2]


def _before(ending: str) -> str:
    return ending.rpartition(".")[0]

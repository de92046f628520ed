"""The raw data set on the disk: `data/0_raw/<name>/`, made by `pipeline data` or by hand, read by `extract`.

dataset.json   name, source, licence, counts, split rule (optional where the set is hand-made)
images.csv     image_id,file[,split][,label]
captions.csv   caption[,caption_id][,image_id]
classes.json   {"classes": [...], "templates": [...], "prompts": {...}}   (optional)
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import UserError
from pipeline.extract.datasets.tables import Fence, is_utf8, read_columns
from pipeline.storage.contract import Place, Storage
from pipeline.storage.open import open_storage

FORMAT = 1
TABLES = ("dataset.json", "images.csv", "captions.csv", "classes.json")


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


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Class names and the prompts made of them, as classes.json holds them."""

    names: tuple[str, ...]
    """C class names, unique, in order."""
    templates: tuple[str, ...] = ("{c}",)
    """Sentences with `{c}` or `{}` where the class name goes."""
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Class name → its own sentences, used instead of the templates."""

    def sentences(self, name: str) -> tuple[str, ...]:
        """Return the prompts of a class: its own ones, or every template filled in."""
        if name in self.prompts:
            return self.prompts[name]
        return tuple(template.replace("{c}", name).replace("{}", name) for template in self.templates)


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
    classes: Classes | None = field(default=None)
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
    named = "classes.json" in there
    classes = read_classes(root.file("classes.json"), str(root / "classes.json")) if named else None
    has_images, has_captions = "images.csv" in there, "captions.csv" in there
    if not has_images and not has_captions:
        raise UserError(
            expected="images.csv or captions.csv",
            found=", ".join(sorted(path.name for path in root.here.iterdir())[:10]) or "an empty folder",
            where=str(root),
            remedy="this is not a raw data set: make one of it with `pipeline data import`",
        )
    images = _read_images(root, classes) if has_images else ()
    known = {row.image_id for row in images} if has_images else None
    captions = _read_captions(root, known) if has_captions else ()
    return RawDataset(root, str(info.get("name") or root.name), info, images, captions, classes)


def _read_info(root: Storage) -> Mapping[str, Any]:
    where = str(root / "dataset.json")
    info = read_json(root.file("dataset.json"), where)
    if info.get("format", FORMAT) != FORMAT:
        raise UserError(
            expected=f"format {FORMAT}",
            found=repr(info["format"]),
            where=where,
            remedy="make the data set again with this version of `pipeline data`",
        )
    return info


def _read_images(root: Storage, classes: Classes | None) -> tuple[ImageRow, ...]:
    path, table = root.file("images.csv"), str(root / "images.csv")
    remedy = "put the file into the data set's folder, or import it with `pipeline data import`"
    fence = Fence(root.here, remedy, str(root))
    known = set(classes.names) if classes else None
    rows = []
    for line, (image_id, file, split, label) in read_columns(path, ("image_id", "file"), ("split", "label"), table):
        where = f"{table}, line {line}"
        if not image_id:
            raise UserError(expected="an image_id", found="an empty field", where=where)
        if label and known is not None and label not in known:
            raise UserError(
                expected=f"a class of classes.json ({_some(known)})",
                found=f"label {label!r}",
                where=where,
                remedy="labels are written exactly as in classes.json, or left empty",
            )
        fence.check(file, where)
        _require_utf8(where, image_id, file, split, label)
        rows.append(ImageRow(image_id, file, split, label))
    _refuse_repeated((row.image_id for row in rows), "image_id", table)
    return tuple(rows)


def _read_captions(root: Storage, known: set[str] | None) -> tuple[CaptionRow, ...]:
    path, table = root.file("captions.csv"), str(root / "captions.csv")
    count: Counter[str] = Counter()
    rows = []
    for line, (caption, caption_id, image_id) in read_columns(path, ("caption",), ("caption_id", "image_id"), table):
        if image_id and known is not None and image_id not in known:
            raise UserError(
                expected="an image_id of images.csv, or none",
                found=repr(image_id),
                where=f"{table}, line {line}",
                remedy="add the image to images.csv or leave the caption's image_id empty",
            )
        _require_utf8(f"{table}, line {line}", caption_id, image_id)
        rows.append(CaptionRow(caption_id or f"{image_id}#{count[image_id]}", image_id, caption))
        count[image_id] += 1
    _refuse_repeated((row.caption_id for row in rows), "caption_id", table)
    return tuple(rows)


def _require_utf8(where: str, *fields: str) -> None:
    for text in fields:
        if not is_utf8(text):
            raise UserError(
                expected="UTF-8 (only captions may be broken: they are listed and left out)",
                found=repr(text.encode("utf-8", "surrogateescape")),
                where=where,
                remedy="save the table as UTF-8",
            )


def _refuse_repeated(ids: Iterable[str], column: str, where: str) -> None:
    seen: set[str] = set()
    for item_id in ids:
        if item_id in seen:
            raise UserError(
                expected=f"every {column} once",
                found=f"{item_id!r} twice",
                where=where,
                remedy="ids join images, captions and features, so each must be unique",
            )
        seen.add(item_id)


def read_json(path: Path, where: str = "") -> dict[str, Any]:
    """Read a JSON object; `where` is what errors call the file, its path if unsaid.

    Raises:
        UserError: The file is missing, is not JSON, or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(expected="a JSON object", found=str(error), where=where or str(path)) from error
    if not isinstance(value, dict):
        raise UserError(expected="a JSON object", found=type(value).__name__, where=where or str(path))
    return value


def read_classes(path: Path, where: str = "") -> Classes:
    """Read classes.json; names of other fields than `classes`, `templates` and `prompts` are left alone.

    Args:
        path: The file.
        where: What errors call it; its path if unsaid.

    Raises:
        UserError: No classes, a name twice, a template without `{c}` or `{}`, prompts of an unknown class.
    """
    where = where or str(path)
    value = read_json(path, where)
    names = _texts(value.get("classes"), "classes", where)
    if len(set(names)) != len(names):
        twice = next(name for name, times in Counter(names).items() if times > 1)
        raise UserError(expected="every class once", found=f"{twice!r} twice", where=where)
    templates = _texts(value.get("templates") or ["{c}"], "templates", where)
    for template in templates:
        if "{c}" not in template and "{}" not in template:
            raise UserError(expected="templates with {c} or {}", found=repr(template), where=where)
    prompts = value.get("prompts") or {}
    unknown = [name for name in prompts if name not in names]
    if unknown:
        raise UserError(
            expected=f"prompts of classes ({_some(names)})", found=repr(unknown[0]), where=f"{where}: prompts"
        )
    own = {name: _texts(texts, f"prompts.{name}", where) for name, texts in prompts.items()}
    return Classes(names=names, templates=templates, prompts=own)


def _texts(value: object, field_name: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        raise UserError(
            expected="a list of texts, none of them empty", found=_short(value), where=f"{where}: {field_name}"
        )
    return tuple(value)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False) if value is not None else "nothing"
    return text if len(text) < 80 else text[:77] + "..."


def _some(names: Iterable[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:8]) + (", ..." if len(listed) > 8 else "")

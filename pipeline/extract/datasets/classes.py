"""Class names and the prompts made of them: classes.json, beside a source's files or in the raw layout."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import read_json
from pipeline.words import shortened


@dataclass(frozen=True, kw_only=True)
class Classes:
    """Class names and the prompts made of them, as classes.json holds them."""

    names: tuple[str, ...]
    """C class names, unique, in order."""
    templates: tuple[str, ...] = ("{c}",)
    """Sentences with `{c}` or `{}` where the class name goes."""
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Class name → its own sentences, used instead of the templates."""

    @classmethod
    def numbered(cls, names: Iterable[object], templates: Sequence[str] = ()) -> "Classes":
        """Return the classes that a list of names means, each by its place.

        A name that comes again gets its number behind it (ImageNet has two `sunglasses` in some lists), and keeps the
        prompts of the name itself; an empty name is `class N`.

        Args:
            names: C names.
            templates: See `templates`; `a photo of a {c}.` where there are none.
        """
        templates = tuple(templates) or ("a photo of a {c}.",)
        own: dict[str, tuple[str, ...]] = {}
        known: dict[str, None] = {}
        for number, given in enumerate(names):
            name = str(given).strip() or f"class {number}"
            if name in known:
                sentences = cls(names=(), templates=templates).sentences(name)
                name = f"{name} ({number})"
                own[name] = sentences
            known[name] = None
        return cls(names=tuple(known), templates=templates, prompts=own)

    def sentences(self, name: str) -> tuple[str, ...]:
        """Return the prompts of a class: its own ones, or every template filled in."""
        if name in self.prompts:
            return self.prompts[name]
        return tuple(template.replace("{c}", name).replace("{}", name) for template in self.templates)


def read_classes(path: Path, where: str = "") -> Classes:
    """Read classes.json; names of other fields than `classes`, `templates` and `prompts` are left alone.

    Args:
        path: The file.
        where: What errors call it; its path if unsaid.

    Raises:
        UserError: No classes, a name twice, a template without `{c}` or `{}`, prompts of an unknown class.
    """
    where = where or str(path)
    value = read_json(path, "classes", where)
    names = _texts(value.get("classes"), "classes", where)
    if len(set(names)) != len(names):
        twice, _ = Counter(names).most_common(1)[0]
        raise UserError(expected="every class once", found=f"{twice!r} twice", where=where)
    templates = _texts(value.get("templates") or ["{c}"], "templates", where)
    for template in templates:
        if "{c}" not in template and "{}" not in template:
            raise UserError(expected="templates with {c} or {}", found=repr(template), where=where)
    prompts = value.get("prompts") or {}
    if not isinstance(prompts, dict):
        found = type(prompts).__name__
        raise UserError(expected="prompts as class → texts", found=found, where=f"{where}: prompts")
    unknown = [name for name in prompts if name not in names]
    if unknown:
        raise UserError(
            expected=f"prompts of classes ({shortened(names)})", found=repr(unknown[0]), where=f"{where}: prompts"
        )
    own = {name: _texts(texts, f"prompts.{name}", where) for name, texts in prompts.items()}
    return Classes(names=names, templates=templates, prompts=own)


def classes_beside(path: Path) -> Classes | None:
    """Return the classes.json in the folder of a file, if it is there."""
    beside = path.parent / "classes.json"
    return read_classes(beside) if beside.is_file() else None


def _texts(value: object, field_name: str, where: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value or not all(isinstance(text, str) and text.strip() for text in value):
        found = json.dumps(value, ensure_ascii=False) if value is not None else "nothing"
        raise UserError(
            expected="a list of texts, none of them empty",
            found=found if len(found) < 80 else found[:77] + "...",
            where=f"{where}: {field_name}",
        )
    return tuple(value)

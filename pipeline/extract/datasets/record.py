"""The one record type: what every importer yields and the one writer takes."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path


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
    """As the source says it; empty where it says nothing."""
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


@dataclass(frozen=True, kw_only=True)
class Source:
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

"""What stands in a report, as plain data. Strings are text: the template escapes every one of them.

Only `Picture.svg` goes in as it is; it comes from `pipeline.evaluate.figures`, which escapes what it draws.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One large number of the first screen."""

    label: str
    value: str
    spread: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Caution:
    """Something that a reader must know before believing a number."""

    title: str
    text: str
    items: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A table cell: what is shown, what it is sorted by, whether it is the best of its column."""

    text: str
    sub: str = ""
    value: float | None = None
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """A sortable table; the first column names the row."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    foot: tuple[str, ...] = ()
    narrow: bool = False
    """Takes no more room than it needs; narrow tables stand side by side."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """A figure with its caption. `svg` is trusted markup."""

    svg: str
    caption: str


@dataclass(frozen=True, kw_only=True)
class Thumb:
    """An answer to a query: a picture, a caption or both."""

    image: str = ""
    """Base64 of a JPEG; empty where there is no picture."""
    text: str = ""
    note: str = ""
    right: bool = False


@dataclass(frozen=True, kw_only=True)
class Example:
    """A query and what was found for it, best first."""

    query: str
    note: str
    answers: tuple[Thumb, ...]
    image: str = ""
    missed: Thumb | None = None
    """The right answer, where it is not among those shown."""


@dataclass(frozen=True, kw_only=True)
class ExampleGroup:
    """Examples under one heading, folded away or not."""

    title: str
    lead: str
    examples: tuple[Example, ...]
    open: bool = False


@dataclass(frozen=True, kw_only=True)
class Section:
    """A chapter of the report."""

    id: str
    title: str
    lead: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    pictures: tuple[Picture, ...] = ()
    groups: tuple[ExampleGroup, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()
    folded: tuple[tuple[str, str], ...] = ()
    """(title, text) of things to look up, in a monospaced box behind a summary."""


@dataclass(frozen=True, kw_only=True)
class Page:
    """The whole report."""

    title: str
    eyebrow: str
    verdict: str
    reasons: tuple[str, ...]
    tiles: tuple[Tile, ...]
    figure: Picture | None
    cautions: tuple[Caution, ...]
    sections: tuple[Section, ...] = field(default=())

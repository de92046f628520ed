"""What stands in a report, as plain data. Strings are text: the template escapes every one of them.

Only `Picture.svg` goes in as it is; it comes from `pipeline.evaluate.figures`, which escapes what it draws.
"""

from dataclasses import dataclass, field

from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, ZERO_SHOT, Measure

ARROWS = {IMAGE_RETRIEVAL: "text→image", TEXT_RETRIEVAL: "image→text"}


@dataclass(frozen=True, kw_only=True)
class Tile:
    """One large number of the first screen."""

    label: str
    value: str
    spread: str = ""
    note: str = ""


@dataclass(frozen=True, kw_only=True)
class Caveat:
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
    caveats: tuple[Caveat, ...]
    sections: tuple[Section, ...] = field(default=())


def percent(value: float) -> str:
    """Return a fraction as percent without the sign: 12.3."""
    return f"{100 * value:.1f}"


def signed(value: float) -> str:
    """Return a difference of fractions in points: +1.2, −0.4."""
    text = f"{100 * value:+.1f}"
    return text.replace("-", "−") if float(text) else "0.0"


def between(low: float, high: float) -> str:
    """Return an interval of fractions: 10.2 to 14.0."""
    return f"{percent(low)} to {percent(high)}".replace("-", "−")


def plus_minus(deviation: float | None) -> str:
    """Return a standard deviation over seeds, or nothing for one seed."""
    return "" if deviation is None else f"± {percent(deviation)}"


def direction_name(direction: str) -> str:
    """Return how a direction is called."""
    if direction in ARROWS:
        return ARROWS[direction]
    return f"zero-shot {direction.removeprefix(ZERO_SHOT).removeprefix(':')}".strip()


def measure_name(measure: Measure) -> str:
    """Return the heading of a measure's column."""
    name = direction_name(measure.direction)
    if measure.direction in ARROWS:
        return f"{name} R@{measure.k}"
    return f"{name} {'per-class' if measure.macro else f'acc@{measure.k}'}"

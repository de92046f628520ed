"""What stands in a report, as plain data, and its three forms: one HTML file, Markdown, and each table as CSV.

Strings are text: in HTML jinja2 escapes every one of them. Only `Picture.svg` goes in as it is; it comes from
`pipeline.evaluate.figures`, which escapes what it draws. The page loads nothing: its content policy allows no request
at all, and of scripts only the one whose digest it names. `report.md` is for reading and pasting;
`tables/<chapter>-<number>.csv` holds what the tables are sorted by, unrounded, and the shown text where there is none.
"""

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pipeline.evaluate.output import write_csv
from pipeline.evaluate.results import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, ZERO_SHOT, Measure, RunResult

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"
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


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A table cell: what is shown, what it is sorted by, whether it is the best of its column."""

    text: str
    sub: str = ""
    value: float | None = None
    best: bool = False

    @classmethod
    def percent(cls, value: float, sub: str = "", *, best: bool = False) -> "Cell":
        """Return a cell that shows a fraction as percent and is sorted by it."""
        return cls(text=percent(value), value=value, sub=sub, best=best)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A sortable table; the first column names the row."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    foot: tuple[str, ...] = ()
    narrow: bool = False
    """Takes no more room than it needs; narrow tables stand side by side."""

    @classmethod
    def of_runs(
        cls,
        runs: Iterable[RunResult],
        head: Sequence[str],
        cells: Callable[[RunResult], Iterable[Cell]],
        caption: str,
        *,
        narrow: bool = False,
    ) -> "Table":
        """Return a table with a row a run: its name, then its cells."""
        rows = tuple((Cell(text=run.name), *cells(run)) for run in runs)
        return cls(caption=caption, head=tuple(head), rows=rows, narrow=narrow)


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
    """(title, text) of things to look up, in a monospaced box behind a board."""


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
    sections: tuple[Section, ...] = ()


def render(page: Page) -> str:
    """Return the report as HTML."""
    style, script, template = (
        (TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js", "report.html.j2")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["drawing"] = Markup  # only for Picture.svg
    return environment.from_string(template).render(
        page=page,
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        script_digest=digest,
    )


def write_plain(out: Path, page: Page) -> None:
    """Write `report.md` and `tables/` into a folder."""
    (out / "report.md").write_text(markdown(page), encoding="utf-8")
    folder = out / "tables"
    folder.mkdir(exist_ok=True)
    for section in page.sections:
        for number, table in enumerate(section.tables, 1):
            shown = ([cell.text if cell.value is None else cell.value for cell in row] for row in table.rows)
            write_csv(folder / f"{section.id}-{number}.csv", table.head, shown)


def markdown(page: Page) -> str:
    """Return the words and tables of a report as Markdown; nothing in them is read as markup."""
    blocks = [f"# {plain(page.verdict)}", plain(page.eyebrow), *map(plain, page.reasons)]
    if page.caveats:
        blocks.append("## Before you believe it")
        blocks.append("\n".join(f"- **{plain(each.title)}.** {plain(each.text)}" for each in page.caveats))
    for section in page.sections:
        if section.tables or section.facts:
            blocks += [f"## {plain(section.title)}", *map(plain, section.lead)]
            blocks += [block for table in section.tables for block in (_table(table), plain(table.caption))]
        if section.facts:
            blocks.append("\n".join(f"- {plain(name)}: {plain(text)}" for name, text in section.facts))
    return "\n\n".join(blocks) + "\n"


def plain(text: str) -> str:
    """Return a text on one line with Markdown's and HTML's marks escaped."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))


def _table(table: Table) -> str:
    lines = ["| " + " | ".join(map(plain, table.head)) + " |", "|---" + "|---:" * (len(table.head) - 1) + "|"]
    lines += ["| " + " | ".join(map(_shown, row)) + " |" for row in table.rows]
    if table.foot:
        lines.append("| " + " | ".join(map(plain, table.foot)) + " |")
    return "\n".join(lines)


def _shown(cell: Cell) -> str:
    text = f"**{plain(cell.text)}**" if cell.best else plain(cell.text)
    return f"{text} ({plain(cell.sub)})" if cell.sub else text


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

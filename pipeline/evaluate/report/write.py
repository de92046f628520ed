"""A `Page` in; out come one self-contained HTML text, all of its words and tables as Markdown, and each table as CSV.

In HTML everything is escaped by jinja2. The page loads nothing: its content policy allows no request at all, and of
scripts only the one whose digest it names. `report.md` is for reading and pasting; `tables/<chapter>-<number>.csv`
holds what the tables are sorted by, unrounded, and the shown text where a cell has no number.
"""

import base64
import csv
import hashlib
import re
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.evaluate.report.page import Cell, Page, Table

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


def render(page: Page) -> str:
    """Return the report as HTML."""
    style, script = (_own(name) for name in ("report.css", "report.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["drawing"] = Markup  # only for Picture.svg, see page.py
    template = environment.get_template("report.html.j2")
    return template.render(page=page, style=Markup(style), script=Markup(script), script_digest=digest)  # noqa: S704


def write_plain(out: Path, page: Page) -> None:
    """Write `report.md` and `tables/` into a folder."""
    (out / "report.md").write_text(markdown(page), encoding="utf-8")
    folder = out / "tables"
    folder.mkdir(exist_ok=True)
    for section in page.sections:
        for number, table in enumerate(section.tables, 1):
            with (folder / f"{section.id}-{number}.csv").open("w", encoding="utf-8", newline="") as stream:
                writer = csv.writer(stream, lineterminator="\n")
                writer.writerow(table.head)
                writer.writerows([_value(cell) for cell in row] for row in table.rows)


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


def _value(cell: Cell) -> str | float:
    return cell.text if cell.value is None else cell.value


def _own(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")

"""Fill the template: a `Page` in, one self-contained HTML text out.

Everything is escaped by jinja2. The page loads nothing: its content policy allows no request at all, and of scripts
only the one whose digest it names.
"""

import base64
import hashlib
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.evaluate.report.page import Page

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


def _own(name: str) -> str:
    return (TEMPLATES / name).read_text(encoding="utf-8")

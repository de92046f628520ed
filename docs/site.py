"""What the site needs beyond docs/: pages from the repository's root, one page of API for each package, right links.

Run by MkDocs (`hooks:` in mkdocs.yml). The pages themselves stay readable where they lie.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    "README.md": "index.md",
    "data/README.md": "data.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""File of the repository → page of the site."""
PACKAGES = ("store", "encoders", "projectors", "metrics", "extract", "align", "evaluate", "apps", "sweep", "engines")
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that do not lie in docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for package in PACKAGES:
        files.append(File.generated(config, f"api/{package}.md", content=f"::: pipeline.{package}\n"))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let links between files of the repository lead to their pages; where there is no page, the name stays."""
    here = page.file.src_uri
    origin = {name: source for source, name in PAGES.items()}.get(here, f"docs/{here}")

    def corrected(match: re.Match[str]) -> str:
        text, target, anchor = match.groups()
        if "://" in target or target.startswith("mailto:"):
            return match[0]
        source = posixpath.normpath(posixpath.join(posixpath.dirname(origin), target))
        if source in PAGES:
            found = PAGES[source]
        elif source.startswith("docs/") and files.get_file_from_path(source[len("docs/") :]):
            found = source[len("docs/") :]
        else:
            return str(text)
        return f"[{text}]({posixpath.relpath(found, posixpath.dirname(here) or '.')}{anchor or ''})"

    return LINK.sub(corrected, markdown)

"""The site builds without a warning: every page is found, every link leads somewhere, every docstring can be read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytest.importorskip("mkdocstrings", reason="the site needs: pip install -e '.[docs]'")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(place)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return place


def test_the_readme_is_the_first_page(site: Path) -> None:
    assert "<title>fewpairs</title>" in (site / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("page", "name"), [("store", "FeatureStore"), ("align", "AlignConfig"), ("apps", "DualEncoder")]
)
def test_the_reference_is_made_from_docstrings(site: Path, page: str, name: str) -> None:
    assert re.search(
        rf'id="pipeline\.{page}\.[a-z_.]+\.{name}"', (site / "api" / page / "index.html").read_text("utf-8")
    )


def test_links_between_pages_lead_to_pages(site: Path) -> None:
    for page in site.rglob("*.html"):
        for target in re.findall(r'<a[^>]* href="([^":#]+)[#"]', page.read_text(encoding="utf-8")):
            place = site / target.lstrip("/") if target.startswith("/") else page.parent / target
            assert place.exists(), f"{page.relative_to(site)}: {target}"

"""The report as Markdown and CSV: the same tables, nothing read as markup."""

import csv
import json
from html.parser import HTMLParser
from typing import Any

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.output import markdown, plain
from pipeline.evaluate.report.page import Caveat, Cell, Page, Section, Table
from pipeline.evaluate.run import evaluate
from tests.evaluate.conftest import World


class Tables(HTMLParser):
    """Counts the rows of each table's body."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []
        self.inside = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "tbody":
            self.rows.append(0)
        self.inside = tag == "tbody" or (self.inside and tag != "tfoot")
        if tag == "tr" and self.inside:
            self.rows[-1] += 1

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag != "tbody"


def test_the_same_tables_everywhere(world: World) -> None:
    runs = (world.add_run("info_nce"), world.add_run("cca", steps=0))
    out = world.root / "out"
    stated: dict[str, Any] = {"image": (world.image,), "text": (world.text,), "bootstrap": 100, "examples": 0}
    evaluate(EvaluateConfig(runs=runs, out=out, csls=3, **stated))
    page = Tables()
    page.feed((out / "report.html").read_text())
    files = sorted((out / "tables").glob("*.csv"))
    read = {path.name: list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) for path in files}
    short, *chapters = page.rows  # the first screen's table is part of the one of results
    assert short == len(runs)
    assert sorted(len(rows) for rows in read.values()) == sorted(chapters)
    assert {"results-1.csv", "differences-1.csv", "calibration-1.csv", "probes-1.csv", "curves-2.csv"} <= set(read)
    values = json.loads((out / "metrics.json").read_text())
    for row in read["results-1.csv"]:
        assert float(row["text→image R@1"]) == values[row["run"]]["image_retrieval_recall@1"]
    for row in read["calibration-1.csv"]:
        assert float(row["image→text ECE, scaled"]) == values[row["run"]]["text_retrieval_ece_scaled"]
    text = (out / "report.md").read_text()
    assert text.count("\n|---") == len(chapters)
    assert "- **One seed.**" not in text
    assert "## Results" in text


def test_nothing_is_read_as_markup() -> None:
    assert plain("a|b *c* <b>_d_</b>\n# [e](f)") == r"a\|b \*c\* \<b\>\_d\_\</b\> \# \[e\](f)"
    table = Table(caption="c|c", head=("run", "R@1"), rows=((Cell(text="a|b"), Cell(text="1.0", sub="x", best=True)),))
    page = Page(
        title="t",
        eyebrow="e",
        verdict="v",
        reasons=(),
        tiles=(),
        figure=None,
        caveats=(Caveat(title="T", text="<script>"),),
        sections=(Section(id="s", title="S", tables=(table,)),),
    )
    assert markdown(page).splitlines()[-5:] == ["| run | R@1 |", "|---|---:|", r"| a\|b | **1.0** (x) |", "", r"c\|c"]
    assert r"- **T.** \<script\>" in markdown(page)

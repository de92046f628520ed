"""Every family of the installed libraries is proven or refused, as docs/encoders.md says; a sample by default."""

import pytest

from tests.encoders.conformance import Case, Row
from tests.encoders.sweep import LIBRARIES, cases, recorded, swept

SAMPLE = {
    "timm": ("byobnet", "convnext", "efficientnet", "mambaout", "nfnet", "resnet", "vision_transformer", "cait"),
    "transformers": ("aimv2_vision_model (image)", "vit_mae (image)", "bert (text)", "roberta (text)", "fnet (text)"),
    "open_clip": ("image: own", "image: own: attentional_pool, attn_pooler_heads, output_tokens"),
}
"""Families that are tried every time: small ones, and those whose layers are not where they seem."""


def check(case: Case) -> None:
    found = swept(case)
    assert not found.verdict.startswith(("WRONG", "ERROR")), found
    assert found == recorded().get((case.library, case.family)), "run python -m tests.encoders.sweep"


@pytest.mark.conformance
@pytest.mark.timeout(7200)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", LIBRARIES)
def test_every_family_is_proven_or_refused(library: str) -> None:
    found = [swept(case) for case in LIBRARIES[library]()]
    assert not [row for row in found if row.verdict.startswith(("WRONG", "ERROR"))]
    table = recorded()
    assert not [row for row in found if row != table.get((row.library, row.family))], (
        "run python -m tests.encoders.sweep"
    )


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("library", SAMPLE)
def test_a_sample_is_proven_or_refused_as_the_table_says(library: str) -> None:
    known = {case.family: case for case in LIBRARIES[library]()}
    for family in SAMPLE[library]:
        check(known[family])


def test_the_table_has_a_row_for_every_family_and_none_is_wrong() -> None:
    rows = recorded()
    assert {(case.library, case.family) for case in cases()} <= set(rows)
    assert not [row for row in rows.values() if "WRONG" in row.verdict or "ERROR" in row.verdict]
    assert sum(row.verdict == "proven" for row in rows.values()) > len(rows) / 2
    assert all(isinstance(row, Row) and row.verdict for row in rows.values())

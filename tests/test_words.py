"""Sizes, durations and counts for people."""

import pytest

from pipeline.words import count, duration, html_table, inert, listing, on_stderr, shortened, size


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3.14e9, "3.1 GB"), (-2500, "-2.5 kB"), (2e15, "2000.0 TB")],
)
def test_sizes(value: float, text: str) -> None:
    assert size(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (720, "12 min"), (5400, "1.5 h"), (36000, "10.0 h")]
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_counts_have_the_right_number() -> None:
    assert [count(n, "image") for n in (0, 1, 1234)] == ["0 images", "1 image", "1,234 images"]
    assert count(2, "class", "classes") == "2 classes"


def test_listings() -> None:
    assert [listing("abc"[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]


def test_sentences_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    on_stderr("It is done.")
    assert capsys.readouterr() == ("", "It is done.\n")


def test_a_table_escapes_what_it_shows() -> None:
    table = html_table("a & b", ("<i>",), [("<script>alert(1)</script>",), (3,)])
    assert "<caption>a &amp; b</caption>" in table
    assert "<th>&lt;i&gt;</th>" in table
    assert "<td>&lt;script&gt;alert(1)&lt;/script&gt;</td></tr><tr><td>3</td>" in table


def test_shortened_names() -> None:
    assert shortened(["a", "b"]) == "a, b"
    assert shortened([str(number) for number in range(30)]).endswith("18, 19..., 30 in all")
    assert len(shortened(["x" * 5000])) < 450


@pytest.mark.parametrize("text", ["=1+1", "+SUM(A1)", "-cmd|' /C calc'!A0", "@x", "\tx", "\rx", "=", "-", "+1 (2)"])
def test_what_a_spreadsheet_would_calculate_is_text(text: str) -> None:
    assert inert([text, 1]) == [f"'{text}", 1]


@pytest.mark.parametrize("cell", ["", "a=1", "-1", "+0.25", "-1e-05", "1", -1, 0.5, None, "'=", " =1", "–"])
def test_numbers_and_other_texts_stay(cell: object) -> None:
    assert inert([cell]) == [cell]

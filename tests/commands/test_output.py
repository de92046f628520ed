"""What the commands print: tables that fit, options that got another name."""

import pytest

from pipeline.commands.options import renamed
from pipeline.commands.output import WIDTH, emit_table
from pipeline.errors import UserError


@pytest.mark.parametrize("length", [5, 60, 500])
def test_one_column_is_cut_until_the_table_fits(capsys: pytest.CaptureFixture[str], length: int) -> None:
    words = ("word " * length).strip()
    emit_table(
        [{"score": "0.500", "file": "a/b.png", "captions": words}], ("score", "file", "captions"), cut="captions"
    )
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    shown = lines[2].partition("a/b.png  ")[2]
    assert shown == words if length == 5 else shown.endswith("…") and words.startswith(shown[:-1])


def test_what_is_not_to_be_cut_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    path = "x" * 200
    emit_table([{"file": path, "captions": "a long sentence of words"}], ("file", "captions"), cut="captions")
    assert f"{path}  a long sent…" in capsys.readouterr().out
    emit_table([{"file": path}], ("file",))
    assert path in capsys.readouterr().out


def test_a_renamed_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert renamed("--old", "--new", None, 3) == 3
    assert renamed("--old", "--new", None, None) is None
    assert capsys.readouterr().err == ""
    assert renamed("--old", "--new", 0, None) == 0
    assert "--old is now called --new" in capsys.readouterr().err
    with pytest.raises(UserError, match="--old: expected --new, which is what --old is called now, found both"):
        renamed("--old", "--new", 1, 2)

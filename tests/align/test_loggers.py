"""Loggers write what history.jsonl and run.json hold, read back by each program's own reader, and change nothing."""

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.align.config import AlignConfig
from pipeline.align.loggers import LOGGERS, LoggedSeed
from pipeline.align.run import align
from pipeline.errors import MissingExtraError, PipelineError, UnknownNameError
from pipeline.progress import Update
from pipeline.projectors.run_record import AlignedRun
from tests.align.conftest import Stores

SHORT: dict[str, Any] = {"dim": 8, "training": {"max_steps": 12, "validations": 3, "learning_rate": 0.01}}
RECALL = "image_retrieval_recall@5"


def config_of(stores: Stores, out: Path, **changes: Any) -> AlignConfig:
    values: dict[str, Any] = {"method": "info_nce", "settings": SHORT, "seeds": (1, 2), "layers": "last,last"} | changes
    return AlignConfig(image=(stores.image,), text=(stores.text,), out=out, replace=True, device="cpu", **values)


def history(run: AlignedRun, seed: int) -> list[dict[str, Any]]:
    lines = (run.folder / f"seed-{seed}" / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


Curve = dict[int, float]


def read_dvclive(folder: Path) -> tuple[Callable[[str], Curve], dict[str, float]]:
    def curve(name: str) -> Curve:
        with (folder / "plots" / "metrics" / f"{name}.tsv").open(encoding="utf-8", newline="") as file:
            key = name.split("/")[-1]
            return {int(row["step"]): float(row[key]) for row in csv.DictReader(file, delimiter="\t")}

    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    settings = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    assert settings["recipe.training.learning_rate"] == 0.01
    return curve, metrics["final"]


def read_tensorboard(folder: Path) -> tuple[Callable[[str], Curve], dict[str, float]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    assert b'"learning_rate": 0.01' in events.Tensors("settings/text_summary")[0].tensor_proto.string_val[0]
    names = [name for name in events.Tags()["scalars"] if name.startswith("final/")]
    final = {name.removeprefix("final/"): events.Scalars(name)[0].value for name in names}
    return lambda name: {event.step: event.value for event in events.Scalars(name)}, final


READERS = {"dvclive": read_dvclive, "tensorboard": read_tensorboard}


@pytest.mark.parametrize("name", READERS)
def test_what_was_logged_is_the_history(stores: Stores, tmp_path: Path, name: str) -> None:
    pytest.importorskip(name)
    run = AlignedRun.open(align(config_of(stores, tmp_path / "run", log_to=name)))
    for entry in run.record["seeds"]:
        curve, final = READERS[name](run.folder / "logs" / name / f"seed-{entry['seed']}")
        rows = history(run, entry["seed"])
        for ours in ("loss", "lr", "lambda_i2t", "temperature"):
            assert curve(f"train/{ours}") == pytest.approx({row["step"]: row[ours] for row in rows}, rel=1e-6)
        validated = {row["step"]: row[f"val_{RECALL}"] for row in rows if f"val_{RECALL}" in row}
        assert len(validated) == 3
        assert curve(f"val/{RECALL}") == pytest.approx(validated, rel=1e-6)
        assert final[RECALL] == pytest.approx(entry["validation"][RECALL], rel=1e-6)
        assert final["steps"] == 12


def test_wandb_stays_offline(stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its file is LevelDB's log of protobuf records, in which names and JSON values stand as they are."""
    wandb = pytest.importorskip("wandb")
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WANDB_X_SERVICE_WAIT", "300")  # seconds for its writing process to begin, 30 by itself
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "")  # taken back afterwards, whoever sets it
    monkeypatch.delenv("WANDB_ERROR_REPORTING")
    connect = socket.socket.connect

    def only_here(self: socket.socket, address: Any) -> None:
        assert self.family == socket.AF_UNIX or address[0] in ("127.0.0.1", "::1", "localhost"), address
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", only_here)
    run = AlignedRun.open(align(config_of(stores, tmp_path / "run", log_to="wandb", seeds=(1,))))
    wandb.teardown()  # waits for its writing process
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    (folder,) = (run.folder / "logs/wandb/seed-1/wandb").glob("offline-run-*")
    (file,) = folder.glob("run-*.wandb")
    digest = json.loads((run.folder / "seed-1/seed.json").read_text(encoding="utf-8"))["digest"]
    assert file.name == f"run-{digest[:16]}.wandb"
    written = file.read_bytes()
    for name in ("train/loss", f"val/{RECALL}", f"final/{RECALL}", "learning_rate"):
        assert name.encode() in written
    assert str(history(run, 1)[0]["loss"]).encode() in written


def test_a_closed_form_logs_its_ridges(stores: Stores, tmp_path: Path) -> None:
    pytest.importorskip("dvclive")
    run = AlignedRun.open(align(config_of(stores, tmp_path / "run", log_to="dvclive", method="cca", settings={})))
    curve, final = read_dvclive_of_cca(run.folder / "logs/dvclive/seed-1")
    ridges = [row["ridge"] for row in history(run, 1)]
    assert list(curve.values()) == ridges
    assert final["steps"] == 0


def read_dvclive_of_cca(folder: Path) -> tuple[Curve, dict[str, float]]:
    with (folder / "plots/metrics/train/ridge.tsv").open(encoding="utf-8", newline="") as file:
        curve = {int(row["step"]): float(row["ridge"]) for row in csv.DictReader(file, delimiter="\t")}
    return curve, json.loads((folder / "metrics.json").read_text(encoding="utf-8"))["final"]


class Kept:
    """A logger of the tests: remembers what it got."""

    def __init__(self) -> None:
        self.seeds: list[LoggedSeed] = []

    def __call__(self, seed: LoggedSeed, folder: Path) -> None:
        assert not list(folder.iterdir())
        (folder / "log").write_text("", encoding="utf-8")
        self.seeds.append(seed)


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch) -> Kept:
    logger = Kept()
    monkeypatch.setitem(LOGGERS, "json", logger)
    return logger


def test_logging_changes_no_result(stores: Stores, tmp_path: Path, kept: Kept) -> None:
    plain = AlignedRun.open(align(config_of(stores, tmp_path / "plain")))
    logged = AlignedRun.open(align(config_of(stores, tmp_path / "logged", log_to="json")))
    for seed in (1, 2):
        for name in ("image.safetensors", "text.safetensors", "history.jsonl"):
            assert (plain.folder / f"seed-{seed}" / name).read_bytes() == (
                logged.folder / f"seed-{seed}" / name
            ).read_bytes()
        digests = [
            json.loads((each.folder / f"seed-{seed}/seed.json").read_text())["digest"] for each in (plain, logged)
        ]
        assert digests[0] == digests[1]


def test_finished_seeds_are_logged_without_training(stores: Stores, tmp_path: Path, kept: Kept) -> None:
    first = AlignedRun.open(align(config_of(stores, tmp_path / "run")))
    said: list[Update] = []
    align(config_of(stores, tmp_path / "run", log_to="json"), said.append)
    align(config_of(stores, tmp_path / "run", log_to="json"))
    assert any("Reused" in str(sentence) and "seed 1, 2" in str(sentence) for sentence in said)
    assert [seed.seed for seed in kept.seeds] == [1, 2, 1, 2]
    assert kept.seeds[0].record == first.record["seeds"][0]


def test_a_logger_that_fails_costs_no_training(stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(seed: LoggedSeed, folder: Path) -> None:
        raise OSError("no space")

    monkeypatch.setitem(LOGGERS, "json", fails)
    with pytest.raises(PipelineError, match="expected a log by json, found OSError: no space; the run itself is"):
        align(config_of(stores, tmp_path / "run", log_to="json"))
    assert AlignedRun.open(tmp_path / "run").seeds == (1, 2)


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_one_sentence_before_the_work(
    stores: Stores, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.align.loggers.find_spec", lambda package: None)
    with pytest.raises(MissingExtraError, match=rf"'{name}' .*not installed; run: pip install 'fewpairs\[loggers\]'"):
        align(config_of(stores, tmp_path / "run", log_to=name))
    assert not (tmp_path / "run").exists()


def test_an_unknown_logger_lists_the_known_ones(stores: Stores, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'tensorboard'"):
        config_of(stores, tmp_path / "run", log_to="tensorbord")


def test_the_table_loads_none_of_the_packages() -> None:
    heavy = {"dvclive", "tensorboard", "wandb", "torch"}
    script = f"import sys, pipeline.align.config; sys.exit(bool({heavy} & {{*sys.modules}}))"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0

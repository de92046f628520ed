"""Clusters that are not there, which workers fit where (counted by hand), and what a worker takes over."""

import importlib
import os
import pickle
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.engines import cluster
from pipeline.engines.cluster import (
    Bundle,
    adopt,
    connect,
    extraction_bundles,
    origin_here,
    result_of,
    run_bundles,
)
from pipeline.errors import DamagedStoreError, KeyMismatchError, PipelineError, UnknownNameError, UserError
from pipeline.parallel import THREADS

HEAD = Bundle(0, node="head")
SMALL, LARGE = Bundle(4, node="small"), Bundle(16, node="large")
GPUS = Bundle(64, 8, "gpus")


class NoCluster:
    """A Ray that finds no cluster."""

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def init(self, **options: object) -> None:
        self.calls += 1
        raise self.error

    def shutdown(self) -> None:
        pass


@pytest.mark.parametrize(
    ("address", "error", "message", "calls"),
    [
        ("10.0.0.9:6379", ConnectionError("no"), "--address 10.0.0.9:6379: expected a Ray cluster, found none that", 1),
        ("auto", RuntimeError("InvalidAuthToken"), "found one that wants another token; export RAY_AUTH_MODE=token", 1),
        (None, Exception("The current node timed out during startup."), "a Ray that starts on this machine, found", 3),
    ],
)
def test_no_cluster_is_one_sentence(
    address: str | None, error: Exception, message: str, calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = NoCluster(error)
    monkeypatch.setattr(cluster, "load_ray", lambda: fake)
    monkeypatch.setattr(cluster, "_hush", lambda: None)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(UserError, match=message):
        connect(address)
    assert fake.calls == calls


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "expected"),
    [
        ([HEAD, SMALL, LARGE], "auto", None, [(4, 0, "small"), (16, 0, "large")]),
        ([HEAD, SMALL, LARGE], "cpu", 8, [(4, 0, "small"), (8, 0, "large"), (8, 0, "large")]),
        ([SMALL], "auto", 3, [(3, 0, "small")]),
        ([SMALL, GPUS], "auto", None, [(8, 1, "gpus")] * 8),
        ([SMALL, GPUS], "cuda", 2, [(2, 1, "gpus")] * 8),
        ([SMALL, GPUS], "cuda", 20, [(8, 1, "gpus")] * 8),
        ([SMALL, GPUS], "cpu", None, [(4, 0, "small"), (64, 0, "gpus")]),
        ([Bundle(96, 1, "one")], "auto", None, [(32, 1, "one")]),
        ([Bundle(2, 4, "few")], "auto", None, [(1, 1, "few")] * 2),
    ],
)
def test_one_encoder_a_gpu_or_a_slot_of_cpus(
    nodes: list[Bundle], device: str, workers: int | None, expected: list[tuple[int, int, str]]
) -> None:
    found, _ = extraction_bundles(nodes, device, workers, None)
    assert found == [Bundle(*each) for each in expected]


@pytest.mark.parametrize(
    ("nodes", "device", "decode_cpus", "encoders", "decoders"),
    [
        ([SMALL, LARGE], "auto", None, [(4, 0, "small"), (16, 0, "large")], []),
        ([HEAD, SMALL, LARGE, GPUS], "auto", None, [(8, 1, "gpus")] * 8, [(4, "small"), (16, "large")]),
        ([SMALL, GPUS], "cuda", 0, [(8, 1, "gpus")] * 8, []),
        ([GPUS, SMALL], "auto", 3, [(8, 1, "gpus")] * 8, [(3, "small")]),
        ([GPUS, SMALL], "auto", 20, [(6, 1, "gpus")] * 8, [(4, "small"), (16, "gpus")]),
        ([GPUS], "auto", 56, [(1, 1, "gpus")] * 8, [(32, "gpus"), (24, "gpus")]),
        ([SMALL, LARGE], "cpu", 5, [(15, 0, "large")], [(4, "small"), (1, "large")]),
        ([SMALL, GPUS], "cpu", 4, [(64, 0, "gpus")], [(4, "small")]),
        (
            [SMALL, Bundle(96, node="more"), GPUS],
            "auto",
            None,
            [(8, 1, "gpus")] * 8,
            [(4, "small"), *[(32, "more")] * 3],
        ),
    ],
)
def test_decoders_take_what_encoders_can_spare(
    nodes: list[Bundle],
    device: str,
    decode_cpus: int | None,
    encoders: list[tuple[int, int, str]],
    decoders: list[tuple[int, str]],
) -> None:
    assert extraction_bundles(nodes, device, None, decode_cpus) == (
        [Bundle(*each) for each in encoders],
        [Bundle(cpus, 0, node) for cpus, node in decoders],
    )


@pytest.mark.parametrize(
    ("nodes", "device", "asked", "words"),
    [
        ([SMALL], "auto", 4, "--decode-cpus: expected 3 or fewer, found 4; the others are for the encoders"),
        ([SMALL, GPUS], "auto", 61, "--decode-cpus: expected 60 or fewer, found 61"),
        ([HEAD], "cpu", 1, "--decode-cpus: expected 0 or fewer, found 1"),
        ([HEAD], "cpu", 0, "a cluster with CPUs for workers, found none"),
    ],
)
def test_encoders_keep_a_cpu_each(nodes: list[Bundle], device: str, asked: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        extraction_bundles(nodes, device, None, asked)


def test_one_small_run_a_gpu_or_a_cpu() -> None:
    assert run_bundles([HEAD, SMALL, GPUS], "cpu") == [Bundle(1)] * 68
    assert run_bundles([HEAD, SMALL, GPUS], "auto") == [Bundle(1, 1)] * 8
    assert run_bundles([SMALL], "cuda") == [Bundle(1)] * 4


def test_no_room_is_one_sentence() -> None:
    with pytest.raises(UserError, match="a cluster with CPUs for workers, found none"):
        extraction_bundles([HEAD], "auto", None, None)
    with pytest.raises(UserError, match="a cluster with CPUs for workers, found none"):
        run_bundles([], "cpu")
    with pytest.raises(UserError, match="--device cuda: expected a cluster with a GPU, found none"):
        extraction_bundles([SMALL], "cuda", None, None)
    with pytest.raises(UserError, match="found cuda:1; use --device cuda: Ray gives each worker a GPU of its own"):
        extraction_bundles([GPUS], "cuda:1", None, None)


class RayTaskError(Exception):
    """As Ray's own: what a call raised is its cause."""

    cause: Exception


class OneCall:
    """A Ray that knows of one call, which failed."""

    exceptions = SimpleNamespace(RayTaskError=RayTaskError)

    def __init__(self, cause: Exception) -> None:
        self.error = RayTaskError("ray::divide() (pid=7, ip=10.0.0.5)\n  File ...")
        self.error.cause = cause

    def get(self, call: object, timeout: float | None) -> None:
        raise self.error


def test_failures_come_back_as_they_were_raised() -> None:
    for raised in (UserError(expected="a", found="b"), OSError(28, "No space left on device", "/x")):
        with pytest.raises(type(raised), match=re.escape(str(raised))) as found:
            result_of(OneCall(raised), None)
        assert found.value is raised
    unforeseen = "worker on 10.0.0.5: expected work that ends, found ZeroDivisionError: by zero"
    with pytest.raises(PipelineError, match=unforeseen) as caught:
        result_of(OneCall(ZeroDivisionError("by\nzero")), None)
    assert type(caught.value) is PipelineError


def test_a_worker_takes_over_folder_modules_and_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "library"))
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "own_module.py").write_text("VALUE = 7\n")
    (_, own), (folder, one) = origin_here(cpus=8), origin_here(cpus=8, threads=1)
    assert {own.pop("OMP_NUM_THREADS"), *(own[name] for name in THREADS if name in own)} == {"3", "8"}
    assert {one[name] for name in THREADS} == {"1"}
    monkeypatch.chdir("/")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in THREADS:
        monkeypatch.setenv(name, "2")
    adopt(folder, one)
    assert Path.cwd() == tmp_path
    assert {os.environ[name] for name in THREADS} == {"1"}
    assert importlib.import_module("own_module").VALUE == 7
    sys.modules.pop("own_module")
    adopt(str(tmp_path / "elsewhere"), one)
    assert Path.cwd() == tmp_path


@pytest.mark.parametrize(
    "error",
    [
        PipelineError(expected="a", found="b", where="c", remedy="d"),
        UserError(expected="a", found="b"),
        UnknownNameError("layer", "outputs", ["output", "block0"], "--layers"),
        KeyMismatchError([("pooling", "cls", "mean")], "store", "take another"),
        DamagedStoreError("000.h5", "2 rows", "1 row", "store"),
    ],
)
def test_errors_are_the_same_in_another_process(error: PipelineError) -> None:
    other = pickle.loads(pickle.dumps(error))
    assert type(other) is type(error)
    assert vars(other) == vars(error)
    assert (str(other), other.sentence(), other.exit_code) == (str(error), error.sentence(), error.exit_code)

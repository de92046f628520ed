"""`--engine` on the command line: wrong words are one sentence, before any work."""

import sys

import pytest

from tests.commands.running import refused
from tests.extract.building import IMAGE


def test_an_unknown_engine_lists_the_known_ones() -> None:
    assert "--engine: expected a known engine (local, ray), found 'rey'" in refused("extract", "--engine", "rey")


def test_an_address_needs_an_engine() -> None:
    assert "--address auto: expected --engine ray beside it" in refused("extract", "--address", "auto")
    words = "--decode-cpus: expected --engine ray beside it, found none; without a cluster use --workers"
    assert words in refused("extract", "--decode-cpus", "2")
    raw = ("--dataset", "x", "--encoder", IMAGE, "--out", "y")
    found = refused("extract", *raw, "--engine", "ray", "--decode-cpus", "-1")
    assert "--decode-cpus: expected 0 or more, found -1" in found


def test_workers_by_hand_and_an_engine_exclude_each_other() -> None:
    words = ["--engine", "ray", "--worker-index", 0, "--num-workers", 2]
    assert "--engine ray: expected an engine that shares the work out, or workers by hand" in refused("extract", *words)


def test_a_missing_ray_gives_the_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refused("extract", "--engine", "ray").endswith("run: pip install 'fewpairs[ray]'.")

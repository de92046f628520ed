"""One project made by the commands themselves: looked at by many tests (`project`), or copied to be changed (`own`)."""

import shutil
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest

from tests.commands.project import make_features, snapshot
from tests.commands.running import done


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project with features, two runs and a report, made by nothing but commands."""
    folder = tmp_path_factory.mktemp("commands") / "project"
    make_features(folder)
    with chdir(folder):
        done("align", "--quiet")
        done("evaluate", "--quiet")
    return folder


@pytest.fixture
def project(made: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Work in the shared project; whatever a test does there, no file may come, go or change."""
    monkeypatch.chdir(made)
    before = snapshot(made)
    yield made
    assert snapshot(made) == before


@pytest.fixture
def own(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a copy of the project that a test may change."""
    folder = tmp_path / "own"
    shutil.copytree(made, folder)
    monkeypatch.chdir(folder)
    return folder

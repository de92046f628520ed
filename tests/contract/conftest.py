"""One project made by today's commands, and one laid out from files of an older version."""

import shutil
from pathlib import Path

import pytest

from tests.contract import written
from tests.contract.making import make_project


@pytest.fixture(scope="session")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a project that this version made; not to be changed."""
    folder = tmp_path_factory.mktemp("contract") / "project"
    make_project(folder)
    return folder


@pytest.fixture
def own(fresh: Path, tmp_path: Path) -> Path:
    """Return a copy of it that may be changed."""
    return Path(shutil.copytree(fresh, tmp_path / "project"))


@pytest.fixture(scope="session")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return stores, runs and indexes that an older version wrote."""
    return written.unpack(tmp_path_factory.mktemp("written"))

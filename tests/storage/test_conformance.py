"""The suite of every storage: a folder, fsspec's memory, S3."""

from pathlib import Path

import pytest

from pipeline.storage.contract import Storage
from pipeline.storage.local import open_storage
from tests.storage.conformance import CheckedSuite, StorageSuite
from tests.storage.conftest import Machine


class TestLocal(StorageSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path) -> Storage:
        return open_storage(tmp_path / "folder")


class TestMemory(CheckedSuite):
    @pytest.fixture
    def storage(self, tmp_path: Path, machine: Machine) -> Storage:
        return open_storage(f"memory://{tmp_path.as_posix().strip('/')}/folder")


class TestS3(CheckedSuite):
    @pytest.fixture
    def storage(self, bucket: str, machine: Machine) -> Storage:
        return open_storage(f"{bucket}/some/folder")

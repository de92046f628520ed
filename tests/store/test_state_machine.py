"""Any order of commits, layers, failures, damage and reopening: a store tells the truth at every moment."""

import contextlib
import logging
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from pipeline import files
from pipeline.errors import DamagedStoreError, PipelineError, UnfinishedStoreError, UserError
from pipeline.storage.local import LocalStorage, open_storage
from pipeline.store import commit
from pipeline.store.cleaning import gc
from pipeline.store.commit import committed
from pipeline.store.events import status
from pipeline.store.inspect import verify
from pipeline.store.reader import FeatureStore
from pipeline.store.writer import StoreWriter
from tests.store.building import LAYERS, computed, fill, header, samples, stored

STEPS = [
    "retire",
    "write_shard",
    "verify_shard",
    "files.sync_file",
    "files.publish",
    "files.sync_folder",
    "LocalStorage.put",
]
ASKED = st.lists(st.sampled_from(LAYERS), min_size=1, unique=True)


class StoreMachine(RuleBasedStateMachine):
    """A store beside a model of it: the (shard, layer) that are committed, and what the manifest promises."""

    file_format: str

    @initialize(rows=st.sampled_from([5, 8, 23, 100]))
    def create(self, rows: int) -> None:
        self.root = Path(tempfile.mkdtemp())
        self.head = header(self.file_format, shard_rows=rows)
        self.writer = StoreWriter(self.root, self.head)
        self.done: set[tuple[int, str]] = set()
        self.finished: set[str] = set()
        self.broken: set[Path] = set()

    def teardown(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)

    @rule()
    def reopen(self) -> None:
        self.writer = StoreWriter(self.root, header(self.file_format, shard_rows=3))
        assert self.writer.header == self.head

    @rule(layers=ASKED, chance=st.randoms(use_true_random=False))
    def commit(self, layers: list[str], chance: Any) -> None:
        pending = self.writer.pending(layers)
        if pending:
            shard = chance.choice(pending)
            self.writer.commit(shard, *computed(shard))
            self._committed(shard.index, shard.layers)

    @rule(layers=ASKED, chance=st.randoms(use_true_random=False), step=st.sampled_from(STEPS), after=st.booleans())
    def fail(self, layers: list[str], chance: Any, step: str, after: bool) -> None:
        pending = self.writer.pending(layers)
        if not pending:
            return
        shard = chance.choice(pending)
        with failing(step, after), pytest.raises(PipelineError, match=r"expected to write .*Input/output error"):
            self.writer.commit(shard, *computed(shard))
        files = committed(open_storage(self.root), self.head).get(shard.index, [])
        whole = {layer.name for file in files for layer in file.layers}
        assert whole >= {name for index, name in self.done if index == shard.index}
        if set(shard.layers) <= whole:
            self._committed(shard.index, shard.layers)
        assert not list(self.root.glob(".*"))

    @rule(layers=ASKED)
    def finish(self, layers: list[str]) -> None:
        pending = self.writer.pending(layers)
        if pending:
            with pytest.raises(UnfinishedStoreError, match=f"{self.head.shards - len(pending)} of {self.head.shards}"):
                self.writer.finish(samples(), {})
            return
        if self.broken:
            with contextlib.suppress(DamagedStoreError):
                self._finished(self.writer.finish(samples(), {}).layers)
        else:
            self._finished(self.writer.finish(samples(), {}).layers)

    @precondition(lambda self: self.done)
    @rule(chance=st.randoms(use_true_random=False))
    def lose_a_file(self, chance: Any) -> None:
        records = [file for files in committed(open_storage(self.root), self.head).values() for file in files]
        if records:
            record = chance.choice(records)
            path = self.root / record.name
            if chance.random() < 0.5:
                path.unlink()
            else:
                path.write_bytes(path.read_bytes()[:-3])
            self.done -= {(record.index, layer.name) for layer in record.layers}
            self.broken.add(path)

    @rule()
    def clean(self) -> None:
        if not self.broken:
            gone = {each.name for each in gc(self.root, delete=True)}
            left = committed(open_storage(self.root), self.head)
            self.done = {
                (index, layer.name) for index, files in left.items() for file in files for layer in file.layers
            }
            assert not any((self.root / name).exists() for name in gone)

    @invariant()
    def pending_is_what_is_not_done(self) -> None:
        pending = {(shard.index, name) for shard in self.writer.pending(LAYERS) for name in shard.layers}
        assert pending == {(index, name) for index in range(self.head.shards) for name in LAYERS} - self.done
        assert {each.state for each in status(self.root)} <= {"done", "missing"}

    @invariant()
    def what_opens_is_right(self) -> None:
        if not self.finished:
            with pytest.raises(UnfinishedStoreError, match="shards"):
                FeatureStore.open(self.root)
            return
        if self.broken:
            return
        store = FeatureStore.open(self.root)
        assert [layer.name for layer in store.layers] == [name for name in LAYERS if name in self.finished]
        for layer in store.layers:
            np.testing.assert_array_equal(store.numpy(layer.name), stored(layer.name))
        assert verify(self.root, deep=True) == []

    @precondition(lambda self: self.finished and self.broken)
    @invariant()
    def damage_is_found(self) -> None:
        names = {path.name for path in self.broken}
        known = {problem.file for problem in verify(self.root)}
        try:
            FeatureStore.open(self.root)
        except UserError:
            assert known & names
        else:
            assert not known & names

    def _committed(self, index: int, layers: tuple[str, ...]) -> None:
        self.done |= {(index, name) for name in layers}
        self._heal()

    def _finished(self, layers: Any) -> None:
        self.finished = {layer.name for layer in layers}
        self._heal()

    def _heal(self) -> None:
        done = committed(open_storage(self.root), self.head)
        sound = {self.root / file.name for files in done.values() for file in files}
        self.broken -= sound


@contextlib.contextmanager
def failing(step: str, after: bool) -> Any:
    """Let a step raise an input/output error, before or after it did its work, the first time that it is called."""
    module, _, name = step.rpartition(".")
    owner: Any = {"LocalStorage": LocalStorage, "files": files, "": commit}[module]
    original = getattr(owner, name)
    calls = iter([True])

    def step_that_fails(*args: Any) -> Any:
        turn = next(calls, False)
        if turn and not after:
            raise OSError(5, "Input/output error")
        result = original(*args)
        if turn:
            raise OSError(5, "Input/output error")
        return result

    with mock.patch.object(owner, name, step_that_fails):
        yield


@pytest.mark.parametrize("file_format", ["hdf5", "parquet"])
@pytest.mark.parametrize("examples", [12, pytest.param(150, marks=pytest.mark.slow)])
def test_any_history(file_format: str, examples: int, caplog: Any) -> None:
    caplog.set_level(logging.ERROR)
    machine = type("Machine", (StoreMachine,), {"file_format": file_format})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=15,
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_one_content_digest_whatever_the_format_and_the_shards(tmp_path: Path, dtype: str) -> None:
    stores = {
        (file_format, rows): fill(tmp_path / f"{file_format}{rows}", header(file_format, shard_rows=rows, dtype=dtype))
        for file_format in ("hdf5", "parquet")
        for rows in (1, 4, 23, 1000)
    }
    assert len({manifest.content_digest for manifest in stores.values()}) == 1
    assert len({manifest.layers for manifest in stores.values()}) == 1

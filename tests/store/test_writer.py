"""The writer: agreeing with what is there, claims, refusals, and errors of the disk in one sentence."""

import errno
import gc
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline import files
from pipeline.errors import (
    DamagedStoreError,
    KeyMismatchError,
    PipelineError,
    UnfinishedStoreError,
    UnknownNameError,
    UserError,
)
from pipeline.files import lock
from pipeline.storage import local
from pipeline.storage.leases import lock_name
from pipeline.storage.local import temp_file
from pipeline.store import commit
from pipeline.store.cleaning import gc as collect
from pipeline.store.commit import PendingShard
from pipeline.store.manifest import Header
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import Samples
from pipeline.store.writer import StoreWriter
from tests.store.building import ITEMS, LAYERS, computed, fill, header, samples


def first(writer: StoreWriter) -> PendingShard:
    return writer.pending(["output"])[0]


def test_an_existing_store_keeps_its_cut_format_and_layer_order(tmp_path: Path) -> None:
    one = StoreWriter(tmp_path, header("parquet", shard_rows=7))
    other = replace(header("hdf5", shard_rows=100), layer_names=("output", *LAYERS))
    assert StoreWriter(tmp_path, other).header == one.header


def test_another_key_is_refused_by_field(tmp_path: Path) -> None:
    fill(tmp_path, header())
    other = header(items=24)
    key = replace(other.key, pooling="cls", preprocessing={**other.key.preprocessing, "size": [384, 384]})
    with pytest.raises(KeyMismatchError, match=r"another --out, or start over with --replace") as caught:
        StoreWriter(tmp_path, replace(other, key=key))
    assert caught.value.differences == (
        ("pooling", '"cls"', '"auto"'),
        ("preprocessing.size", "[384, 384]", "[224, 224]"),
        ("items", "24", "23"),
    )
    assert caught.value.where == str(tmp_path)


@pytest.mark.parametrize("change", [{"pooling": "cls"}, {}])
def test_shards_without_a_header_are_not_taken_for_ours(tmp_path: Path, change: dict[str, Any]) -> None:
    fill(tmp_path, header())
    (tmp_path / "store.json").unlink()
    other = header(shard_rows=10 if change else 5)
    with pytest.raises(UserError, match=r"commit records of this store's key and of items.*--replace"):
        StoreWriter(tmp_path, replace(other, key=replace(other.key, **change)))
    assert not (tmp_path / "store.json").exists()
    assert StoreWriter(tmp_path, header()).pending(LAYERS) == []


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    StoreWriter(tmp_path, header())
    (tmp_path / "store.json").write_text("{}")
    with pytest.raises(DamagedStoreError, match=r"store\.json with the digest"):
        StoreWriter(tmp_path, header())


def test_a_damaged_record_or_manifest_is_redone(tmp_path: Path, caplog: Any) -> None:
    before = fill(tmp_path, header())
    record = tmp_path / before.shards[1].name.replace(".h5", ".json")
    record.write_text(record.read_text().replace("truncated", "trunkated"))
    (tmp_path / "manifest.json").write_text("{")
    assert [shard.index for shard in StoreWriter(tmp_path, header()).pending(LAYERS)] == [1]
    assert f"{record.name} with the digest" in caplog.text
    again = StoreWriter(tmp_path, header())
    assert again.pending(LAYERS) == again.pending(LAYERS)
    assert sum(record.name in line for line in caplog.text.splitlines()) == 1, "said once, however often it is read"
    after = fill(tmp_path, header())
    assert after.shards == before.shards
    assert after.content_digest == before.content_digest


@pytest.mark.parametrize(
    ("changes", "message"), [({"items": 0}, "items of 1 or more"), ({"shard_rows": -1}, "shard_rows of 1 or more")]
)
def test_headers_that_make_no_sense(changes: dict[str, int], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(header(), **changes)  # type: ignore[arg-type]


def test_unknown_file_format() -> None:
    with pytest.raises(UnknownNameError, match=r"file format \(hdf5, parquet\).*'hdf'"):
        Header(key=header().key, items=1, file_format="hdf")


def test_layers_must_be_known_and_named_once(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, header())
    with pytest.raises(UnknownNameError, match="did you mean 'output'"):
        writer.pending(["outputs"])
    for layers in ([], ["output", "output"], [""]):
        with pytest.raises(UserError, match="layer names, each once"):
            writer.pending(layers)


def test_claims_exclude_each_other_and_what_is_done(tmp_path: Path) -> None:
    one, two = StoreWriter(tmp_path, header()), StoreWriter(tmp_path, header())
    shard = first(one)
    two.pending(["output"])
    with one.claim(0) as mine:
        assert mine
        with two.claim(0) as theirs, two.claim(1) as another:
            assert (theirs, another) == (False, True)
        one.commit(shard, *computed(shard))
    with two.claim(0) as theirs:
        assert not theirs
    assert not list(tmp_path.glob(".*"))


def test_errors_of_the_work_itself_are_not_taken_for_ours(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, header())
    with pytest.raises(FileNotFoundError, match=r"image\.jpg"), writer.claim(0):
        (tmp_path / "image.jpg").read_bytes()
    assert not list(tmp_path.glob(".*"))


def test_a_layer_that_another_process_committed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    one, two = StoreWriter(tmp_path, header()), StoreWriter(tmp_path, header())
    a, b = one.pending(["a/b", "output"])[0], two.pending(["output", "blocks.0"])[0]
    one.commit(a, *computed(a))
    content = {path: path.read_bytes() for path in tmp_path.glob("0*")}
    two.commit(b, *computed(b))
    two.commit(b, *computed(b))
    assert {path: path.read_bytes() for path in content} == content
    assert len(list(tmp_path.glob("0*"))) == 4


def bad_commits() -> list[tuple[dict[str, Any], str]]:
    ids = [f"x{item}" for item in range(10)]
    features = {"output": np.zeros((10, 2), np.float16)}
    return [
        ({"ids": ids[1:]}, "10 items in shard 0, found 9 rows and 0 rejected"),
        ({"ids": [*ids[:9], ids[0]]}, "'x0' twice in shard 0"),
        ({"ids": [*ids[:9], ""]}, "1 to 1024 characters of UTF-8 without NUL, found ''"),
        ({"ids": [*ids[:9], "a\0b"]}, r"without NUL, found 'a\\x00b'"),
        ({"ids": [*ids[:9], "\ud800"]}, r"UTF-8 without NUL, found '\\ud800'"),
        ({"ids": [*ids[:9], "x" * 1025]}, "1 to 1024 characters"),
        ({"ids": ids[1:], "rejected": [("x5", "broken")]}, "'x5' twice in shard 0"),
        ({"features": {}}, "layers output of shard 0, found no output"),
        ({"features": {"output": features["output"][:9]}}, r"output as \[10, D\].*found \[9, 2\] in float16"),
        ({"features": {"output": np.zeros((10, 2), np.float32)}}, r"found \[10, 2\] in float32"),
        ({"features": {"output": np.zeros((10, 0), np.float16)}}, r"found \[10, 0\]"),
        ({"features": {"output": np.zeros(10, np.float16)}}, r"found \[10\]"),
    ]


@pytest.mark.parametrize(("changes", "message"), bad_commits())
def test_commits_that_do_not_fit_are_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    writer = StoreWriter(tmp_path, header())
    good = {"ids": [f"x{item}" for item in range(10)], "features": {"output": np.zeros((10, 2), np.float16)}}
    with pytest.raises(UserError, match=message):
        writer.commit(first(writer), **{**good, **changes})
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]


def test_arrays_that_are_not_contiguous_are_stored_right(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, header(items=4, shard_rows=4))
    wide = np.arange(32, dtype=np.float16).reshape(4, 8)
    shard = first(writer)
    writer.commit(shard, [f"bild-{'é' * (i % 3)}{i}" for i in range(4)], {"output": wide[:, ::2]})
    writer.finish(samples(4), {})
    np.testing.assert_array_equal(FeatureStore.open(tmp_path).numpy("output"), wide[:, ::2])


def test_finish_wants_all_asked_layers(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, header())
    with pytest.raises(UnfinishedStoreError, match="0 of 3 shards"):
        writer.finish(samples(), {})
    shard = first(writer)
    writer.commit(shard, *computed(shard))
    with pytest.raises(UnfinishedStoreError, match="1 of 3 shards"):
        writer.finish(samples(), {})
    with pytest.raises(UnfinishedStoreError, match="1 of 3 shards"):
        FeatureStore.open(tmp_path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (samples(22), "23 samples, each once, found 22 samples"),
        (Samples(["a"] * 23, *samples().columns()[1:]), "found 23 samples, 1 of them different"),
        (
            Samples(samples().sample_id[::-1], *samples().columns()[1:]),
            "the sample ids that shard 0 was committed with",
        ),
    ],
)
def test_finish_wants_the_samples_of_the_shards(tmp_path: Path, table: Samples, message: str) -> None:
    fill(tmp_path, header())
    writer = StoreWriter(tmp_path, header())
    with pytest.raises(UserError, match=message):
        writer.finish(table, {})
    with pytest.raises(UserError, match=message):
        writer.refresh_samples(table)


def test_a_layer_of_two_widths_is_refused(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, header())
    for shard in writer.work(["output"]):
        ids, _, rejected = computed(shard)
        writer.commit(shard, ids, {"output": np.zeros((len(ids), 2 + shard.index // 2), np.float16)}, rejected)
    with pytest.raises(UserError, match="layer output of one width, found 2 float16, 3 float16"):
        writer.finish(samples(), {})


def test_finishing_twice_keeps_the_manifest(tmp_path: Path) -> None:
    first_time = fill(tmp_path, header())
    text = (tmp_path / "manifest.json").read_bytes()
    writer = StoreWriter(tmp_path, header())
    writer.pending(LAYERS)
    assert writer.finish(samples(), {"spec": "typed otherwise"}) == first_time
    assert (tmp_path / "manifest.json").read_bytes() == text


def test_refresh_samples_touches_no_shard(tmp_path: Path) -> None:
    before = fill(tmp_path, header())
    content = {path: path.read_bytes() for path in tmp_path.glob("0*")}
    after = StoreWriter(tmp_path, header()).refresh_samples(samples(split="test"))
    assert after.content_digest == before.content_digest
    assert {path: path.read_bytes() for path in tmp_path.glob("0*")} == content
    assert set(FeatureStore.open(tmp_path).samples.split) == {"test"}


def test_refresh_samples_of_an_unfinished_store(tmp_path: Path) -> None:
    with pytest.raises(UnfinishedStoreError, match="0 of 3 shards"):
        StoreWriter(tmp_path, header()).refresh_samples(samples())


def test_rejected_items_are_listed(tmp_path: Path) -> None:
    fill(tmp_path, header())
    assert (tmp_path / "rejected.csv").read_text() == "sample_id,reason\nbild-éé11,truncated image\n"


def test_stale_temp_and_lock_files_go_and_living_ones_stay(tmp_path: Path) -> None:
    StoreWriter(tmp_path, header())
    stale = tmp_path / ".00000-00000000.h5.0123456789abcdef.tmp"
    stale.write_bytes(b"half a shard")
    (tmp_path / ".00007.lock").touch()
    (tmp_path / ".gitkeep").touch()
    with temp_file(tmp_path / "samples.parquet") as living, lock(tmp_path / lock_name(3)):
        StoreWriter(tmp_path, header())
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {"store.json", ".gitkeep", living.name, ".00003.lock"}


def test_a_temp_file_that_was_not_locked_yet_when_somebody_looked_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path, header())
    with temp_file(tmp_path / "samples.parquet") as living:
        monkeypatch.setattr(local, "stale_temp_files", lambda root: [living])
        StoreWriter(tmp_path, header())
        assert living.exists()
        collect(tmp_path, delete=True)
        assert living.exists()


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    for folder, reason in ((tmp_path / "file", "File exists"), (tmp_path / "file" / "store", "Not a directory")):
        with pytest.raises(UserError, match=rf"expected a folder to write store.json into, found {reason}; choose"):
            StoreWriter(folder, header())
    assert (tmp_path / "file").read_text() == "not a folder"


STEPS = [
    (commit, "write_shard"),
    (commit, "verify_shard"),
    *((files, n) for n in ("sync_file", "publish", "sync_folder")),
]


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize(("module", "step"), STEPS)
def test_errors_of_the_disk_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, step: str, number: int
) -> None:
    writer = StoreWriter(tmp_path, header())
    shard = first(writer)

    def fail(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(module, step, fail)
        with pytest.raises(
            PipelineError, match=rf"expected to write 00000-.*, found {os.strerror(number)}; .*GB are free"
        ):
            writer.commit(shard, *computed(shard))
    assert [path.name for path in tmp_path.glob("*.json")] == ["store.json"]
    assert not list(tmp_path.glob(".*"))
    assert len(writer.pending(["output"])) == -(-ITEMS // 10)
    writer.commit(shard, *computed(shard))
    assert len(writer.pending(["output"])) == 2


def test_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path, header("hdf5", items=24_000, shard_rows=1000))
    work = {shard.index: computed(shard, items=24_000) for shard in writer.pending(["output"])}
    held = []
    tracemalloc.start()
    try:
        for shard in writer.work(["output"]):
            writer.commit(shard, *work[shard.index])
            gc.collect()  # what waits for the collector is no growth
            held.append(tracemalloc.get_traced_memory()[0])
    finally:
        tracemalloc.stop()
    assert max(held[12:]) - max(held[:12]) < 30_000


def test_a_disk_that_gives_back_other_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = StoreWriter(tmp_path, header())
    shard = first(writer)
    write = commit.write_shard

    def lie(shard_format: Any, temp: Path, ids: Any, features: Any, dtype: Any) -> None:
        write(shard_format, temp, ids, {name: values + np.float16(1) for name, values in features.items()}, dtype)

    monkeypatch.setattr(commit, "write_shard", lie)
    with pytest.raises(PipelineError, match="the file gives back other values of layer output"):
        writer.commit(shard, *computed(shard))
    assert [path.name for path in tmp_path.iterdir()] == ["store.json"]

"""The extract stage end to end with encoders of a few lines: what is computed, what is not, and what is refused."""

import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.encoders.base import LoadOptions
from pipeline.errors import KeyMismatchError, PipelineError, UnknownNameError, UserError
from pipeline.extract.compute import _SLACK, _differing
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import Cost, extract
from pipeline.progress import Update
from pipeline.store.reader import FeatureStore
from tests.extract import tiny_encoders
from tests.extract.building import IMAGE, TEXT, encoded, picture, read_table, write_json, write_raw, write_table

OTHER = "tests.extract.tiny_encoders:OtherImage"


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    tiny_encoders.CALLS.clear()


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_raw(tmp_path / "raw")


def config(raw: Path, out: Path, encoder: str = IMAGE, **options: object) -> ExtractConfig:
    return ExtractConfig(dataset=raw, encoder=encoder, out=out, **{"shard_rows": 6, "batch_size": 4, **options})  # type: ignore[arg-type]


def encoded_rows() -> int:
    return sum(rows for _, rows, _ in tiny_encoders.CALLS)


def files_of(root: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def expected_images(raw: Path, layer: str, names: list[str]) -> NDArray[np.float32]:
    """Recompute features one image at a time, with nothing of the stage's own code."""
    rows = []
    for name in names:
        image = Image.open(raw / "images" / f"{name}.png").convert("RGB").resize((8, 8))
        rows.append((np.asarray(image, np.float32).transpose(2, 0, 1)).ravel())
    weights = tiny_encoders.projection(192, tiny_encoders.Tiny.widths[layer], layer).numpy()
    return np.asarray(np.stack(rows) @ weights, np.float32)


def test_images_in_order_with_their_samples(raw: Path, tmp_path: Path) -> None:
    result = extract(config(raw, tmp_path / "out"))
    store = FeatureStore.open(tmp_path / "out")
    assert (result.rows, result.computed_shards, result.skipped_shards, result.rejected) == (20, 4, 0, 0)
    assert result.layers == ("early", "late", "output")
    assert result.content_digest == store.content_digest
    assert store.ids == [f"i{n:03d}" for n in range(20)]
    assert store.samples.label[:2] == ["cat", "dog"]
    assert store.samples.split[:2] == ["test", "train"]
    assert store.samples.content[0] == "images/i000.png"
    for layer in result.layers:
        np.testing.assert_array_equal(store.numpy(layer), expected_images(raw, layer, store.ids))


def test_texts_in_order_and_class_prompts_beside_them(raw: Path, tmp_path: Path) -> None:
    result = extract(config(raw, tmp_path / "out", TEXT))
    store, prompts = FeatureStore.open(tmp_path / "out"), FeatureStore.open(tmp_path / "out" / "classes")
    assert store.ids == [f"i{n:03d}#{k}" for n in range(20) for k in range(2)]
    assert store.samples.image_id[:3] == ["i000", "i000", "i001"]
    assert store.samples.split[:3] == ["test", "test", "train"]
    assert prompts.ids == ["cat#0", "cat#1", "dog#0", "dog#1"]
    assert prompts.samples.label == ["cat", "cat", "dog", "dog"]
    assert prompts.samples.content == ["a cat.", "the cat", "a dog.", "the dog"]
    assert result.classes is not None
    assert result.classes.rows == 4
    encoder = tiny_encoders.TinyText(LoadOptions())
    for row, text in enumerate(store.samples.content):
        alone = encoder.encode([encoder.prepare(text)], ["output"])["output"][0].numpy()
        np.testing.assert_array_equal(store.numpy("output")[row], alone)


def test_texts_of_similar_length_share_a_batch(raw: Path, tmp_path: Path) -> None:
    write_table(raw / "captions.csv", ("image_id", "caption"), [("i000", "x " * n) for n in (1, 9, 2, 8, 3, 7)])
    extract(config(raw, tmp_path / "out", TEXT, texts="captions", batch_size=2))
    assert [rows for _, rows, _ in tiny_encoders.CALLS] == [2, 2, *[2, 2, 2]]  # the first of a new store is tried twice
    store = FeatureStore.open(tmp_path / "out")
    assert store.ids == [f"i000#{n}" for n in range(6)]
    norms = np.abs(store.numpy("output")).sum(axis=1)
    assert np.argsort(norms).tolist() == [0, 2, 4, 5, 3, 1]


@pytest.mark.parametrize("texts", ["captions", "classes"])
def test_one_kind_of_text_can_be_asked_for(raw: Path, tmp_path: Path, texts: str) -> None:
    result = extract(config(raw, tmp_path / "out", TEXT, texts=texts))
    assert result.what == {"captions": "captions", "classes": "class prompts"}[texts]
    assert result.classes is None
    assert (tmp_path / "out" / "manifest.json").exists() == (texts == "captions")
    assert (tmp_path / "out" / "classes" / "manifest.json").exists() == (texts == "classes")


def test_classes_alone_where_there_are_no_captions(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", captions=0)
    result = extract(config(raw, tmp_path / "out", TEXT))
    assert (result.what, str(result.path)) == ("class prompts", str(tmp_path / "out" / "classes"))
    with pytest.raises(UserError, match="expected captions, found none; a text encoder needs texts"):
        extract(config(raw, tmp_path / "out", TEXT, texts="captions"))


def test_nothing_for_an_encoder_to_read(tmp_path: Path) -> None:
    write_table(tmp_path / "captions.csv", ("caption",), [("x",)])
    with pytest.raises(UserError, match=r"expected images, found none in images.csv"):
        extract(config(tmp_path, tmp_path / "out"))


def test_a_second_run_computes_nothing(raw: Path, tmp_path: Path) -> None:
    first = extract(config(raw, tmp_path / "out", TEXT))
    before, calls = files_of(tmp_path / "out"), len(tiny_encoders.CALLS)
    second = extract(config(raw, tmp_path / "out", TEXT, batch_size=3, workers=1, shard_rows=9, format="parquet"))
    assert len(tiny_encoders.CALLS) == calls
    assert files_of(tmp_path / "out") == before
    assert (second.computed_shards, second.skipped_shards) == (0, first.computed_shards)
    assert second.content_digest == first.content_digest


def test_more_layers_later_compute_only_those(raw: Path, tmp_path: Path) -> None:
    extract(config(raw, tmp_path / "out", layers="last"))
    assert {layers for _, _, layers in tiny_encoders.CALLS} == {("output",)}
    tiny_encoders.CALLS.clear()
    extract(config(raw, tmp_path / "out", layers="all"))
    assert {layers for _, _, layers in tiny_encoders.CALLS} == {("early", "late")}
    whole = extract(config(raw, tmp_path / "whole", layers="all"))
    assert FeatureStore.open(tmp_path / "out").content_digest == whole.content_digest
    tiny_encoders.CALLS.clear()
    extract(config(raw, tmp_path / "out", layers="early"))
    assert tiny_encoders.CALLS == []


VARIANTS: tuple[dict[str, object], ...] = (
    {},
    {"format": "parquet"},
    {"workers": 1},
    {"workers": 7},
    {"shard_rows": 256},
    {"batch_size": 1},
    {"format": "parquet", "workers": 3, "shard_rows": 2},
)


@pytest.mark.parametrize("encoder", [IMAGE, TEXT])
def test_the_digest_knows_neither_format_nor_workers_nor_shards(raw: Path, tmp_path: Path, encoder: str) -> None:
    digests = {
        extract(config(raw, tmp_path / f"{number}", encoder, **options)).content_digest
        for number, options in enumerate(VARIANTS)
    }
    assert len(digests) == 1


def test_one_encoder_s_change_touches_nothing_of_the_other(raw: Path, tmp_path: Path) -> None:
    extract(config(raw, tmp_path / "image"))
    extract(config(raw, tmp_path / "text", TEXT))
    before = files_of(tmp_path / "text")
    extract(config(raw, tmp_path / "image2", OTHER))
    assert files_of(tmp_path / "text") == before
    with pytest.raises(KeyMismatchError, match=r"encoder.name = .*OtherImage"):
        extract(config(raw, tmp_path / "image", OTHER))


def test_another_caption_leaves_the_images_alone_and_the_other_way_round(raw: Path, tmp_path: Path) -> None:
    extract(config(raw, tmp_path / "image"))
    rows = [(row["caption_id"], row["image_id"], row["caption"]) for row in read_table(raw / "captions.csv")]
    rows[3] = (*rows[3][:2], "changed")
    extract(config(raw, tmp_path / "text", TEXT))
    write_table(raw / "captions.csv", ("caption_id", "image_id", "caption"), rows)
    tiny_encoders.CALLS.clear()
    extract(config(raw, tmp_path / "image"))
    assert tiny_encoders.CALLS == []
    with pytest.raises(KeyMismatchError, match="dataset_digest"):
        extract(config(raw, tmp_path / "text", TEXT))
    extract(config(raw, tmp_path / "text", TEXT, replace=True))
    (raw / "images" / "i000.png").write_bytes(picture(99))
    tiny_encoders.CALLS.clear()
    extract(config(raw, tmp_path / "text", TEXT))
    assert tiny_encoders.CALLS == []
    with pytest.raises(KeyMismatchError, match="dataset_digest"):
        extract(config(raw, tmp_path / "image"))


@pytest.mark.parametrize("encoder", [IMAGE, TEXT])
def test_other_splits_and_labels_only_refresh_the_samples(raw: Path, tmp_path: Path, encoder: str) -> None:
    first = extract(config(raw, tmp_path / "out", encoder))
    before = files_of(tmp_path / "out")
    rows = [(row["image_id"], row["file"], "val", "dog") for row in read_table(raw / "images.csv")]
    write_table(raw / "images.csv", ("image_id", "file", "split", "label"), rows)
    tiny_encoders.CALLS.clear()
    second = extract(config(raw, tmp_path / "out", encoder))
    after = files_of(tmp_path / "out")
    assert tiny_encoders.CALLS == []
    assert second.content_digest == first.content_digest
    assert {name for name in after if after[name] != before.get(name)} == {"manifest.json", "samples.parquet"}
    assert set(FeatureStore.open(tmp_path / "out").samples.split) == {"val"}
    assert set(FeatureStore.open(tmp_path / "out").samples.label) == {"dog"}


def test_a_store_of_another_key_is_replaced_only_if_asked(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    extract(config(raw, out))
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    before = files_of(out)
    with pytest.raises(KeyMismatchError, match=r"storage_dtype = .*float16.*--replace"):
        extract(config(raw, out, storage_dtype="fp16"))
    extract(config(raw, out, storage_dtype="fp16", replace=True, dry_run=True))
    assert files_of(out) == before
    extract(config(raw, out, storage_dtype="fp16", replace=True))
    assert FeatureStore.open(out).key.storage_dtype == "float16"
    assert (out / "notes.txt").read_text() == "mine"


def test_a_damaged_header_is_replaced_only_if_asked(raw: Path, tmp_path: Path) -> None:
    extract(config(raw, tmp_path / "out"))
    (tmp_path / "out" / "store.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError, match=r"store.json"):
        extract(config(raw, tmp_path / "out"))
    assert extract(config(raw, tmp_path / "out", replace=True)).computed_shards == 4


def test_replace_keeps_a_store_of_the_same_key(raw: Path, tmp_path: Path) -> None:
    extract(config(raw, tmp_path / "out"))
    before = files_of(tmp_path / "out")
    extract(config(raw, tmp_path / "out", replace=True))
    assert files_of(tmp_path / "out") == before


@pytest.mark.parametrize(("dtype", "digits"), [("fp16", 1e-3), ("bf16", 1e-2)])
def test_half_the_bytes(raw: Path, tmp_path: Path, dtype: str, digits: float) -> None:
    extract(config(raw, tmp_path / "full"))
    extract(config(raw, tmp_path / "half", storage_dtype=dtype))
    full = FeatureStore.open(tmp_path / "full").read("output")
    half = FeatureStore.open(tmp_path / "half").read("output")
    assert str(half.dtype) == {"fp16": "torch.float16", "bf16": "torch.bfloat16"}[dtype]
    np.testing.assert_allclose(half.float().numpy(), full.numpy(), rtol=digits, atol=1e-6)


def test_storage_follows_the_arithmetic_unless_said() -> None:
    def storage(**options: str) -> str:
        return config(Path(), Path(), **options).storage

    assert (storage(), storage(dtype="bf16"), storage(dtype="bf16", storage_dtype="fp32")) == (
        "float32",
        "bfloat16",
        "float32",
    )


def test_the_next_batch_is_started_before_the_last_is_waited_for(raw: Path, tmp_path: Path) -> None:
    events = tiny_encoders.Starting.events
    events.clear()
    starting = f"{tiny_encoders.__name__}:Starting"
    later = extract(config(raw, tmp_path / "later", starting, shard_rows=10))
    assert events == [
        "start 0", "finish 0", "start 1", "finish 1",  # the first batch of a new store is tried twice
        "start 2", "start 3", "finish 2", "start 4", "finish 3", "finish 4",
        "start 5", "start 6", "finish 5", "start 7", "finish 6", "finish 7",
    ]  # fmt: skip
    assert later.content_digest == extract(config(raw, tmp_path / "once", IMAGE)).content_digest


def test_half_the_memory_halves_the_batch(raw: Path, tmp_path: Path) -> None:
    told: list[Update] = []
    small = extract(
        config(raw, tmp_path / "small", "tests.extract.tiny_encoders:SmallMemory", batch_size=16), told.append
    )
    assert small.rows == 20
    assert max(rows for _, rows, _ in tiny_encoders.CALLS) == 2
    notes = [update.message for update in told if "out of GPU memory" in update.message]
    assert [note.rsplit(" ", 1)[1] for note in notes] == ["8", "4", "2"]
    extract(config(raw, tmp_path / "large"))
    ours, theirs = (FeatureStore.open(tmp_path / name).numpy("output") for name in ("small", "large"))
    np.testing.assert_array_equal(ours, theirs)


def test_no_memory_at_all_is_an_error(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="expected memory for one row"):
        extract(config(raw, tmp_path / "out", "tests.extract.tiny_encoders:NoMemory"))


def test_an_encoder_that_loses_a_row_is_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected early of shape \(4, 3\), found \(3, 3\)"):
        extract(config(raw, tmp_path / "out", "tests.extract.tiny_encoders:WrongShape"))


@pytest.mark.parametrize("layers", ["all", "late"])
def test_an_encoder_that_draws_at_random_is_refused_before_anything_is_written(
    raw: Path, tmp_path: Path, layers: str
) -> None:
    with pytest.raises(
        UserError, match=r"Drawing: expected the same .* twice, found others in layer late .* in 4 of 4 rows.*dropout"
    ):
        extract(config(raw, tmp_path / "out", "tests.extract.tiny_encoders:Drawing", layers=layers))
    assert not (tmp_path / "out").exists()


def test_layers_that_draw_nothing_may_be_taken(raw: Path, tmp_path: Path) -> None:
    drawing = config(raw, tmp_path / "out", "tests.extract.tiny_encoders:Drawing", layers="early,output")
    assert extract(drawing).content_digest
    assert not extract(drawing).computed_shards


def test_a_gpu_may_add_up_in_another_order_but_not_drop() -> None:
    rows = np.random.default_rng(0).normal(size=(5, 64))
    shaken = rows * (1 + 1e-4 * np.sin(np.arange(64)))
    dropped = rows.copy()
    dropped[2, ::10] = 0  # one value in ten of one row
    lost = np.full((1, 64), np.nan)
    for dtype, share in _SLACK.items():
        assert _differing(rows, shaken, share) == 0, dtype
        assert _differing(rows, dropped, share) == 1, dtype
    assert _differing(rows, shaken, 0.0) == 5
    assert _differing(lost, lost, 0.0) == 0


def test_a_dry_run_says_the_cost_and_writes_nothing(raw: Path, tmp_path: Path) -> None:
    told: list[Update] = []
    result = extract(config(raw, tmp_path / "out", dry_run=True), told.append)
    assert not (tmp_path / "out").exists()
    assert result.cost is not None
    assert (result.cost.bytes, result.cost.missing_bytes) == (20 * 12 * 4, 20 * 12 * 4)
    assert result.cost.seconds is not None
    assert "20 images × 3 layers (12 values a row) = 960 B; still to do: 20 rows, 960 B; free disk: " in told[0].message
    assert "expected time" in told[0].message
    extract(config(raw, tmp_path / "out", layers="last"))
    more = extract(config(raw, tmp_path / "out", dry_run=True))
    assert more.cost is not None
    assert more.cost.missing_bytes == 20 * 7 * 4
    assert json.loads(json.dumps(more.to_json()))["cost"]["missing_rows"] == 20


def test_a_full_disk_is_told_before_the_work(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.extract.run.free_disk", lambda path: 500)
    with pytest.raises(PipelineError, match="expected 960 B of free disk, found 500 B"):
        extract(config(raw, tmp_path / "out"))
    assert tiny_encoders.CALLS == []


def test_progress_counts_what_earlier_runs_did(raw: Path, tmp_path: Path) -> None:
    told: list[Update] = []
    extract(config(raw, tmp_path / "out"), told.append)
    shard = next(iter((tmp_path / "out").glob("00001-*.json")))
    shard.unlink()
    (tmp_path / "out" / "manifest.json").unlink()
    again: list[Update] = []
    extract(config(raw, tmp_path / "out"), again.append)
    counts = [update for update in again if not update.message]
    assert (counts[0].done, counts[-1].done, counts[-1].total) == (14, 20, 20)
    assert counts[-1].rate > 0


def test_names_and_numbers_of_options_are_checked(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"known dtype .*fp32"):
        config(raw, tmp_path, dtype="float")
    with pytest.raises(UnknownNameError, match="known storage dtype"):
        config(raw, tmp_path, storage_dtype="int8")
    with pytest.raises(UnknownNameError, match="known kind of texts"):
        config(raw, tmp_path, texts="some")
    with pytest.raises(UserError, match="--batch-size: expected 1 or more, found 0"):
        config(raw, tmp_path, batch_size=0)
    with pytest.raises(UserError, match="--max-rejected: expected 0 to 1, found 5"):
        config(raw, tmp_path, max_rejected=5)
    with pytest.raises(UnknownNameError, match="layer"):
        extract(config(raw, tmp_path / "out", layers="middle"))


# ---- broken inputs ---------------------------------------------------------------------------------------------------


def break_images(raw: Path) -> dict[str, str]:
    """Break four of the images; return id → a word of the reason."""
    (raw / "images" / "i001.png").write_bytes(b"")
    (raw / "images" / "i007.png").write_bytes(picture(7)[:100])
    (raw / "images" / "i008.png").write_bytes(encoded(Image.new("CMYK", (4, 4)), "JPEG"))
    (raw / "images" / "i019.png").unlink()
    return {"i001": "empty", "i007": "damaged", "i008": "CMYK", "i019": "No such file"}


def test_broken_images_are_listed_and_left_out(raw: Path, tmp_path: Path) -> None:
    broken = break_images(raw)
    result = extract(config(raw, tmp_path / "out", max_rejected=0.2))
    store = FeatureStore.open(tmp_path / "out")
    assert (result.rows, result.rejected) == (16, 4)
    assert store.ids == [f"i{n:03d}" for n in range(20) if f"i{n:03d}" not in broken]
    listed = {row["sample_id"]: row["reason"] for row in read_table(tmp_path / "out" / "rejected.csv")}
    assert listed.keys() == broken.keys()
    assert all(word in listed[name] for name, word in broken.items())
    np.testing.assert_array_equal(store.numpy("late"), expected_images(raw, "late", store.ids))


def test_more_layers_later_with_broken_images(raw: Path, tmp_path: Path) -> None:
    break_images(raw)
    extract(config(raw, tmp_path / "out", max_rejected=0.2, layers="last"))
    later = extract(config(raw, tmp_path / "out", max_rejected=0.2))
    whole = extract(config(raw, tmp_path / "whole", max_rejected=0.2, format="parquet"))
    assert later.content_digest == whole.content_digest


def test_a_shard_of_broken_images_alone(raw: Path, tmp_path: Path) -> None:
    for number in range(6, 12):
        (raw / "images" / f"i{number:03d}.png").write_bytes(b"")
    for kind in ("hdf5", "parquet"):
        extract(config(raw, tmp_path / kind, max_rejected=0.5, format=kind))
        assert FeatureStore.open(tmp_path / kind).numpy("output").shape == (14, 5)


def test_too_many_broken_images_stop_the_run(raw: Path, tmp_path: Path) -> None:
    break_images(raw)
    with pytest.raises(
        UserError, match=r"rejected.csv: expected at most 5.0% broken images, found 3 of 20, the first 'i001'"
    ):
        extract(config(raw, tmp_path / "out"))
    listed = [row["sample_id"] for row in read_table(tmp_path / "out" / "rejected.csv")]
    assert listed == ["i001", "i007", "i008"]
    tiny_encoders.CALLS.clear()
    assert extract(config(raw, tmp_path / "out", max_rejected=0.2)).rejected == 4
    assert encoded_rows() < 16, "the first shard was committed before the stop"
    with pytest.raises(UserError, match=r"at most 5.0% broken images, found 4 of 20"):
        extract(config(raw, tmp_path / "out"))


def test_what_earlier_runs_left_out_counts_for_the_limit(raw: Path, tmp_path: Path) -> None:
    for name in ("i001", "i007", "i008"):
        (raw / "images" / f"{name}.png").write_bytes(b"")
    with pytest.raises(UserError, match=r"found 3 of 20"):
        extract(config(raw, tmp_path / "out", max_rejected=0.1, shard_rows=6))
    tiny_encoders.CALLS.clear()
    with pytest.raises(UserError, match=r"found 3 of 20, the first 'i001'"):
        extract(config(raw, tmp_path / "out", max_rejected=0.1, shard_rows=6))
    with pytest.raises(UserError, match=r"at most 0.0% broken images, found 1 of 20"):
        extract(config(raw, tmp_path / "out", max_rejected=0))
    assert encoded_rows() <= 4, "the second shard at most: the one broken image of the first is known already"


@pytest.mark.parametrize(("data", "found"), [(picture(99), "other bytes"), (None, "cannot be read")])
def test_an_image_that_changes_during_the_run_stops_it(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: bytes | None, found: str
) -> None:
    victim = raw / "images" / "i013.png"

    def changing(self: tiny_encoders.Tiny, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        if data is None:
            victim.unlink(missing_ok=True)
        else:
            victim.write_bytes(data)
        return real(self, prepared, layers)

    real = tiny_encoders.Tiny.encode
    monkeypatch.setattr(tiny_encoders.Tiny, "encode", changing)
    with pytest.raises(UserError, match=rf"expected images/i013.png as it was when this run began, found .*{found}"):
        extract(config(raw, tmp_path / "out", shard_rows=2, batch_size=2, workers=1))
    assert not (tmp_path / "out" / "manifest.json").exists()


def turn_around(path: Path) -> None:
    """Store a picture as a phone does that was held upright: lying, with an EXIF orientation that says so."""
    exif = Image.Exif()
    exif[0x0112] = 6
    upright = Image.open(path).convert("RGB")
    path.write_bytes(encoded(upright.transpose(Image.Transpose.ROTATE_90), exif=exif))


def test_photographs_are_turned_upright(raw: Path, tmp_path: Path) -> None:
    """Turned, all pictures give the numbers of the upright ones; with `reject` the turned one is listed."""
    whole = extract(config(raw, tmp_path / "whole"))
    turn_around(raw / "images" / "i001.png")
    turned = extract(config(raw, tmp_path / "apply"))
    assert (turned.rows, turned.rejected) == (20, 0)
    assert turned.content_digest == whole.content_digest
    assert FeatureStore.open(tmp_path / "apply").key.preprocessing["decode"]["exif"] == "turned upright"
    left = extract(config(raw, tmp_path / "reject", exif="reject"))
    assert (left.rows, left.rejected) == (19, 1)
    assert "exif" not in FeatureStore.open(tmp_path / "reject").key.preprocessing["decode"]
    assert (tmp_path / "reject" / "rejected.csv").read_text() == (
        "sample_id,reason\ni001,stored turned or mirrored (EXIF orientation 6)\n"
    )


def test_a_store_that_met_no_turned_photograph_is_found_under_either_rule(raw: Path, tmp_path: Path) -> None:
    """What earlier versions made is not made again: its bytes are the same. Layers are added under its own key."""
    (raw / "images" / "i003.png").write_bytes(b"broken")
    old = extract(config(raw, tmp_path / "out", exif="reject", layers="last", shard_rows=8))
    key = FeatureStore.open(tmp_path / "out").key
    again = extract(config(raw, tmp_path / "out", layers="last"))
    assert (again.computed_shards, again.content_digest) == (0, old.content_digest)
    more = extract(config(raw, tmp_path / "out"))
    assert (more.computed_shards, more.rejected) == (3, 1)
    assert FeatureStore.open(tmp_path / "out").key == key
    assert more.content_digest == extract(config(raw, tmp_path / "new")).content_digest
    with pytest.raises(
        KeyMismatchError, match=r"preprocessing\.decode\.exif .*; say --exif apply, as that store was made"
    ):
        extract(config(raw, tmp_path / "new", exif="reject"))


def test_a_store_that_left_out_turned_photographs_is_no_hit(raw: Path, tmp_path: Path) -> None:
    turn_around(raw / "images" / "i001.png")
    extract(config(raw, tmp_path / "out", exif="reject"))
    for options in ({}, {"layers": "last"}, {"dry_run": True}):
        with pytest.raises(
            KeyMismatchError,
            match=r'decode\.exif = "turned upright", .*; say --exif reject, as that store',
        ):
            extract(config(raw, tmp_path / "out", **options))
    assert extract(config(raw, tmp_path / "out", replace=True)).rows == 20


def test_an_unfinished_store_is_not_gone_on_with_under_another_rule(raw: Path, tmp_path: Path) -> None:
    """What it has not looked at yet may be turned: that it met none so far says nothing."""
    extract(config(raw, tmp_path / "out", exif="reject", shard_rows=5))
    (tmp_path / "out" / "manifest.json").unlink()
    with pytest.raises(KeyMismatchError, match=r"preprocessing\.decode\.exif"):
        extract(config(raw, tmp_path / "out", shard_rows=5))
    assert extract(config(raw, tmp_path / "out", exif="reject", shard_rows=5)).computed_shards == 0


def test_a_store_of_other_pictures_lends_its_rule_to_none(raw: Path, tmp_path: Path) -> None:
    extract(config(raw, tmp_path / "out", exif="reject"))
    turn_around(raw / "images" / "i001.png")
    with pytest.raises(KeyMismatchError, match=r"dataset_digest.*preprocessing\.decode\.exif"):
        extract(config(raw, tmp_path / "out"))
    assert extract(config(raw, tmp_path / "out", replace=True)).rows == 20


HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"
"""How a phone's picture begins."""


def test_heic_without_its_package_is_listed_with_the_line_that_installs_it(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (raw / "images" / "i001.png").write_bytes(HEIC)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    made = extract(config(raw, tmp_path / "out"))
    assert (made.rows, made.rejected) == (19, 1)
    assert "i001,HEIC is read by the package pillow-heif: pip install 'fewpairs[heic]'" in (
        tmp_path / "out" / "rejected.csv"
    ).read_text(encoding="utf-8")
    with pytest.raises(
        UserError, match=r"found 1 of 20, the first 'i001': HEIC is read by .*pip install 'fewpairs\[heic\]'"
    ):
        extract(config(raw, tmp_path / "other", max_rejected=0))


def test_heic_is_read_and_its_reader_is_in_the_key(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that was made without the package is no hit with it, and names why; others know nothing of either."""
    pytest.importorskip("pillow_heif").register_heif_opener()
    plain = extract(config(raw, tmp_path / "plain"))
    assert "heif" not in FeatureStore.open(plain.path).key.preprocessing["decode"]
    picture_001 = Image.open(raw / "images" / "i001.png").convert("RGB").resize((64, 64))
    (raw / "images" / "i001.png").write_bytes(encoded(picture_001, "HEIF"))
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "pillow_heif", None)
        assert extract(config(raw, tmp_path / "out")).rejected == 1
    with pytest.raises(KeyMismatchError, match=r'expected preprocessing\.decode\.heif = "pillow-heif"'):
        extract(config(raw, tmp_path / "out"))
    made = extract(config(raw, tmp_path / "out", replace=True))
    assert (made.rows, made.rejected) == (20, 0)


def test_a_folder_of_something_else_is_no_place_for_a_store(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "work"
    out.mkdir()
    (out / "thesis.tex").write_text("years", encoding="utf-8")
    (out / "receipt.json").write_text("{}", encoding="utf-8")
    choices: list[dict[str, Any]] = [{}, {"replace": True}, {"dry_run": True}]
    for options in choices:
        with pytest.raises(
            UserError, match=r"work: expected a feature store, or .* found receipt.json, thesis.tex and"
        ):
            extract(config(raw, out, **options))
    assert sorted(path.name for path in out.iterdir()) == ["receipt.json", "thesis.tex"]
    assert not tiny_encoders.CALLS
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / ".gitignore").write_text("*", encoding="utf-8")
    assert extract(config(raw, tmp_path / "hidden")).rows == 20


def test_broken_captions_are_listed_and_left_out(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "captions.csv").write_bytes(b'caption\nfine\n" "\ncaf\xe9\nunspeakable\nalso fine\n')
    result = extract(config(tmp_path / "raw", tmp_path / "out", TEXT, max_rejected=0.7))
    assert (result.rows, result.rejected) == (2, 3)
    listed = {row["sample_id"]: row["reason"] for row in read_table(tmp_path / "out" / "rejected.csv")}
    assert listed["#1"] == "the caption is empty"
    assert listed["#2"] == "the caption is not UTF-8"
    assert listed["#3"].startswith("the encoder refuses it")
    assert FeatureStore.open(tmp_path / "out").samples.content == ["fine", "also fine"]


def test_a_mended_image_changes_the_key(raw: Path, tmp_path: Path) -> None:
    whole = (raw / "images" / "i001.png").read_bytes()
    (raw / "images" / "i001.png").unlink()
    extract(config(raw, tmp_path / "out"))
    (raw / "images" / "i001.png").write_bytes(whole)
    with pytest.raises(KeyMismatchError, match="dataset_digest"):
        extract(config(raw, tmp_path / "out"))


# ---- the same store, however it came about ---------------------------------------------------------------------------


def test_the_place_of_the_data_does_not_matter(raw: Path, tmp_path: Path) -> None:
    shutil.copytree(raw, tmp_path / "elsewhere")
    first = extract(config(raw, tmp_path / "one"))
    second = extract(config(tmp_path / "elsewhere", tmp_path / "two"))
    assert first.content_digest == second.content_digest
    extract(config(tmp_path / "elsewhere", tmp_path / "one"))


def test_classes_of_their_own_prompts(raw: Path, tmp_path: Path) -> None:
    extract(config(raw, tmp_path / "out", TEXT))
    write_json(raw / "classes.json", {"classes": ["cat", "dog"], "prompts": {"cat": ["miaow"]}, "templates": ["{}"]})
    tiny_encoders.CALLS.clear()
    extract(config(raw, tmp_path / "out", TEXT, replace=True))
    assert encoded_rows() == 2 + 2 * 2, "captions did not change"
    assert FeatureStore.open(tmp_path / "out" / "classes").samples.content == ["miaow", "dog"]


def test_the_sentence_of_the_cost() -> None:
    cost = Cost(
        what="images",
        rows=8091,
        layers=(("a", 384), ("b", 384)),
        bytes=24_855_552,
        missing_rows=512,
        missing_bytes=1_572_864,
        free_bytes=5 * 10**12,
        seconds=7200,
    )
    assert cost.sentence() == (
        "8,091 images × 2 layers (768 values a row) = 24.9 MB; still to do: 512 rows, 1.6 MB; free disk: 5.0 TB; "
        "expected time: 2.0 h"
    )

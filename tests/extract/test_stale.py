"""No finished store is ever served for features that it does not hold, whatever was changed since it was made.

Real local encoders leave a receipt beside the store, so that the next run need not load them; every test changes one
thing under the receipt's eyes and wants the encoder loaded and the difference named.
"""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.encoders.libraries import import_library
from pipeline.errors import KeyMismatchError, UserError
from pipeline.extract import receipt
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.settings import bytes_settings, declared
from pipeline.store.inspect import verify
from pipeline.store.reader import FeatureStore
from tests.encoders.conftest import save_tokenizer
from tests.extract.building import picture, read_table, write_json, write_raw, write_table


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of a tiny text model and a tiny image model."""
    import torch

    root = tmp_path_factory.mktemp("models")
    torch.manual_seed(5)
    transformers = import_library("transformers")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=40)).save_pretrained(root / "text")
    save_tokenizer(root / "text")
    picture_sizes = {**sizes, "image_size": 16, "patch_size": 8}
    transformers.ViTModel(transformers.ViTConfig(**picture_sizes)).save_pretrained(root / "image")
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16}, resample=2)
    processor.save_pretrained(root / "image")
    two = {"text_config": {**sizes, "vocab_size": 40}, "vision_config": picture_sizes, "projection_dim": 16}
    transformers.CLIPModel(transformers.CLIPConfig(**two)).save_pretrained(root / "both")
    transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}).save_pretrained(
        root / "both"
    )
    save_tokenizer(root / "both")
    return root


@pytest.fixture
def place(models: Path, tmp_path: Path) -> Path:
    shutil.copytree(models, tmp_path, dirs_exist_ok=True)
    write_raw(tmp_path / "raw", images=4, captions=1, classes=())
    return tmp_path


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the specs of the encoders that were loaded."""
    from pipeline.encoders import load

    seen: list[str] = []
    real = load.load_encoder

    def counting(spec: str, **options: object) -> object:
        seen.append(spec)
        return real(spec, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(load, "load_encoder", counting)
    return seen


def config(place: Path, side: str, **options: object) -> ExtractConfig:
    values = {"encoder": f"hf:{place / side}", "dataset": place / "raw", "out": place / f"store-{side}", **options}
    return ExtractConfig(**values)  # type: ignore[arg-type]


def change_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    name = next(name for name in sorted(weights) if weights[name].is_floating_point())
    stat = (folder / "model.safetensors").stat()
    save_file({**weights, name: weights[name] + 1}, folder / "model.safetensors", metadata={"format": "pt"})
    assert (folder / "model.safetensors").stat().st_size == stat.st_size
    os.utime(folder / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))


def change_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text())
    vocabulary = data["model"]["vocab"]
    vocabulary["dog"], vocabulary["cat"] = vocabulary["cat"], vocabulary["dog"]
    path.write_text(json.dumps(data))


def change_preprocessing(folder: Path) -> None:
    path = next(folder.glob("*processor_config.json"))
    data = json.loads(path.read_text())
    inner = data.get("image_processor", data)
    inner["image_mean"] = [0.1, 0.2, 0.3]
    path.write_text(json.dumps(data))


def change_image(raw: Path) -> None:
    path = raw / "images" / "i001.png"
    stat = path.stat()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


def change_caption(raw: Path) -> None:
    rows = [list(row.values()) for row in read_table(raw / "captions.csv")]
    rows[2][2] += "!"
    write_table(raw / "captions.csv", ("caption_id", "image_id", "caption"), rows)


@pytest.mark.parametrize("side", ["image", "text"])
def test_nothing_changed_and_nothing_is_loaded(place: Path, loads: list[str], side: str) -> None:
    first = extract(config(place, side))
    assert len(loads) == 1
    again = extract(config(place, side, batch_size=2, workers=1, device="cpu", format="parquet"))
    assert len(loads) == 1
    assert (again.content_digest, again.computed_shards) == (first.content_digest, 0)


def test_captions_and_class_prompts_each_have_their_receipt(place: Path, loads: list[str]) -> None:
    write_json(place / "raw" / "classes.json", {"classes": ["cat", "dog"], "templates": ["a {c}"]})
    extract(config(place, "text", texts="captions"))
    extract(config(place, "text"))
    assert len(loads) == 2, "the prompts were not there"
    for texts in ("all", "captions", "classes"):
        assert extract(config(place, "text", texts=texts)).computed_shards == 0
    assert len(loads) == 2
    write_json(place / "raw" / "classes.json", {"classes": ["cat", "dog"], "templates": ["one {c}"]})
    extract(config(place, "text", texts="captions"))
    with pytest.raises(KeyMismatchError, match=r"classes: .*dataset_digest"):
        extract(config(place, "text"))
    assert len(loads) == 3


@pytest.mark.parametrize(
    ("side", "folder", "change", "field"),
    [
        ("text", "text", change_weights, r"encoder\.weights"),
        ("image", "image", change_weights, r"encoder\.weights"),
        ("text", "text", change_tokenizer, r"preprocessing\.tokenizer"),
        ("image", "image", change_preprocessing, r"preprocessing\.\S*mean"),
        ("image", "raw", change_image, "dataset_digest"),
        ("text", "raw", change_caption, "dataset_digest"),
    ],
)
def test_changed_under_the_same_name_size_and_time(
    place: Path, loads: list[str], side: str, folder: str, change: Callable[[Path], None], field: str
) -> None:
    before = extract(config(place, side)).content_digest
    change(place / folder)
    with pytest.raises(KeyMismatchError, match=field):
        extract(config(place, side))
    assert len(loads) == 2
    assert FeatureStore.open(place / f"store-{side}").content_digest == before, "and the store is left alone"
    changed = extract(config(place, side, replace=True, max_rejected=0.25))
    assert changed.computed_shards == 1


ANOTHER: dict[str, tuple[str, dict[str, Any], str]] = {
    "dataset": ("text", {"dataset": "copy"}, ""),  # what counts is its content
    "encoder": ("text", {"encoder": "other"}, r"encoder\.weights"),
    "out": ("text", {"out": "elsewhere"}, ""),
    "layers": ("text", {"layers": "last"}, ""),
    "pool": ("text", {"pool": "cls"}, "pooling"),
    "modality": ("both", {"modality": "image"}, "modality"),
    "texts": ("text", {"texts": "captions"}, ""),
    "prompt": ("text", {"prompt": "query: "}, r"preprocessing\.\S*prompt"),
    "max_length": ("text", {"max_length": 4}, r"preprocessing\.\S*max_length"),
    "dtype": ("text", {"dtype": "bf16"}, 'expected compute_dtype = "bfloat16", found'),
    "storage_dtype": ("text", {"storage_dtype": "fp16"}, 'expected storage_dtype = "float16", found'),
    "jpeg": ("image", {"jpeg": "reduced"}, r"expected preprocessing\.decode\.jpeg"),
    "exif": ("image", {"exif": "reject"}, r"expected preprocessing\.decode\.exif"),
    "device": ("text", {"device": "cpu"}, ""),
    "batch_size": ("text", {"batch_size": 2}, ""),
    "workers": ("text", {"workers": 1}, ""),
    "decode_cpus": ("text", {"decode_cpus": 1}, ""),
    "shard_rows": ("text", {"shard_rows": 2}, ""),
    "format": ("text", {"format": "parquet"}, ""),
    "worker_index": ("text", {"worker_index": 1, "num_workers": 2}, ""),
    "num_workers": ("text", {"num_workers": 2}, ""),
    "lease_seconds": ("text", {"lease_seconds": 9.0}, ""),
    "max_rejected": ("text", {"max_rejected": 0.5}, ""),
    "replace": ("text", {"replace": True}, ""),
    "dry_run": ("text", {"dry_run": True}, ""),
}
"""Setting → on which model, another value of it, and the field of the key that changes; empty where none does."""
STATED: dict[str, dict[str, Any]] = {"modality": {"modality": "text"}, "dtype": {"storage_dtype": "fp32"}}
"""What has to be stated, so that only the one setting changes."""


def test_every_setting_says_whether_it_changes_bytes() -> None:
    assert {name: about.changes_bytes for name, about in declared(ExtractConfig).items()} == {
        name: bool(field) for name, (_, _, field) in ANOTHER.items()
    }


@pytest.mark.parametrize("name", ANOTHER)
def test_another_value_is_another_key_or_a_hit(place: Path, loads: list[str], name: str) -> None:
    """A setting that changes bytes is missed by name, by receipt and key; another finds all that is there."""
    side, options, field = ANOTHER[name]
    shutil.copytree(place / "raw", place / "copy")
    shutil.copytree(place / "text", place / "other")
    change_weights(place / "other")
    ours = config(place, side, **STATED.get(name, {}))
    first = extract(ours)
    paths = {"dataset": place, "out": place}
    values = {key: paths[key] / value if key in paths else value for key, value in options.items()}
    if name == "encoder":
        values = {"encoder": f"hf:{place / 'other'}"}
    other = dataclasses.replace(ours, **values)
    before, after = bytes_settings(ours), bytes_settings(other)
    assert [key for key in before if before[key] != after[key]] == ([name] if field else [])
    if field:
        with pytest.raises(KeyMismatchError, match=field):
            extract(other)
        assert len(loads) == 2, "the receipt did not count"
        return
    again = extract(other)
    assert again.content_digest == first.content_digest
    assert len(loads) == (2 if name == "out" else 1)


def test_another_store_of_the_same_shape_in_its_place(place: Path, loads: list[str]) -> None:
    ours = extract(config(place, "text"))
    other = config(place, "text", prompt="a ", out=place / "other")
    theirs = extract(other)
    assert ours.content_digest != theirs.content_digest
    for path in (place / "store-text").iterdir():
        if path.is_file() and path.name != "receipt.json":
            path.unlink()
    for path in Path(str(other.out)).iterdir():
        if path.is_file() and path.name != "receipt.json":
            shutil.copy(path, place / "store-text")
    with pytest.raises(KeyMismatchError, match="prompt"):
        extract(config(place, "text"))
    extract(config(place, "text", replace=True))
    shutil.copy(place / "store-text" / "receipt.json", str(other.out))  # a receipt from elsewhere
    with pytest.raises(KeyMismatchError, match="prompt"):
        extract(config(place, "text", out=other.out))


def test_a_forged_receipt_needs_the_right_key(place: Path) -> None:
    from pipeline.files import dump_signed, load_signed

    extract(config(place, "text"))
    path = place / "store-text" / "receipt.json"
    signed = load_signed(path.read_bytes(), path.name, "store")
    change_weights(place / "text")
    digests = receipt.prepare_receipt(config(place, "text"))["files"]
    path.write_bytes(dump_signed({**signed, "files": digests, "key": "0" * 64}))
    with pytest.raises(KeyMismatchError, match=r"encoder\.weights"):
        extract(config(place, "text"))


def test_a_linked_folder_that_leads_elsewhere(place: Path, loads: list[str]) -> None:
    shutil.copytree(place / "text", place / "other")
    change_weights(place / "other")
    (place / "link").symlink_to(place / "text", target_is_directory=True)
    extract(config(place, "text", encoder=f"hf:{place / 'link'}"))
    extract(config(place, "text", encoder=f"hf:{place / 'link'}"))
    assert len(loads) == 1
    (place / "link").unlink()
    (place / "link").symlink_to(place / "other", target_is_directory=True)
    with pytest.raises(KeyMismatchError, match=r"encoder\.weights"):
        extract(config(place, "text", encoder=f"hf:{place / 'link'}"))


def test_another_library_version_loads_the_encoder(
    place: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract(config(place, "text"))
    real = receipt.versions()
    monkeypatch.setattr(receipt, "versions", lambda: {**real, "transformers": "99.0"})
    again = extract(config(place, "text"))
    assert len(loads) == 2
    assert again.content_digest == first.content_digest, "the key did not change"


def test_weights_that_change_during_the_run(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.extract.compute import Computation

    run = Computation.run

    def changing(self: Computation) -> None:
        run(self)
        change_weights(place / "text")

    monkeypatch.setattr(Computation, "run", changing)
    extract(config(place, "text"))
    with pytest.raises(KeyMismatchError, match=r"encoder\.weights"):
        extract(config(place, "text"))


MODULE = """
import torch
from pipeline.encoders.base import Encoder, EncoderKey, Layer


class Own(Encoder):
    def __init__(self, options):
        super().__init__("own_encoder:Own", "text", (Layer(name="output", width=1),))

    def key(self):
        return EncoderKey(encoder={"name": "own", "version": 1}, preprocessing={}, pooling="mean")

    def prepare(self, sample):
        return torch.tensor([float(len(sample))])

    def encode(self, prepared, layers):
        return {"output": torch.stack(list(prepared)) * FACTOR}
"""


def test_changed_code_of_an_encoder_of_one_s_own(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(place)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for factor in (1, 2):
        (place / "own_encoder.py").write_text(MODULE.replace("FACTOR", str(factor)))
        sys.modules.pop("own_encoder", None)
        extract(config(place, "text", encoder="own_encoder:Own", out=place / f"own{factor}"))
    monkeypatch.delitem(sys.modules, "own_encoder")
    one, two = (FeatureStore.open(place / f"own{factor}") for factor in (1, 2))
    np.testing.assert_array_equal(one.numpy("output") * 2, two.numpy("output"))
    assert [field for field, *_ in one.key.differences(two.key)] == ["encoder.source"]
    with pytest.raises(KeyMismatchError, match=r"encoder\.source"):
        extract(config(place, "text", encoder="own_encoder:Own", out=place / "own1"))


def test_a_damaged_store_is_not_served_and_is_mended(place: Path, loads: list[str]) -> None:
    """A receipt knows nothing of the shards: they are looked at on every run."""
    first = extract(config(place, "text"))
    shard = next((place / "store-text").glob("0*.h5"))
    shard.write_bytes(shard.read_bytes()[:-1])
    again = extract(config(place, "text"))
    assert (len(loads), again.computed_shards, again.content_digest) == (2, 1, first.content_digest)
    assert verify(place / "store-text", deep=True) == []


@pytest.mark.parametrize("name", ["store.json", "manifest.json", "samples.parquet", "00000"])
def test_a_flipped_byte_in_what_a_store_says_of_itself(place: Path, name: str) -> None:
    first = extract(config(place, "text"))
    store = place / "store-text"
    path = next(store.glob("0*.json")) if name == "00000" else store / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x41
    path.write_bytes(data)
    if name == "store.json":
        with pytest.raises(UserError, match=r"store\.json"):
            extract(config(place, "text"))
        extract(config(place, "text", replace=True))
    elif name == "00000":
        assert [problem.file for problem in verify(store)] == [path.name]
        return  # the manifest holds the same record: nothing is read from this one
    else:
        assert extract(config(place, "text")).content_digest == first.content_digest
    assert verify(store, deep=True) == []


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in [root, *root.rglob("*")]
    }


@pytest.mark.parametrize("side", ["image", "text"])
def test_a_dry_run_writes_nothing_at_all(place: Path, side: str) -> None:
    raw = place / "raw"
    before = snapshot(place)
    extract(config(place, side, dry_run=True))
    assert snapshot(place) == before
    extract(config(place, side))
    (place / f"store-{side}" / ".00000-00000000.h5.0123456789abcdef.tmp").write_bytes(b"of a dead writer")
    rows = [(row["image_id"], row["file"], "val", "") for row in read_table(raw / "images.csv")]
    write_table(
        raw / "images.csv", ("image_id", "file", "split", "label"), rows
    )  # a real run would refresh the samples
    before = snapshot(place)
    for options in ({}, {"layers": "last"}, {"storage_dtype": "fp16", "replace": True}):
        extract(config(place, side, dry_run=True, **options))
        assert snapshot(place) == before
    (place / f"store-{side}" / "receipt.json").unlink()
    before = snapshot(place)
    extract(config(place, side, dry_run=True))
    assert snapshot(place) == before


def test_a_later_image_is_read_from_the_disk_each_time(place: Path) -> None:
    extract(config(place, "image"))
    (place / "raw" / "images" / "i003.png").write_bytes(picture(77))
    with pytest.raises(KeyMismatchError, match="dataset_digest"):
        extract(config(place, "image"))

"""A query is rounded as the store rounded its rows, or the same picture would not find itself exactly."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.apps.dual_encoder import SideEncoder, load_recorded
from pipeline.encoders.base import Encoder
from pipeline.extract.decode import JPEG_RULES
from pipeline.projectors.run_record import AlignedRun, StoreRecord
from pipeline.store.reader import FeatureStore
from tests.apps.colours import COLOURS, make_run


def test_features_are_rounded_to_the_format_of_the_store(tmp_path: Path) -> None:
    """The stores hold float16: of 250/255 = 0.98039… they keep 0.98047 (numpy's rounding), and so must a query."""
    run = AlignedRun.open(make_run(tmp_path))
    pictures = [Image.new("RGB", (9, 7), colour) for colour in COLOURS.values()]
    found = SideEncoder(run, "image").features(pictures)
    exact = np.array(list(COLOURS.values()), np.float64) / 255
    rounded = exact.astype(np.float16).astype(np.float32)
    assert np.abs(rounded - exact).max() > 1e-5
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), rounded)
    stored = FeatureStore.open(tmp_path / "image").read("output")
    assert torch.equal(found, stored.float())


def test_a_record_that_names_no_format_is_of_float32_and_the_device_is_handed_on(tmp_path: Path) -> None:
    """Runs of the first days say nothing of the number format."""
    run = AlignedRun.open(make_run(tmp_path))
    for record in run.stores["image"]:
        del record.key["storage_dtype"]
    asked: list[tuple[str, str]] = []

    def loader(record: StoreRecord, side: str, device: str) -> Encoder:
        asked.append((side, device))
        return load_recorded(record, side, "cpu")

    encoder = SideEncoder(run, "image", "cuda:1", loader)
    found = encoder.features([Image.new("RGB", (9, 7), (250, 10, 10))])
    np.testing.assert_allclose(found.numpy(), np.array([[250, 10, 10]]) / 255, rtol=1e-6)
    assert asked == [("image", "cuda:1")]


KEY: dict[str, Any] = {
    "preprocessing": {"prompt": "a photo of ", "max_length": 7},
    "pooling": "cls",
    "compute_dtype": "bfloat16",
}
SAID = {"pool": "cls", "dtype": "bf16", "device": "cuda:1"}
UNSAID = {"pool": "auto", "dtype": "fp32", "device": "cpu"}


@pytest.mark.parametrize(
    ("side", "key", "device", "asked"),
    [
        ("text", KEY, "cuda:1", {**SAID, "modality": "text", "prompt": "a photo of ", "max_length": 7}),
        ("image", KEY, "cuda:1", {**SAID, "modality": "image"}),
        ("text", {}, "cpu", {**UNSAID, "modality": "text", "prompt": "", "max_length": None}),
        ("image", {"pooling": "auto:patch_mean", "compute_dtype": "int3"}, "cpu", {**UNSAID, "modality": "image"}),
    ],
)
def test_an_encoder_is_loaded_as_the_key_of_its_features_says(
    side: str, key: dict[str, Any], device: str, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prompt, length, pooling and arithmetic: what is searched for is encoded as the store was."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(
        "pipeline.apps.dual_encoder.load_encoder", lambda spec, **options: calls.append((spec, options))
    )
    record = StoreRecord(key_digest="", content_digest="", key=key, spec="hf:tiny")
    load_recorded(record, side, *([device] if device != "cpu" else []))
    assert calls == [("hf:tiny", asked)]


@pytest.mark.parametrize(("rule", "reduced"), [("exact", False), ("reduced", True), (None, False)])
def test_jpegs_are_decoded_as_the_store_decoded_them(tmp_path: Path, rule: str | None, reduced: bool) -> None:
    run = AlignedRun.open(make_run(tmp_path))
    for record in run.stores["image"]:
        record.key["preprocessing"]["decode"] = {"version": 1, **({"jpeg": JPEG_RULES[rule]} if rule else {})}
    encoder = SideEncoder(run, "image")
    assert encoder.reduction == (encoder.encoders[0].reduction if reduced else None)


def test_a_record_without_preprocessing_was_decoded_exactly(tmp_path: Path) -> None:
    run = AlignedRun.open(make_run(tmp_path))
    encoder = SideEncoder(run, "image")
    for key in ({}, {"preprocessing": None}, {"preprocessing": {"decode": None}}):
        run.stores["image"][0].key.clear()
        run.stores["image"][0].key.update(key)
        assert encoder.reduction is None

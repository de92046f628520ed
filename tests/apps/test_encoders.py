"""A query is rounded as the store rounded its rows, or the same picture would not find itself exactly."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from pipeline.apps.encoders import SideEncoder, load_recorded
from pipeline.encoders.base import Encoder
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

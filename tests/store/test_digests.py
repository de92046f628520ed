"""Digests, signed JSON, and the count of values that are no numbers."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DamagedStoreError, UnknownNameError
from pipeline.files import dump_signed, file_sha256, load_signed
from pipeline.store.formats import array_xxh3, count_nonfinite
from pipeline.store.key import storage_dtype
from pipeline.store.manifest import LayerInfo, content_digest, ids_digest


def test_any_flipped_byte_of_signed_json_is_seen() -> None:
    value = {"rows": 3, "name": "é", "nested": [{"a": None}]}
    data = dump_signed(value)
    assert load_signed(data, "manifest.json", "store") == value
    for place in range(len(data)):
        for bit in (1, 16, 32):
            flipped = data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
            with pytest.raises(DamagedStoreError, match=r"manifest\.json with the digest that it carries"):
                load_signed(flipped, "manifest.json", "store")


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", '{"self": 1}', "[" * 100_000])
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(DamagedStoreError, match=r"store\.json"):
        load_signed(text.encode(), "store.json", "store")


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8"), min_size=1)))
def test_ids_digest_is_sha256_of_ids_and_nul(ids: list[str]) -> None:
    assert ids_digest(ids) == hashlib.sha256(b"".join(name.encode() + b"\0" for name in ids)).hexdigest()


def test_ids_digest_does_not_depend_on_blocks() -> None:
    ids = [str(item) for item in range(70_000)]
    assert ids_digest(ids) == hashlib.sha256(b"".join(name.encode() + b"\0" for name in ids)).hexdigest()


def test_array_xxh3_is_over_all_bytes() -> None:
    values = np.random.default_rng(0).normal(size=(4001, 100)).astype(np.float32)
    assert array_xxh3([values[:1000], values[1000:1000], values[1000:]]) == xxhash.xxh3_128_hexdigest(values.tobytes())


def test_content_digest_counts_everything_but_the_order_of_layers() -> None:
    a, b = (
        LayerInfo(name="a", width=2, dtype="float16", digest="0"),
        LayerInfo(name="b", width=3, dtype="float16", digest="1"),
    )
    base = content_digest(5, "ids", [a, b])
    assert content_digest(5, "ids", [b, a]) == base
    others = [
        content_digest(4, "ids", [a, b]),
        content_digest(5, "ids2", [a, b]),
        content_digest(5, "ids", [a]),
        content_digest(5, "ids", [a, replace(b, digest="2")]),
        content_digest(5, "ids", [a, replace(b, width=4)]),
        content_digest(5, "ids", [a, replace(b, dtype="bfloat16")]),
        content_digest(5, "ids", [a, replace(b, name="c")]),
    ]
    assert len({base, *others}) == len(others) + 1


def test_file_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 1000)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 1000).hexdigest()


@pytest.mark.parametrize("name", ["float16", "float32", "float64", "bfloat16"])
def test_count_nonfinite_against_torch(name: str) -> None:
    tensor = torch.randn(1100, 1000, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    tensor[5, 5], tensor[6, 6], tensor[1099, 999], tensor[7, 7] = torch.inf, -torch.inf, torch.nan, 65504.0
    tensor = tensor.to(getattr(torch, name))
    bits = tensor.view(torch.int16).numpy().view(np.uint16) if name == "bfloat16" else tensor.numpy()
    assert count_nonfinite(bits, storage_dtype(name)) == int((~tensor.isfinite()).sum()) == 3


def test_unknown_dtype() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'float16'"):
        storage_dtype("float15")

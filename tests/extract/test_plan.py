"""Shard sizes and the sentence of the cost."""

import pytest

from pipeline.extract.plan import Cost, default_shard_rows


@pytest.mark.parametrize(
    ("items", "widths", "storage", "modality", "rows"),
    [
        (1918, [1280], "float32", "image", 256),
        (8091, [384] * 13, "float32", "image", 512),
        (40455, [384] * 7, "float32", "text", 4096),
        (2400, [384] * 8, "float32", "text", 4096),
        (2400, [4096] * 33, "float32", "text", 256),
        (100_000, [384] * 8, "float32", "text", 8192),
        (10**7, [384] * 13, "float16", "text", 8192),
        (10**7, [384], "float16", "image", 65536),
        (10**7, [32768] * 40, "float32", "image", 256),
        (1, [1], "float32", "image", 256),
    ],
)
def test_shards_are_a_power_of_two(items: int, widths: list[int], storage: str, modality: str, rows: int) -> None:
    assert default_shard_rows(items, widths, storage, modality) == rows


def test_the_sentence() -> None:
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

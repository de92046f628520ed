"""What settings mean where nothing is said: the size of a shard."""

import pytest

from pipeline.extract.config import default_shard_rows


@pytest.mark.parametrize(
    ("items", "widths", "storage", "modality", "rows"),
    [
        (1918, [1280], "float32", "image", 128),
        (8091, [384] * 13, "float32", "image", 512),
        (40455, [384] * 7, "float32", "text", 4096),
        (2400, [384] * 8, "float32", "text", 4096),
        (2400, [4096] * 33, "float32", "text", 256),
        (100_000, [384] * 8, "float32", "text", 8192),
        (10**7, [384] * 13, "float16", "text", 8192),
        (10**7, [384], "float16", "image", 65536),
        (10**7, [32768] * 40, "float32", "image", 256),
        (200, [1280], "float32", "image", 32),
        (1, [1], "float32", "image", 32),
    ],
)
def test_shards_are_a_power_of_two(items: int, widths: list[int], storage: str, modality: str, rows: int) -> None:
    assert default_shard_rows(items, widths, storage, modality) == rows

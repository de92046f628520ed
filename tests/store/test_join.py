"""Joining images and captions by id, against a slow loop."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UserError
from pipeline.store.samples import Samples, join


def table(image_ids: list[str], splits: list[str] | None = None) -> Samples:
    count = len(image_ids)
    ids = [f"{name}#{place}" for place, name in enumerate(image_ids)]
    return Samples(ids, image_ids, splits or ["train"] * count, [""] * count, [""] * count)


def slow_join(image: Samples, text: Samples, split: str | None) -> list[tuple[int, int]]:
    """Return (image row, caption row) of each pair, by comparing every image with every caption."""
    return [
        (row, caption)
        for caption in range(len(text))
        for row in range(len(image))
        if image.image_id[row] and image.image_id[row] == text.image_id[caption]
        if split is None or image.split[row] == split
    ]


@given(
    st.lists(st.sampled_from(["", *"abcdefgh"]), max_size=9).map(
        lambda names: [name for place, name in enumerate(names) if not name or name not in names[:place]]
    ),
    st.lists(st.sampled_from(["", *"abcdefghxyz"]), max_size=30),
    st.lists(st.sampled_from(["train", "test"]), min_size=9, max_size=9),
    st.sampled_from([None, "train", "test", "val"]),
)
def test_against_a_slow_loop(images: list[str], captions: list[str], splits: list[str], split: str | None) -> None:
    image, text = table(images, splits[: len(images)]), table(captions)
    expected = slow_join(image, text, split)
    pairs = join(image, text, split)
    found = [(int(pairs.image_rows[m]), int(p)) for p, m in zip(pairs.caption_rows, pairs.caption_image, strict=True)]
    assert found == expected
    assert pairs.image_rows.tolist() == sorted({row for row, _ in expected})
    assert {array.dtype.str for array in (pairs.image_rows, pairs.caption_rows, pairs.caption_image)} == {"<i8"}


def test_all_captions_are_kept_and_order_does_not_matter() -> None:
    pairs = join(table(["b", "a", "lonely"]), table(["a", "b", "", "gone", "a", "a"]))
    assert pairs.image_rows.tolist() == [0, 1]
    assert pairs.caption_rows.tolist() == [0, 1, 4, 5]
    assert pairs.caption_image.tolist() == [1, 0, 1, 1]


def test_split_comes_from_the_images() -> None:
    pairs = join(table(["a", "b"], ["test", "train"]), table(["a", "b"], ["train", "test"]), "test")
    assert pairs.image_rows.tolist() == [0]
    assert pairs.caption_rows.tolist() == [0]


def test_an_image_id_twice_is_refused() -> None:
    with pytest.raises(UserError, match=r"each image id once.*'a' in rows 0 and 2"):
        join(table(["a", "b", "a"]), table(["a"]))


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(UserError, match="sample_id 1, image_id 2"):
        Samples(["a"], ["a", "b"], [""], [""], [""])

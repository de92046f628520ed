"""The grammar of layer expressions, against Python's own slicing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import UnknownNameError, UserError
from pipeline.layers import select_layers

NAMES = ("embeddings", "block_1", "block_2", "block_3", "output")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("all", NAMES),
        ("last", ("output",)),
        ("0", ("embeddings",)),
        ("-1", ("output",)),
        ("0,3,-1", ("embeddings", "block_3", "output")),
        ("1:3", ("block_1", "block_2")),
        (":2", ("embeddings", "block_1")),
        ("-2:", ("block_3", "output")),
        ("block_2", ("block_2",)),
        ("last, block_1 ,1", ("block_1", "output")),
    ],
)
def test_expressions(expression: str, expected: tuple[str, ...]) -> None:
    assert select_layers(expression, NAMES) == expected


@given(st.lists(st.integers(-5, 4), min_size=1))
def test_indices_keep_depth_order_and_do_not_repeat(indices: list[int]) -> None:
    chosen = select_layers(",".join(map(str, indices)), NAMES)
    assert chosen == tuple(name for i, name in enumerate(NAMES) if i in indices or i - 5 in indices)


@given(st.one_of(st.none(), st.integers(-7, 7)), st.one_of(st.none(), st.integers(-7, 7)))
def test_ranges_are_python_slices(start: int | None, stop: int | None) -> None:
    expression = f"{'' if start is None else start}:{'' if stop is None else stop}"
    expected = NAMES[start:stop]
    if expected:
        assert select_layers(expression, NAMES) == expected
    else:
        with pytest.raises(UserError, match="expected a range that holds some of the 5 layers"):
            select_layers(expression, NAMES)


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"known layer \(all, last, embeddings.*did you mean 'block_1'"):
        select_layers("blok_1", NAMES)


@pytest.mark.parametrize("expression", ["5", "-6"])
def test_an_index_out_of_range(expression: str) -> None:
    with pytest.raises(UserError, match="expected a layer index between -5 and 4"):
        select_layers(expression, NAMES)


@pytest.mark.parametrize("expression", ["", " , "])
def test_nothing_asked(expression: str) -> None:
    with pytest.raises(UserError, match="found nothing"):
        select_layers(expression, NAMES)

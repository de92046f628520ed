"""Dropped and shuffled words do what they say and no more."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from examples.study.prepare import drop_words, shuffle_words

WORDS = st.lists(st.text("abcdefgh", min_size=1, max_size=3), min_size=0, max_size=12)


@given(WORDS, st.floats(0.01, 0.99), st.integers(0, 9))
def test_dropping_keeps_the_order_and_one_word(words: list[str], share: float, seed: int) -> None:
    left = drop_words(" ".join(words), share, np.random.default_rng(seed)).split()
    place = iter(words)
    assert all(word in place for word in left)  # a subsequence
    gone = min(max(round(share * len(words)), 1), len(words) - 1) if words else 0
    assert len(left) == len(words) - max(gone, 0)


@given(WORDS, st.floats(0.01, 0.99), st.integers(0, 9))
def test_shuffling_keeps_the_words(words: list[str], share: float, seed: int) -> None:
    moved = shuffle_words(" ".join(words), share, np.random.default_rng(seed)).split()
    assert sorted(moved) == sorted(words)
    limit = min(max(round(share * len(words)), 2), len(words))
    assert sum(a != b for a, b in zip(moved, words, strict=True)) <= limit


def test_shuffling_moves_as_many_words_as_asked() -> None:
    words = [f"w{place}" for place in range(20)]
    moved = shuffle_words(" ".join(words), 0.3, np.random.default_rng(0)).split()
    assert sum(a != b for a, b in zip(moved, words, strict=True)) == 6

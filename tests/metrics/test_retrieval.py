"""Ranks and recall against slow loops, torchmetrics and CLIP_benchmark's scorer; ties, copies and hostile input."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics import retrieval
from pipeline.metrics.retrieval import cross_ranks, mean_average_precision, ranks, recall_at, retrieval_metrics
from tests.drawing import draws
from tests.placement import Placed


def embeddings(images: int, captions: int, d: int, seed: int = 0, noise: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """Return unit image [N, d], caption [N·captions, d] in mixed order, and owners."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.nn.functional.normalize(torch.randn(images, d, generator=generator), dim=1)
    owner = torch.arange(images).repeat_interleave(captions)
    owner = owner[torch.randperm(len(owner), generator=generator)]
    caption = image[owner] + noise * torch.randn(len(owner), d, generator=generator) / d**0.5
    return image, torch.nn.functional.normalize(caption, dim=1), owner


def slow_ranks(scores: NDArray[np.float64], positive: NDArray[np.bool_], tie: float = 1e-12) -> list[int]:
    """Count, for each row, the negatives at or above the best positive, one by one."""
    found = []
    for row, own in zip(scores, positive, strict=True):
        best = max(score for score, yes in zip(row, own, strict=True) if yes)
        found.append(1 + sum(1 for score, yes in zip(row, own, strict=True) if not yes and score >= best - tie))
    return found


def slow_both(image: Tensor, caption: Tensor, owner: Tensor) -> tuple[list[int], list[int]]:
    scores = (image.double() @ caption.double().T).numpy()
    positive = np.zeros_like(scores, dtype=bool)
    positive[owner.numpy(), np.arange(len(owner))] = True
    return slow_ranks(scores, positive), slow_ranks(scores.T, positive.T)


@pytest.mark.parametrize("tile", [1, 50, 333, 10**6])
@pytest.mark.parametrize(("images", "captions"), [(1, 1), (7, 1), (23, 3), (40, 5)])
def test_both_directions_equal_the_slow_loop(images: int, captions: int, tile: int) -> None:
    data = embeddings(images, captions, 16)
    ours = cross_ranks(*data, tile=tile)
    expected = slow_both(*data)
    assert ours[0].tolist() == expected[0]
    assert ours[1].tolist() == expected[1]


small = st.integers(min_value=-2, max_value=2)


@settings(max_examples=draws(80))
@given(data=st.data(), images=st.integers(1, 6), more=st.integers(0, 9), d=st.integers(1, 3))
def test_ties_and_zero_rows_equal_the_slow_loop(data: st.DataObject, images: int, more: int, d: int) -> None:
    """Whole numbers make exact ties likely; every image has one caption at least."""
    extra = data.draw(st.lists(st.integers(0, images - 1), min_size=more, max_size=more))
    owner = torch.tensor([*range(images), *extra])
    cells = st.lists(small, min_size=d, max_size=d)
    image = torch.tensor(data.draw(st.lists(cells, min_size=images, max_size=images))).float()
    caption = torch.tensor(data.draw(st.lists(cells, min_size=len(owner), max_size=len(owner)))).float()
    expected = slow_both(image, caption, owner)
    ours = cross_ranks(image, caption, owner, tile=data.draw(st.integers(1, 60)))
    assert ours[0].tolist() == expected[0]
    assert ours[1].tolist() == expected[1]


@settings(max_examples=draws(25))
@given(images=st.integers(2, 30), captions=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_order_of_items_does_not_matter(images: int, captions: int, seed: int) -> None:
    image, caption, owner = embeddings(images, captions, 8, seed)
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randperm(images, generator=generator), torch.randperm(len(owner), generator=generator)
    shuffled = cross_ranks(image[a], caption[b], torch.argsort(a)[owner[b]])
    straight = cross_ranks(image, caption, owner)
    assert shuffled[0].tolist() == straight[0][a.numpy()].tolist()
    assert shuffled[1].tolist() == straight[1][b.numpy()].tolist()


def test_copies_tie_wherever_they_stand() -> None:
    """The same vector gets another last bit in another place of a float32 product; a copy must tie all the same."""
    image, caption, owner = embeddings(400, 2, 384, noise=0.5)
    copies = torch.cat([image, image])
    image_ranks, text_ranks = cross_ranks(copies, caption, owner, tile=70_000)
    once = cross_ranks(image, caption, owner)
    assert bool((image_ranks[400:] == 0).all())  # an image without captions is no query
    assert image_ranks[:400].tolist() == once[0].tolist()
    found = (image.double() @ caption.double().T).numpy()
    match = found[owner.numpy(), np.arange(800)]
    assert text_ranks.tolist() == (2 * (found > match + 1e-12).sum(axis=0) + 2).tolist()


def test_an_image_without_captions_is_left_out_of_the_metrics() -> None:
    image, caption, owner = embeddings(30, 2, 8, noise=3.0)
    kept = owner < 20
    result = retrieval_metrics(image, caption[kept], owner[kept], (1, 5))
    asked = result.image_ranks[:20]
    assert result.image_ranks[20:].tolist() == [0] * 10
    assert result.metrics["text_retrieval_recall@5"] == pytest.approx((asked <= 5).mean())
    assert result.metrics["text_retrieval_mean_rank"] == pytest.approx(asked.mean())
    assert result.metrics["text_retrieval_median_rank"] == pytest.approx(np.median(asked))
    assert result.metrics["text_retrieval_mrr"] == pytest.approx((1 / asked).mean())


def test_all_metrics_are_there_under_their_names() -> None:
    found = retrieval_metrics(*embeddings(12, 1, 8)).metrics
    names = ("recall@1", "recall@5", "recall@10", "mean_rank", "median_rank", "mrr")
    assert list(found) == [f"{side}_retrieval_{name}" for side in ("image", "text") for name in names]
    assert {type(value) for value in found.values()} == {float}


@pytest.mark.parametrize(
    ("tile", "shapes"), [(1, {(1, 6)}), (5, {(1, 6)}), (13, {(2, 6), (1, 6)}), (18, {(3, 6)}), (10**6, {(3, 6)})]
)
def test_every_score_is_shown_once_in_tiles_of_whole_rows(tile: int, shapes: set[tuple[int, int]]) -> None:
    image, caption, owner = embeddings(3, 2, 4)
    seen: list[Any] = []
    cross_ranks(image, caption, owner, tile=tile, watch=lambda *shown: seen.append((shown[0].clone(), *shown[1:])))
    assert {tuple(scores.shape) for scores, _, _ in seen} == shapes
    whole = torch.full((3, 6), torch.nan)
    for scores, rows, columns in seen:
        assert bool(whole[rows, columns].isnan().all())
        whole[rows, columns] = scores
    torch.testing.assert_close(whole, image @ caption.T)


def test_tiles_of_columns_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "_WIDE", 7)
    image, caption, owner = embeddings(12, 3, 8, noise=3.0)
    expected = slow_both(image, caption, owner)
    found = cross_ranks(image, caption, owner, tile=20)
    assert (found[0].tolist(), found[1].tolist()) == expected
    positives, offsets = torch.argsort(owner, stable=True), torch.arange(13) * 3
    assert ranks(image, caption, positives, offsets, tile=20).tolist() == expected[0]


def test_ranks_are_whole_numbers_and_all_lies_where_the_embeddings_lie() -> None:
    image, caption, owner = embeddings(9, 2, 4)
    with Placed():
        found = cross_ranks(image, caption, owner)
    assert [side.dtype for side in (*found, ranks(caption, image, owner))] == [np.dtype(np.int64)] * 3


@pytest.mark.parametrize("size", [50, 700])
def test_a_collapsed_space_finds_nothing(size: int) -> None:
    one = torch.nn.functional.normalize(torch.randn(1, 65), dim=1)
    result = retrieval_metrics(one.repeat(size, 1), one.repeat(2 * size, 1), torch.arange(2 * size) % size, (1, 10))
    assert result.metrics["image_retrieval_recall@10"] == 0.0
    assert result.metrics["text_retrieval_recall@10"] == 0.0
    assert set(result.text_ranks) == {size}
    assert set(result.image_ranks) == {2 * size - 1}


def test_perfect_alignment_gives_one_and_random_about_chance() -> None:
    image, _, owner = embeddings(500, 5, 32)
    perfect = retrieval_metrics(image, image[owner], owner, (1,))
    assert perfect.metrics["image_retrieval_recall@1"] == 1.0
    assert perfect.metrics["text_retrieval_recall@1"] == 1.0
    random = retrieval_metrics(image, embeddings(500, 5, 32, seed=9)[1], owner, (50,))
    assert random.metrics["image_retrieval_recall@50"] == pytest.approx(0.1, abs=0.03)


@pytest.mark.parametrize("captions", [1, 5])
def test_recall_equals_clip_benchmark(captions: int) -> None:
    scorer: Any = pytest.importorskip("clip_benchmark.metrics.zeroshot_retrieval", exc_type=ImportError)
    image, caption, owner = embeddings(150, captions, 24)
    scores = caption @ image.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(owner)), owner] = True
    ours = retrieval_metrics(image, caption, owner, (1, 5, 10)).metrics
    for k in (1, 5, 10):
        for name, s, p in (("image", scores, positive), ("text", scores.T, positive.T)):
            theirs = (scorer.batchify(scorer.recall_at_k, s, p, 64, "cpu", k=k) > 0).float().mean().item()
            assert ours[f"{name}_retrieval_recall@{k}"] == pytest.approx(theirs, abs=1e-7)


def test_recall_and_map_equal_torchmetrics(torchmetrics: Callable[[str], Any]) -> None:
    metrics = torchmetrics("retrieval")
    image, caption, owner = embeddings(60, 4, 16)
    scores = image @ caption.T
    target = owner[None, :] == torch.arange(60)[:, None]
    group = torch.arange(60)[:, None].expand_as(scores)
    theirs = metrics.RetrievalHitRate(top_k=5)(scores.flatten(), target.flatten(), indexes=group.flatten())
    assert retrieval_metrics(image, caption, owner, (5,)).metrics["text_retrieval_recall@5"] == pytest.approx(
        float(theirs), abs=1e-6
    )
    theirs = metrics.RetrievalMAP()(scores.flatten(), target.flatten(), indexes=group.flatten())
    positives = torch.argsort(owner, stable=True)
    ours = mean_average_precision(image, caption, positives, torch.arange(61) * 4)
    assert ours == pytest.approx(float(theirs), abs=1e-6)


def test_map_of_uneven_positives_is_the_slow_loop() -> None:
    query, gallery, _ = embeddings(4, 5, 6)
    positives, offsets = [3, 0, 7, 2, 11, 19, 4, 5], [0, 1, 4, 6, 8]
    scores = (query.double() @ gallery.double().T).tolist()
    expected = []
    for i in range(4):
        own = positives[offsets[i] : offsets[i + 1]]
        order = sorted(range(20), key=lambda j: -scores[i][j])
        places = sorted(order.index(j) + 1 for j in own)
        expected.append(sum((t + 1) / place for t, place in enumerate(places)) / len(own))
    ours = mean_average_precision(query, gallery, torch.tensor(positives), torch.tensor(offsets), tile=7)
    assert ours == pytest.approx(np.mean(expected))
    best = ranks(query, gallery, torch.tensor(positives), torch.tensor(offsets))
    mask = np.zeros((4, 20), dtype=bool)
    for i in range(4):
        mask[i, positives[offsets[i] : offsets[i + 1]]] = True
    assert best.tolist() == slow_ranks(np.array(scores), mask)


def test_one_positive_a_query_needs_no_offsets() -> None:
    image, caption, owner = embeddings(30, 2, 8)
    assert ranks(caption, image, owner).tolist() == cross_ranks(image, caption, owner)[1].tolist()


def test_mean_median_and_reciprocal_ranks() -> None:
    image, caption, owner = embeddings(30, 2, 8, noise=3.0)
    result = retrieval_metrics(image, caption, owner, (1,))
    assert result.metrics["image_retrieval_mean_rank"] == pytest.approx(result.text_ranks.mean())
    assert result.metrics["text_retrieval_median_rank"] == pytest.approx(np.median(result.image_ranks))
    assert result.metrics["image_retrieval_mrr"] == pytest.approx((1 / result.text_ranks).mean())
    assert recall_at(result.text_ranks, 3) == pytest.approx((result.text_ranks <= 3).mean())


def test_numpy_and_half_precision_go_in() -> None:
    image, caption, owner = embeddings(30, 2, 8)
    a = cross_ranks(image.half().numpy(), caption.half().numpy(), owner.numpy().astype(np.int32))
    b = cross_ranks(image.half(), caption.half(), owner)
    assert a[0].tolist() == b[0].tolist()


@pytest.mark.parametrize(
    ("image", "caption", "owner", "ks", "message"),
    [
        (torch.ones(2, 3), torch.ones(2, 4), [0, 1], (1,), "width 3"),
        (torch.ones(2, 3), torch.full((2, 3), torch.nan), [0, 1], (1,), "finite caption embeddings,.*first in row 0"),
        (torch.full((2, 3), torch.nan), torch.ones(2, 3), [0, 1], (1,), "finite image embeddings,.*first in row 0"),
        (torch.ones(0, 3), torch.ones(2, 3), [0, 1], (1,), "a row at least"),
        (torch.ones(3), torch.ones(2, 3), [0, 1], (1,), "a row at least"),
        (torch.ones(2, 3), torch.ones(2, 3), [0, 2], (1,), "between 0 and 1"),
        (torch.ones(2, 3), torch.ones(2, 3), [0], (1,), "2 caption's images"),
        (torch.ones(2, 3), torch.ones(2, 3), [0.0, 1.0], (1,), "whole numbers"),
        (torch.ones(2, 3), torch.ones(2, 3), [0, 1], (3,), r"ed k \(.* limit\) between 1 and 2"),
        (torch.ones(2, 3), torch.ones(2, 3), [0, 1], (0,), r"ed k \(.* limit\) between 1 and 2"),
        (torch.ones(3, 3), torch.ones(2, 3), [0, 1], (3,), "between 1 and 2, found 3"),
        (torch.ones(2, 3), torch.ones(3, 3), [0, 1, 1], (3,), "between 1 and 2, found 3"),
    ],
)
def test_hostile_input_is_told(
    image: Tensor, caption: Tensor, owner: list[int], ks: tuple[int, ...], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        retrieval_metrics(image, caption, torch.tensor(owner), ks)


@pytest.mark.parametrize("offsets", [[0, 1, 1], [1, 2, 3], [0, 1, 2], [0, 2, 1]])
def test_each_query_needs_a_positive(offsets: list[int]) -> None:
    with pytest.raises(UserError, match="offsets"):
        ranks(torch.ones(2, 3), torch.ones(4, 3), torch.tensor([0, 1, 2]), torch.tensor(offsets))


@pytest.mark.parametrize(
    ("queries", "gallery", "positives", "offsets", "message"),
    [
        (torch.full((2, 3), torch.nan), torch.ones(4, 3), [0, 1], None, "finite queries,"),
        (torch.ones(2, 3), torch.full((4, 3), torch.nan), [0, 1], None, "finite gallery,"),
        (torch.ones(2, 3), torch.ones(4, 2), [0, 1], None, "expected gallery of width 3, found width 2"),
        (torch.ones(2, 3), torch.ones(4, 3), [0, 4], None, "expected positives between 0 and 3, found 0 to 4"),
        (torch.ones(2, 3), torch.ones(4, 3), [0], None, r"expected 2 positives \(one a query\), found 1"),
        (torch.ones(2, 3), torch.ones(4, 3), [0, 1, 2], [0, 1, 2, 3], "expected 3 offsets, found 4"),
        (torch.ones(2, 3), torch.ones(4, 3), [0, 1, 2], [0, 3], "expected 3 offsets, found 2"),
        (torch.ones(2, 3), torch.ones(4, 3), [0, 1, 2], [0, 1, 4], "expected offsets between 0 and 3, found 0 to 4"),
    ],
)
def test_hostile_positives_are_told(
    queries: Tensor, gallery: Tensor, positives: list[int], offsets: list[int] | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        ranks(queries, gallery, torch.tensor(positives), None if offsets is None else torch.tensor(offsets))


def test_recall_of_nothing() -> None:
    with pytest.raises(UserError, match="one query at least"):
        recall_at(np.zeros(0, dtype=np.int64), 1)

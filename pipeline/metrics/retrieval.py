"""Retrieval: ranks of the match, recall@k, mean and median rank, mean average precision.

`retrieval_metrics(image, caption, caption_image, ks)` gives the usual table in both directions from one pass over the
scores; the whole score matrix never exists. The tie rule is pessimistic: whatever scores the same as the match stands
before it.

Who scores at least as high as the match is counted exactly, at the price of one float32 matrix product. Such a product
gives a pair another last bit in another place of the matrix, so equal items need not get equal scores. Only scores
farther from the threshold than float32 can err are decided in float32; the few inside that band are decided again in
float64, where what differs by less than 1e-12 of the vectors' lengths is a tie.

`matrix`, `indices` and `check_count` check the input of every metric: any array or tensor in, a clear error where it
makes no sense.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError

Array: TypeAlias = NDArray[np.floating] | NDArray[np.integer] | NDArray[np.bool_] | Tensor
Ranks = NDArray[np.int64]
Watch = Callable[[Tensor, slice, slice], None]
_TILE = 12_000_000  # scores held at once: 48 MB
_WIDE = 65_536
_LANE_LIMIT = 248  # a byte counts to 255; a multiple of 8 below that
_PAIR_LIMIT = 100_000  # above it, one float64 product of the tile is cheaper than pair after pair
_TIE = 1e-12


def matrix(values: Array, name: str, *, width: int | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a finite matrix [N, D] with N ≥ 1 as a tensor.

    Raises:
        UserError: Not two axes, no rows, another width than asked, or NaN or infinity inside.
    """
    tensor = torch.as_tensor(values).detach()
    if tensor.ndim != 2 or tensor.shape[0] == 0 or tensor.shape[1] == 0:
        raise UserError(expected=f"{name} of shape [N, D] with a row at least", found=f"shape {list(tensor.shape)}")
    if width is not None and tensor.shape[1] != width:
        raise UserError(expected=f"{name} of width {width}", found=f"width {tensor.shape[1]}")
    tensor = tensor.to(dtype)
    if not torch.isfinite(tensor).all():
        row = int((~torch.isfinite(tensor)).any(dim=1).nonzero()[0])
        raise UserError(
            expected=f"finite {name}",
            found=f"NaN or infinity, first in row {row}",
            remedy="look at the features' non-finite counts with `pipeline store ls --json`",
        )
    return tensor


def indices(values: Array, name: str, *, length: int | None = None, below: int) -> Tensor:
    """Return whole numbers [M] in 0..below-1 as an int64 tensor.

    Raises:
        UserError: Not whole numbers, another length than asked, or one out of range.
    """
    tensor = torch.as_tensor(values).detach()
    if tensor.ndim != 1 or tensor.is_floating_point() or tensor.dtype == torch.bool:
        raise UserError(expected=f"{name} as whole numbers [M]", found=f"{tensor.dtype} of shape {list(tensor.shape)}")
    if length is not None and len(tensor) != length:
        raise UserError(expected=f"{length} {name}", found=str(len(tensor)))
    tensor = tensor.long()
    if len(tensor) and not (int(tensor.min()) >= 0 and int(tensor.max()) < below):
        raise UserError(
            expected=f"{name} between 0 and {below - 1}", found=f"{int(tensor.min())} to {int(tensor.max())}"
        )
    return tensor


def check_count(value: int, name: str, *, low: int, high: int) -> int:
    """Return a whole number if it lies in low..high.

    Raises:
        UserError: It does not.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or not low <= value <= high:
        expected = f"{name} between {low} and {high}" if high >= low else f"more rows (none are left for {name})"
        raise UserError(expected=expected, found=repr(value))
    return int(value)


def is_constant(features: Tensor, tolerance: float = 1e-6) -> bool:
    """Say whether all rows of [N, D] are the same up to rounding."""
    return bool((features - features[:1]).abs().max() <= tolerance * max(float(features[0].abs().max()), 1e-12))


@dataclass(frozen=True, kw_only=True)
class RetrievalResult:
    """Metrics of both directions, and the ranks that they come from."""

    metrics: dict[str, float]
    """Fractions with CLIP_benchmark's names, and mean and median ranks."""
    text_ranks: Ranks
    """Text→image: rank of the image for each caption [M], 1 is best."""
    image_ranks: Ranks
    """Image→text: rank of the best of its captions for each image [N]; 0 for an image without captions."""


def retrieval_metrics(
    image_ND: Array, caption_MD: Array, caption_image_M: Array, ks: Sequence[int] = (1, 5, 10), *, tile: int = _TILE
) -> RetrievalResult:
    """Evaluate text→image over the unique images and image→text over all captions; scores are dot products.

    `image_retrieval_recall@k` is the share of captions whose image is among the top k images;
    `text_retrieval_recall@k` is the share of images one of whose captions is among the top k captions. Also
    `<direction>_mean_rank`, `<direction>_median_rank` and `image_retrieval_mrr` (mean of 1/rank).

    Args:
        image_ND: N unique images' embeddings, unit length for cosine scores.
        caption_MD: M captions' embeddings.
        caption_image_M: Row of the image that each caption belongs to.
        ks: Cut-offs; each within both galleries.
        tile: Scores held at once.

    Raises:
        UserError: Empty, non-finite or mismatched input, or a cut-off larger than a gallery.
    """
    images, captions = _both(image_ND, caption_MD)
    limit = min(len(images), len(captions))
    cuts = [check_count(k, "k (the smaller gallery's size is the limit)", low=1, high=limit) for k in ks]
    image_ranks, text_ranks = cross_ranks(images, captions, caption_image_M, tile=tile)
    asked = image_ranks[image_ranks > 0]
    metrics: dict[str, float] = {}
    for name, ranks_of in (("image_retrieval", text_ranks), ("text_retrieval", asked)):
        metrics |= {f"{name}_recall@{k}": recall_at(ranks_of, k) for k in cuts}
        metrics[f"{name}_mean_rank"] = float(ranks_of.mean())
        metrics[f"{name}_median_rank"] = float(np.median(ranks_of))
        metrics[f"{name}_mrr"] = float((1.0 / ranks_of).mean())
    return RetrievalResult(metrics=metrics, text_ranks=text_ranks, image_ranks=image_ranks)


def cross_ranks(
    image_ND: Array, caption_MD: Array, caption_image_M: Array, *, tile: int = _TILE, watch: Watch | None = None
) -> tuple[Ranks, Ranks]:
    """Return image→text ranks [N] (0 for an image without captions) and text→image ranks [M], from one pass.

    rank = 1 + #(other items, not belonging to the query, with score ≥ score of the match); an image's match is the best
    of its captions.

    Args:
        image_ND: N unique images' embeddings.
        caption_MD: M captions' embeddings.
        caption_image_M: Row of the image that each caption belongs to.
        tile: Scores held at once.
        watch: Is shown every tile of scores [r, c], float32, with its rows and columns; each cell once.

    Raises:
        UserError: Empty, non-finite or mismatched input.
    """
    images, captions = _both(image_ND, caption_MD)
    owner = indices(caption_image_M, "caption's images", length=len(captions), below=len(images)).to(images.device)
    everything = torch.arange(len(captions), device=owner.device)
    match = pair_scores(images, captions, owner, everything)
    best = torch.full((len(images),), -torch.inf, dtype=torch.float64, device=owner.device)
    best.scatter_reduce_(0, owner, match, "amax")
    has_caption = best > -torch.inf
    best[~has_caption] = torch.inf
    image_limit, caption_limit = thresholds(best, images, captions), thresholds(match, captions, images)
    image_above = torch.zeros(len(images), dtype=torch.int64, device=owner.device)
    caption_above = torch.zeros(len(captions), dtype=torch.int64, device=owner.device)
    for rows, columns in _tiles(len(images), len(captions), tile):
        left, right = images[rows], captions[columns]
        scores = left @ right.T
        if watch is not None:
            watch(scores, rows, columns)
        position = owner[columns] - rows.start
        inside = ((position >= 0) & (position < len(left))).nonzero().squeeze(1)
        scores[position[inside], inside] = -torch.inf
        image_above[rows] += count_at_least(scores, left, right, image_limit.part(rows), dim=1)
        caption_above[columns] += count_at_least(scores, left, right, caption_limit.part(columns), dim=0)
    image_ranks = torch.where(has_caption, image_above + 1, 0)
    return image_ranks.cpu().numpy(), (caption_above + 1).cpu().numpy()


def ranks(
    query_QD: Array, gallery_GD: Array, positives: Array, offsets: Array | None = None, *, tile: int = _TILE
) -> Ranks:
    """Return the rank [Q] of the best positive of each query, counted pessimistically (see `cross_ranks`).

    Args:
        query_QD: Q queries.
        gallery_GD: G items.
        positives: Gallery rows that match; one a query, or, with `offsets`, `positives[offsets[i]:offsets[i+1]]`.
        offsets: [Q + 1], rising from 0 to the number of positives; each query has one at least.
        tile: Scores held at once.

    Raises:
        UserError: Empty, non-finite or mismatched input, or a query without a positive.
    """
    return _positive_ranks(query_QD, gallery_GD, positives, offsets, tile, best_only=True)[0][:, 0]


def mean_average_precision(
    query_QD: Array, gallery_GD: Array, positives: Array, offsets: Array | None = None, *, tile: int = _TILE
) -> float:
    """Return mAP: the mean over queries of (1/P) Σ_t t / rank of the t-th best of its P positives.

    Ties count against the positives. The cost is one count over the scores for each t: for few positives a
    query.

    Raises:
        UserError: As `ranks`.
    """
    table, counts = _positive_ranks(query_QD, gallery_GD, positives, offsets, tile, best_only=False)
    order = np.arange(1, table.shape[1] + 1)
    held = order[None, :] <= counts[:, None]
    precision = np.where(held, order[None, :] / np.maximum(table, 1), 0.0)
    return float((precision.sum(axis=1) / counts).mean())


def recall_at(ranks_Q: Ranks, k: int) -> float:
    """Return the share of queries whose match has rank ≤ k.

    Raises:
        UserError: There are no queries.
    """
    if len(ranks_Q) == 0:
        raise UserError(expected="one query at least", found="none")
    return float((ranks_Q <= k).mean())


def _positive_ranks(
    query_QD: Array, gallery_GD: Array, positives: Array, offsets: Array | None, tile: int, *, best_only: bool
) -> tuple[Ranks, Ranks]:
    """Return ranks [Q, P] of each query's positives, best first, and the number of positives [Q]."""
    queries = matrix(query_QD, "queries")
    gallery = matrix(gallery_GD, "gallery", width=queries.shape[1]).to(queries.device)
    pairs = positive_pairs(len(queries), len(gallery), positives, offsets)
    rows, columns = (part.to(queries.device) for part in pairs)
    counts = torch.bincount(rows, minlength=len(queries))
    sorted_scores = _best_first(pair_scores(queries, gallery, rows, columns), rows, counts)
    width = 1 if best_only else sorted_scores.shape[1]
    limits = [thresholds(sorted_scores[:, t], queries, gallery) for t in range(width)]
    above = torch.zeros(len(queries), width, dtype=torch.int64, device=queries.device)
    for chosen, part in _tiles(len(queries), len(gallery), tile):
        left, right = queries[chosen], gallery[part]
        scores = left @ right.T
        inside = (rows >= chosen.start) & (rows < chosen.stop) & (columns >= part.start) & (columns < part.stop)
        scores[rows[inside] - chosen.start, columns[inside] - part.start] = -torch.inf
        for t, limit in enumerate(limits):
            above[chosen, t] += count_at_least(scores, left, right, limit.part(chosen), dim=1)
    table = above.cpu() + torch.arange(1, width + 1)
    return table.numpy(), counts.cpu().numpy()


def positive_pairs(queries: int, gallery: int, positives: Array, offsets: Array | None = None) -> tuple[Tensor, Tensor]:
    """Return query [P] and gallery row [P] of each positive, from `positives` and `offsets` as `ranks` takes them.

    Raises:
        UserError: A row out of range, or a query without a positive.
    """
    columns = indices(positives, "positives", below=gallery)
    if offsets is None:
        offsets = torch.arange(queries + 1)
        indices(columns, "positives (one a query)", length=queries, below=gallery)
    bounds = indices(offsets, "offsets", length=queries + 1, below=len(columns) + 1)
    counts = bounds.diff()
    if int(bounds[0]) != 0 or int(bounds[-1]) != len(columns) or int(counts.min()) < 1:
        raise UserError(
            expected=f"offsets that rise from 0 to {len(columns)}, with a positive for each query",
            found=f"from {int(bounds[0])} to {int(bounds[-1])}, the smallest step {int(counts.min())}",
        )
    return torch.repeat_interleave(torch.arange(queries), counts), columns


def _best_first(scores: Tensor, rows: Tensor, counts: Tensor) -> Tensor:
    """Put the scores of pairs into a table [Q, P], each row falling, filled up with +inf (which nothing reaches)."""
    table = scores.new_full((len(counts), int(counts.max())), -torch.inf)
    starts = counts.cumsum(0) - counts
    table[rows, torch.arange(len(rows), device=rows.device) - starts[rows]] = scores
    table = table.sort(dim=1, descending=True).values
    table[table == -torch.inf] = torch.inf
    return table


def _both(image_ND: Array, caption_MD: Array) -> tuple[Tensor, Tensor]:
    images = matrix(image_ND, "image embeddings")
    return images, matrix(caption_MD, "caption embeddings", width=images.shape[1]).to(images.device)


def _tiles(rows: int, columns: int, tile: int) -> Iterator[tuple[slice, slice]]:
    width = min(columns, _WIDE)
    height = max(1, min(rows, tile // width))
    for top in range(0, rows, height):
        for start in range(0, columns, width):
            yield slice(top, min(top + height, rows)), slice(start, min(start + width, columns))


@dataclass(frozen=True, kw_only=True)
class Thresholds:
    """What the other items must reach, for Q queries."""

    value: Tensor
    """Score of the match, float64 [Q]; +inf where a query has none."""
    band: Tensor
    """How far a float32 score may err, float64 [Q]."""
    tie: Tensor
    """Difference that still counts as a tie, float64 [Q]."""

    def part(self, chosen: slice) -> "Thresholds":
        """Return the thresholds of some of the queries."""
        return Thresholds(value=self.value[chosen], band=self.band[chosen], tie=self.tie[chosen])


def thresholds(value: Tensor, query: Tensor, gallery: Tensor) -> Thresholds:
    """Return the thresholds for match scores [Q] of queries [Q, d] in a gallery [G, d].

    The band is (8 + d/16) units in the last place of |q|·max|g|: sums run in 16 lanes or more on today's hardware.
    """
    length = query.double().norm(dim=1) * gallery.norm(dim=1).max().double()
    band = (8 + query.shape[1] / 16) * 2.0**-24 * length
    return Thresholds(value=value, band=band, tie=_TIE * length)


def count_at_least(scores: Tensor, left: Tensor, right: Tensor, limit: Thresholds, dim: int) -> Tensor:
    """Count in a tile of scores [R, C] = left [R, d] · rightᵀ [d, C] the entries at or above each query's threshold.

    Args:
        scores: The tile in float32; entries at −inf are never counted.
        left: Vectors of the rows.
        right: Vectors of the columns.
        limit: Thresholds of the queries: of the R rows for `dim` 1, of the C columns for `dim` 0.
        dim: Axis that is counted away.

    Returns:
        Counts, int64 [R] or [C].
    """
    low = (limit.value - limit.band).float().unsqueeze(dim)
    high = (limit.value + limit.band).float().unsqueeze(dim)
    sure = count_true(scores > high, dim)
    near = count_true(scores >= low, dim) - sure
    undecided = int(near.sum())
    if undecided == 0:
        return sure
    if undecided > _PAIR_LIMIT:
        return _count_in_float64(scores, left, right, limit, dim)
    queries = near.nonzero().squeeze(1)
    part = scores.index_select(1 - dim, queries)
    inside = (part >= low.index_select(1 - dim, queries)) & (part <= high.index_select(1 - dim, queries))
    rows, columns = inside.nonzero(as_tuple=True)
    if dim == 1:
        rows = queries[rows]
    else:
        columns = queries[columns]
    return sure + _decide_pairs(rows, columns, left, right, limit, dim)


def count_true(mask: Tensor, dim: int) -> Tensor:
    """Count the true entries of a boolean matrix [R, C] along an axis, eight at once in the bytes of a word."""
    rows, columns = mask.shape
    spare = -columns % 8
    if spare:
        mask = torch.nn.functional.pad(mask, (0, spare))
    words = mask.contiguous().view(torch.int64)
    if dim == 0:
        parts = [part.sum(dim=0).view(torch.uint8).long() for part in torch.split(words, _LANE_LIMIT, dim=0)]
        return torch.stack(parts).sum(dim=0)[:columns]
    chunks = [
        part.sum(dim=1).view(torch.uint8).view(rows, 8).sum(dim=1) for part in torch.split(words, _LANE_LIMIT, dim=1)
    ]
    return torch.stack(chunks).sum(dim=0)


def pair_scores(left: Tensor, right: Tensor, rows: Tensor, columns: Tensor, block: int = 16384) -> Tensor:
    """Return the float64 scores [P] of P pairs (row of left, row of right); equal pairs get equal scores."""
    parts = [
        (left[r].double() * right[c].double()).sum(dim=1)
        for r, c in zip(torch.split(rows, block), torch.split(columns, block), strict=True)
    ]
    return torch.cat(parts)


def _decide_pairs(rows: Tensor, columns: Tensor, left: Tensor, right: Tensor, limit: Thresholds, dim: int) -> Tensor:
    owner = rows if dim == 1 else columns
    reached = pair_scores(left, right, rows, columns) >= (limit.value - limit.tie)[owner]
    return torch.bincount(owner[reached], minlength=len(limit.value))


def _count_in_float64(scores: Tensor, left: Tensor, right: Tensor, limit: Thresholds, dim: int) -> Tensor:
    exact = left.double() @ right.double().T
    exact[scores == -torch.inf] = -torch.inf
    return count_true(exact >= (limit.value - limit.tie).unsqueeze(dim), dim)

"""What the test split has in common with the training split: near-duplicate images, captions word for word.

`find_duplicates` looks for them, `without` counts a measure anew without the queries that they touch; the galleries
stay whole, so both numbers are about the same task. `seen_section` is the report's chapter about it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluate.data import TestPairs, ZeroShotSet
from pipeline.evaluate.examples import Pictures
from pipeline.evaluate.leaderboard import Leaderboard
from pipeline.evaluate.queries import (
    IMAGE_RETRIEVAL,
    TEXT_RETRIEVAL,
    Measure,
    QueryRanks,
    value_by_seed,
    zero_shot_direction,
)
from pipeline.evaluate.report.page import (
    Cell,
    Example,
    ExampleGroup,
    Section,
    Table,
    Thumb,
    measure_name,
    percent,
    signed,
)
from pipeline.indexes.index import build_index
from pipeline.layers import LayerRef
from pipeline.projectors.base import unit_rows
from pipeline.store.samples import Samples, join
from pipeline.store.views import Rows, Side
from pipeline.words import count

NEAR, SAME = "near_duplicates", "duplicate_captions"
SHOWN = 12
LISTED = 200


@dataclass(frozen=True, kw_only=True)
class Twin:
    """A test sample and the training sample that it is nearly, or word for word, the same as."""

    kind: str
    """`near_duplicates` (images) or `duplicate_captions`."""
    set: str
    """Data set to classify that the test image belongs to; empty for the main data set."""
    test: str
    """Id of the test sample."""
    train: str
    """Id of the training sample."""
    cosine: float
    """Cosine of centred frozen features; 1 for captions."""
    test_content: str
    """File or caption of the test sample."""
    train_content: str
    """File or caption of the training sample."""


@dataclass(frozen=True, kw_only=True)
class Duplicates:
    """All that was found."""

    twins: tuple[Twin, ...] = ()
    """Images first, the closest first."""
    touched: Mapping[str, Mapping[str, frozenset[str]]]
    """Kind → direction → ids of the queries that are touched."""

    def count(self, kind: str, name: str = "") -> int:
        """Return how many test samples of a kind have a twin, in one data set."""
        return sum(twin.kind == kind and twin.set == name for twin in self.twins)


def find_duplicates(
    train_splits: Sequence[str], pairs: TestPairs, sets: Sequence[ZeroShotSet], threshold: float
) -> Duplicates:
    """Look for test images and captions that are in the training splits too.

    Args:
        train_splits: Splits that runs were trained on; the evaluated samples themselves do not count.
        pairs: The test pairs.
        sets: The zero-shot sets; their images are compared with the training images of the main data set.
        threshold: Cosine above which two images count as the same picture: last layer of every image encoder, centred
            on the training mean.
    """
    splits = np.asarray(pairs.image.samples.split)
    train = np.flatnonzero(np.isin(splits, list(train_splits)) & (splits != pairs.split))
    if not len(train):
        return Duplicates(touched={NEAR: {}, SAME: {}})
    known = last_layers(pairs.image, train)

    def image_twins(name: str, image: Side, test: Rows) -> list[Twin]:
        found = near_duplicates(known, last_layers(image, test), threshold) if len(test) else []
        both = image.samples, pairs.image.samples
        return [_twin(NEAR, name, cosine, both, (int(test[a]), int(train[b]))) for a, b, cosine in found]

    samples, twins = pairs.image.samples, image_twins("", pairs.image, np.flatnonzero(splits == pairs.split))
    by_id = {twin.test for twin in twins}
    images = frozenset(samples.image_id[row] for row, name in enumerate(samples.sample_id) if name in by_id)
    captions = _caption_twins(pairs, train_splits)
    rows = pairs.pairs.image_rows[pairs.pairs.caption_image].tolist()
    owners = {name: samples.image_id[row] for row, name in zip(rows, pairs.caption_ids, strict=True)}
    near = {TEXT_RETRIEVAL: images, IMAGE_RETRIEVAL: frozenset(name for name, own in owners.items() if own in images)}
    said = frozenset(twin.test for twin in captions)
    same = {IMAGE_RETRIEVAL: said, TEXT_RETRIEVAL: frozenset(owners[name] for name in said)}
    for data in sets:
        own = data.image is pairs.image
        found = twins if own else image_twins(data.name, data.image, data.rows)
        near[zero_shot_direction(data.name)] = frozenset(twin.test for twin in found)
        twins = twins if own else [*twins, *found]
    return Duplicates(twins=(*twins, *captions), touched={NEAR: near, SAME: same})


def near_duplicates(train_ND: Tensor, test_MD: Tensor, threshold: float) -> list[tuple[int, int, float]]:
    """Return (test row, training row, cosine) of each test row whose nearest training row is closer than a threshold.

    Features are centred on the training mean first: raw features of many encoders all point the same way, and every
    pair would look alike.

    Args:
        train_ND: N training rows of frozen features.
        test_MD: M test rows.
        threshold: Cosine above which two rows count as the same picture.

    Returns:
        The closest first.
    """
    centre = train_ND.mean(0)
    train, test = unit_rows(train_ND - centre), unit_rows(test_MD - centre)
    scores, nearest = build_index(torch.nan_to_num(train), "flat").search(torch.nan_to_num(test), 1)
    close = (scores[:, 0] > threshold).nonzero().flatten().tolist()
    found = [(row, int(nearest[row, 0]), float(scores[row, 0])) for row in close]
    return sorted(found, key=lambda each: (-each[2], each[0]))


def without(measure: Measure, queries: QueryRanks, touched: frozenset[str]) -> float | None:
    """Return a measure, mean over seeds, without the queries of some ids; None where no query is left."""
    kept = [row for row, name in enumerate(queries.ids) if name not in touched]
    if not kept:
        return None
    return float(value_by_seed(measure, queries.take(kept)).mean())


def last_layers(side: Side, rows: Rows) -> Tensor:
    """Return the last layer of every store of a side, side by side [len(rows), D]."""
    layers = [LayerRef(index, store.layers[-1].name) for index, store in enumerate(side.stores)]
    return side.read(layers, rows, constant_allowed=True)


def plain_words(caption: str) -> str:
    """Return a caption as it is compared: without case, runs of blanks, and marks at its end."""
    return " ".join(caption.casefold().split()).rstrip(" .!?")


def _twin(kind: str, name: str, cosine: float, samples: tuple[Samples, Samples], rows: tuple[int, int]) -> Twin:
    """Return a twin from the test and the training samples, and the row in each."""
    (test, train), (a, b) = samples, rows
    ids, contents = (test.sample_id[a], train.sample_id[b]), (test.content[a], train.content[b])
    return Twin(
        kind=kind,
        set=name,
        test=ids[0],
        train=ids[1],
        cosine=cosine,
        test_content=contents[0],
        train_content=contents[1],
    )


def _caption_twins(pairs: TestPairs, train_splits: Sequence[str]) -> list[Twin]:
    texts = pairs.text.samples
    known: dict[str, int] = {}
    for split in train_splits:
        if split != pairs.split:
            for row in join(pairs.image.samples, texts, split).caption_rows.tolist():
                known.setdefault(plain_words(texts.content[row]), row)
    found = ((row, known.get(plain_words(texts.content[row]))) for row in pairs.pairs.caption_rows.tolist())
    return [_twin(SAME, "", 1.0, (texts, texts), (row, twin)) for row, twin in found if twin is not None]


def seen_section(
    board: Leaderboard, pairs: TestPairs, found: Duplicates, threshold: float, pictures: Pictures
) -> Section | None:
    """Return the numbers with and without what training has seen; none where nothing was found."""
    if not found.twins:
        return None
    images, captions = pairs.image.samples.split.count(pairs.split), len(pairs.pairs.caption_rows)
    near, same = found.count(NEAR), found.count(SAME)
    lead = (
        f"{near:,} of {count(images, 'test image')} have a training image with a cosine above {threshold:g} in the "
        "last layer of the frozen image encoder, centred on the training mean. "
        f"{same:,} of {count(captions, 'test caption')} stand in the training split word for word (but for case, "
        "blanks and marks at the end).",
        "Such queries may be remembered, not understood. Below they are left out as queries; the galleries stay whole, "
        "so both numbers are about the same task. All of them: duplicates.csv.",
    )
    tables = [_table(board, found, NEAR, "near-duplicate images"), _table(board, found, SAME, "repeated captions")]
    twins = [twin for twin in found.twins if twin.kind == NEAR and not twin.set]
    return Section(
        id="seen",
        title="Seen before?",
        lead=lead,
        tables=tuple(table for table in tables if table.rows),
        groups=_pairs_shown(twins, pictures),
        folded=tuple(_lists(found)),
    )


def _table(board: Leaderboard, found: Duplicates, kind: str, what: str) -> Table:
    touched = {
        each: ids
        for each in board.measures
        if (ids := found.touched[kind].get(each.direction))
        and each.k == (1 if each.macro or each.name.endswith("acc1") else board.k)
    }
    rows = []
    for run in board.runs:
        cells = [Cell(text=run.name)]
        for measure, ids in touched.items():
            value, whole = without(measure, run.queries[measure.direction], ids), run.mean(measure.name)
            left = Cell(text="none left", sub=f"with {percent(whole)}")
            sub = "" if value is None else f"with {percent(whole)}, {signed(value - whole)}"
            cells.append(left if value is None else Cell.percent(value, sub))
        rows.append(tuple(cells))
    asked = {each: board.lead.queries[each.direction].ids for each in touched}
    n = (
        f"{sum(name not in ids for name in asked[each]):,} of {len(asked[each]):,} {measure_name(each)}"
        for each, ids in touched.items()
    )
    return Table(
        caption=f"Percent without {what}; below it the number with them, and what leaving them out changes. "
        f"n = {', '.join(n)}.",
        head=("run", *map(measure_name, touched)),
        rows=tuple(rows) if touched else (),
        narrow=True,
    )


def _pairs_shown(twins: list[Twin], pictures: Pictures) -> tuple[ExampleGroup, ...]:
    if not twins or not pictures.available:
        return ()
    examples = [
        Example(
            query=twin.test,
            note=f"cosine {twin.cosine:.3f} to the training image {twin.train}",
            image=pictures.thumbnail(twin.test_content),
            answers=(Thumb(image=pictures.thumbnail(twin.train_content), note="in training"),),
        )
        for twin in twins[:SHOWN]
    ]
    lead = f"Test image on the left, training image beside it; {len(examples)} of {len(twins):,}."
    return (ExampleGroup(title="The closest pairs of images", lead=lead, examples=tuple(examples)),)


def _lists(found: Duplicates) -> Iterator[tuple[str, str]]:
    for kind, title in ((NEAR, "Near-duplicate images"), (SAME, "Captions that stand in training")):
        twins = [twin for twin in found.twins if twin.kind == kind]
        lines = [_line(twin) for twin in twins[:LISTED]]
        lines += [f"… and {len(twins) - LISTED:,} more in duplicates.csv"] if len(twins) > LISTED else []
        if lines:
            yield f"{title}: {len(twins):,}", "\n".join(lines)


def _line(twin: Twin) -> str:
    if twin.kind == SAME:
        return f"{twin.test} = {twin.train}: {' '.join(twin.test_content.split())}"
    name = f"{twin.set}: " if twin.set else ""
    return f"{name}{twin.test} ≈ {twin.train}, cosine {twin.cosine:.3f}"

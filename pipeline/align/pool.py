"""Images and texts without a partner that are used beside the pairs: which rows they are, and their features.

pool = pool_rows(config, sides, splits.train, drawn).read(layers, device)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pipeline.align.config import AlignConfig
from pipeline.align.pairs import Layers, PairSet, Splits
from pipeline.errors import UserError
from pipeline.files import spaced_json_digest
from pipeline.progress import Progress, say, silent
from pipeline.store.samples import join
from pipeline.store.views import Rows, Side

MOST_IMAGES, MOST_TEXTS = 5000, 15000
"""Rows of a pool at most, evenly over all in the order of their ids."""


@dataclass(frozen=True)
class Pool:
    """Images and texts without a partner.

    Args:
        image: [U, D] float32.
        text: [V, E] float32.
        about: What run.json says of it.
    """

    image: Tensor
    text: Tensor
    about: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PoolRows:
    """The rows of a pool, before their features are read.

    Args:
        image: Sides and the positions that are taken of them.
        text: The same for texts.
        digest: Digest of all of it; empty where there is no pool.
        about: Rows by side and split, and `other_splits`: those of the run's own images beside the training split.
    """

    image: tuple[tuple[Side, Rows], ...] = ()
    text: tuple[tuple[Side, Rows], ...] = ()
    digest: str = ""
    about: dict[str, Any] = field(default_factory=dict)

    def read(self, layers: Layers, device: torch.device) -> Pool | None:
        """Return the features of the run's layers; None where there is no pool."""
        if not self.digest:
            return None
        image, text = (
            torch.cat([side.read(chosen, rows, constant_allowed=True) for side, rows in parts]).to(device)
            for parts, chosen in ((self.image, layers[0]), (self.text, layers[1]))
        )
        return Pool(image, text, self.about)


def pool_rows(
    config: AlignConfig,
    sides: tuple[Side, Side],
    splits: Splits,
    drawn: PairSet,
    seed: int,
    progress: Progress = silent,
) -> PoolRows:
    """Return the unpaired rows that the settings name, in an order that depends on ids alone.

    A row counts if it is of the training split or of none (or of `unpaired_splits`). One that belongs to an image of
    another split of the run's own stores never does, nor one of a validation pair.

    Args:
        config: `unpaired_image`, `unpaired_text`, `unpaired`, `unpaired_splits`.
        sides: The run's own stores.
        splits: All training pairs, and the validation pairs.
        drawn: The training pairs of the seed, as positions.
        seed: Halves what was not drawn.
        progress: Gets a sentence where the run's own stores have no such rows, or rows are of a further split.

    Raises:
        UserError: Stores of another encoder than the run's, or stores without a row of these splits.
    """
    if not config.uses_unpaired:
        return PoolRows()
    names = {config.train_split, "", *config.unpaired_splits}
    ids, image_splits = sides[0].samples.image_id, sides[0].samples.split
    held = {name for name, split in zip(ids, image_splits, strict=True) if split not in names}
    held |= {ids[row] for row in splits.validation.image_rows}
    places = (config.unpaired_image, config.unpaired_text)
    own = _own(config, sides, splits.train, drawn, seed)
    found = []
    for side, stated, mine in zip(sides, places, own, strict=True):
        parts = [(side, _allowed(side, mine, names, held))] if len(mine) else []
        for place in stated:
            other = Side.open(side.modality, str(place).split(","))
            _check_same(side, other)
            parts.append((other, _allowed(other, np.arange(len(other.samples)), names, held)))
        found.append(_at_most(parts, MOST_IMAGES if side.modality == "image" else MOST_TEXTS))
    for side, parts, stated in zip(sides, found, places, strict=True):
        if not sum(len(rows) for _, rows in parts):
            if not stated:
                say(progress, f"No unpaired {side.modality} rows in the run's own stores: the pairs alone are used.")
                return PoolRows()
            kind = "images" if side.modality == "image" else "texts"
            raise UserError(
                expected=f"unpaired {kind} of the splits {', '.join(sorted(name or '(none)' for name in names))}",
                found="none",
                where=", ".join(other.where for other, _ in parts) or side.where,
                remedy=f"give a store with --unpaired-{side.modality}, or name its splits with --unpaired-split",
            )
    about = {side.modality: _counts(parts) for side, parts in zip(sides, found, strict=True)}
    split_of = dict(zip(ids, image_splits, strict=True))
    images = {side.samples.image_id[row] for parts in found for side, rows in parts for row in rows}
    others = {split_of[name] for name in images if name in split_of} - {config.train_split, ""}
    if others:
        say(progress, f"Unpaired rows are of the splits {', '.join(sorted(others))} too: recorded in run.json.")
    identity = [
        [
            [store.key.digest(), store.content_digest, [other.samples.sample_id[row] for row in rows]]
            for store in other.stores
        ]
        for parts in found
        for other, rows in parts
    ]
    digest = spaced_json_digest(identity)
    return PoolRows(tuple(found[0]), tuple(found[1]), digest, {**about, "other_splits": sorted(others)})


def _own(config: AlignConfig, sides: tuple[Side, Side], train: PairSet, drawn: PairSet, seed: int) -> tuple[Rows, Rows]:
    """Return rows of the run's own stores: without a partner, of further splits, and what was not drawn, halved."""
    none = np.empty(0, dtype=np.int64)
    if config.unpaired == "none":
        return none, none
    image, text = sides
    paired = join(image.samples, text.samples)
    images = np.setdiff1d(_of_split(image, config.train_split, ""), paired.image_rows)
    texts = np.setdiff1d(_of_split(text, config.train_split, ""), paired.caption_rows)
    parts = [(images, texts), tuple(_of_split(side, *config.unpaired_splits) for side in sides)]
    if config.unpaired == "rest":
        left = np.setdiff1d(np.arange(len(train)), drawn.image_rows)
        order = np.random.default_rng((seed, 3)).permutation(_by_id(image, train, left))
        half = len(order) // 2
        parts.append((train.take(order[:half]).image_rows, train.take(order[half:]).caption_rows))
    found = [np.unique(np.concatenate(rows)) for rows in zip(*parts, strict=True)]
    return found[0], found[1]


def _by_id(image: Side, train: PairSet, positions: Rows) -> Rows:
    ids = image.samples.image_id
    return np.array(sorted(positions.tolist(), key=lambda at: ids[train.image_rows[at]]), dtype=np.int64)


def _of_split(side: Side, *splits: str) -> Rows:
    return np.array([row for row, name in enumerate(side.samples.split) if name in splits], dtype=np.int64)


def _check_same(side: Side, other: Side) -> None:
    """Refuse features of another encoder; the data set may differ.

    Raises:
        UserError: Says which store.
    """
    names = ("encoder", "preprocessing", "pooling")
    mine, theirs = ([{name: key.get(name) for name in names} for key in each.keys] for each in (side, other))
    if mine != theirs:
        raise UserError(
            expected=f"unpaired {side.modality} features of the same encoder and settings as {side.where}",
            found="others" if len(mine) == len(theirs) else f"{len(theirs)} stores for {len(mine)}",
            where=other.where,
            remedy="extract them as the run's own; of several encoders, join the stores by commas",
        )


def _allowed(side: Side, rows: Rows, splits: set[str], held: set[str]) -> Rows:
    split, image = side.samples.split, side.samples.image_id
    return np.array([row for row in rows if split[row] in splits and image[row] not in held], dtype=np.int64)


def _at_most(parts: Sequence[tuple[Side, Rows]], most: int) -> list[tuple[Side, Rows]]:
    """Return the rows in the order of their ids, evenly thinned where there are more than `most`."""
    total = sum(len(rows) for _, rows in parts)
    thinned = []
    for side, rows in parts:
        ids = side.samples.sample_id
        ordered = np.array(sorted(rows.tolist(), key=lambda row: ids[row]), dtype=np.int64)
        count = len(rows) if total <= most else len(rows) * most // total
        thinned.append((side, ordered[evenly(len(ordered), count)]))
    return thinned


def evenly(count: int, most: int) -> Rows:
    """Return at most so many positions of `count`, evenly spread."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)) if count else np.arange(0)


def _counts(parts: Sequence[tuple[Side, Rows]]) -> dict[str, int]:
    names = [side.samples.split[row] for side, rows in parts for row in rows]
    return {name: names.count(name) for name in sorted(set(names))}

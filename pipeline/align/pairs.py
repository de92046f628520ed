"""Which pairs train and which validate: joined by id, cut by split, drawn by seed.

Used by `pipeline.align.run`; no feature is read here.
"""

from dataclasses import dataclass

import numpy as np

from pipeline.align.config import AlignConfig
from pipeline.errors import UserError
from pipeline.progress import Progress, say
from pipeline.store.join import join
from pipeline.store.side import Rows, Side

CARVED_SHARE = 0.1
MAX_CARVED = 1000


@dataclass(frozen=True)
class PairSet:
    """Images and their captions, the captions sorted by image.

    Args:
        image_rows: Rows of the image side, [M], each image once.
        caption_rows: Rows of the text side, [P].
        starts: [M + 1]; the captions of image i are `starts[i]:starts[i + 1]`, one at least.
    """

    image_rows: Rows
    caption_rows: Rows
    starts: Rows

    def __len__(self) -> int:
        return len(self.image_rows)

    @property
    def caption_image(self) -> Rows:
        """[P] position of each caption's image."""
        return np.repeat(np.arange(len(self), dtype=np.int64), np.diff(self.starts))

    def take(self, positions: Rows) -> "PairSet":
        """Return some of the images with all their captions."""
        counts = np.diff(self.starts)[positions]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        within = np.arange(starts[-1], dtype=np.int64) - np.repeat(starts[:-1], counts)
        captions = self.caption_rows[np.repeat(self.starts[:-1][positions], counts) + within]
        return PairSet(self.image_rows[positions], captions, starts)

    def pick(self, drawn: "Drawn") -> "PairSet":
        """Return the drawn images with the captions that were drawn of them."""
        return PairSet(self.image_rows[drawn.images], self.caption_rows[drawn.captions], drawn.starts)


@dataclass(frozen=True)
class Drawn:
    """Images of a `PairSet` and the captions of them that count, by position in it.

    Args:
        images: [m], ascending.
        captions: [p], sorted by image, then as they were.
        starts: [m + 1]; the captions of image i are `captions[starts[i]:starts[i + 1]]`.
    """

    images: Rows
    captions: Rows
    starts: Rows


@dataclass(frozen=True)
class Splits:
    """Pairs to train on and pairs to validate on (in random order, so that a part stands for all); no image in both."""

    train: PairSet
    validation: PairSet
    carved: bool
    """Whether the validation pairs were taken out of the training split."""


def split_pairs(image: Side, text: Side, config: AlignConfig, progress: Progress) -> Splits:
    """Join the sides and return training and validation pairs.

    Without a validation split a tenth of the training images (1000 at most) is carved out, always the same ones.

    Raises:
        UserError: Too few pairs in the training split, or a validation split of one image.
    """
    train = _pairs_of(image, text, config.train_split)
    if len(train) < 2:
        raise _too_few(image, text, config, len(train))
    validation = _pairs_of(image, text, config.validation_split)
    if len(validation) >= 2:
        return Splits(train, validation.take(_order(image, validation, seed=0)), carved=False)
    size = min(MAX_CARVED, max(2, round(CARVED_SHARE * len(train))))
    if len(train) - size < 2:
        raise _too_few(image, text, config, len(train))
    say(
        progress,
        f"The split {config.validation_split!r} has {len(validation)} images with captions: "
        f"{size} of {len(train)} training images are kept for validation instead.",
    )
    order = _order(image, train, seed=0)
    return Splits(train.take(np.sort(order[size:])), train.take(order[:size]), carved=True)


def subset(image: Side, pairs: PairSet, count: int | None, seed: int) -> Rows:
    """Return the positions of `count` training images drawn by seed; a smaller count is a part of a larger one's.

    Raises:
        UserError: There are fewer images than asked.
    """
    if count is None:
        return np.arange(len(pairs), dtype=np.int64)
    if count > len(pairs):
        raise UserError(
            expected=f"--pairs of {len(pairs)} at most (the training images that have captions)",
            found=str(count),
            remedy="ask for fewer, or leave --pairs out to take all",
        )
    return np.sort(_order(image, pairs, seed)[:count])


def draw(image: Side, text: Side, pairs: PairSet, config: AlignConfig, seed: int) -> Drawn:
    """Return the training data of a seed: `config.pairs` images, `config.captions_per_image` captions of each.

    Fewer images are a part of more, fewer captions a part of more, and which captions an image keeps does not depend
    on how many images there are.

    Raises:
        UserError: There are fewer images than asked.
    """
    images = subset(image, pairs, config.pairs, seed)
    kept = np.ones(len(pairs.caption_rows), dtype=np.bool_)
    if config.captions_per_image is not None:
        kept = _place_in_image(text, pairs, seed) < config.captions_per_image
    chosen = np.zeros(len(pairs), dtype=np.bool_)
    chosen[images] = True
    captions = np.flatnonzero(kept & chosen[pairs.caption_image])
    counts = np.bincount(pairs.caption_image[captions], minlength=len(pairs))[images]
    return Drawn(images, captions, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))


def _place_in_image(text: Side, pairs: PairSet, seed: int) -> Rows:
    """Return each caption's place [P] in a random order of its image's captions; it depends on ids and seed alone."""
    ids = [text.samples.sample_id[row] for row in pairs.caption_rows]
    by_id = sorted(range(len(ids)), key=ids.__getitem__)
    key = np.empty(len(ids), dtype=np.int64)
    key[by_id] = np.random.default_rng((seed, 1)).permutation(len(ids))
    order = np.lexsort((key, pairs.caption_image))
    place = np.empty(len(ids), dtype=np.int64)
    place[order] = np.arange(len(ids)) - np.repeat(pairs.starts[:-1], np.diff(pairs.starts))
    return place


def _order(image: Side, pairs: PairSet, seed: int) -> Rows:
    """Return a random order of images that depends on their ids and the seed, not on the order of rows."""
    ids = [image.samples.image_id[row] for row in pairs.image_rows]
    by_id = np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)
    return by_id[np.random.default_rng(seed).permutation(len(ids))]


def _pairs_of(image: Side, text: Side, split: str) -> PairSet:
    joined = join(image.samples, text.samples, split)
    order = np.argsort(joined.caption_image, kind="stable")
    counts = np.bincount(joined.caption_image, minlength=len(joined.image_rows))
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return PairSet(joined.image_rows, joined.caption_rows[order], starts)


def _too_few(image: Side, text: Side, config: AlignConfig, found: int) -> UserError:
    splits = sorted({name or "(none)" for name in image.samples.split})
    return UserError(
        expected=f"at least 4 images with captions in the split {config.train_split!r}",
        found=f"{found} (splits of the images: {', '.join(splits)})",
        where=f"{image.stores[0].path} and {text.stores[0].path}",
        remedy="check that both stores are of one data set and that captions carry their image's id",
    )

"""Which pairs train and which validate: joined by id, cut by split, drawn by seed; and their features on the device.

splits = split_pairs(image, text, config)
data = PairFeatures.read((image, text), layers, splits.train, device)
data = data.pick(draw(image, text, splits.train, config, seed=1))
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from pipeline.align.config import AlignConfig
from pipeline.errors import UserError
from pipeline.layers import LayerRef
from pipeline.progress import Progress, say, silent
from pipeline.store.samples import join
from pipeline.store.views import Rows, Side

Layers: TypeAlias = tuple[tuple[LayerRef, ...], tuple[LayerRef, ...]]
"""The layers that are concatenated, of the image side and of the text side."""
Widths: TypeAlias = tuple[list[int], list[int]]
"""Widths of the concatenated layers of the image side and of the text side."""
CARVED_SHARE = 0.1
MAX_CARVED = 1000


@dataclass(frozen=True)
class PairSet:
    """Images and their captions, the captions sorted by image.

    Args:
        image_rows: Rows of the image side, [M], each image once; or positions in a larger `PairSet` (see `pick`).
        caption_rows: Rows of the text side, [P], or positions.
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

    def pick(self, chosen: "PairSet") -> "PairSet":
        """Return the images and captions at the positions that `chosen` holds."""
        return PairSet(self.image_rows[chosen.image_rows], self.caption_rows[chosen.caption_rows], chosen.starts)

    def take(self, positions: Rows) -> "PairSet":
        """Return some of the images with all their captions."""
        return self.pick(with_captions(self.starts, positions))


def with_captions(starts: Rows, images: Rows) -> PairSet:
    """Return the positions of some images [m] and of all their captions, `starts` [M + 1] as in `PairSet`."""
    counts = np.diff(starts)[images]
    new_starts = _running_sum(counts)
    within = np.arange(new_starts[-1], dtype=np.int64) - np.repeat(new_starts[:-1], counts)
    return PairSet(images, np.repeat(starts[:-1][images], counts) + within, new_starts)


@dataclass(frozen=True)
class Splits:
    """Pairs to train on and pairs to validate on (in random order, so that a part stands for all); no image in both."""

    train: PairSet
    validation: PairSet
    carved: bool
    """Whether the validation pairs were taken out of the training split."""


def split_pairs(image: Side, text: Side, config: AlignConfig, progress: Progress = silent) -> Splits:
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
            remedy="ask for fewer, or leave out --pairs to use all of them",
        )
    return np.sort(_order(image, pairs, seed)[:count])


def draw(image: Side, text: Side, pairs: PairSet, config: AlignConfig, seed: int) -> PairSet:
    """Return the training data of a seed, as positions in `pairs`: images, and `captions_per_image` captions of each.

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
    return PairSet(images, captions, _running_sum(counts))


def _place_in_image(text: Side, pairs: PairSet, seed: int) -> Rows:
    """Return each caption's place [P] in a random order of its image's captions; it depends on ids and seed alone."""
    key = np.empty(len(pairs.caption_rows), dtype=np.int64)
    by_id = _by_id(text.samples.sample_id, pairs.caption_rows)
    key[by_id] = np.random.default_rng((seed, 1)).permutation(len(key))
    order = np.lexsort((key, pairs.caption_image))
    place = np.empty_like(key)
    place[order] = np.arange(len(key)) - np.repeat(pairs.starts[:-1], np.diff(pairs.starts))
    return place


def _order(image: Side, pairs: PairSet, seed: int) -> Rows:
    """Return a random order of images that depends on their ids and the seed, not on the order of rows."""
    by_id = _by_id(image.samples.image_id, pairs.image_rows)
    return by_id[np.random.default_rng(seed).permutation(len(by_id))]


def _by_id(ids: list[str], rows: Rows) -> Rows:
    """Return the positions of rows in the order of their ids."""
    return np.array(sorted(range(len(rows)), key=lambda position: ids[rows[position]]), dtype=np.int64)


def _pairs_of(image: Side, text: Side, split: str) -> PairSet:
    joined = join(image.samples, text.samples, split)
    order = np.argsort(joined.caption_image, kind="stable")
    counts = np.bincount(joined.caption_image, minlength=len(joined.image_rows))
    return PairSet(joined.image_rows, joined.caption_rows[order], _running_sum(counts))


def _running_sum(counts: Rows) -> Rows:
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def _too_few(image: Side, text: Side, config: AlignConfig, found: int) -> UserError:
    splits = sorted({name or "(none)" for name in image.samples.split})
    return UserError(
        expected=f"at least 4 images with captions in the split {config.train_split!r}",
        found=f"{found} (splits of the images: {', '.join(splits)})",
        where=f"{image.stores[0].root} and {text.stores[0].root}",
        remedy="check that both stores are of one data set and that captions carry their image's id",
    )


@dataclass(frozen=True)
class PairFeatures:
    """M images and their P captions as features on the device.

    Args:
        image: [M, D₁] float32.
        text: [P, D₂] float32, sorted by image.
        starts: [M + 1] int64; the captions of image i are `starts[i]:starts[i + 1]`.
        blocks: Widths of the concatenated layers of each side, where there are several.
    """

    image: Tensor
    text: Tensor
    starts: Tensor
    blocks: Widths | None = None

    def __len__(self) -> int:
        return len(self.image)

    @classmethod
    def read(cls, sides: tuple[Side, Side], layers: Layers, pairs: PairSet, device: torch.device) -> "PairFeatures":
        """Read the features of pairs (sides and layers: image, then text) and bring them to the device once."""
        image = sides[0].read(layers[0], pairs.image_rows)
        text = sides[1].read(layers[1], pairs.caption_rows)
        blocks = sides[0].widths(layers[0]), sides[1].widths(layers[1])
        return cls(image.to(device), text.to(device), torch.from_numpy(pairs.starts).to(device), blocks)

    @property
    def device(self) -> torch.device:
        """The device that all of it lies on."""
        return self.image.device

    @property
    def widths(self) -> Widths:
        """Widths of the concatenated layers of each side."""
        return self.blocks or ([self.image.shape[1]], [self.text.shape[1]])

    @property
    def caption_image(self) -> Tensor:
        """[P] position of each caption's image."""
        return torch.repeat_interleave(torch.arange(len(self), device=self.device), self.starts.diff())

    def head(self, images: int) -> "PairFeatures":
        """Return the first images with all their captions."""
        if images >= len(self):
            return self
        captions = int(self.starts[images])
        return PairFeatures(self.image[:images], self.text[:captions], self.starts[: images + 1], self.blocks)

    def take(self, images: Rows) -> "PairFeatures":
        """Return some images [m] with all their captions."""
        return self.pick(with_captions(self.starts.cpu().numpy(), images))

    def pick(self, chosen: PairSet) -> "PairFeatures":
        """Return the images and captions at the positions that `chosen` holds."""
        kept = chosen.image_rows, chosen.caption_rows
        whole = zip(kept, (self.image, self.text), strict=True)
        if all(np.array_equal(rows, np.arange(len(table))) for rows, table in whole):
            return self
        images, captions, starts = (torch.from_numpy(rows).to(self.device) for rows in (*kept, chosen.starts))
        return PairFeatures(self.image[images], self.text[captions], starts, self.blocks)

    def epoch(self, captions: Literal["one", "all"], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw the order of an epoch: rows of images and of captions, paired, each [M] (`one`) or [P] (`all`).

        Args:
            captions: `one` draws a caption an image, uniformly; `all` takes every caption once.
            generator: On the same device.
        """
        if captions == "all":
            order = torch.randperm(len(self.text), generator=generator, device=self.device)
            return self.caption_image[order], order
        order = torch.randperm(len(self), generator=generator, device=self.device)
        counts = self.starts.diff()
        chance = torch.rand(len(self), generator=generator, device=self.device, dtype=torch.float64)
        drawn = self.starts[:-1] + (chance * counts).long().clamp(max=counts - 1)
        return order, drawn[order]


def one_row_an_image(side: Side, layer: LayerRef, pairs: PairSet) -> Tensor:
    """Return a layer's features, one row an image [N, D]: its own, or the mean of its captions'."""
    if side.modality == "image":
        return side.read([layer], pairs.image_rows, constant_allowed=True)
    captions = side.read([layer], pairs.caption_rows, constant_allowed=True)
    owner = torch.from_numpy(pairs.caption_image)
    total = torch.zeros(len(pairs), captions.shape[1]).index_add_(0, owner, captions)
    return total / torch.bincount(owner, minlength=len(pairs))[:, None]

"""The test pairs, and what a run takes from a side's stores: its layers, checked against its record, as one tensor."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from pipeline.errors import UnknownNameError, UserError
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.join import Pairs, join
from pipeline.store.side import LayerRef, Rows, Side, parse_label


@dataclass(frozen=True)
class TestPairs:
    """The split that is evaluated.

    Args:
        image: The image stores.
        text: The text stores.
        pairs: M unique images, P captions, and which image each caption belongs to.
        split: Name of the split.
    """

    __test__ = False  # not a test class

    image: Side
    text: Side
    pairs: Pairs
    split: str

    @property
    def image_ids(self) -> list[str]:
        """Ids of the M images."""
        return [self.image.samples.image_id[row] for row in self.pairs.image_rows]

    @property
    def caption_ids(self) -> list[str]:
        """Ids of the P captions."""
        return [self.text.samples.sample_id[row] for row in self.pairs.caption_rows]

    @property
    def captions_of(self) -> Rows:
        """[M] number of captions of each image."""
        return np.bincount(self.pairs.caption_image, minlength=len(self.pairs.image_rows)).astype(np.int64)


def pairs_of_split(image: Side, text: Side, split: str) -> TestPairs:
    """Join images and captions of a split by image id.

    Raises:
        UnknownNameError: No image is in that split.
        UserError: None of its images has a caption.
    """
    splits = [name for name in dict.fromkeys(image.samples.split) if name]
    if split not in splits:
        raise UnknownNameError("split", split, splits, str(image.stores[0].path))
    pairs = join(image.samples, text.samples, split)
    if not len(pairs.image_rows):
        raise UserError(
            expected=f"captions of the images in split {split}",
            found="none that share an image id",
            where=str(text.stores[0].path),
            remedy="give the text store of the same data set",
        )
    return TestPairs(image, text, pairs, split)


def run_layers(run: AlignedRun, side: str) -> list[LayerRef]:
    """Return the layers that a run concatenates, in its order.

    Raises:
        UserError: A layer names no store of the run.
    """
    count = len(run.stores[side])
    found = []
    for name in run.layers[side]:
        layer = parse_label(name, count)
        if layer is None:
            expected = f"layers such as 0/{name} (store/layer, {count} stores)"
            raise UserError(expected=expected, found=repr(name), where=str(run.path / "run.json"))
        found.append(layer)
    return found


def check_side(run: AlignedRun, side: Side) -> None:
    """Refuse a run that was trained on features of another key than these stores'.

    Raises:
        KeyMismatchError: Names the fields that differ.
        UserError: Another number of stores, a layer that a store does not hold, or one of another width.
    """
    run.check(side.modality, [store.key.to_json() for store in side.stores], side.where)
    layers = run_layers(run, side.modality)
    for index, name in layers:
        known = [layer.name for layer in side.stores[index].layers]
        if name not in known:
            raise UnknownNameError("stored layer", name, known, str(side.stores[index].path))
    width, found = run.projector(side.modality).d_in, sum(side.widths(layers))
    if found != width:
        expected = f"{side.modality} features of width {width}, as the run {run.path.name!r} takes them"
        raise UserError(expected=expected, found=f"width {found}", where=side.where)


def run_features(run: AlignedRun, side: Side, at: Rows, *, constant_allowed: bool = False) -> Tensor:
    """Return a run's layers of the samples at these positions, concatenated [len(at), D], float32.

    Raises:
        UserError: A value is not finite, or all rows of a layer are the same (unless that is allowed).
    """
    return side.read(run_layers(run, side.modality), at, constant_allowed=constant_allowed)

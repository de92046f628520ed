"""The stores that are evaluated on: opened, joined by id, read one layer at a time.

A side may have several stores, one for each encoder that a run concatenates; a sample that one of them lacks is left
out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import UnknownNameError, UserError
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.join import Pairs, join
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import Samples

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class SideStores:
    """One modality's stores, with the samples that all of them hold.

    Args:
        side: `image` or `text`.
        stores: One store an encoder.
        samples: N samples that every store holds, in the first store's order.
        rows: For each store the rows [N] of these samples.
    """

    side: str
    stores: tuple[FeatureStore, ...]
    samples: Samples
    rows: tuple[Rows, ...]

    @classmethod
    def open(cls, side: str, paths: Sequence[Path]) -> "SideStores":
        """Open the stores of a side.

        Raises:
            UserError: A store is missing, unfinished, damaged, of the other modality, or they share no sample.
        """
        stores = tuple(FeatureStore.open(path) for path in paths)
        for store in stores:
            if store.key.modality != side:
                found = f"a store of {store.key.modality} features"
                raise UserError(expected=f"a store of {side} features", found=found, where=str(store.path))
        rows_by_id = [{sample: row for row, sample in enumerate(store.ids)} for store in stores]
        shared = [sample for sample in stores[0].ids if all(sample in rows for rows in rows_by_id)]
        if not shared:
            where = ", ".join(str(path) for path in paths)
            raise UserError(expected="stores of the same data set", found="no sample in common", where=where)
        rows = tuple(np.array([known[sample] for sample in shared], dtype=np.int64) for known in rows_by_id)
        return cls(side, stores, stores[0].samples.take(rows[0].tolist()), rows)

    def check(self, run: AlignedRun) -> None:
        """Refuse a run that was trained on features of another key.

        Raises:
            KeyMismatchError: Names the fields that differ.
            UserError: Another number of stores, or a layer that a store does not hold.
        """
        run.check(
            self.side, [store.key.to_json() for store in self.stores], ", ".join(str(s.path) for s in self.stores)
        )
        for index, name in run_layers(run, self.side):
            store = self.stores[index]
            known = [layer.name for layer in store.layers]
            if name not in known:
                raise UnknownNameError("stored layer", name, known, str(store.path))

    def features(self, run: AlignedRun, at: Rows) -> torch.Tensor:
        """Return a run's layers of the samples at these positions, concatenated [len(at), D], float32."""
        parts = [
            self.stores[index].gather(name, self.rows[index][at], dtype=torch.float32)
            for index, name in run_layers(run, self.side)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


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

    image: SideStores
    text: SideStores
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

    def captions_by_image(self) -> list[Rows]:
        """Return for each of the M images the positions of its captions."""
        order = np.argsort(self.pairs.caption_image, kind="stable")
        return np.split(order, np.cumsum(self.captions_of)[:-1])


def pairs_of_split(image: SideStores, text: SideStores, split: str) -> TestPairs:
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


def run_layers(run: AlignedRun, side: str) -> list[tuple[int, str]]:
    """Return the (store, layer) that a run concatenates, in its order.

    With several stores a layer is written `<store>/<layer>` in run.json.

    Raises:
        UserError: A layer names no store of the run.
    """
    names, count = run.layers[side], len(run.stores[side])
    if count == 1:
        return [(0, name) for name in names]
    found = []
    for name in names:
        store, slash, layer = name.partition("/")
        if not (slash and store.isdecimal() and int(store) < count):
            expected = f"layers such as 0/{name} (store/layer, {count} stores)"
            raise UserError(expected=expected, found=repr(name), where=str(run.path / "run.json"))
        found.append((int(store), layer))
    return found

"""Stores as others read them: the stores of a modality as one table, and rows for a torch `DataLoader`.

    side = Side.open("image", [path]); side.read([LayerRef(0, "output")], rows)

Several stores of a side are several encoders of one data set; a sample that one of them lacks is left out.

    rows = RowDataset(FeatureStore.open(path), ["output"])
    for features, number in DataLoader(rows, batch_size=1024, shuffle=True, num_workers=2): ...

`features["output"]` is a tensor [B, D], `number` [B] the row numbers: ids, splits and labels are those rows of
`store.samples`. A batch is gathered in one step from memory maps, so that workers share the pages; each worker opens
the files by itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import UserError
from pipeline.layers import LayerRef
from pipeline.storage.contract import Place
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import Samples

Rows = NDArray[np.int64]
Row = tuple[dict[str, Tensor], int]
"""Layer → [D], and the row number."""


@dataclass(frozen=True)
class Side:
    """The image or the text stores of a run.

    Args:
        modality: "image" or "text".
        stores: One store, or several of the same data set (encoders stacked).
        samples: N samples that all of them hold, in the first store's order.
        rows: For each store the rows [N] of these samples.
    """

    modality: str
    stores: tuple[FeatureStore, ...]
    samples: Samples
    rows: tuple[Rows, ...]

    @classmethod
    def open(cls, modality: str, places: Sequence[Place], *, remedy: str = "swap --image and --text") -> "Side":
        """Open stores and match their rows by sample id; `remedy` is the advice where one is of the other modality.

        Raises:
            UserError: A store is missing, damaged, unfinished or of the other modality, or they share no sample.
        """
        stores = tuple(FeatureStore.open(place) for place in places)
        for store in stores:
            if store.key.modality != modality:
                found = f"a store of {store.key.modality} features"
                expected = f"a store of {modality} features"
                raise UserError(expected=expected, found=found, where=str(store.root), remedy=remedy)
        if len(stores) == 1 and stores[0].rows:
            return cls(modality, stores, stores[0].samples, (np.arange(stores[0].rows, dtype=np.int64),))
        positions = [{name: row for row, name in enumerate(store.ids)} for store in stores]
        shared = [name for name in stores[0].ids if all(name in rows for rows in positions[1:])]
        if not shared:
            where = ", ".join(map(str, places))
            found = "no sample in common" if len(stores) > 1 else "a store without rows"
            raise UserError(expected="stores of the same data set", found=found, where=where)
        rows = tuple(np.array([known[name] for name in shared], dtype=np.int64) for known in positions)
        return cls(modality, stores, stores[0].samples.take(rows[0].tolist()), rows)

    @property
    def where(self) -> str:
        """The stores' folders, for errors."""
        return ", ".join(str(store.root) for store in self.stores)

    def layers(self) -> list[LayerRef]:
        """Return all layers of all stores, in order of depth within each."""
        return [LayerRef(index, layer.name) for index, store in enumerate(self.stores) for layer in store.layers]

    def label(self, layer: LayerRef) -> str:
        """Return a layer's name for people and records; with several stores the store's position stands before it."""
        return layer.label(len(self.stores))

    @property
    def offered(self) -> list[dict[str, int]]:
        """Of each store: layer → width."""
        return [{layer.name: layer.width for layer in store.layers} for store in self.stores]

    @property
    def keys(self) -> list[dict[str, Any]]:
        """Of each store: its key, as JSON."""
        return [store.key.to_json() for store in self.stores]

    def widths(self, layers: Sequence[LayerRef]) -> list[int]:
        """Return the widths of layers."""
        return [self.stores[layer.store].layer(layer.name).width for layer in layers]

    def read(self, layers: Sequence[LayerRef], chosen: Rows, *, constant_allowed: bool = False) -> Tensor:
        """Return the concatenated features [n, ΣD] of some samples, float32.

        Raises:
            UserError: A value is not finite or too large, or all rows of a layer are the same (unless that is allowed).
        """
        parts = [self._read_one(layer, chosen, constant_allowed) for layer in layers]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    def _read_one(self, layer: LayerRef, chosen: Rows, constant_allowed: bool) -> Tensor:
        rows = self.rows[layer.store][chosen]
        features = self.stores[layer.store].gather(layer.name, rows, dtype=torch.float32, keep=False)
        self._check_finite(features, layer, chosen)
        if not constant_allowed:
            self._check_constant(features, layer)
        return features

    def _check_finite(self, features: Tensor, layer: LayerRef, chosen: Rows) -> None:
        if torch.isfinite(features.norm()):  # NaN and infinity survive a sum of squares
            return
        broken = (~torch.isfinite(features)).any(dim=1).nonzero().flatten()
        if len(broken):
            first = self.samples.sample_id[int(chosen[int(broken[0])])]
            raise UserError(
                expected="finite features",
                found=f"NaN or infinity in {len(broken)} of {len(features)} rows, first in {first!r}",
                where=self._where(layer),
                remedy="choose another layer, or extract again with --dtype fp32",
            )
        huge = int((~torch.isfinite(features.norm(dim=1))).sum())
        if huge:
            raise UserError(
                expected="features whose squares fit float32",
                found=f"values up to {float(features.abs().max()):.0e} in {huge} of {len(features)} rows",
                where=self._where(layer),
                remedy="choose another layer, or scale the features before they are ingested",
            )

    def _check_constant(self, features: Tensor, layer: LayerRef) -> None:
        if len(features) > 1 and bool((features == features[0]).all()):
            raise UserError(
                expected="features that differ between samples",
                found=f"{len(features)} equal rows",
                where=self._where(layer),
                remedy="choose another layer, or look at the data set: every sample looks the same to this encoder",
            )

    def _where(self, layer: LayerRef) -> str:
        return f"{self.stores[layer.store].root}, layer {layer.name}"


class RowDataset:
    """A map-style data set: row number → ({layer: [D]}, row number).

    Args:
        store: The store.
        layers: Names of the layers to give.

    Raises:
        UserError: No layers.
        UnknownNameError: The store lacks one of them.
    """

    def __init__(self, store: FeatureStore, layers: Sequence[str]) -> None:
        if not layers:
            raise UserError(expected="one layer or more", found="none", where=str(store.root))
        for name in layers:
            store.layer(name)
        self.store = store
        self.layers = tuple(layers)

    def __len__(self) -> int:
        """Return N."""
        return self.store.rows

    def __getitem__(self, row: int) -> Row:
        """Return one row."""
        return self.__getitems__([range(len(self))[row]])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Row]:
        """Return several rows; what a `DataLoader` asks for a batch.

        Raises:
            DamagedStoreError: A shard is not what was committed.
        """
        numbers = np.asarray(rows, np.int64)
        taken = {name: self.store.gather(name, numbers, keep=False) for name in self.layers}
        return [({name: values[place] for name, values in taken.items()}, row) for place, row in enumerate(rows)]

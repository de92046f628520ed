"""Rows of a store for a torch `DataLoader`, with or without workers; each process opens the files by itself.

    rows = RowDataset(FeatureStore.open(path), ["output"])
    for features, number in DataLoader(rows, batch_size=1024, shuffle=True, num_workers=2): ...

`features["output"]` is a tensor [B, D], `number` [B] the row numbers: ids, splits and labels are those rows of
`store.samples`. A batch is gathered in one step from memory maps, so that workers share the pages.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.errors import UserError
from pipeline.store.reader import FeatureStore

if TYPE_CHECKING:
    import torch

Row = tuple[dict[str, "torch.Tensor"], int]


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
            raise UserError(expected="one layer or more", found="none", where=str(store.path))
        for name in layers:
            store.layer(name)
        self.store = store
        self.layers = tuple(layers)

    def __len__(self) -> int:
        return self.store.rows

    def __getitem__(self, row: int) -> Row:
        return self.__getitems__([range(len(self))[row]])[0]

    def __getitems__(self, rows: Sequence[int]) -> list[Row]:
        """Return several rows; what a `DataLoader` asks for a batch.

        Raises:
            DamagedStoreError: A shard is not what was committed.
        """
        numbers = np.asarray(rows, np.int64)
        taken = {name: self.store.gather(name, numbers, keep=False) for name in self.layers}
        return [({name: values[place] for name, values in taken.items()}, row) for place, row in enumerate(rows)]

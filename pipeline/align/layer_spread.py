"""Layers spread over the depth of an encoder, and a layer's features one row an image.

Used by `pipeline.align.layer_choice` for `--layers spread`, and by `layer_stack`.
"""

import numpy as np
import torch
from torch import Tensor

from pipeline.align.pairs import PairSet
from pipeline.errors import UserError
from pipeline.metrics.arrays import is_constant
from pipeline.projectors.base import unit_rows
from pipeline.store.side import LayerRef, Side

SPREAD = 3
"""Layers of a store that `spread` takes at most."""
WIDEST = 2048
"""Columns of a stack at most (a single layer may be wider): a closed form's time grows with their cube."""
FEW = 64
"""Training images that tell whether a layer is constant."""


def spread_layers(side: Side, train: PairSet, count: int = SPREAD, *, widest: int = WIDEST) -> tuple[LayerRef, ...]:
    """Return layers of each store, evenly spread from the first to the last; constant layers do not count.

    Args:
        side: The stores.
        train: Training pairs; a few of them tell constant layers.
        count: Layers of a store at most.
        widest: Columns of a store's layers at most; the last layer is taken however wide it is.

    Raises:
        UserError: A store whose layers are all constant.
    """
    few = train.take(np.arange(min(FEW, len(train))))
    chosen: list[LayerRef] = []
    for index, store in enumerate(side.stores):
        own = [layer for layer in side.layers() if layer.store == index]
        telling = [layer for layer in own if not is_constant(unit_rows(one_row_an_image(side, layer, few)))]
        if not telling:
            raise UserError(
                expected="a layer that tells samples apart", found="the same row everywhere", where=str(store.path)
            )
        fitting = [places for number in range(count, 1, -1) if (places := _spread(telling, number, side, widest))]
        chosen += fitting[0] if fitting else telling[-1:]
    return tuple(chosen)


def _spread(layers: list[LayerRef], count: int, side: Side, widest: int) -> list[LayerRef]:
    """Return `count` layers from the first to the last, none where there are not so many or they are too wide."""
    if count > len(layers):
        return []
    places = np.linspace(0, len(layers) - 1, count).astype(int)
    found = [layers[place] for place in places]
    return found if sum(side.widths(found)) <= widest else []


def one_row_an_image(side: Side, layer: LayerRef, pairs: PairSet) -> Tensor:
    """Return a layer's features, one row an image [N, D]: its own, or the mean of its captions'."""
    if side.modality == "image":
        return side.read([layer], pairs.image_rows, constant_allowed=True)
    captions = side.read([layer], pairs.caption_rows, constant_allowed=True)
    owner = torch.from_numpy(pairs.caption_image)
    total = torch.zeros(len(pairs), captions.shape[1]).index_add_(0, owner, captions)
    return total / torch.bincount(owner, minlength=len(pairs))[:, None]
